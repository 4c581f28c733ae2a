"""The end of the container's log goes with every result, without secrets and text of the dataset."""

from __future__ import annotations

import logging
import signal

import pytest

from lora_contract.log_lines import MAX_LOG_LINES
from lora_trainer.run.logs import LogTail, describe, secrets_of
from tests.unit.trainer.project import TOKEN, URL, request_input
from tests.unit.trainer.run.executing import Run

ROW = "Margarethe wohnt in der Lindenstrasse"
PRINTED = f"""2026-11-26 14:00:00,123 __main__ INFO loading_model
Some weights were not used: {ROW}
Traceback (most recent call last):
  File "/app/trl/trainer.py", line 3, in train
    raise ValueError(text)
ValueError: {ROW}
2026-11-26 14:00:00,124 __main__ INFO opens {URL}/dataset?token=abc with {TOKEN} and key-of-the-hub"""


def shown(lines: list[str]) -> str:
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def _prints(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("FAKE_CHILD_PRINTS", PRINTED)
    monkeypatch.setenv("MY_HUB_TOKEN", "key-of-the-hub")
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize(
    ("child", "status", "why"),
    [
        ("succeed", "completed", "ends as completed"),
        ("fail", "failed", "Line 17 is not JSON."),
        ("exit:7", "failed", "exit code 7"),
        (f"signal:{signal.SIGKILL.value}", "failed", "killed (SIGKILL), probably because the machine's main memory"),
        (f"signal:{signal.SIGSEGV.value}", "failed", "Fatal Python error: Segmentation fault"),
    ],
)
async def test_every_end_has_the_last_lines_of_handler_and_child(
    project, settings, monkeypatch, capfd, child, status, why
):
    monkeypatch.setenv("FAKE_CHILD", child)
    result = await Run(settings).result()
    log, printed = shown(result.log), capfd.readouterr().err
    assert result.status == status
    assert why in log
    for kept in ("run run-1, attempt 1", "__main__ INFO loading_model", "trainer.py", "ValueError: […]"):
        assert kept in log
    assert "loading_model" in printed, "the container's own output goes on"
    for hidden in (ROW, "Lindenstrasse", TOKEN, "token=abc", "key-of-the-hub", "sb_publishable_x"):
        assert hidden not in log
        assert hidden not in printed


async def test_superseded_execution_has_its_log_too(project, settings):
    project.refusal = "superseded"
    result = await Run(settings).result()
    assert result.status == "superseded"
    assert "Another execution owns this run" in shown(result.log)


async def test_stopped_execution_has_its_log_too(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "wait")
    run = Run(settings)
    task = run.start()
    await run.until_file("ready")
    run.execution.stop.set()
    log = shown((await task).log)
    assert "loading_model" in log
    assert "taken away" in log


async def test_line_of_30_megabytes_is_neither_kept_nor_held(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "flood:30000000")
    result = await Run(settings).result()
    assert result.status == "completed"
    assert max(map(len, result.log)) <= 1000


async def test_process_left_behind_does_not_hold_up_the_result(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "leave_a_process:30")
    monkeypatch.setattr("lora_trainer.run.child._OUTPUT_SECONDS", 0.1)
    assert (await Run(settings).result()).status == "completed"


def test_tail_keeps_the_newest_lines_of_this_process():
    tail, log = LogTail(("a-secret-word",)), logging.getLogger("lora_trainer.test")
    with tail.listening():
        for number in range(MAX_LOG_LINES + 50):
            log.info("line %d a-secret-word", number)
        logging.getLogger("trl.trainer").warning("row: %s", ROW)
    log.info("after the end")
    lines = tail.lines()
    assert len(lines) == MAX_LOG_LINES
    assert lines[0].endswith("line 51 [secret]")
    assert "trl.trainer WARNING at " in lines[-1]
    assert ROW not in shown(lines)


def test_exception_is_logged_by_type_and_place():
    tail = LogTail()
    with tail.listening():
        try:
            int(ROW)
        except ValueError as error:
            logging.getLogger("lora_trainer.test").exception("it broke")
            described = describe(error)
    log = shown([*tail.lines(), described])
    assert "ValueError at" in log
    assert "test_logs.py" in log
    assert ROW not in log


def test_secrets_are_those_of_the_request_and_of_the_environment():
    from lora_trainer.handler import parse_request

    known = secrets_of(parse_request(request_input()), {"HF_TOKEN": "hub", "PATH": "/bin", "WANDB_API_KEY": "w"})
    assert known == ("sb_publishable_x", TOKEN, f"{URL}/dataset", "hub", "w")
