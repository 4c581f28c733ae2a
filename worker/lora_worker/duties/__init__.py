"""What the daemon does again and again, and how it starts and stops."""
