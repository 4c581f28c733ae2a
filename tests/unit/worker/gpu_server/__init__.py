"""The GPU server: its stored jobs, its processes, its API."""
