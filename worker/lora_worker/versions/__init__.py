"""Versions of a model: how they compare, which is the best, and the stable name that leads to one of them."""
