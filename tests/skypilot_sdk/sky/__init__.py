"""What the worker calls of SkyPilot's SDK, in the standard library and PyYAML: the suite does without the real one.

It sends what the real one sends (recorded from 0.14.1), and raises errors of the same names. With
`LORA_TEST_SKYPILOT_PYTHON` the same tests run with the real one.
"""

import yaml

__version__ = "0.14.1"


class Task:
    """`sky.Task`."""

    def __init__(self, config):
        self.config = {"secrets": {}, **config, "file_mounts": {}, "volumes": config.get("volumes", {})}
        for key in ("file_mounts",):
            if key in config:
                self.config[key] = config[key]
        self.config["_user_specified_yaml"] = yaml.safe_dump(config)

    @classmethod
    def from_yaml_config(cls, config):
        """A task of its YAML."""
        return cls(config)

    def update_secrets(self, secrets):
        """Give it secrets."""
        self.config["secrets"] = dict(secrets)


class CommandError(Exception):
    """A stand-in's error."""
