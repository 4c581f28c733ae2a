"""What can go wrong on the user's own machine, each in one sentence that says what to do.

SandboxError
├── ToolMissingError      a binary or package that the sandbox needs is not there
├── ChildFailedError      a server that was started ended or never answered
└── DemoError             the demo can't go on (see `sandbox.demo`)
"""

from __future__ import annotations


class SandboxError(Exception):
    """Base of everything that the sandbox raises on purpose; its text is meant for the user."""


class ToolMissingError(SandboxError):
    """A binary, a package or an account of this machine that the sandbox needs is missing."""


class ChildFailedError(SandboxError):
    """A process that the sandbox started ended early or did not answer in time."""


class DemoError(SandboxError):
    """The demo can't go on, for a reason that its user can act on."""
