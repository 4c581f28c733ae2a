"""From a dataset to tokenised rows."""
