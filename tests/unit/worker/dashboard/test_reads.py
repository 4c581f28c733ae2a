"""The database is asked once a second, however many pages are open, and its faults become sentences."""

from __future__ import annotations

import asyncio

import pytest

from lora_worker.dashboard.reads import SharedReads
from lora_worker.errors import ServiceUnavailableError
from tests.unit.worker.dashboard.scripted import NOW, Clock, ScriptedDatabase, make_page, signed_in


class Source:
    """Counts how often it is read, and how many read it at the same time."""

    def __init__(self) -> None:
        self.reads = self.at_once = self.most_at_once = 0
        self.fault: Exception | None = None

    async def __call__(self) -> int:
        self.reads += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.fault:
            raise self.fault
        return self.reads


async def test_many_pages_share_one_read_a_second() -> None:
    clock, source = Clock(), Source()
    reads = SharedReads(clock=clock, now=lambda: NOW)
    for second in range(3):
        clock.seconds = float(second)
        answers = await asyncio.gather(*(reads.ask("health", source) for _ in range(50)))
        assert {answer.value for answer in answers} == {second + 1}
    assert (source.reads, source.most_at_once) == (3, 1)


async def test_questions_are_read_apart() -> None:
    reads, one, other = SharedReads(clock=Clock()), Source(), Source()
    await asyncio.gather(reads.ask("one", one), reads.ask("other", other))
    assert (one.reads, other.reads) == (1, 1)


async def test_fault_keeps_the_last_answer_and_recovers() -> None:
    clock, source = Clock(), Source()
    reads = SharedReads(clock=clock, now=lambda: NOW)
    assert (await reads.ask("q", source)).problem is None
    source.fault = ServiceUnavailableError("db", "it is away")
    clock.seconds = 1
    down = await reads.ask("q", source)
    assert (down.value, down.read_at, down.problem) == (1, NOW, "it is away")
    clock.seconds = 1.5
    assert (await reads.ask("q", source)).problem == "it is away"
    assert source.reads == 2
    source.fault = None
    clock.seconds = 2
    up = await reads.ask("q", source)
    assert (up.value, up.problem) == (3, None)


async def test_database_that_hangs_is_waited_for_only_so_long() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    reading = await SharedReads(clock=Clock(), patience_seconds=0.01).ask("q", never)
    assert reading.value is None
    assert reading.problem == "the database has not answered within 0 s"


async def test_bug_in_a_read_is_no_fault_of_the_database() -> None:
    source = Source()
    source.fault = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        await SharedReads(clock=Clock()).ask("q", source)


async def test_number_of_kept_answers_is_bounded() -> None:
    reads, source = SharedReads(clock=Clock()), Source()
    for number in range(1000):
        await reads.ask(number, source)
    assert len(reads._questions) == 200
    assert await reads.ask(999, source) == await reads.ask(999, source)
    assert source.reads == 1000


async def test_answer_from_before_a_change_is_not_shown_after_it() -> None:
    reads, begun, changed = SharedReads(clock=Clock()), asyncio.Event(), asyncio.Event()

    async def read_slowly() -> str:
        begun.set()
        await changed.wait()
        return "old"

    async def read() -> str:
        return "new"

    before = asyncio.create_task(reads.ask("q", read_slowly))
    await begun.wait()
    reads.forget()
    after = asyncio.create_task(reads.ask("q", read))
    changed.set()
    assert (await before).value == "old"
    assert (await after).value == "new"


async def test_forgetting_reads_everything_again() -> None:
    reads, source = SharedReads(clock=Clock()), Source()
    await reads.ask("q", source)
    reads.forget()
    assert (await reads.ask("q", source)).value == 2


def test_pages_of_several_browsers_ask_the_database_once(database: ScriptedDatabase, clock: Clock) -> None:
    app = make_page(database, clock)
    for _ in range(5):
        assert signed_in(app).get("/").status_code == 200
    assert [call[0] for call in database.calls] == ["health", *["list_training_jobs"] * 3]
    clock.seconds = 1
    signed_in(app).get("/")
    assert len(database.calls) == 8
