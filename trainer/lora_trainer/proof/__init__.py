"""The process that tries the published files of a finished training on its base, as a server would."""
