"""Whatever happens to the process that started a server, the server ends with it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import ChildFailedError
from sandbox.processes import Child, port_answers, start_child, wait_until
from sandbox.supabase.postgres import Postgres
from tests.processes.waiting import until
from tests.project import ROOT

START_AND_WAIT = """
import sys, time
from sandbox.supabase.postgres import Postgres
from tests.project import ROOT
server = Postgres.start()
print(server.port, server._folder, flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent() -> Iterator[tuple["subprocess.Popen[str]", int, Path]]:
    process = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    port, folder = process.stdout.readline().split()
    with process:
        yield process, int(port), Path(folder)
        process.kill()


def test_server_and_files_are_removed_after_sigkill_of_the_parent(
    parent: tuple["subprocess.Popen[str]", int, Path],
) -> None:
    process, port, folder = parent
    assert port_answers(port)
    assert folder.exists()
    process.send_signal(signal.SIGKILL)
    until(lambda: not port_answers(port), "nobody listens")
    until(lambda: not folder.exists(), "the folder is gone")


def test_a_stopped_server_leaves_no_process_and_no_file() -> None:
    with Postgres.start() as server:
        folder, port = server._folder, server.port
    assert not port_answers(port)
    assert not folder.exists()


def test_stopping_a_child_ends_its_grandchildren_too(tmp_path: Path) -> None:
    child = start_child(["sh", "-c", "sleep 600 & echo $!; wait"], name="shell", log=tmp_path / "log")
    wait_until(lambda: (tmp_path / "log").read_text().strip() != "", child)
    grandchild = int((tmp_path / "log").read_text())
    child.stop()
    until(lambda: not Path(f"/proc/{grandchild}").exists() or is_zombie(grandchild), "the grandchild has ended")


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = start_child(
        [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=1); signal.pause()"],
        name="stubborn",
        log=tmp_path / "log",
    )
    wait_until(lambda: (tmp_path / "log").read_text() != "", child)
    assert child.stop(patience_seconds=0.1) == -signal.SIGKILL


def test_child_that_exits_early_is_reported_with_its_last_output(tmp_path: Path) -> None:
    child = start_child(["sh", "-c", "echo no space left; exit 3"], name="The server", log=tmp_path / "log")
    with pytest.raises(ChildFailedError, match=r"(?s)The server ended with status 3 .*no space left"):
        wait_until(lambda: False, child)
    child.stop()


def test_a_child_that_never_answers_is_reported(tmp_path: Path) -> None:
    child: Child = start_child(["sleep", "600"], name="The server", log=tmp_path / "log")
    with pytest.raises(ChildFailedError, match="did not answer"):
        wait_until(lambda: False, child, deadline_seconds=0.05)
    child.stop()


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
