"""The steps of the image, as far as they run without Docker and internet; `make image-check` tries the rest."""

import json
import re
import subprocess
import tomllib
import zipfile
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.dockerfile import make_distribution_python, read_dockerfile, stage_files
from benchmarks.image import extras_of, modules_of_others
from tests.project import ROOT

PROJECT = ROOT
STAGES = read_dockerfile(PROJECT / "Dockerfile")
LOCKS = ["trainer/requirements.lock", "trainer/kernels.lock", "worker/notify.lock"]


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """A distribution's Python: pip refuses to change it, and it has no ensurepip."""
    prefix = tmp_path_factory.mktemp("base")
    make_distribution_python(prefix)
    return prefix


@pytest.fixture
def package(tmp_path):
    """A package to install, on this disk."""
    path = tmp_path / "trifle-1.0-py3-none-any.whl"
    about = "trifle-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("trifle.py", "")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: trifle\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", f"trifle.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    return path


def run(command, prefix, path=None):
    search = f"{path or prefix / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        ["sh", "-c", command], env={"PATH": search}, cwd=prefix, capture_output=True, text=True, check=False
    )


def test_base_images_python_refuses_pip_as_in_pep_668(distribution, package):
    refused = run(f"python3 -m pip install --no-index {package}", distribution)
    assert refused.returncode != 0
    assert "externally-managed-environment" in refused.stderr


def test_trainers_steps_install_beside_a_protected_python(distribution, package):
    trainer = STAGES["trainer"]
    first = trainer.runs[0].replace("/opt/trainer", str(distribution / "trainer"))
    made = run(first, distribution)
    assert made.returncode == 0, made.stderr
    path = trainer.environment["PATH"].replace("/opt/trainer", str(distribution / "trainer"))
    path = path.replace("$PATH", f"{distribution / 'bin'}")
    installed = run(
        f"python -m pip install --no-index {package} && python -c 'import trifle, torch'", distribution, path
    )
    assert installed.returncode == 0, installed.stderr
    assert json.loads(trainer.command)[0] == "python", "the command's Python is the environment's, by PATH"


def test_environment_is_created_before_anything_is_installed():
    first, *rest = STAGES["trainer"].runs
    assert "-m venv" in first
    assert "pip" not in first.split()
    assert all(re.match(r"python -m pip|.*&& .*python -m pip|python -c", run) for run in rest)


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_copies_exactly_the_files_its_steps_name(name, tmp_path):
    stage = STAGES[name]
    stage_files(stage, PROJECT, tmp_path)
    for run in stage.runs:
        for lock in re.findall(r"(?:-r|--constraint) (\S+)", run):
            assert (tmp_path / lock).is_file()
    assert {"contract", "conversations", "worker", "trainer", "sql"} <= {path.name for path in tmp_path.iterdir()}, (
        "what the wheel packs"
    )


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_pins_one_version(lock):
    lines = [line for line in (PROJECT / lock).read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line) for line in lines)
    names = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert len(names) == len(set(names))
    assert not {"torch", "triton"} & set(names), "the base image brings it"


def pins_of(lock):
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (PROJECT / lock).read_text(), re.M)
    return {canonicalize_name(name): version for name, version in pinned}


def test_worker_image_pins_all_that_sends_notices():
    beside, own = pins_of(LOCKS[0]), pins_of(LOCKS[2])
    assert not beside.keys() & own.keys()
    pinned, wanted = {**beside, **own}, {"apprise"}
    done = set()
    while left := wanted - done:
        name = left.pop()
        done.add(name)
        assert name in pinned, f"{name} is not in {LOCKS[2]}"
        needed = map(Requirement, requires(name) or [])
        wanted |= {
            canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": ""})
        }
    assert own.keys() <= done


def test_lock_contains_every_dependency_of_the_project():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    pinned = pins_of(LOCKS[0])
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["trainer"], *extras["telemetry"]]:
        needed = Requirement(text)
        if needed.name != "torch":  # the base image's
            version = pinned.get(canonicalize_name(needed.name))
            assert version is not None, f"{text} is not in {LOCKS[0]}: run make lock"
            assert needed.specifier.contains(version), f"{text} is pinned at {version}: run make lock"


def test_packages_in_both_locks_have_the_same_version():
    first, second, _ = map(pins_of, LOCKS)
    assert {name: first[name] for name in first.keys() & second.keys()} == {
        name: second[name] for name in first.keys() & second.keys()
    }


def test_pip_installs_only_pinned_packages():
    for stage in STAGES.values():
        for run in stage.runs:
            for command in re.findall(r"pip install ([^&]+)", run):
                words = [word.strip('"') for word in command.split() if not word.startswith("-")]
                loose = [word for word in words if not re.search(r"==|\.lock$|^\.(\[[a-z,]+\])?$|^:all:$", word)]
                assert not loose, f"{loose} in {run}"


def test_causal_conv1d_compiles_instead_of_downloading_a_wheel():
    (run,) = [run for run in STAGES["trainer"].runs if re.search(r"causal-conv1d==", run)]
    (command,) = [command for command in run.split(" && ") if "causal-conv1d==" in command]
    assert command.startswith("CAUSAL_CONV1D_FORCE_BUILD=TRUE ")
    assert "devel" in STAGES["trainer"].base, "only that has a compiler"
    assert "einops" in (PROJECT / "trainer/kernels.lock").read_text(), "flash-linear-attention needs it, unpinned"


def test_docker_builds_both_images_where_docker_is_installed():
    workflow = (PROJECT / ".github/workflows/images.yml").read_text()
    assert set(re.findall(r"target: (\w+)", workflow)) == set(STAGES)


def test_wheel_with_a_common_module_name_is_detected(tmp_path):
    path = tmp_path / "lora_worker-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in ("lora_worker/sql/1.sql", "lora_worker-0.1.0.dist-info/METADATA", "trainer/__init__.py"):
            wheel.writestr(name, "")
    assert modules_of_others(path) == ["trainer"]


def test_extras_that_the_worker_is_installed_with_are_checked():
    named = re.findall(r"\w+", re.search(r"\.\[([\w,]+)\]", " ".join(STAGES["worker"].runs))[1])
    assert extras_of(STAGES["worker"]) == ["", *named]
    assert extras_of(STAGES["trainer"]) == ["trainer"]
