"""The worker on the smallest machine: 256 MB of memory, nothing to write to, many runs, a large adapter.

As root, the kernel enforces both (`tests/processes/confinement.py`); elsewhere the memory is measured only.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.processes.confinement import Confinement, confined, peak_bytes
from tests.processes.crowd import Crowd, crowded
from tests.processes.stage import Stage
from tests.processes.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and uses Linux's control groups")

MEMORY_BYTES = 256 * 10**6
LIVE_RUNS = 100
ADAPTER_BYTES = 400 * 10**6

_WRITES = """
import pathlib, sys, tempfile
places = [pathlib.Path.cwd(), *map(pathlib.Path, sys.argv[1:])]
written = []
for place in places:
    try:
        (place / "written").touch()
        written.append(str(place))
    except OSError:
        pass
try:
    written.append(tempfile.gettempdir())
except FileNotFoundError:
    pass
print(*written)
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Confinement]:
    """A confinement of 256 MB and without a place to write."""
    with confined(tmp_path / "nothing to write", MEMORY_BYTES) as confinement:
        yield confinement


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """An endpoint on which all jobs go on."""
    with crowded() as one:
        yield one


def test_confinement_refuses_writes_and_too_much_memory(small: Confinement, tmp_path: Path) -> None:
    """Without this, the tests below could pass on a machine that confines nothing."""
    environment = {"PATH": "/usr/bin:/bin", **small.environment()}
    if small.is_read_only:
        command = small.command(sys.executable, "-c", _WRITES, "/tmp", "/var/tmp", "/dev/shm", str(tmp_path))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "", "these can be written"
    if small.group is None:
        pytest.skip("this machine lets nobody limit memory by a control group: it is measured only")
    command = small.command(sys.executable, "-c", f"print(len(bytearray({MEMORY_BYTES + 50 * 10**6})))")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert small.group.killed == 1


def test_sandboxes_jobs_run_on_256_mb_without_a_writable_folder(stage: Stage, small: Confinement) -> None:
    jobs = [stage.user.queue(max_steps=30), stage.user.queue(base_model="no/such-model", max_steps=5)]
    address = f"lora-test-{uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{address}")
        worker = stage.worker(confinement=small, NOTIFY_SOCKET=f"@{address}")
        assert [stage.ended(job_id)["status"] for job_id in jobs] == ["completed", "failed"]
        assert "Traceback" not in stage.log()
        _assert_small(worker, small, stage)
        assert [systemd.recv(100) for _ in range(2)] == [b"READY=1", b"STOPPING=1"], "what systemd waits for"


def test_100_live_runs_and_a_400_mb_adapter_fit_into_256_mb(
    stage_with: Callable[..., Stage], crowd: Crowd, small: Confinement
) -> None:
    stage = stage_with(crowd)
    dataset_id = stage.user.upload()
    jobs = [stage.user.queue(dataset_id, max_steps=10_000) for _ in range(LIVE_RUNS)]
    pace = {"LORA_WORKER_POLL_SECONDS": "2", "LORA_WORKER_LEASE_SECONDS": "60"}
    worker = stage.worker(confinement=small, LORA_WORKER_SLOTS=str(LIVE_RUNS), **pace)
    for job_id in jobs:
        crowd.launched(job_id)
    until(
        lambda: len(crowd.looks) == LIVE_RUNS and min(crowd.looks.values()) >= 2,
        "every run was looked at twice", state=stage.log,
    )  # fmt: skip
    chosen = jobs[0]
    crowd.publish(crowd.launched(chosen), ADAPTER_BYTES)
    job = stage.ended(chosen)
    assert (job["status"], job["error_message"]) == ("completed", None)
    (run,) = stage.runs(chosen)
    manifest = json.loads(stage.user.stored(f"{stage.user.user_id}/{run['id']}/manifest.json") or b"{}")
    assert manifest["files"][0]["bytes"] == ADAPTER_BYTES, "it was read back and hashed"
    states = stage.database.rows("select status, count(*) from training_jobs where user_id = %s group by 1 order by 1",
                                 stage.user.user_id)  # fmt: skip
    assert [(row["status"], row["count"]) for row in states] == [("completed", 1), ("running", LIVE_RUNS - 1)]
    _assert_small(worker, small, stage)


def _assert_small(worker: subprocess.Popen[bytes], small: Confinement, stage: Stage) -> None:
    """It has never been killed or near the limit, and stops as ever."""
    assert worker.poll() is None, stage.log()
    peak = peak_bytes(worker.pid)
    print(f"peak: {peak / 1e6:.0f} MB of {MEMORY_BYTES / 1e6:.0f} MB; limited by the kernel: {small.group is not None}")
    assert peak < MEMORY_BYTES
    assert small.group is None or small.group.killed == 0
    assert stage.stop(worker) == 0, stage.log()
