"""Every format of dataset that is accepted, read line by line into examples. Imports nothing heavy."""
