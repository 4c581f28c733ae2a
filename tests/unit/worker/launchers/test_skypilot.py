"""What SkyPilot's queue says of a job is read within bounds, and what is asked of it is a task that it knows."""

from __future__ import annotations

import importlib.util
import subprocess
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_contract.machine_request import LAUNCH_ID_VARIABLE, unpack_request
from lora_worker.errors import LaunchInDoubtError, SettingsError
from lora_worker.launchers.base import EndCause, EndpointState, LaunchRef, LaunchState, OwnerOfLaunches, Policy
from lora_worker.launchers.registry import load_settings
from lora_worker.launchers.skypilot import launcher as skypilot
from lora_worker.launchers.skypilot.client import Problem, SkyClient, SkyError
from lora_worker.launchers.skypilot.jobs import (
    Job,
    Names,
    TaskShape,
    accelerator_for,
    live_of_run,
    of_launch,
    read_health,
    read_jobs,
    read_observation,
    secrets_of,
    task_of,
    ttl_seconds_of,
)
from lora_worker.launchers.skypilot.launcher import SkyPilotLauncher
from lora_worker.launchers.skypilot.sdk import kind_of, sentence_of
from lora_worker.launchers.skypilot.settings import SkyPilotSettings
from lora_worker.runs.state.silence import Silence
from tests.project import ROOT
from tests.unit.worker.variables import SETTINGS

RUN = "0f8fad5b-d9cb-469f-a165-70867728950e"
MARK = "0123456789"
NAMES = Names(MARK)
POLICY = Policy(execution_seconds=3600, ttl_seconds=90_000)
SHAPE = TaskShape(mark=MARK, image="ghcr.io/example/trainer:1")
PAYLOAD = {"run_id": RUN, "gpu_config": {"type": "A100-80GB", "count": 1}, "channel": {"token": "run-token"}}


def job(status: str, **values: Any) -> Job:
    return Job(**{"job_id": 1, "job_name": "x", "status": status, **values})


@pytest.mark.parametrize(
    ("status", "has_run", "state", "cause"),
    [
        ("PENDING", False, LaunchState.QUEUED, None),
        ("SUBMITTED", False, LaunchState.QUEUED, None),
        ("STARTING", False, LaunchState.QUEUED, None),
        ("PENDING", True, LaunchState.QUEUED, None),
        ("STARTING", True, LaunchState.QUEUED, None),
        ("RUNNING", True, LaunchState.RUNNING, None),
        ("WINDING_DOWN", True, LaunchState.RUNNING, None),
        ("RECOVERING", True, LaunchState.QUEUED, None),
        ("CANCELLING", False, LaunchState.QUEUED, None),
        ("CANCELLING", True, LaunchState.RUNNING, None),
        ("SUCCEEDED", True, LaunchState.COMPLETED, None),
        ("CANCELLED", False, LaunchState.CANCELLED, None),
        ("CANCELLED", True, LaunchState.CANCELLED, None),
        ("FAILED", True, LaunchState.FAILED, EndCause.UNKNOWN),
        ("FAILED_SETUP", False, LaunchState.FAILED, EndCause.UNKNOWN),
        ("FAILED_PRECHECKS", False, LaunchState.TIMED_OUT, None),
        ("FAILED_PRECHECKS", True, LaunchState.FAILED, EndCause.LOST),
        ("FAILED_NO_RESOURCE", False, LaunchState.TIMED_OUT, None),
        ("FAILED_NO_RESOURCE", True, LaunchState.FAILED, EndCause.LOST),
        ("FAILED_CONTROLLER", False, LaunchState.FAILED, EndCause.LOST),
        ("SOMETHING_NEW", True, LaunchState.UNKNOWN, None),
    ],
)
def test_each_status_has_its_meaning(status: str, has_run: bool, state: LaunchState, cause: EndCause | None) -> None:
    seen = read_observation(job(status, start_at=1000.0 if has_run else None, job_duration=7.0), None)
    assert seen.state is state
    assert seen.cause is (cause or EndCause.UNKNOWN)
    assert seen.execution_seconds == (7.0 if has_run or state is not LaunchState.QUEUED else None)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("Job exited with exit code 1 (user program failure).", EndCause.RAISED),
        ("Job exited with exit codes [1] (user program failure).", EndCause.RAISED),
        ("Job exited with exit code 124 (user program failure).", EndCause.OVER_TIME),
        ("Job exited with exit code 137 (user program failure).", EndCause.LOST),
        ("The job driver on the remote cluster failed.", EndCause.UNKNOWN),
        (None, EndCause.UNKNOWN),
    ],
)
def test_cause_of_a_failure_is_its_exit_status(reason: str | None, cause: EndCause) -> None:
    assert read_observation(job("FAILED", start_at=1.0, failure_reason=reason), None).cause is cause


