"""The artifact: the folder with the trained adapter that is published."""
