"""What this worker knows of a held run, what can happen to one, and what can be read from both."""