def test_job_cancelled_while_it_waited_too_long_never_started() -> None:
    waited = {"submitted_at": 1000.0, "end_at": 2000.0}
    assert read_observation(job("CANCELLED", **waited), 600.0).state is LaunchState.TIMED_OUT
    assert read_observation(job("CANCELLED", **waited), 6000.0).state is LaunchState.CANCELLED
    recovered = job("CANCELLED", **waited, start_at=1500.0)
    assert read_observation(recovered, 6000.0).state is LaunchState.CANCELLED
    seen = read_observation(recovered, 600.0)
    assert (seen.state, seen.cause) == (LaunchState.FAILED, EndCause.LOST)


def test_job_that_recovers_is_never_silent_and_its_time_has_an_end() -> None:
    recovering = job("RECOVERING", submitted_at=1000.0, start_at=1100.0, job_duration=300.0)
    silence = Silence(since=0.0)
    for now in (100.0, 4000.0):
        silence = silence.listen(read_observation(recovering, 6000.0), None, now)
        assert silence.seconds(now) == 0.0
    assert [recovering.is_overdue(6000.0, now) for now in (7000.0, 7001.0)] == [False, True]
    assert not job("RUNNING", submitted_at=1000.0, start_at=1100.0).is_overdue(6000.0, 9000.0)


async def test_server_whose_controller_is_stopped_has_no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call(self: SkyClient, call: str, /, **_: Any) -> Any:
        assert call == "list"
        raise SkyError(Problem.CONTROLLER_STOPPED, "no cluster")

    monkeypatch.setattr(SkyClient, "call", call)
    launcher = SkyPilotLauncher("https://sky.example.com", SHAPE)
    launch = LaunchRef(launcher.endpoint, NAMES.new(RUN, POLICY))
    assert (await launcher.observe(launch)).state is LaunchState.MISSING
    assert await launcher.cancel(launch)
    assert await launcher.owned() == []
    assert (await launcher.health()).reachable


async def test_endpoints_of_one_server_count_their_own_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [NAMES.new(RUN, POLICY, accelerator) for accelerator in ("L4", "H100", "")]
    found = [
        {"job_id": number, "job_name": name, "status": status, "start_at": 1.0}
        for number, (name, status) in enumerate(zip(names, ("RUNNING", "RECOVERING", "PENDING"), strict=True))
    ]

    async def call(self: SkyClient, call: str, /, **_: Any) -> Any:
        return found if call == "list" else pytest.fail(call)

    monkeypatch.setattr(SkyClient, "call", call)
    url = "https://sky.example.com"
    seen = [await SkyPilotLauncher(url, SHAPE).health(url + at) for at in ("#L4", "#H100", "", "#H200")]
    assert [(each.jobs_running, each.jobs_queued) for each in seen] == [(1, 0), (0, 1), (0, 1), (0, 0)]
    assert [each.lacks_gpu for each in seen] == [False, True, True, False]
    del found[1:]
    assert await SkyPilotLauncher(f"{url}#L4", SHAPE).launch(PAYLOAD, POLICY) == names[0]
    with pytest.raises(LaunchInDoubtError, match="another GPU"):
        await SkyPilotLauncher(f"{url}#H100", SHAPE).launch(PAYLOAD, POLICY)


