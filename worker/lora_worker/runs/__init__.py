"""A run from its claim to its settled rows."""
