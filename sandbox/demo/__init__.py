"""The demo: one training job on this machine, from a queued row to a verified adapter (`make demo`)."""
