"""What starts the worker elsewhere: systemd, cron, Docker Compose, GitHub's workflows. Each file is read and tried."""

import configparser
import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from benchmarks.dockerfile import read_dockerfile
from benchmarks.wheel import SUPPORTED
from tests.project import ROOT

UNIT = ROOT / "packaging/lora-worker.service"
CRON = ROOT / "packaging/lora-worker.cron"
COMPOSE = yaml.safe_load((ROOT / "packaging/compose.yaml").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github/actions").glob("*/action.yml"))
MOST_EXPOSED = 20
"""In tenths, as `systemd-analyze security` counts: 10 is everything, 0 nothing."""


def sections(path):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(path)
    return parser


# ── systemd ─────────────────────────────────────────────────────────────────────────────────────────


def test_unit_stops_and_restarts_the_worker_as_it_ends():
    service = sections(UNIT)["Service"]
    assert service["ExecStart"].endswith("/lora-worker run")
    assert (service["Type"], service["WatchdogSec"]) == ("notify", "60"), "one that hangs is restarted"
    assert service["Restart"] == "on-failure", "a drained worker ends with 0"
    assert service["RestartPreventExitStatus"] == "2", "a wrong setting gets no better"
    assert sections(UNIT)["Unit"]["StartLimitIntervalSec"] == "0", "any other value ends the tries for good"
    assert int(service["RestartSec"]) >= 10, "without a limit of tries, the pause alone spares the machine"
    assert int(service["TimeoutStopSec"]) >= 10
    assert service["MemoryMax"] == "256M"
    assert service["DynamicUser"] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_accepts_the_unit_and_finds_it_confined(tmp_path):
    path = tmp_path / UNIT.name
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.M))
    checked = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", path]
    rated = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout[-500:]


# ── cron ────────────────────────────────────────────────────────────────────────────────────────────


def cron_line():
    (line,) = [line for line in CRON.read_text().splitlines() if line.startswith("*")]
    return line.split(maxsplit=6)


def test_cron_line_makes_a_pass_a_minute_as_its_own_user():
    *times, user, command = cron_line()
    assert (times, user) == (["*"] * 5, "lora-worker")
    assert "%" not in command, "cron reads it as a line end"
    assert command.endswith("lora-worker run --once")


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock here")
def test_second_pass_of_cron_leaves_while_the_first_one_runs(tmp_path):
    """With the real lock, on a folder that can't be written, and a worker that waits until it is told to end."""
    (tmp_path / "bin").mkdir()
    os.mkfifo(tmp_path / "end")
    worker = tmp_path / "bin/lora-worker"
    worker.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/passes\nread _ < {tmp_path}/end\n')
    worker.chmod(0o755)
    folder = tmp_path / "srv"
    folder.mkdir(mode=0o555)
    command = cron_line()[-1].replace("/srv/lora-worker", str(folder))
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    first = subprocess.Popen(["sh", "-c", command], env=environment)
    with (tmp_path / "end").open("w") as end:  # opens when the first pass reads it
        second = subprocess.run(["sh", "-c", command], env=environment, check=False)
        assert second.returncode == 0, "cron would send a mail"
        assert (tmp_path / "passes").read_text() == "run --once\n"
        end.write("\n")
    assert first.wait() == 0


# ── Docker ──────────────────────────────────────────────────────────────────────────────────────────


def test_compose_file_confines_the_worker_and_joins_supabases_network():
    (service,) = COMPOSE["services"].values()
    project = tomllib.loads((ROOT / "supabase/config.toml").read_text())["project_id"]
    assert service["build"]["target"] in read_dockerfile(ROOT / "Dockerfile")
    assert (ROOT / "packaging" / service["build"]["context"] / "Dockerfile").is_file()
    assert service["env_file"] == ["../.env"]
    assert f"supabase_kong_{project}:8000" in service["environment"]["SUPABASE_URL"]
    assert COMPOSE["networks"]["supabase"] == {"name": f"supabase_network_{project}", "external": True}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["mem_limit"] == service["memswap_limit"] == "256m"
    assert service["restart"] == "on-failure", "a drained worker ends with 0"
    assert int(service["stop_grace_period"].rstrip("s")) >= 10


def test_worker_image_runs_as_a_user_with_a_health_check_and_an_open_port():
    stage = read_dockerfile(ROOT / "Dockerfile")["worker"]
    assert stage.user != "root"
    assert stage.health == '["lora-worker", "healthcheck"]'
    assert stage.command == '["lora-worker", "run"]'
    assert stage.environment["PYTHONDONTWRITEBYTECODE"] == "1", "its file system may be read-only"
    assert int(stage.environment["LORA_WORKER_HTTP_PORT"]) > 1024


# ── GitHub ──────────────────────────────────────────────────────────────────────────────────────────


