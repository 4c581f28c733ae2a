"""A machine that was started for one run: it carries out what its environment asks, and tells how it ended."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading

import httpx
import pytest

from lora_contract.machine_request import LAUNCH_ID_VARIABLE, pack_request
from lora_contract.protocol import Result
from lora_trainer import machine
from tests.processes.waiting import until
from tests.unit.trainer.project import TOKEN, FakeProject, request_input


@pytest.fixture(autouse=True)
def own_signal():
    previous = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def failure_file(tmp_path, monkeypatch):
    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(machine, "FAILURE_FILE", folder / "failure")
    return folder / "failure"


@pytest.fixture
def start(tmp_path, monkeypatch, settings):
    """Runs the machine to its end with this request; returns its exit status."""
    variables = {
        "CHILD": settings.child, "PROOF": settings.proof, "VOLUME": settings.volume, "HEARTBEAT_SECONDS": 0.05,
        "SETTLE_SECONDS": 0, "GRACE_SECONDS": 20, "CHANNEL_PATIENCE_SECONDS": 0.01, "GRANT_POLL_SECONDS": 0.01,
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(f"LORA_TRAINER_{name}", str(value))

    def run(child: str = "succeed", **changes) -> int:
        monkeypatch.setenv("FAKE_CHILD", child)
        for name, value in pack_request(request_input(**changes)).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(LAUNCH_ID_VARIABLE, "lora-1")
        return machine.main()

    return run


def reported(project: FakeProject) -> Result:
    (call,) = project.results
    assert (call["token"], call["external_job_id"]) == (TOKEN, "lora-1")
    assert {check_in["execution_id"] for check_in in project.check_ins} == {call["execution_id"]}
    return Result.model_validate(call["result"])


def test_finished_training_is_reported_and_leaves_no_token_to_children(start, project, tmp_path, failure_file):
    assert start() == 0
    result = reported(project)
    assert (result.status, result.manifest, result.summary.total_steps) == ("completed", None, 3)
    assert "manifest.json" in str(project.upload_order)
    environment = json.loads((tmp_path / "note.json").read_text())["environment"]
    assert [name for name in environment if name.startswith(("LORA_TRAINER_REQUEST", "LORA_TRAINER_LAUNCH"))] == []
    assert not [name for name in os.environ if name.startswith("LORA_TRAINER_REQUEST")]
    assert not failure_file.exists()


def test_failed_training_is_reported_with_its_sentence(start, project, failure_file):
    assert start("fail") == 1
    result = reported(project)
    assert (result.status, result.error.message) == ("failed", "Line 17 is not JSON.")
    assert failure_file.read_text() == "Line 17 is not JSON."


def test_request_that_cannot_be_read_is_one_sentence(start, project, caplog, failure_file, monkeypatch):
    monkeypatch.setenv("LORA_TRAINER_REQUEST", "7")
    monkeypatch.setenv(LAUNCH_ID_VARIABLE, "lora-1")
    with caplog.at_level(logging.INFO):
        assert machine.main() == 1
    assert failure_file.read_text() == caplog.messages[-1]
    assert "LORA_TRAINER_REQUEST_0 is missing" in caplog.messages[-1]
    assert "Traceback" not in caplog.text


def test_request_of_another_protocol_is_reported(start, project, failure_file):
    assert start(protocol=2) == 1
    (call,) = project.results
    assert call["result"]["error"]["code"] == "request_invalid"
    assert "same release" in failure_file.read_text()


def test_superseded_machine_reports_nothing_and_is_no_failure(start, project):
    project.refusal = "superseded"
    assert start() == 0
    assert project.results == []


@pytest.mark.parametrize(
    "fault",
    [httpx.Response(404, json={"code": "PGRST202", "message": "Could not find"}), httpx.Response(503)],
    ids=["earlier database", "outage"],
)
def test_database_that_takes_no_result_is_survived(start, project, fault, caplog):
    project.finish_fault = fault
    assert start() == 0
    assert "could not be reported" in caplog.text
    assert "manifest.json" in str(project.upload_order)


@pytest.mark.parametrize(
    ("child", "is_away", "waits"), [("fail", True, False), ("fail", False, True), ("succeed", True, True)]
)
def test_failure_that_nobody_heard_of_ends_the_container(start, project, monkeypatch, child, is_away, waits):
    waited = []
    monkeypatch.setattr(machine, "await_end", waited.append)
    if is_away:
        project.finish_fault = httpx.Response(503)
    assert start(child) == (1 if child == "fail" else 0)
    # A pod's container is started again and checks in again; a published adapter is found without the report.
    assert bool(waited) is waits


@pytest.mark.parametrize("comes_back", [False, True])
def test_sigterm_saves_a_checkpoint_and_is_told_if_it_is_the_end(
    start, project, settings, monkeypatch, comes_back, failure_file
):
    monkeypatch.setenv("LORA_TRAINER_CLOUD_RESTARTS", str(comes_back))
    waited = []
    monkeypatch.setattr(machine, "await_kill", lambda: waited.append("kill"))

    def stop_when_ready() -> None:
        until(lambda: list(settings.volume.glob("lora-jobs/job-1/*/ready")), "the training runs")
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop_when_ready)
    stopping.start()
    assert start("wait") == 1
    stopping.join()
    # A container that its cloud starts again has more to do than to end its run, or to tell its cloud of a failure.
    assert project.results == [] if comes_back else reported(project).error.code == "interrupted"
    assert (bool(waited), failure_file.exists()) == (comes_back, not comes_back)
    assert len(list(settings.volume.glob("lora-jobs/job-1/*/saved"))) == 1


def test_sigterm_before_and_after_a_training_ends_no_machine(start, project, monkeypatch):
    report = machine.fit_report

    def told_to_stop(result: Result):
        os.kill(os.getpid(), signal.SIGTERM)
        return report(result)

    monkeypatch.setattr(machine, "fit_report", told_to_stop)
    assert start() == 0
    assert reported(project).status == "completed"
