"""A job runs on one GPU, within its time, and ends with all that it has started."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from lora_worker.gpu_server.gpus import read_gpus, resolve_gpus
from lora_worker.gpu_server.jobs import MAX_STARTS
from lora_worker.gpu_server.process import MAX_LOG_BYTES, TrainerProcess, trainer_environment
from lora_worker.launchers.registry import hidden_from_trainers
from tests.unit.worker.gpu_server.conftest import Serving


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_result_is_the_output_of_a_completed_job(serving: Serving) -> None:
    async with serving() as server:
        seen = await server.ended(await server.submit("complete"))
        assert seen["status"] == "completed"
        assert seen["output"]["status"] == "completed"
        assert [line.split()[1] for line in server.starts()] == ["0"]


async def test_failed_result_fails_the_job_with_its_words(serving: Serving) -> None:
    async with serving() as server:
        seen = await server.ended(await server.submit("fail"))
        assert (seen["status"], seen["cause"], seen["error"]) == ("failed", "raised", "The dataset is empty.")


async def test_each_gpu_has_one_job_at_a_time(serving: Serving) -> None:
    async with serving(gpus=("0", "1")) as server:
        first, second = await server.submit("linger", run_id="a"), await server.submit("linger", run_id="b")
        third = await server.submit("complete", run_id="c")
        gpus = {(await server.trains(first))["gpu"], (await server.trains(second))["gpu"]}
        assert gpus == {"0", "1"}
        assert (await server.status(third))["status"] == "queued"
        await server.http.post(f"/training/cancel/{first}")
        assert (await server.ended(third))["status"] == "completed"


async def test_job_whose_process_is_killed_begins_again(serving: Serving) -> None:
    async with serving() as server:
        seen = await server.ended(await server.submit("die", "complete"))
        assert (seen["status"], seen["starts"]) == ("completed", 2)


async def test_job_whose_process_is_killed_each_time_fails(serving: Serving) -> None:
    async with serving() as server:
        seen = await server.ended(await server.submit("die"))
        assert (seen["status"], seen["cause"], len(server.starts())) == ("failed", "lost", MAX_STARTS)
        assert "SIGKILL" in seen["error"]


async def test_trainer_without_its_packages_is_named(serving: Serving) -> None:
    async with serving() as server:
        seen = await server.ended(await server.submit("import"))
        assert (seen["status"], seen["cause"]) == ("failed", "import_failed")
        assert "result" in (await server.http.get("/health")).json()["problem"]


async def test_trainer_that_can_not_be_started_fails_the_job(serving: Serving, tmp_path: Path) -> None:
    async with serving(command=[str(tmp_path / "nothing")]) as server:
        seen = await server.ended(await server.submit("complete"))
        assert (seen["status"], seen["cause"]) == ("failed", "import_failed")


async def test_cancelled_job_ends_with_its_process(serving: Serving) -> None:
    async with serving() as server:
        job_id = await server.submit("linger")
        await server.trains(job_id)
        pid = int(server.starts()[0].split()[0])
        assert (await server.http.post(f"/training/cancel/{job_id}")).status_code == 200
        assert (await server.ended(job_id))["status"] == "cancelled"
        assert not is_alive(pid)


async def test_job_over_its_time_is_ended(serving: Serving) -> None:
    async with serving() as server:
        seen = await server.ended(await server.submit("linger", execution_seconds=0.5))
        assert (seen["status"], seen["cause"]) == ("failed", "over_time")
        assert seen["execution_seconds"] >= 0.5
        assert not is_alive(int(server.starts()[0].split()[0]))


async def test_server_that_ends_leaves_no_process_and_goes_on_later(serving: Serving) -> None:
    async with serving() as server:
        job_id = await server.submit("linger", "complete")
        await server.trains(job_id)
        pid = int(server.starts()[0].split()[0])
    assert not is_alive(pid)
    async with serving() as server:
        assert (await server.ended(job_id))["status"] == "completed"


async def test_job_that_waits_too_long_ends_while_every_gpu_works(serving: Serving) -> None:
    woken = asyncio.Event()

    async def sleep(_: float) -> None:
        await woken.wait()
        woken.clear()

    async with serving(sleep=sleep) as server:
        first = await server.submit("linger", run_id="a")
        await server.trains(first)
        second = await server.submit("complete", run_id="b", ttl_seconds=0.001)
        woken.set()
        assert (await server.ended(second))["status"] == "timed_out"
        assert (await server.status(first))["status"] == "running"


async def test_trainer_goes_on_where_its_log_can_not_be_written(tmp_path: Path) -> None:
    code = "import sys; sys.stdin.readline(); [print('x' * 99, flush=True) for _ in range(5000)]"
    process = TrainerProcess(
        [sys.executable, "-S", "-c", code], env={}, log=tmp_path / "no" / "log", grace_seconds=1,
        on_progress=lambda _: None,
    )  # fmt: skip
    assert (await process.run({"id": "job", "input": {}})).status == 0


async def test_trainer_that_can_not_be_started_leaves_no_descriptor_open(tmp_path: Path) -> None:
    process = TrainerProcess(
        [str(tmp_path / "nothing")], env={}, log=tmp_path / "log", grace_seconds=1, on_progress=lambda _: None
    )
    before = open_descriptors()
    with pytest.raises(OSError, match="nothing"):
        await process.run({})
    assert open_descriptors() <= before


def test_trainer_sees_no_key_of_a_worker_beside_it() -> None:
    secret = (
        "LORA_WORKER_GPU_SERVER_KEY", "SUPABASE_SERVICE_ROLE_KEY", "GPU_CLUSTER_API_KEY", "RUNPOD_API_KEY",
        "DATABASE_URL", "SUPABASE_DB_PASSWORD",
    )  # fmt: skip
    read = {"PATH": "/bin", "HF_TOKEN": "hf", "RUNPOD_POD_ID": "pod", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector"}
    own = dict.fromkeys(secret, "secret") | read
    seen = trainer_environment(own, "1", hidden=hidden_from_trainers(own))
    assert seen == {**read, "CUDA_VISIBLE_DEVICES": "1"}


async def test_of_a_chatty_trainer_the_newest_output_is_kept(tmp_path: Path) -> None:
    lines = MAX_LOG_BYTES // 50
    code = f"import sys; sys.stdin.readline(); [print('x' * 99) for _ in range({lines})]; print('the end')"
    log = tmp_path / "job.log"
    process = TrainerProcess(
        [sys.executable, "-S", "-c", code], env={}, log=log, grace_seconds=1, on_progress=lambda _: None
    )
    ending = await process.run({"id": "job", "input": {}})
    assert (ending.status, ending.result) == (0, None)
    assert log.stat().st_size <= MAX_LOG_BYTES
    assert log.read_bytes().endswith(b"the end\n")


def test_gpus_are_read_by_their_uuids() -> None:
    listed = (
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0f4c2d9e-1111-2222-3333-444455556666)\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-11111111-2222-3333-4444-555566667777)\n"
        "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-0f4c2d9e-1111-2222-3333-444455557777)\n"
    )
    first, second = (f"GPU-0f4c2d9e-1111-2222-3333-44445555{end}" for end in ("6666", "7777"))
    mig = "MIG-11111111-2222-3333-4444-555566667777"
    known = read_gpus(listed)
    assert known == {"0": first, first: first, mig: mig, "1": second, second: second}
    assert resolve_gpus(["1", mig], known) == [second, mig]
    assert read_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") == {}


def test_a_trainer_on_the_cpu_sees_no_gpu_of_the_machine() -> None:
    """Else it takes the first one, beside whatever trains there."""
    seen = trainer_environment({"CUDA_VISIBLE_DEVICES": "3", "KEY": "x"}, None, hidden=["KEY"])
    assert seen == {"CUDA_VISIBLE_DEVICES": ""}
