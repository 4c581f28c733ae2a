"""`make image-check`: tries every step of the Dockerfile, as far as this is possible without Docker, in about a minute.

Each `RUN` is executed in order, with the files of its stage, and with a Python that is externally managed like that of
the base image. pip fetches the metadata of every package for the image's Python and platform, but installs nothing.
Then the commands of the image are started, health check included. Only Docker can try the rest: the compiler,
`useradd`, and imports of compiled packages. Exits with 1 if a step fails.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.dockerfile import Stage, make_distribution_python, read_dockerfile, stage_files

PROJECT = Path(__file__).parents[1]
IMAGE_PYTHON = "3.12"
_GLIBC = range(17, 40)  # Ubuntu 24.04 has 2.39
_PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC), "manylinux2014_x86_64", "manylinux1_x86_64"]
_COMPILED = re.compile(r"\b(causal_conv1d|fla), ")
_PROJECT_ITSELF = re.compile(r' "?\.(?P<extras>\[[\w,]+\])?"?$')
"""The end of a command of pip that installs this project."""
_OF_THE_BASE_IMAGE = {"torch", "triton"}
_IMPORTS = {
    "worker": "lora_worker.commands.cli, lora_worker.duties.daemon, lora_worker.database.migrations",
    "trainer": "lora_trainer.handler, lora_trainer.recipe.train, lora_trainer.proof.process, "
    "lora_worker.database.migrations",
}
_FROM_ELSEWHERE = """
import sys, {modules}
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
strays = [name for name in files if name.startswith({project!r}) and "site-packages" not in name]
if not strays and not lora_worker.database.migrations.migration_files():
    strays = ["the files of sql/"]
