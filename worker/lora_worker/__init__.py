"""The daemon: claims training jobs, launches runs, polls them, settles them. Never imports torch."""
