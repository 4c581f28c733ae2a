"""One execution of one run: check-in, the training process, uploads, the result."""
