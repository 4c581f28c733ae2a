"""`sky.client`."""
