"""The errors of the sandbox. The text of each is a sentence for the user that says what to do.

SandboxError
├── ToolMissingError      a binary, package or account that the sandbox needs is missing
├── ChildFailedError      a process that was started has ended, or does not answer
└── DemoError             the demo can't continue (see `sandbox.demo`)
"""

from __future__ import annotations


class SandboxError(Exception):
    """Base of all errors of the sandbox. The text is for the user."""


class ToolMissingError(SandboxError):
    """A binary, a package or an account of this machine that the sandbox needs is missing."""


class ChildFailedError(SandboxError):
    """A process that the sandbox started ended early or did not answer in time."""


class DemoError(SandboxError):
    """The demo can't continue, for a reason that the user can do something about."""
