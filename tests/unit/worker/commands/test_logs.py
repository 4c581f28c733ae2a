"""`logs` shows the kept log of a run, else what its container prints; where there is none, a sentence says why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from lora_worker.commands.run_log import choose_run, follow_log, last_lines, read_log
from lora_worker.database.job_reports import JobDetails
from lora_worker.errors import ArgumentError, ServiceUnavailableError
from lora_worker.launchers.base import ContainerLine, LaunchRef, LaunchState, Observation
from lora_worker.services import Services
from tests.commands import check_keys, give_services, run_command
from tests.scripted import FakeLauncher, make_services
from tests.unit.artifact_stores import MemoryBucket

USER, JOB = str(UUID(int=1)), str(UUID(int=2))
OWN = "2026-11-26 14:00:00,123 lora_trainer.run.execution INFO "
AT = datetime(2026, 11, 26, 14, tzinfo=UTC)


def run(attempt: int = 1, **more: Any) -> dict[str, Any]:
    known = {
        "run_id": str(UUID(int=100 + attempt)), "attempt": attempt, "status": "running", "ended_at": None,
        "launcher": "runpod", "endpoint": "https://api.runpod.ai/v2/ep", "external_job_id": "ext",
        "error_code": None, "error_message": None, "problem": None,
    }  # fmt: skip
    return {**known, **more}


def ended(**more: Any) -> dict[str, Any]:
    why = {"error_code": "trainer_crashed", "error_message": "It ended."}
    return run(status="failed", ended_at="2026-11-26T14:00:00Z", **{**why, **more})


def details(*runs: dict[str, Any]) -> JobDetails:
    job = {"job_id": JOB, "user_id": USER, "waits_for": "a free worker slot"}
    return {"job": job, "runs": list(runs)}  # type: ignore[typeddict-item]


class Cloud(FakeLauncher):
    container: str | None = "w1"

    async def observe(self, launch: LaunchRef) -> Observation:
        return Observation(LaunchState.RUNNING, container=self.container)


class Lines:
    """Lines of containers; `streams` are the answers of `follow`, one after the other."""

    def __init__(self, found: list[ContainerLine], streams: list[Any] | None = None) -> None:
        self.found = found
        self.streams = streams or []
        self.since: list[datetime | None] = []

    async def read(self, launch: LaunchRef, container: str | None, *, most_lines: int) -> list[ContainerLine]:
        return self.found

    async def follow(
        self, launch: LaunchRef, container: str, *, since: datetime | None
    ) -> AsyncIterator[ContainerLine]:
        self.since.append(since)
        stream = self.streams.pop(0) if self.streams else []
        if isinstance(stream, Exception):
            raise stream
        for line in stream:
            yield line


def services(logs: Any = None, *, container: str | None = "w1") -> Services:
    launcher = Cloud()
    launcher.container = container
    return make_services(storage=MemoryBucket(), launcher=launcher, container_logs={"runpod": logs} if logs else {})


async def keep(services: Services, of: dict[str, Any], *lines: str) -> None:
    await services.logs.write(UUID(USER), UUID(of["run_id"]), notes=["it ended"], lines=lines)


async def test_kept_log_of_an_ended_run_is_shown() -> None:
    made, of = services(Lines([])), ended()
    await keep(made, of, OWN + "one", OWN + "two")
    found = await read_log(made, details(of), of)  # type: ignore[arg-type]
    assert (found.source, found.lines) == ("kept", ["# it ended", OWN + "one", OWN + "two"])
    assert await last_lines(made, details(of), of, most=1) == [OWN + "two"]  # type: ignore[arg-type]


async def test_live_runs_lines_come_from_its_container() -> None:
    of = run()
    made = services(Lines([ContainerLine("w1", OWN + "step 3"), ContainerLine("w1", "a row of the dataset")]))
    found = await read_log(made, details(of), of)  # type: ignore[arg-type]
    assert found.source == "live"
    assert found.lines == ["── container w1", OWN + "step 3", "[1 line of other programs left out]"]


@pytest.mark.parametrize(
    ("of", "made", "words"),
    [
        (run(external_job_id=None), services(Lines([])), "was not launched yet"),
        (ended(external_job_id=None), services(Lines([])), r"trainer_crashed\): It ended"),
        (run(launcher="other"), services(Lines([])), "launched by other"),
        (run(), services(None), "it is kept when the run ends"),
        (ended(), services(None), "none was kept. The run ended as failed"),
        (ended(), services(Lines([])), "none were kept"),
        (run(problem="no GPU is free"), services(Lines([]), container=None), "no GPU is free"),
        (run(), services(Lines([])), "w1 has printed no line"),
    ],
)
async def test_run_without_lines_says_why_in_a_sentence(of: Any, made: Services, words: str) -> None:
    found = await read_log(made, details(of), of)
    assert (found.source, found.lines) == ("none", [])
    assert found.note is not None
    assert words.replace("\\", "") in found.note


def test_run_is_chosen_by_its_attempt() -> None:
    both = details(run(1), run(2))
    assert choose_run(both, None)["attempt"] == 2
    assert choose_run(both, 1)["attempt"] == 1
    with pytest.raises(ArgumentError, match="has no run 3; choose --run from 1 to 2"):
        choose_run(both, 3)
    with pytest.raises(ArgumentError, match="not run yet, so it has no log; it waits for a free worker slot"):
        choose_run(details(), None)


async def test_followed_run_shows_each_line_once_and_ends_with_the_kept_ones() -> None:
    begins = ContainerLine("w1", f"{OWN}run {run()['run_id']}, attempt 1, execution e", at=AT)
    second = ContainerLine("w1", OWN + "two", at=AT + timedelta(seconds=2))
    foreign = ContainerLine("w1", f"{OWN}run {run(5)['run_id']}, attempt 1, execution e")
    logs = Lines(
        [begins],
        [
            [begins, second],
            ServiceUnavailableError("RunPod", "RunPod is not reachable"),
            [second, foreign, ContainerLine("w1", OWN + "of another user")],
        ],
    )
    made, shown, looks = services(logs), list[str](), iter([run()] * 3 + [ended()] * 3)
    pauses: list[float] = []

    async def look() -> Any:
        of = next(looks)
        return details(of), of

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            await keep(made, run(), second.text, OWN + "three")

    last = await follow_log(made, look, shown.append, pause=pause)
    assert last["status"] == "failed"
    assert shown == ["── container w1", begins.text, second.text, "# it ended", OWN + "three"]
    assert logs.since == [AT, second.at, second.at]


async def test_followed_run_whose_log_is_never_kept_ends_after_a_minute() -> None:
    made, waited = services(Lines([])), list[float]()

    async def look() -> Any:
        return details(ended()), ended()

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    await follow_log(made, look, lambda _: None, pause=pause)
    assert sum(waited) == 60


class Queue:
    """Knows one job, by its id and by the beginning of it."""

    def __init__(self, *runs: dict[str, Any]) -> None:
        self.runs = runs

    async def list_training_jobs(self, wanted: dict[str, Any]) -> Any:
        return {"jobs": [{"job_id": JOB}] if JOB.startswith(wanted["id_prefix"]) else []}

    async def training_job_details(self, job_id: UUID) -> JobDetails | None:
        return details(*self.runs) if str(job_id) == JOB else None


def given(monkeypatch: pytest.MonkeyPatch, *runs: dict[str, Any], logs: Any = None) -> Services:
    made = make_services(
        storage=MemoryBucket(), launcher=Cloud(), container_logs={"runpod": logs or Lines([])}, queue=Queue(*runs)
    )
    give_services(monkeypatch, made)
    return made


@pytest.mark.usefixtures("environment")
def test_command_prints_the_lines_or_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    made, wide = given(monkeypatch, ended(), run(2)), OWN + "x [red]" * 60
    asyncio.run(keep(made, ended(), wide))
    text = run_command("logs", "00000000", "--run", "1")
    assert (text.exit_code, text.stdout) == (0, f"# it ended\n{wide}\n")
    answer = json.loads(run_command("logs", JOB, "--run", "1", "--json").stdout)
    assert answer["lines"] == ["# it ended", wide]
    check_keys("logs", answer)


@pytest.mark.usefixtures("environment")
def test_command_follows_a_run_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made = given(monkeypatch, ended())
    asyncio.run(keep(made, ended(), OWN + "one"))
    done = run_command("logs", JOB, "-f")
    assert (done.exit_code, done.stdout) == (0, f"# it ended\n{OWN}one\n")
    assert "run 1 ended as failed (trainer_crashed): It ended." in done.stderr
    as_json = run_command("logs", JOB, "-f", "--json").stdout.splitlines()
    assert [json.loads(line) for line in as_json] == [{"line": "# it ended"}, {"line": OWN + "one"}]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([str(UUID(int=9))], 2, "there is no job"),
        (["ffff"], 2, "no job's id begins with ffff"),
        ([JOB, "--run", "7"], 2, "has no run 7"),
        ([JOB], 1, "none were kept"),
    ],
)
def test_command_says_in_one_sentence_why_there_is_no_log(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    given(monkeypatch, ended())
    done = run_command("logs", *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
