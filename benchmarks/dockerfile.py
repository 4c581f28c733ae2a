"""Reads the Dockerfile, and makes a Python like that of a base image to try its steps with. Needs no Docker."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

_EXTERNALLY_MANAGED = (
    "[externally-managed]\nError=This Python belongs to the distribution: make a virtual environment.\n"
)


@dataclass
class Stage:
    """One `FROM` and the instructions after it. Environment variables are as written, including `$NAME`."""

    base: str
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    copies: list[tuple[list[str], str]] = field(default_factory=list)
    """The source paths of each COPY, and its target."""
    runs: list[str] = field(default_factory=list)
    command: str = ""
    """The CMD, a JSON list."""
    health: str = ""
    """The command of the HEALTHCHECK, a JSON list."""
    user: str = "root"

    def take(self, word: str, rest: str) -> None:
        """Take in one instruction.

        Raises:
            ValueError: the instruction is not known here.
        """
        match word:
            case "ENV":
                self.environment |= dict(pair.split("=", 1) for pair in rest.split())
            case "COPY":
                *sources, target = rest.split()
                self.copies.append((sources, target))
            case "RUN":
                self.runs.append(rest)
            case "CMD":
                self.command = rest
            case "HEALTHCHECK":
                self.health = rest.partition("CMD ")[2]
            case "USER":
                self.user = rest
            case "WORKDIR":
                pass
            case _:
                raise ValueError(f"{word} is not known here: add it, and what tries it.")


def read_dockerfile(path: Path) -> dict[str, Stage]:
    """Return the stages of a Dockerfile, by name.

    Raises:
        ValueError: the Dockerfile has an instruction that is not known here.
    """
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in _instructions(path.read_text(encoding="utf-8")):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages[name] = Stage(base, name)
        elif stage is None:
            raise ValueError(f"{word} stands before the first FROM.")
        else:
            stage.take(word, rest)
    return stages


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def stage_files(stage: Stage, project: Path, folder: Path) -> None:
    """Copy the files of a stage into `folder`, as Docker would into its working directory.

    Raises:
        FileNotFoundError: a source does not exist, or .dockerignore excludes it.
    """
    ignored = set((project / ".dockerignore").read_text(encoding="utf-8").split())
    for sources, target in stage.copies:
        for source in sources:
            if source.split("/")[0] in ignored or not (project / source).exists():
                raise FileNotFoundError(f"COPY {source}: it is not in the build's context.")
            goal = folder / target
            if (project / source).is_dir():
                shutil.copytree(
                    project / source, goal, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
                )
                continue
            if target.endswith("/") or len(sources) > 1:
                goal = goal / Path(source).name
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / source, goal)


def make_distribution_python(prefix: Path, *, managed: bool = True) -> Path:
    """Make a Python under `prefix` and return its executable.

    With `managed` it is externally managed, like that of a Linux distribution: pip refuses to install into it. Like
    that of a base image it has pip but no ensurepip. It also has the packages of the running Python.
    """
    library = Path(sysconfig.get_path("stdlib"))
    own = prefix / sys.platlibdir / library.name
    own.mkdir(parents=True)
    for entry in library.iterdir():
        if entry.name not in {"site-packages", "dist-packages", "ensurepip", "EXTERNALLY-MANAGED", "__pycache__"}:
            (own / entry.name).symlink_to(entry)
    if managed:
        (own / "EXTERNALLY-MANAGED").write_text(_EXTERNALLY_MANAGED, encoding="utf-8")
    packages = own / "site-packages"
    packages.mkdir()
    # As a site directory and not as a path, so that .pth files in it are read as well.
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "base-image.pth").write_text(line, encoding="utf-8")
    (prefix / "bin").mkdir()
    executable = prefix / "bin" / f"python3.{sys.version_info.minor}"
    shutil.copy(Path(sys.executable).resolve(), executable)
    for name in ("python3", "python"):
        (prefix / "bin" / name).symlink_to(executable.name)
    return executable
