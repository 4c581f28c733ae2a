"""A GPU machine of one's own."""
