"""RunPod's answers are read within bounds of number, size and depth, since a container writes part of each."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from lora_worker.errors import LaunchInDoubtError, ServiceUnavailableError
from lora_worker.launchers.answers import answered_at
from lora_worker.launchers.base import EndCause, LaunchRef, LaunchState, Policy
from lora_worker.launchers.runpod.answers import count_of, parse_observation, seconds_of
from lora_worker.launchers.runpod.launcher import RunPodLauncher

URL = "https://api.runpod.ai/v2/ep"
REF = LaunchRef(None, "j")
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (1500, 1.5), (604_800_000, 604_800), (-1, None), (True, None), (float("nan"), None),
     (float("inf"), None), (1e308, None), (10**400, None), ("1500", None), (None, None), ([], None)],
)  # fmt: skip
def test_impossible_execution_time_is_ignored(value: Any, seconds: float | None) -> None:
    assert seconds_of(value) == seconds
    seen = parse_observation({"status": "COMPLETED", "executionTime": value, "delayTime": value})
    assert (seen.execution_seconds, seen.queue_seconds) == (seconds, seconds)


@pytest.mark.parametrize(
    "date",
    [
        "",
        "yesterday",
        f"Mon, 01 Jan 2026 00:00:00 +{10**12}",
        f"Mon, 01 Jan {10**19} 0:0:0",
        f"1 Jan 2026 {10**12}:0:0",
    ],
)
def test_date_that_no_clock_shows_is_ignored(date: str) -> None:
    assert answered_at({"date": date}) is None


@pytest.mark.parametrize("value", [-1, True, float("nan"), float("inf"), 1e308, 10**400, "3", None, []])
async def test_malformed_endpoint_count_counts_as_zero(launcher: RunPodLauncher, api: Any, value: Any) -> None:
    assert count_of({"idle": value}, "idle") == 0
    api.get("/health").respond(content=json.dumps({"jobs": {"inQueue": value}, "workers": {"idle": value}}).encode())
    health = await launcher.health()
    assert (health.reachable, health.workers, health.jobs_queued) == (True, 0, 0)


@pytest.mark.parametrize("output", [b'"' + b"x" * 50_000_000 + b'"', DEEP, b"9" * 5000])
@pytest.mark.parametrize("word", ["COMPLETED", "IN_PROGRESS", "FAILED"])
async def test_unreadable_output_does_not_hide_the_status(
    launcher: RunPodLauncher, api: Any, output: bytes, word: str
) -> None:
    body = b'{"executionTime": 5, "output": ' + output + b', "status": "%b", "workerId": "w"}' % word.encode()
    api.get("/status/j").respond(content=body)
    seen = await launcher.observe(REF)
    assert (str(seen.state), seen.output) == ({"IN_PROGRESS": "running"}.get(word, word.lower()), None)


async def test_huge_answer_takes_little_memory() -> None:
    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for _ in range(2_000):
                yield b"[" * 65_536

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless()))
    async with httpx.AsyncClient(transport=transport) as http:
        tracemalloc.start()
        seen = await RunPodLauncher(URL, "key", http=http).observe(REF)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seen.state is LaunchState.UNKNOWN
    assert peak < 40_000_000


async def test_a_status_is_never_taken_from_inside_a_broken_answer(launcher: RunPodLauncher, api: Any) -> None:
    api.get("/status/j").respond(content=b'{"output": {"status": "COMPLETED"')
    assert (await launcher.observe(REF)).state is LaunchState.UNKNOWN


async def test_launch_with_an_unreadable_answer_is_unconfirmed(launcher: RunPodLauncher, api: Any) -> None:
    api.post("/run").respond(content=DEEP)
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch({}, Policy(60, 120))


@pytest.mark.parametrize(("value", "seconds"), [("9" * 400, None), ("999999", 3600.0), ("²", None), ("7", 7.0)])
async def test_retry_after_is_respected_for_an_hour_at_most(
    launcher: RunPodLauncher, api: Any, value: str, seconds: float | None
) -> None:
    api.post("/run").respond(429, headers=[(b"retry-after", value.encode("latin-1"))])
    with pytest.raises(ServiceUnavailableError) as caught:
        await launcher.launch({}, Policy(60, 120))
    assert caught.value.retry_after_seconds == seconds


def raised(kind: str, message: str = "boom") -> str:
    """RunPod's `error` when a handler raised: JSON in a string."""
    return json.dumps({"error_type": f"<class '{kind}'>", "error_message": message, "error_traceback": "Traceback …"})


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("executionTimeout exceeded", EndCause.OVER_TIME),
        ("job timed out after 1 retries", EndCause.LOST),
        (raised("torch.OutOfMemoryError"), EndCause.OUT_OF_MEMORY),
        (raised("torch.cuda.OutOfMemoryError"), EndCause.OUT_OF_MEMORY),
        (raised("ModuleNotFoundError"), EndCause.IMPORT_FAILED),
        (raised("transformers.ImportError"), EndCause.IMPORT_FAILED),
        (raised("ValueError"), EndCause.RAISED),
        # A program's text about its own retries must not be taken for RunPod's message about a lost machine.
        (raised("ConnectionError", "timed out after 5 retries"), EndCause.RAISED),
        ({"error_type": "ValueError"}, EndCause.RAISED),
        ("Something else", EndCause.UNKNOWN),
        ("", EndCause.UNKNOWN),
        (None, EndCause.UNKNOWN),
        ("[" * 1_000_000, EndCause.UNKNOWN),
        ("9" * 1_000_000, EndCause.UNKNOWN),
        ([], EndCause.UNKNOWN),
    ],
    ids=lambda value: str(value)[:60],
)
def test_error_texts_of_runpod_become_general_causes(error: Any, cause: EndCause) -> None:
    assert parse_observation({"status": "FAILED", "error": error}).cause is cause
