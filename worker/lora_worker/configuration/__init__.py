"""The worker's settings: where they are read from, and how they are checked."""
