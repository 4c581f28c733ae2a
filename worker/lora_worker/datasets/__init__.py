"""Checks of jobs and datasets that are made before the worker pays for a GPU."""
