"""Turns files that hold conversations in another form into JSON Lines of messages, on the user's own machine."""