def test_name_tells_run_project_and_time_and_no_other_is_ours() -> None:
    name = NAMES.new(RUN, POLICY)
    assert name.startswith(f"lora-0f8fad5bd9cb469fa16570867728950e-{MARK}-1500m-")
    assert ttl_seconds_of(name) == 90_000
    assert NAMES.new(RUN, POLICY) != name
    assert NAMES.new(RUN, Policy(1, 1e12)).count("-1000000m-") == 1
    for other in ("42", "", f"{name}x", name.replace(MARK, "9876543210"), f"../{name}", "lora-" + "0" * 32):
        assert not NAMES.is_ours(other)
    with pytest.raises(ValueError, match="started for runs only"):
        NAMES.new("42; drop", POLICY)


@pytest.mark.parametrize(
    "value",
    [None, {}, [{}], [{"job_id": -1, "job_name": "x", "status": "RUNNING"}], [{"job_id": 1, "job_name": "x" * 501,
     "status": "RUNNING"}]],
)  # fmt: skip
def test_queue_that_can_not_be_read_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="can't be read"):
        read_jobs(value)


def test_of_two_jobs_of_a_launch_the_one_that_lives_counts() -> None:
    name = NAMES.new(RUN, POLICY)
    jobs = [job("FAILED", job_id=3, job_name=name), job("RUNNING", job_id=2, job_name=name), job("RUNNING")]
    assert [each.job_id for each in of_launch(jobs, name)] == [2, 3]
    assert [each.job_id for each in live_of_run(jobs, RUN, NAMES)] == [2]


def test_health_counts_jobs_and_tells_of_a_machine_that_was_not_found() -> None:
    waiting = read_health([job("STARTING")], 1000.0)
    assert (waiting.jobs_queued, waiting.workers, waiting.state) == (1, 0, EndpointState.UNKNOWN)
    failed = job("FAILED_NO_RESOURCE", end_at=900.0)
    assert "found no machine" in (read_health([failed], 1000.0).problem or "")
    assert read_health([failed], 9000.0).problem is None
    assert read_health([failed, job("RUNNING", start_at=1.0)], 1000.0).problem is None


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("A100", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("A100-PCIE-40GB", "A100"),
        ("H100 80GB HBM3", "H100"),
        ("L40S", "L40S"),
        ("L40", "L40"),
        ("RTX 6000 Ada", "RTX6000-Ada"),
        ("RTX-4090", "RTX4090"),
        ("V100", "V100-32GB"),
        ("Gaudi3", "Gaudi3"),
    ],
)
def test_gpu_has_skypilots_name(asked: str, name: str) -> None:
    assert accelerator_for(asked) == name


def test_each_gpu_of_the_price_table_has_a_name_there() -> None:
    table = tomllib.loads((ROOT / "worker" / "lora_worker" / "money" / "prices.toml").read_text())
    names = [each["type"] for each in table["gpu"]]
    assert "L4" in names
    # SkyPilot's catalog has neither blanks nor this table's hyphen after RTX.
    assert not [name for name in names if accelerator_for(name).startswith("RTX-")]


def test_task_has_image_gpus_limit_and_launch_and_no_secret() -> None:
    name = NAMES.new(RUN, POLICY)
    task = task_of(SHAPE, PAYLOAD, POLICY, name)
    assert task["resources"] == {
        "accelerators": {"A100-80GB": 1},
        "image_id": "docker:ghcr.io/example/trainer:1",
        "disk_size": 256,
        "use_spot": False,
    }
    assert task["envs"] == {LAUNCH_ID_VARIABLE: name}
    assert "timeout --kill-after=120 3600 python -u -m lora_trainer.machine" in task["run"]
    assert unpack_request(secrets_of(SHAPE, PAYLOAD)) == PAYLOAD
    assert "run-token" not in repr(task)
    assert secrets_of(TaskShape(MARK, "i", hugging_face_token="hf_x"), PAYLOAD)["HF_TOKEN"] == "hf_x"


def test_task_asks_for_the_endpoints_gpu_its_number_places_and_volume() -> None:
    shape = TaskShape(MARK, "i", gpu_type="H100", gpu_count=4, infra=("k8s", "aws"), is_spot=True, volume="lora")
    task = task_of(shape, PAYLOAD, POLICY, "n")
    assert task["resources"]["accelerators"] == {"H100": 4}
    # Most clusters have no spot nodes, and would never be chosen.
    assert task["resources"]["any_of"] == [{"infra": "k8s"}, {"infra": "k8s", "use_spot": False}, {"infra": "aws"}]
    assert task["volumes"] == {"/lora-volume": "lora"}
    bucket = task_of(TaskShape(MARK, "i", accelerator="H100-SXM", volume="gs://bucket"), {}, POLICY, "n")
    assert bucket["resources"]["accelerators"] == {"H100-SXM": 1}
    assert bucket["file_mounts"] == {"/lora-volume": {"source": "gs://bucket", "mode": "MOUNT_CACHED"}}


