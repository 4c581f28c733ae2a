"""Reads datasets of every accepted format, line by line, into training examples. Imports no heavy library."""
