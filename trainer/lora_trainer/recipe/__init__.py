"""The training: its settings, its steps, its checkpoints, and what the user is told about it."""