@pytest.mark.parametrize("payload", [{}, {"gpu_config": "H100"}, {"gpu_config": {"type": "$(reboot)"}}])
def test_job_without_a_usable_gpu_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="names no GPU"):
        task_of(SHAPE, payload, POLICY, "n")


@pytest.mark.parametrize(("play", "status"), [("exit 3", 3), ("kill -9 $$", 137), ("exit 0", 0)])
def test_machine_ends_with_its_trainers_status(tmp_path: Path, play: str, status: int) -> None:
    assert ran(tmp_path, play, task_of(SHAPE, PAYLOAD, POLICY, "n")["run"]) == status


def test_trainer_that_does_not_stop_in_time_is_over_its_time(tmp_path: Path) -> None:
    run = task_of(SHAPE, PAYLOAD, Policy(1, 60), "n")["run"].replace("--kill-after=120 1", "--kill-after=0.01 0.9")
    # Bash counts whole seconds, and the test must not depend on which: as if one had gone by.
    assert ran(tmp_path, "trap '' TERM; while :; do sleep 0.05; done", "SECONDS=1\n" + run) == 124


def ran(folder: Path, play: str, run: str) -> int:
    python = folder / "python"
    python.write_text(f"#!/bin/bash\n{play}\n")
    python.chmod(0o755)
    done = subprocess.run(["/bin/bash", "-c", run], env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True)
    return done.returncode


class ApiServerConnectionError(RuntimeError):
    pass


class ClusterNotUpError(Exception):
    cluster_status = None


class PermissionDeniedError(Exception):
    pass


class HTTPError(OSError):
    response = type("Response", (), {"status_code": 401})


@pytest.mark.parametrize(
    ("error", "sent", "kind"),
    [
        (ApiServerConnectionError(), False, "unreachable"),
        (ApiServerConnectionError(), True, "in_doubt"),
        (OSError("Max retries", ApiServerConnectionError()), False, "in_doubt"),
        (OSError(type("Max", (Exception,), {"reason": ApiServerConnectionError()})()), False, "unreachable"),
        (PermissionDeniedError(), False, "unauthorized"),
        (HTTPError(), False, "unauthorized"),
        (ClusterNotUpError(), False, "controller_stopped"),
        (RuntimeError("Failed to get request ID"), False, "in_doubt"),
        (ValueError("no such infra"), False, "refused"),
        (ValueError("no such infra"), True, "in_doubt"),
    ],
)
def test_error_of_the_sdk_says_whether_anything_was_accepted(error: Exception, sent: bool, kind: str) -> None:
    assert kind_of(error, sent) == kind


def test_error_is_told_in_one_line_without_secrets() -> None:
    assert sentence_of(ValueError("\n no \n more"), ["secret-of-run"]) == "ValueError: no"
    assert sentence_of(ValueError("task:\n TOKEN: secret-of-run"), ["secret-of-run"]) == "ValueError"
    assert len(sentence_of(ValueError("x" * 10_000), [])) < 400


# Settings.

VARIABLES = {"SKYPILOT_URL": "https://sky.example.com/", "SKYPILOT_IMAGE": "ghcr.io/example/trainer:1"}


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> SkyPilotSettings:
    monkeypatch.setenv("LORA_WORKER_LAUNCHER", "skypilot")
    for name, value in {**VARIABLES, **variables}.items():
        monkeypatch.setenv(f"LORA_WORKER_{name}", value)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, str(value))
    loaded = load_settings()
    assert isinstance(loaded, SkyPilotSettings)
    return loaded


