"""What maintainers run: pages that are made from the code."""
