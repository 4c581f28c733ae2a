"""Where the project lies."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("contract", "conversations", "worker", "trainer")
IMPORT_PATH = os.pathsep.join(str(ROOT / folder) for folder in (*PACKAGES, ""))
"""For a process that must find the packages of this checkout, whatever is installed."""
