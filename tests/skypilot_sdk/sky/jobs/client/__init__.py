"""`sky.jobs.client`."""
