"""What starts, polls and cancels runs on GPU clouds."""
