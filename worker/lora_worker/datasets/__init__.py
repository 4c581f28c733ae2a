"""What can be known of a dataset and of a job before a GPU is paid for."""
