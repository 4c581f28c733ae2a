"""The command line `lora-worker`, with a module for each command that has logic of its own."""
