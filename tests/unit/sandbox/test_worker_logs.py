"""What the local RunPod keeps of a worker's output: the last lines, bounded in number, length and time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.runpod.worker_logs import KEPT_SECONDS, WorkerLog, WorkerLogs


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logs(clock: Clock) -> Iterator[WorkerLogs]:
    logs = WorkerLogs(clock)
    yield logs
    logs.close()


def texts(log: WorkerLog) -> list[str]:
    return [line.text for line in log.lines]


def test_lines_are_whole_however_they_are_written(logs: WorkerLogs, tmp_path: Path) -> None:
    file = tmp_path / "log"
    log = logs.begin("w", file)
    with file.open("ab", buffering=0) as output:
        for part in (b"one\r\ntw", b"o\n\xff", b"\nrest"):
            output.write(part)
            logs.keep()
    assert texts(log) == ["one", "two", "\ufffd"]
    log.end("gone")
    assert texts(log) == ["one", "two", "\ufffd", "rest", "gone"]
    assert [line.source for line in log.lines][-2:] == ["container", "system"]


def test_a_log_holds_the_last_lines_and_no_endless_one(logs: WorkerLogs, tmp_path: Path) -> None:
    file = tmp_path / "log"
    log = logs.begin("w", file)
    file.write_bytes(b"\n".join(str(number).encode() for number in range(6000)) + b"\n" + b"x" * 3_000_000)
    log.end("gone")
    assert len(log.lines) == 5000
    assert max(map(len, texts(log))) <= 4096
    assert log.lines[-1].number > 6000
    assert "5999" in texts(log)


def test_a_log_is_kept_for_a_while_after_its_worker_ended(logs: WorkerLogs, clock: Clock, tmp_path: Path) -> None:
    ended, running = logs.begin("a", tmp_path / "a"), logs.begin("b", tmp_path / "b")
    ended.end("gone")
    clock.now += KEPT_SECONDS - 1
    logs.keep()
    assert logs.get("a") is ended
    clock.now += 1
    logs.keep()
    assert logs.get("a") is None
    assert not ended.is_kept
    assert logs.get("b") is running


def test_of_many_ended_workers_only_the_last_have_logs(logs: WorkerLogs, clock: Clock, tmp_path: Path) -> None:
    for number in range(60):
        logs.begin(str(number), tmp_path / str(number)).end("gone")
        clock.now += 0.5
    logs.keep()
    assert [logs.get("9"), logs.get("10") is not None] == [None, True]
