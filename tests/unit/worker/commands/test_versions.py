"""The commands about versions and aliases, as text and JSON: names are text, and exit codes say what came of it."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from pydantic import TypeAdapter

from lora_worker.commands.alias_waiting import wait_until_served
from lora_worker.database.version_rows import AliasMove, AliasRow
from lora_worker.errors import PromotionRefusedError, ServiceUnavailableError
from tests.commands import check_keys, give_services, run_command
from tests.scripted import make_services
from tests.unit.worker.commands.job_data import HOSTILE, SHOWN
from tests.unit.worker.versions.made import AT, DATASET, FakeAnswering, VersionsQueue, alias, figures, row

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> VersionsQueue:
    best = row(figures=figures(2.0, 1.2, held_out_gain_low=0.7, held_out_gain_high=0.9, overall_score=5,
                               general_loss_change_percent=0.4), dataset_name=HOSTILE, aliases=["zebras"],
               version="1.1.0")  # fmt: skip
    made = VersionsQueue([best, row(figures=figures(2.0, 1.6))], [alias(best)])
    give_services(monkeypatch, make_services(queue=made, answering=FakeAnswering()))
    return made


def test_versions_are_listed_with_the_best_marked_and_why(queue: VersionsQueue) -> None:
    done = run_command("models", DATASET)
    assert done.exit_code == 0, done.stderr
    assert queue.wanted == [{"of": DATASET, "user_id": None, "limit": 50}]
    assert HOSTILE not in done.stdout
    for part in (SHOWN[:19], "★", "0.8 (0.7 to 0.9)", "+0.4 %", "zebras:live", "has the lowest held-out loss of 2",
                 "zebras:live waits for a worker"):  # fmt: skip
        assert part in done.stdout
    value = json.loads(run_command("models", "--json").stdout)
    check_keys("models", value)
    assert value["models"][0]["best"] == str(queue.rows[0]["id"])


def test_no_versions_are_a_sentence(queue: VersionsQueue) -> None:
    queue.rows, queue.aliases = [], []
    assert run_command("models").stdout == "no such models\n"
    assert "promote JOB" in run_command("aliases").stdout


def test_promotion_tells_where_it_stands(queue: VersionsQueue) -> None:
    job = str(queue.rows[1]["job_id"])
    done = run_command("promote", job)
    assert done.exit_code == 0, done.stderr
    assert f"zebras:live leads to 1.0.0 ({job[:8]})" in done.stdout
    assert f"led to job {queue.rows[0]['job_id']} before" in done.stdout
    assert "it waits for a worker to put it on the endpoint's volume" in done.stdout
    assert " on " in queue.changes[0]["moved_by"]


def test_promotion_and_rollback_have_stable_keys(queue: VersionsQueue) -> None:
    value = json.loads(run_command("promote", str(queue.rows[1]["job_id"]), "--json").stdout)
    check_keys("promote", value)
    back = {"number": 1, "run_id": queue.rows[0]["id"], "job_id": queue.rows[0]["job_id"], "adapter": "adapter-1"}
    queue.aliases = [alias(queue.rows[1], number=2, rollback=back)]
    value = json.loads(run_command("rollback", "zebras:live", "--json").stdout)
    check_keys("rollback", value)
    assert value["job_id"] == str(queue.rows[0]["job_id"])


def test_refusal_is_one_sentence_and_no_traceback(queue: VersionsQueue) -> None:
    queue.refusal = "zebras was moved by bob, after you looked"
    done = run_command("promote", str(queue.rows[1]["job_id"]))
    assert (done.exit_code, done.stderr) == (1, "lora-worker: zebras was moved by bob, after you looked\n")
    assert run_command("promote", str(uuid4()), "--as", "../x").exit_code == 2


def test_waiting_promotion_that_is_not_live_in_time_fails(queue: VersionsQueue) -> None:
    done = run_command("promote", str(queue.rows[1]["job_id"]), "--wait", "--wait-seconds", "0")
    assert done.exit_code == 1
    assert "waits for a worker" in done.stdout


def test_moves_of_an_alias_are_shown_with_who_made_them(queue: VersionsQueue) -> None:
    move = {"number": 2, "moved_at": AT, "moved_by": HOSTILE, "run_id": uuid4(), "job_id": uuid4(),
            "adapter": "adapter-1", "from_run_id": uuid4(), "from_job_id": uuid4(), "restores": 1}  # fmt: skip
    queue.moves = [TypeAdapter(AliasMove).validate_python(move)]
    done = run_command("aliases", "zebras")
    assert done.exit_code == 0, done.stderr
    assert HOSTILE not in done.stdout
    assert "back to move 1" in done.stdout
    check_keys("aliases", json.loads(run_command("aliases", "zebras", "--json").stdout))
    assert run_command("aliases", "other").exit_code == 2


class _Asked:
    """Answers with one alias after the other; the last one stays."""

    def __init__(self, *answers: AliasRow | Exception | None) -> None:
        self._answers = list(answers)

    async def list_training_aliases(self, name: str | None = None, user_id: Any = None) -> list[AliasRow]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [] if answer is None else [answer]


async def wait(*answers: AliasRow | Exception | None, seconds: float = 600) -> tuple[AliasRow, list[str]]:
    said: list[str] = []
    times = iter(range(1000))

    async def pause(_: float) -> None:
        return None

    now = await wait_until_served(
        _Asked(*answers), alias(), seconds=seconds, say=said.append, pause=pause, clock=lambda: float(next(times))
    )
    return now, said


async def test_waiting_tells_each_step_once_and_outlasts_the_database() -> None:
    away = ServiceUnavailableError("Supabase", "away")
    live = alias(placed=True, served=True)
    now, said = await wait(alias(), away, alias(placed=True), alias(placed=True), live)
    assert now["served"]
    assert [line.partition(" ")[2].split()[0] for line in said] == ["waits", "is", "is"]
    assert said[-1] == "zebras:live is live"


async def test_waiting_ends_with_its_time_or_another_move() -> None:
    now, _ = await wait(alias(), seconds=5)
    assert not now["served"]
    with pytest.raises(PromotionRefusedError, match="was moved by bob meanwhile"):
        await wait(alias(number=2, moved_by="bob"))
    with pytest.raises(PromotionRefusedError, match="was removed meanwhile"):
        await wait(None)
    gone, _ = await wait(alias(deleted=True))
    assert gone["deleted"]
