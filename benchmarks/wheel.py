"""`make wheel-check`: installs the wheel into a bare environment of each Python that it supports, and starts it.

Nothing of this checkout is on the path. A Python that this machine lacks is named and left out, unless the arguments
ask for it: `python -m benchmarks.wheel 3.13`. Exits with 1 if a step fails or a wanted Python is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]
SUPPORTED = ("3.11", "3.12", "3.13")
_SQL = "from lora_worker.database.migrations import migration_files; assert migration_files(), 'no SQL in the wheel'"
_ALONE = (
    "import importlib.util as find, lora_worker, sys;"
    "assert lora_worker.__file__.startswith(sys.prefix), lora_worker.__file__;"
    "assert not any(map(find.find_spec, ('torch', 'runpod', 'sandbox'))), 'the plain install is the daemon alone'"
)
STEPS: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (("python", "-c", _ALONE), 0, ""),
    (("python", "-c", _SQL), 0, ""),
    (("python", "-m", "pip", "check"), 0, "No broken requirements"),
    (("lora-worker", "--help"), 0, "healthcheck"),
    (("lora-worker", "settings", "--json"), 0, "SUPABASE_URL"),
    (("lora-worker", "run"), 2, "SUPABASE_URL"),
    (("env", "LORA_WORKER_HTTP_PORT=1", "lora-worker", "healthcheck"), 1, "does not answer"),
    (("lora-trainer", "--help"), 0, "prefetch"),
)
"""Each command in the new environment, the exit code that it must have, and a part of what it must print."""


def find_python(version: str) -> str | None:
    """The Python of that version on this machine, or None."""
    candidates = [
        shutil.which(f"python{version}"),
        *Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"),
    ]
    for candidate in filter(None, candidates):
        works = subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False)
        if works.returncode == 0:
            return str(candidate)
    return None


def try_wheel(wheel: Path, python: str, folder: Path) -> list[str]:
    """Install the wheel into a new environment in `folder`; returns a list of what is wrong with it."""
    kept = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG"} or name.startswith("PIP_")}
    environment = {**kept, "PATH": f"{folder}/venv/bin:/usr/bin:/bin"}
    empty = folder / "empty"
    empty.mkdir()

    def carry_out(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, cwd=empty, capture_output=True, text=True, check=False)

    for command in (
        (python, "-m", "venv", f"{folder}/venv"),
        ("python", "-m", "pip", "install", "--quiet", str(wheel)),
    ):
        done = carry_out(*command)
        if done.returncode:
            return [f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-1000:]}"]
    faults = []
    for command, status, words in STEPS:
        done = carry_out(*command)
        said = done.stdout + done.stderr
        if done.returncode != status or words not in said or "Traceback" in said:
            faults.append(f"{' '.join(command)[:60]} ended with {done.returncode}: {said.strip()[-1000:]}")
    return faults


def main(wanted: list[str]) -> int:
    """Build the wheel, try it with each Python, and print the results; returns 1 if a step failed."""
    failed = False
    with tempfile.TemporaryDirectory() as name:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", name, str(PROJECT)]
        subprocess.run(build, check=True)
        (wheel,) = Path(name).glob("lora_worker-*.whl")
        for version in wanted or SUPPORTED:
            python = find_python(version)
            if python is None:
                print(f"Python {version}: not on this machine")
                failed |= bool(wanted)
                continue
            with tempfile.TemporaryDirectory() as folder:
                faults = try_wheel(wheel, python, Path(folder))
            print(f"Python {version}: {'FAILED' if faults else 'ok'}")
            for fault in faults:
                print(fault, file=sys.stderr)
            failed |= bool(faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