async def test_launcher_is_made_from_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    loaded = settings(
        monkeypatch, FORMER_SKYPILOT_SERVERS="https://old.example.com", SKYPILOT_INFRA="k8s, aws/us-east-1"
    )
    async with httpx.AsyncClient() as http:
        launcher = SkyPilotLauncher.open(loaded, http)
        billed = loaded.model_copy(update={"endpoint_gpu_type": "H200"})
        other = SkyPilotLauncher.open(billed, http, "https://other.example.com#H200")
        for endpoint in (
            "other.example.com",
            "https://key@other.example.com",
            "https://other.example.com#$(reboot)",
            "https://project.supabase.co",
            "https://api.runpod.ai/v2/x",
        ):
            with pytest.raises(SettingsError, match="the endpoint of SkyPilot"):
                SkyPilotLauncher.open(loaded, http, endpoint)
    assert isinstance(launcher, OwnerOfLaunches)
    assert launcher.endpoint == "https://sky.example.com"
    assert other.endpoint == "https://other.example.com#H200"
    assert other.reaches("https://other.example.com#L4")
    assert [launcher.reaches(url) for url in ("https://old.example.com", "https://evil.example.com")] == [True, False]
    assert skypilot.most_connections(loaded) == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SKYPILOT_URL": "https://user:key@sky.example.com"}, "LORA_WORKER_SKYPILOT_URL"),
        ({"SKYPILOT_URL": "https://x.supabase.co"}, "is an address of Supabase"),
        ({"SKYPILOT_TOKEN": "eyJhbGciOi"}, "begin with sky_"),
        ({"SKYPILOT_HUGGING_FACE_TOKEN": "sk-x"}, "begin with hf_"),
        ({"SKYPILOT_INFRA": "aws; reboot"}, "which is no place"),
        ({"SKYPILOT_IMAGE": "$(reboot)"}, "LORA_WORKER_SKYPILOT_IMAGE"),
        ({"SKYPILOT_VOLUME": "https://bucket"}, "LORA_WORKER_SKYPILOT_VOLUME"),
        ({"SKYPILOT_VOLUME": "s3://bucket/lora"}, "without a folder"),
        ({"SKYPILOT_VOLUME": "cos://bucket"}, "cos://REGION/BUCKET"),
        ({"FORMER_SKYPILOT_SERVERS": "sky"}, "LORA_WORKER_FORMER_SKYPILOT_SERVERS"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        settings(monkeypatch, **variables)


@pytest.mark.parametrize("volume", ["", "s3://bucket", "cos://us-east/bucket", "lora"])
def test_bucket_without_a_folder_and_volume_are_taken(monkeypatch: pytest.MonkeyPatch, volume: str) -> None:
    assert settings(monkeypatch, SKYPILOT_VOLUME=volume).skypilot_volume == volume


@pytest.mark.parametrize(
    ("accelerator", "gpu_type", "said"),
    [
        ("", None, None),
        ("H100-SXM", "H100", None),
        ("A100", "A100-40GB", None),
        ("our-h", "H100", None),
        ("H100", None, "the one that each job asks for would be billed"),
        ("H100", "L4", "names the GPU H100, and L4 is billed: set LORA_WORKER_ENDPOINT_GPU_TYPE"),
        ("A100", "A100-80GB", "names the GPU A100, and A100-80GB is billed"),
    ],
)
async def test_machine_that_would_be_billed_as_another_is_refused(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, gpu_type: str | None, said: str | None
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    behind = settings(monkeypatch).model_copy(update={"endpoint_gpu_type": gpu_type})
    named = behind.model_copy(update={"skypilot_accelerator": accelerator})
    url = "https://sky.example.com"
    async with httpx.AsyncClient() as http:
        for loaded, endpoint in ((named, url), (behind, f"{url}#{accelerator}" if accelerator else url)):
            with pytest.raises(SettingsError, match=said) if said else nullcontext():
                SkyPilotLauncher.open(loaded, http, endpoint)


async def test_worker_without_the_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    async with httpx.AsyncClient() as http:
        with pytest.raises(SettingsError, match=r"pip install '\.\[skypilot\]' in the clone"):
            SkyPilotLauncher.open(settings(monkeypatch), http)
        with pytest.raises(SettingsError, match="no program that can be run"):
            SkyPilotLauncher.open(settings(monkeypatch, SKYPILOT_PYTHON="/nothing"), http)
