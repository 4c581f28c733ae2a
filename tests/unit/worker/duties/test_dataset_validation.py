"""The validation of a dataset: what it writes, when it releases its claim, and how much memory it needs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from lora_contract.hyperparameters import Hyperparameters
from lora_conversations.survey import Surveyor
from lora_worker.database.rows import Dataset, DatasetClaim
from lora_worker.datasets.preflight import survey_dataset
from lora_worker.duties.validation import Validator, failed, ready
from lora_worker.errors import (
    ObjectMissingError,
    PreflightError,
    SchemaMissingError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
)
from lora_worker.observability.repeats import Repeats
from lora_worker.services import HeavySlots
from tests.corpus import CASES
from tests.corpus.builders import GOOD, Case, chat, lines, pair, turn
from tests.project import ROOT

OWNER, STRANGER = UUID(int=1), UUID(int=2)
DATASET = Dataset(
    id=uuid4(), user_id=OWNER, name="Calm money", status="validating", storage_path=f"{OWNER}/d/file.jsonl"
)


class FakeQueue:
    """Returns one claim and records the calls for it. `test_fake_queues.py` compares it with the real queue."""

    def __init__(self, *, attempts: int = 1, holds: bool = True) -> None:
        self.claims = [DatasetClaim(dataset=DATASET, lease_token=uuid4(), attempts=attempts)]
        self.holds = holds
        self.renewed = 0
        self.put_off: list[int] = []
        self.outcomes: list[dict[str, Any]] = []
        self.settling: list[Exception] = []

    async def claim_dataset(self) -> DatasetClaim | None:
        return self.claims.pop() if self.claims else None

    async def renew_dataset_claim(self, dataset_id: UUID, lease_token: UUID) -> bool:
        self.renewed += 1
        return self.holds

    async def put_off_dataset(self, dataset_id: UUID, lease_token: UUID, *, seconds: int) -> bool:
        self.put_off.append(seconds)
        return self.holds

    async def settle_dataset(self, dataset_id: UUID, lease_token: UUID, outcome: dict[str, Any]) -> bool:
        if self.settling:
            raise self.settling.pop()
        self.outcomes.append(outcome)
        return self.holds


class FakeStorage:
    """Streams prepared chunks; an exception among them is raised when its turn comes."""

    def __init__(self, *chunks: bytes | Exception) -> None:
        self.chunks = chunks

    @asynccontextmanager
    async def stream(self, bucket: str, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        assert (bucket, path) == ("lora-datasets", DATASET.storage_path)

        async def give() -> AsyncIterator[bytes]:
            for chunk in self.chunks:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk

        yield give()


def services(queue: FakeQueue, storage: FakeStorage, clock: Iterator[float] | None = None) -> Any:
    return SimpleNamespace(
        queue=queue,
        storage=storage,
        settings=SimpleNamespace(lease_seconds=60, retry_base_seconds=30.0, max_handlings=6),
        heavy_slots=HeavySlots(1),
        repeats=Repeats(lambda: 0.0),
        clock=lambda: next(clock) if clock else 0.0,
    )


async def validate(queue: FakeQueue, *chunks: bytes | Exception, clock: Iterator[float] | None = None) -> None:
    await Validator(services(queue, FakeStorage(*chunks), clock), asyncio.Event()).run_once()


def survey_of(content: bytes) -> Any:
    surveyor = Surveyor()
    surveyor.feed(content)
    surveyor.close()
    return surveyor.result()


async def test_a_usable_dataset_becomes_ready_with_real_counts() -> None:
    queue = FakeQueue()
    await validate(queue, lines(pair(2), pair(4)), lines(pair(2, "c2")))
    (outcome,) = queue.outcomes
    assert (outcome["status"], outcome["total_training_pairs"]) == ("ready", 3)
    assert (outcome["avg_turns_per_conversation"], len(outcome["sample_data"])) == (3.0, 2)
    assert outcome["validation_errors"] is None
    assert outcome["notice"]["type"] == "dataset_ready"
    assert outcome["notice"]["action_url"] == f"/datasets/{DATASET.id}"


@pytest.mark.parametrize(
    ("base", "refused"), [("mistralai/Mistral-7B-Instruct-v0.2", True), ("Qwen/Qwen2.5-7B-Instruct", False)]
)
async def test_text_with_the_bases_turn_mark_is_refused_before_a_launch(base: str, refused: bool) -> None:
    storage: Any = FakeStorage(lines(GOOD[0], chat("How?", "So [INST] and more")))
    checking = survey_dataset(DATASET, storage, Hyperparameters(base_model=base))
    if not refused:
        assert (await checking).examples == 2
        return
    with pytest.raises(PreflightError) as error:
        await checking
    assert str(error.value) == (
        "Line 2 of the dataset holds “[INST]”, with which the base's chat template marks a turn. "
        "Write it in another way or remove the example."
    )


CALLING = {
    "messages": [
        turn("user", "Weather?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
    ],
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}],
}


@pytest.mark.parametrize(
    ("base", "refused"), [("meta-llama/Meta-Llama-3-8B-Instruct", True), ("Qwen/Qwen3-8B", False), ("own/base", False)]
)
async def test_tools_are_refused_before_a_launch_of_a_base_without_them(base: str, refused: bool) -> None:
    storage: Any = FakeStorage(lines(GOOD[0], CALLING))
    checking = survey_dataset(DATASET, storage, Hyperparameters(base_model=base))
    if not refused:
        assert (await checking).examples == 2
        return
    with pytest.raises(PreflightError) as error:
        await checking
    assert str(error.value) == (
        "Line 2 of the dataset uses tools, which the base's chat template does not show. "
        "Choose a base model whose chat template takes tools, or remove the example."
    )


async def test_few_bad_lines_leave_a_dataset_ready_and_are_listed() -> None:
    queue = FakeQueue()
    await validate(queue, lines(*GOOD, "{]"))
    (outcome,) = queue.outcomes
    assert outcome["status"] == "ready"
    assert [row["line"] for row in outcome["validation_errors"]] == [21]
    assert outcome["notice"]["message"].endswith("20 pairs. Left out: 1 line that can't be used.")


async def test_too_many_bad_lines_are_an_error_with_their_lines() -> None:
    queue = FakeQueue()
    await validate(queue, lines(GOOD[0], {"messages": [turn("narrator", "secret")]}))
    (outcome,) = queue.outcomes
    assert outcome["status"] == "error"
    assert outcome["validation_errors"] == [
        {
            "line": 2,
            "error": "messages[0].role is a text of 8 characters that names no role.",
            "suggestion": "Use system, user, assistant or tool.",
        }
    ]
    assert outcome["error_message"].startswith("Line 2 of the dataset: messages[0].role")
    assert outcome["notice"]["type"] == "dataset_error"
    assert "secret" not in str(outcome)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
async def test_every_unusual_dataset_settles_with_rows_a_page_can_show(case: Case) -> None:
    queue = FakeQueue()
    await validate(queue, case.content)
    (outcome,) = queue.outcomes
    bad_share = len(case.errors) / max(len(case.errors) + case.examples, 1)
    expected = "ready" if not case.refused and case.examples and bad_share <= 0.05 else "error"
    assert outcome["status"] == expected
    for row in outcome["validation_errors"] or []:
        assert isinstance(row["line"], int)
        assert row["line"] >= 1
        assert row["error"].endswith(".")
    assert bool(outcome["validation_errors"]) == (expected == "error" or bool(case.errors or case.notes))
    assert len(outcome["validation_errors"] or []) <= 10
    assert len(outcome["error_message"] or "") < 500
    assert len(outcome["notice"]["message"]) <= 700
    assert bool(outcome["error_message"]) == (expected == "error")


async def test_missing_file_is_an_error_and_is_not_retried() -> None:
    queue = FakeQueue()
    await validate(queue, ObjectMissingError("Supabase Storage", "not there", status=404))
    assert queue.outcomes[0]["error_message"] == "The dataset's file is not in the storage. Upload it again."
    assert queue.outcomes[0]["validation_errors"][0]["line"] == 1


async def test_storage_outage_postpones_a_validation() -> None:
    queue = FakeQueue()
    await validate(queue, lines(*GOOD), ServiceUnavailableError("Supabase Storage", "broke off"))
    assert (queue.outcomes, queue.put_off) == ([], [30])


async def test_file_that_crashed_its_readers_is_given_up_unread() -> None:
    queue = FakeQueue(attempts=7)
    await validate(queue, RuntimeError("must not be read"))
    assert queue.outcomes[0]["error_message"].startswith("The dataset could not be read to its end.")


async def test_long_read_renews_its_claim_and_a_lost_claim_is_fenced() -> None:
    kept, lost = FakeQueue(), FakeQueue(holds=False)
    await validate(kept, *[lines(*GOOD)] * 4, clock=iter(range(0, 1000, 15)))
    assert kept.renewed >= 1
    assert len(kept.outcomes) == 1
    await validate(lost, *[lines(*GOOD)] * 4, clock=iter(range(0, 1000, 15)))
    assert (lost.outcomes, lost.put_off) == ([], [])


async def test_stopping_worker_returns_its_dataset_at_once() -> None:
    queue, stop = FakeQueue(), asyncio.Event()

    class StoppingStorage(FakeStorage):
        @asynccontextmanager
        async def stream(self, bucket: str, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
            async with super().stream(bucket, path) as chunks:
                stop.set()
                yield chunks

    await Validator(services(queue, StoppingStorage(lines(*GOOD))), stop).run_once()
    assert (queue.outcomes, queue.put_off) == ([], [0])


async def test_dataset_refused_by_the_database_does_not_block_the_next() -> None:
    queue = FakeQueue()
    queue.claims.append(queue.claims[0])
    queue.settling = [ServiceRefusedError("db", "refused the call (22P05)", status=400)]
    await validate(queue, lines(*GOOD))
    # The claim expires by itself. Each time counts, and after the last the dataset is settled unread.
    assert (len(queue.outcomes), queue.put_off) == (1, [])


async def test_dataset_that_breaks_its_reader_does_not_block_the_next() -> None:
    queue = FakeQueue(attempts=7)
    queue.claims.append(queue.claims[0].model_copy(update={"attempts": 1}))
    await validate(queue, RuntimeError("a bug"))
    assert [outcome["status"] for outcome in queue.outcomes] == ["error"]


@pytest.mark.parametrize(
    "fault",
    [
        ServiceUnavailableError("db", "is not available"),
        ServiceRefusedError("db", "refused the key", status=401),
        SchemaMissingError("db", "functions are missing"),
    ],
)
async def test_database_outage_ends_the_round(fault: ServiceError) -> None:
    queue = FakeQueue()
    queue.claims.append(queue.claims[0])
    queue.settling = [fault]
    with pytest.raises(type(fault)):
        await validate(queue, lines(*GOOD))
    assert len(queue.claims) == 1


def test_ready_and_error_outcomes_have_the_same_columns() -> None:
    survey = survey_of(lines(*GOOD, "{]"))
    broken = survey_of(b"{]\n")
    with pytest.raises(Exception, match="Line 1") as refused:
        broken.check(0)
    bad = failed(DATASET, refused.value, broken)  # type: ignore[arg-type]
    assert set(bad) <= set(ready(DATASET, survey))


MEASURE = """
import asyncio, re
from lora_worker.services import HeavySlots
from pathlib import Path
from types import SimpleNamespace
import httpx
from tests.corpus.builders import lines, pair
from tests.unit.worker.duties.test_dataset_validation import DATASET, FakeQueue
from lora_worker.observability.repeats import Repeats
from lora_worker.storage.objects import Storage
from lora_worker.duties.validation import Validator

