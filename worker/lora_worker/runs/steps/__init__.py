"""The steps of the work on a held run: each reads it, does its part, and returns what happened."""