def steps_of(path):
    content = yaml.safe_load(path.read_text())
    jobs = content.get("jobs", {"action": content.get("runs", {})})
    return [step for job in jobs.values() for step in job.get("steps", [])]


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: path.stem)
def test_actions_of_others_are_pinned_to_a_commit_and_say_which(path):
    used = re.findall(r"uses: (\S+)(.*)", path.read_text())
    for name, comment in used:
        if name.startswith("./"):
            target = ROOT / name
            assert target.is_file() or (target / "action.yml").is_file()
            continue
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name), name
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), f"{name}: say which version that is"
    images = re.findall(r"[\w./-]+:v?\d[\w.-]*@sha256:\S+|docker run [^\n]*[\w-]+/[\w-]+:latest", path.read_text())
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in images)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_few_rights_and_end(path):
    content = yaml.safe_load(path.read_text())
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        if "uses" in job:
            continue
        assert 0 < job["timeout-minutes"] <= 150, name
        assert job["runs-on"].startswith("ubuntu-2"), "a named release"
        rights = {right for right, kind in job.get("permissions", {}).items() if kind == "write"}
        assert not rights or path.stem == "release", f"{name} may write {rights}"


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: path.stem)
def test_scripts_of_workflows_are_sound_and_take_values_by_variables(path):
    """A value that a branch's name or an input holds would otherwise become part of the script."""
    for step in steps_of(path):
        script = step.get("run", "")
        assert "${{" not in script, script
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{script}\n{checked.stderr}"


def test_make_targets_and_scripts_of_workflows_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    scripts = [step.get("run", "") for path in [*WORKFLOWS, *ACTIONS] for step in steps_of(path)]
    called = {name for script in scripts for name in re.findall(r"\bmake ([\w-]+)", script)}
    assert called <= targets, f"{called - targets} are no targets of the Makefile"
    assert {"lint", "test", "image-check"} <= called
    for script in scripts:
        for name in re.findall(r"(?<!\S)\.github/\S+\.sh", script):
            assert os.access(ROOT / name, os.X_OK), name
            subprocess.run(["bash", "-n", ROOT / name], check=True)
        for module in re.findall(r"python -m (benchmarks\.\w+)", script):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        for name in re.findall(r"make test ARGS=(\S+)", script):
            assert (ROOT / name).exists()


def test_wheel_is_tried_on_every_python_that_it_supports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    jobs = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())["jobs"]
    assert jobs["wheel"]["strategy"]["matrix"]["python"] == list(SUPPORTED)
    assert project["requires-python"] == f">={SUPPORTED[0]}"


def test_both_images_are_built_tried_and_scanned_before_a_release():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert set(jobs["image"]["strategy"]["matrix"]["target"]) == set(read_dockerfile(ROOT / "Dockerfile"))
    uses = [step.get("uses") for step in jobs["image"]["steps"]]
    assert "./.github/actions/image" in uses
    assert uses.index("./.github/actions/image") < len(uses) - 1, "it is pushed after that"
    assert set(jobs["publish"]["needs"]) == {"checks", "image"}
    scripts = "\n".join(step["run"] for step in yaml.safe_load(ACTIONS[0].read_text())["runs"]["steps"])
    assert "docker build" in scripts
    assert "try-image.sh" in scripts
    assert "--fail-on critical" in scripts


FAKE_DOCKER = r"""#!/bin/bash
# An image as it should be, but for what $WRONG says.
case "$*" in
    *"id -u") [ "$WRONG" = root ] && echo 0 || echo 10001 ;;
    *--help) [ "$WRONG" != help ] ;;
    *WORKER_HTTP_PORT=0*healthcheck) [ "$WRONG" = portless ] ;;
    *healthcheck) [ "$WRONG" = healthy ] ;;
    *torch.version*) [ "$WRONG" != cuda ] ;;
    *causal_conv1d*) [ "$WRONG" != kernels ] ;;
    *fitness*) [ "$WRONG" != unfit ] ;;
    *)
        [ "$WRONG" = silent ] || echo "lora-worker: SUPABASE_URL is missing" >&2
        [ "$WRONG" = started ] || exit 2
        ;;
esac
"""


def try_image(folder, target, wrong=""):
    (folder / "docker").write_text(FAKE_DOCKER)
    (folder / "docker").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "WRONG": wrong}
    script = ROOT / ".github/scripts/try-image.sh"
    return subprocess.run([script, target], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["worker", "trainer"])
def test_an_image_as_it_should_be_passes_its_trial(tmp_path, target):
    done = try_image(tmp_path, target)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        *(("worker", wrong) for wrong in ("root", "help", "silent", "started", "healthy", "portless")),
        *(("trainer", wrong) for wrong in ("cuda", "kernels", "unfit")),
    ],
)
def test_an_image_with_one_fault_fails_its_trial(tmp_path, target, wrong):
    assert try_image(tmp_path, target, wrong).returncode != 0


def test_release_takes_its_part_of_the_changelog(tmp_path):
    """The script's own awk, on a changelog like ours."""
    steps = steps_of(ROOT / ".github/workflows/release.yml")
    (script,) = [step["run"] for step in steps if "gh release create" in step.get("run", "")]
    (line,) = [line for line in script.splitlines() if line.startswith("awk")]
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## 0.2.0\n\n- new\n\n### Fixed\n\n- b\n\n## 0.1.0\n\n- old\n"
    )
    subprocess.run(["bash", "-c", f"version=0.2.0\n{line}"], cwd=tmp_path, check=True)
    notes = (tmp_path / "notes.md").read_text()
    assert "- new" in notes
    assert "### Fixed" in notes
    assert "- old" not in notes
