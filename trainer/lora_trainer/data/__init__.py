"""Turns a dataset into tokenised rows."""
