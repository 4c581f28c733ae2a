"""The command line and the commands that are more than a call."""
