"""`sky.jobs`."""
