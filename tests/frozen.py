"""The migrations that are released: databases have them, so they never change again."""

from __future__ import annotations

import json
from pathlib import Path

from tests.project import ROOT

FROZEN_FILE = ROOT / "tests" / "data" / "frozen_migrations.json"
CALLS_OF_0_1 = ROOT / "tests" / "data" / "worker_0_1_calls.json"


def frozen_hashes() -> dict[str, dict[str, str]]:
    """Each release's migrations by their names, with the sha256 of their bytes."""
    hashes: dict[str, dict[str, str]] = json.loads(FROZEN_FILE.read_text(encoding="utf-8"))
    return hashes


def migrations_of(release: str, folder: Path = ROOT / "sql") -> list[Path]:
    """The files that a database of this release was made by, in their order."""
    return [folder / name for name in sorted(frozen_hashes()[release])]
