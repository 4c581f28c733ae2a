"""Requests that are no training: filling the volume with base models, and checking the machine."""
