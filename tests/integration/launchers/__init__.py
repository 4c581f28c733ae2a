"""Every launcher keeps the promises of `launchers/base.py`, against its real other side or a strict stand-in."""
