"""What stands in for an inference endpoint."""