sys.exit("The image lacks " + ", ".join(strays) if strays else 0)
"""


_FOREIGN = ("PYTHON", "VIRTUAL_ENV", "LORA_", "SUPABASE_", "RUNPOD_")
_ALIVE = """
import time
from lora_worker.observability.health import HealthServer
server = HealthServer("127.0.0.1", {port}, alive=lambda: {problem!r}, ready=lambda: None)
print(f"LORA_WORKER_HTTP_PORT={{server.port or 0}}", flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class Trial:
    """One start of a command of the image, and how it must end."""

    what: str
    status: int
    words: str = ""
    """A part of what it must print."""
    is_health: bool = False
    """Whether it is the command of the HEALTHCHECK, and not of the CMD."""
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    beside: str = ""
    """A program that runs meanwhile. It prints one line with environment variables for the command."""


TRIALS = {
    "worker": [
        Trial("without settings it says what is missing", 2, "SUPABASE_URL"),
        Trial("nothing runs", 1, "does not answer", is_health=True, environment={"LORA_WORKER_HTTP_PORT": "1"}),
        Trial("a worker is alive", 0, is_health=True, beside=_ALIVE.format(port=0, problem=None)),
        Trial("a worker hangs", 1, "it hangs", is_health=True, beside=_ALIVE.format(port=0, problem="it hangs")),
        Trial("a worker without a port is alive", 0, is_health=True, beside=_ALIVE.format(port=None, problem=None)),
    ],
    "trainer": [
        Trial(
            "a malformed errand is refused with a sentence", 1, "The request's models is wrong",
            arguments=("--test_input", json.dumps({"input": {"kind": "prefetch", "models": []}})),
        ),
        Trial(
            "libraries and kernels are fit, here on the CPU", 0, "agrees with the reference",
            arguments=("--test_input", json.dumps({"input": {"kind": "fitness"}})),
            environment={"LORA_TRAINER_NEEDS_GPU": "false", "OMP_NUM_THREADS": "1"},
        ),
    ],
}  # fmt: skip


def main() -> int:
    """Try all stages and print the results; returns 1 if a step failed."""
    faults = []
    for stage in read_dockerfile(PROJECT / "Dockerfile").values():
        with tempfile.TemporaryDirectory() as name:
            faults += [f"{stage.name}: {fault}" for fault in try_stage(stage, Path(name))]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def try_stage(stage: Stage, folder: Path) -> list[str]:
    """Execute the steps of a stage below `folder`; returns a list of what is wrong with it."""
    context, prefix = folder / "app", folder / "base"
    stage_files(stage, PROJECT, context)
    make_distribution_python(prefix, managed=not stage.base.startswith("python:"))
    for name, line in (("useradd", "exit 0"), ("pip", 'exec "${0%/*}/python3" -m pip "$@"')):
        (prefix / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (prefix / "bin" / name).chmod(0o755)
    commands = [part for run in stage.runs for part in run.split(" && ")]
    reports = []
    for number, command in enumerate([*commands, f"python3 -c '{_imports_of(stage)}'"]):
        report = folder / f"{number}.json"
        ended = run_step(stage, command, folder, report)
        print(f"{stage.name}: {'ok    ' if ended.returncode == 0 else 'FAILED'} {command.splitlines()[0]}")
        if ended.returncode:
            return [f"{command}\n{ended.stderr.strip()[-2000:]}"]
        if report.exists():
            reports += json.loads(report.read_text())["install"]
    unmet = _unmet(reports, extras=extras_of(stage))
    return [*_not_from_wheels(reports), *dict.fromkeys(unmet), *try_commands(stage, folder)]


def extras_of(stage: Stage) -> list[str]:
    """The extras of our own package that the stage's environment must satisfy; the empty one is the plain install."""
    if stage.name == "trainer":
        return ["trainer"]  # it is installed without its dependencies, which its lock lists
    commands = [part for run in stage.runs for part in run.split(" && ")]
    found = [match["extras"] or "" for command in commands if (match := _PROJECT_ITSELF.search(command))]
    return ["", *re.findall(r"\w+", "".join(found))]


def try_commands(stage: Stage, folder: Path) -> list[str]:
    """Start what the image starts, with what was installed below `folder`; returns a list of what is wrong with it."""
    write_scripts(folder / "installed", folder / "base" / "bin")
    faults = []
    for trial in TRIALS[stage.name]:
        command = json.loads(stage.health if trial.is_health else stage.command)
        ended = _run_trial(trial, command, stage, folder)
        is_right = ended.returncode == trial.status and trial.words in ended.stdout + ended.stderr
        print(f"{stage.name}: {'ok    ' if is_right else 'FAILED'} {' '.join(command)}: {trial.what}")
        if not is_right:
            said = (ended.stdout + ended.stderr).strip()[-1000:]
            faults.append(f"{trial.what}: {command} ended with {ended.returncode}: {said}")
    return faults


def write_scripts(installed: Path, folder: Path) -> None:
    """Write the commands of the installed wheels into `folder`, as pip does."""
    for distribution in distributions(path=[str(installed)]):
        for point in distribution.entry_points.select(group="console_scripts"):
            path = folder / point.name
            path.write_text(f"#!{folder}/python3\nfrom {point.module} import {point.attr}\n{point.attr}()\n")
            path.chmod(0o755)


def _run_trial(trial: Trial, command: list[str], stage: Stage, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    environment |= {name: value for name, value in stage.environment.items() if name not in {"HF_HOME", "PATH"}}
    environment |= {"PYTHONPATH": str(folder / "installed"), "PATH": f"{folder}/base/bin:/usr/bin:/bin"}
    environment |= trial.environment
    beside = None
    if trial.beside:
        beside = subprocess.Popen(
            ["python3", "-c", trial.beside], env=environment, cwd=folder, stdout=subprocess.PIPE, text=True
        )
        assert beside.stdout is not None
        for name, value in (pair.split("=") for pair in beside.stdout.readline().split()):
            environment[name] = value
    try:
        return subprocess.run(
            [*command, *trial.arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
    finally:
        if beside is not None:
            beside.kill()
            beside.communicate()


def run_step(stage: Stage, command: str, folder: Path, report: Path) -> subprocess.CompletedProcess[str]:
    """Execute one command of a `RUN` with the stage's environment; its paths are moved below `folder`."""

    def moved(text: str) -> str:
        return _COMPILED.sub("", text.replace("/opt/", f"{folder}/opt/"))

    search = f"{folder}/base/bin:/usr/bin:/bin"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {name: moved(value) for name, value in stage.environment.items() if name != "HF_HOME"}
    # What the wheel installs comes before this project's own folders, which an editable install puts on the path.
    environment["PYTHONPATH"] = str(folder / "installed")
    environment["PATH"] = moved(stage.environment.get("PATH", "$PATH")).replace("$PATH", search)

    def carry_out(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", text], cwd=folder / "app", env=environment, capture_output=True, text=True, check=False
        )

    if project := _PROJECT_ITSELF.search(command):
        # The wheel is built before the variables below are set: pip would pass them on to the build.
        built = carry_out(f"python3 -m pip wheel --quiet --no-deps --wheel-dir {folder}/dist .")
        if built.returncode:
            return built
        wheel = next((folder / "dist").glob("*.whl"))
        if strangers := modules_of_others(wheel):
            return subprocess.CompletedProcess(command, 1, "", f"The wheel also installs {', '.join(strangers)}.")
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder / "installed")
        command = f'{command[: project.start()]} "{wheel}{project["extras"] or ""}"'
    if " install " in command:
        # First without the variables below: with them, pip would not check whether this Python is externally managed.
        may = carry_out(moved(f"{command.partition(' install ')[0]} install --no-index no-such-package"))
        if "externally-managed" in may.stderr:
            return may
    environment |= {
        "CAUSAL_CONV1D_SKIP_CUDA_BUILD": "TRUE",
        "PIP_DRY_RUN": "1",
        "PIP_QUIET": "1",
        "PIP_REPORT": str(report),
        "PIP_TARGET": str(folder / "target"),
        "PIP_IGNORE_INSTALLED": "1",
        "PIP_PYTHON_VERSION": IMAGE_PYTHON,
        "PIP_IMPLEMENTATION": "cp",
        "PIP_PLATFORM": " ".join(_PLATFORMS),
    }
    if " -r " in command:
        # `_unmet` checks whether the pins fit together. pip would download torch for that, which the base image has.
        environment["PIP_NO_DEPS"] = "1"
    elif "--no-deps" not in command:
        environment["PIP_ONLY_BINARY"] = ":all:"
    return carry_out(moved(command))


def modules_of_others(wheel: Path) -> list[str]:
    """Return the top-level modules of a wheel whose names do not begin with ours: other projects may have the same."""
    with zipfile.ZipFile(wheel) as packed:
        tops = {name.split("/")[0] for name in packed.namelist()}
    return sorted(top for top in tops if not top.startswith("lora_"))


def _imports_of(stage: Stage) -> str:
    return _FROM_ELSEWHERE.format(modules=_IMPORTS[stage.name], project=str(PROJECT)).replace("'", '"')


def _not_from_wheels(reports: list[dict[str, Any]]) -> Iterator[str]:
    for item in reports:
        name, url = item["metadata"]["name"], item["download_info"]["url"]
        if not url.endswith(".whl") and canonicalize_name(name) != "causal-conv1d":
            yield f"{name} has no wheel for Python {IMAGE_PYTHON}: it would be compiled, unpinned build tools and all."


def _unmet(reports: list[dict[str, Any]], *, extras: Iterable[str]) -> Iterator[str]:
    """Yield the requirements of pinned packages that no pin fulfils; `extras` are those of our own package."""
    pinned = {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in reports}
    needed: set[tuple[str, str]] = {*((name, "") for name in pinned), *(("lora-worker", extra) for extra in extras)}
    done: set[tuple[str, str]] = set()
    while wanted := needed - done:
        name, chosen = wanted.pop()
        done.add((name, chosen))
        for text in pinned[name].get("requires_dist", []):
            requirement = Requirement(text)
            target = canonicalize_name(requirement.name)
            if not _applies(requirement, chosen) or target in _OF_THE_BASE_IMAGE or target.startswith("nvidia-c"):
                continue
            if target not in pinned:
                yield f"{name} needs {requirement}, which nothing pins."
            elif not requirement.specifier.contains(pinned[target]["version"], prereleases=True):
                yield f"{name} needs {requirement}, and {pinned[target]['version']} is pinned."
            else:
                needed |= {(target, more) for more in requirement.extras}


def _applies(requirement: Requirement, extra: str) -> bool:
    environment = {**default_environment(), "python_version": IMAGE_PYTHON, "python_full_version": f"{IMAGE_PYTHON}.3"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra})


if __name__ == "__main__":
    sys.exit(main())