BLOCK = lines(*(pair(4, f"c{number}", target_response="Let us look at this calmly. " * 120) for number in range(300)))
COUNT = 500_000_000 // len(BLOCK) + 1

class Stream(httpx.AsyncByteStream):
    async def __aiter__(self):
        for _ in range(COUNT):
            yield BLOCK

async def main():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Stream()))
    queue = FakeQueue()
    async with httpx.AsyncClient(transport=transport) as http:
        services = SimpleNamespace(
            queue=queue, storage=Storage("http://storage", "sb_secret_x", http=http), clock=lambda: 0.0,
            settings=SimpleNamespace(lease_seconds=60, max_handlings=6), heavy_slots=HeavySlots(1),
            repeats=Repeats(lambda: 0.0))
        await Validator(services, asyncio.Event()).run_once()
    assert queue.outcomes[0]["total_training_pairs"] == COUNT * 300, queue.outcomes
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_500_mb_are_validated_in_300_mb_of_memory() -> None:
    root = ROOT
    answer = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, cwd=root)
    assert answer.returncode == 0, answer.stderr
    kilobytes = int(answer.stdout.split()[-1])
    print(f"peak {kilobytes // 1024} MB")
    assert kilobytes < 300 * 1024


@pytest.mark.parametrize(
    ("bucket", "path", "readable"),
    [
        (None, f"{OWNER}/d/file.jsonl", True),
        ("lora-models", f"{OWNER}/run/training_log.jsonl", True),
        ("training-files", "shared/training.jsonl", True),
        (None, f"{STRANGER}/d/file.jsonl", False),
        (None, f"{OWNER}/../{STRANGER}/d/file.jsonl", False),
        (None, f"/{OWNER}//d/file.jsonl", True),
        (None, f"/{STRANGER}/d/file.jsonl", False),
        (None, f"{OWNER}/./d", False),
        (None, f"{OWNER}/%2e%2e/{STRANGER}/d/file.jsonl", True),
        ("lora-models", "uploads/run/adapter_model.safetensors", False),
        (None, "", False),
        (None, "//", False),
        ("lora-models", "adapters/somebodys.tar.gz", False),
        ("training-files", "../lora-models/x", False),
    ],
)
def test_dataset_never_exposes_the_file_of_another_user(bucket: str | None, path: str, readable: bool) -> None:
    dataset = DATASET.model_copy(update={"storage_bucket": bucket, "storage_path": path})
    assert dataset.is_readable_by(OWNER) is readable
    assert not dataset.is_readable_by(STRANGER)
