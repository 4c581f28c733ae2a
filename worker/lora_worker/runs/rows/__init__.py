"""What the application reads of a run: columns of its job, points, artifact, notices."""
