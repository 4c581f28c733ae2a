"""What worker, trainer and dataset readers share: the protocol and its bounds. Imports nothing heavy."""
