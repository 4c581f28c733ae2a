"""What must not be served is refused with a sentence; a promotion writes one row, and a rollback goes back by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast
from uuid import uuid4

import pytest

from lora_worker.errors import ArgumentError, PromotionRefusedError, WorkerError
from lora_worker.services import Services
from lora_worker.versions.listing import families_of, list_versions
from lora_worker.versions.promotion import checked_name, name_for, objection, promote, roll_back, standing
from lora_worker.versions.version import Version
from tests.unit.worker.doctor.test_account import settings
from tests.unit.worker.versions.made import BASE, FakeAnswering, VersionsQueue, alias, row, version


def services_of(queue: VersionsQueue, answering: FakeAnswering | None = None) -> Services:
    return cast(Services, SimpleNamespace(queue=queue, answering=answering or FakeAnswering()))


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (version(deleted=True), "was deleted"),
        (version(run_id=None), "stored by another program"),
        (version(told={"application": None}), "nothing proves that the adapter"),
        (version(base_model="other/base"), "was trained on other/base, and the endpoint serves some/base"),
        (version(measured=None), "nothing proves that the adapter"),
        (version(measured={"application": "yes", "serving_name": 7}), "nothing proves that the adapter"),
        (version(told={"serving_name": None}), "is not on the endpoint's volume"),
    ],
)
@pytest.mark.parametrize("anyway", [False, True])
def test_what_must_not_be_served_is_refused_whatever_is_said(refused: Version, why: str, anyway: bool) -> None:
    assert why in str(objection(refused, served_base=BASE, anyway=anyway))


def test_failed_guard_is_a_matter_of_judgement() -> None:
    failed = version(told={"guard_passed": False})
    assert "--anyway promotes it all the same" in str(objection(failed, served_base=BASE))
    assert objection(failed, served_base=BASE, anyway=True) is None
    assert objection(version(told={"guard_passed": None}), served_base=BASE) is None


@pytest.mark.parametrize("name", ["zebras", "zebras:live", "z", "9.a-b_c", "x" * 63])
def test_names_of_aliases(name: str) -> None:
    assert checked_name(name) == name.removesuffix(":live")


@pytest.mark.parametrize(
    "name", ["", ":live", "Zebras", "-z", ".z", "a b", "../a", "a:beta", "x" * 64, "zébras", "a\n"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ArgumentError, match="is no name of an alias"):
        checked_name(name)


def test_name_is_that_of_the_family_or_of_the_dataset() -> None:
    new, named, other = version(dataset_name="Für Zebras! (v2)"), version(aliases=["z"]), version(aliases=["y"])
    assert name_for(new, [new, named]) == "z"
    assert name_for(new, [new]) == "f-r-zebras-v2"
    assert len(name_for(version(dataset_name="x" * 200), [])) == 63
    with pytest.raises(ArgumentError, match="several names \\(y, z\\)"):
        name_for(new, [named, other])
    with pytest.raises(ArgumentError, match="give one by --as"):
        name_for(version(dataset_name="斑马"), [])


async def test_promotion_names_the_move_that_it_saw() -> None:
    target, before = row(), row()
    queue = VersionsQueue([target, before], [alias(before, number=7)])
    done = await promote(services_of(queue), target["job_id"], name="zebras:live", anyway=False, by="ann")
    assert queue.changes == [
        {
            "name": "zebras", "run_id": str(target["id"]), "adapter": f"adapter-{str(target['id'])[:8]}",
            "moved_by": "ann", "number": 7, "restores": None,
        }
    ]  # fmt: skip
    assert (done.before, done.alias["job_id"]) == (before["job_id"], target["job_id"])


async def test_loser_of_two_promotions_gets_the_sentence() -> None:
    queue = VersionsQueue([row()])
    queue.refusal = "zebras was moved by bob at 12:00 UTC, after you looked"
    with pytest.raises(PromotionRefusedError, match="was moved by bob"):
        await promote(services_of(queue), queue.rows[0]["job_id"], name=None, anyway=False, by="ann")


async def test_refused_promotions_write_nothing() -> None:
    queue = VersionsQueue([row(), row(measured=None)])
    good, unproven = (found["job_id"] for found in queue.rows)
    for services, job, why in (
        (services_of(queue, FakeAnswering("other/base")), good, "the endpoint serves other/base"),
        (services_of(queue), unproven, "nothing proves"),
        (cast(Services, SimpleNamespace(queue=queue, answering=None, settings=settings())), good, "no endpoint is set"),
        (services_of(queue), uuid4(), "has no adapter"),
    ):
        with pytest.raises(WorkerError, match=why):
            await promote(services, job, name=None, anyway=False, by="ann")
    assert queue.changes == []


async def test_rollback_restores_the_move_that_the_alias_tells() -> None:
    now, before = row(), row()
    back = {"number": 3, "run_id": before["id"], "job_id": before["job_id"], "adapter": "adapter-1"}
    queue = VersionsQueue([now, before], [alias(now, number=5, rollback=back)])
    done = await roll_back(services_of(queue), "zebras", by="ann")
    (change,) = queue.changes
    assert (change["run_id"], change["number"], change["restores"]) == (str(before["id"]), 5, 3)
    assert done.before == now["job_id"]


async def test_rollback_to_nowhere_is_a_sentence() -> None:
    queue = VersionsQueue([row()], [alias()])
    with pytest.raises(PromotionRefusedError, match="has no earlier target"):
        await roll_back(services_of(queue), "zebras", by="ann")
    with pytest.raises(ArgumentError, match="there is no alias other:live"):
        await roll_back(services_of(queue), "other", by="ann")


async def test_version_is_read_from_its_row() -> None:
    found = row(figures={"held_out_gain": 0.5, "overall_score": 4.0, "base_validation_loss": 2.0})
    (read,) = await list_versions(VersionsQueue([found]), {"limit": 1})
    assert (read.figures.gain, read.figures.score, read.figures.relative_gain) == (0.5, 4, 0.25)
    assert (read.dataset_sha256, read.is_applied, read.guard_passed) == ("a" * 64, True, True)


def test_families_join_by_dataset_and_by_parent() -> None:
    first, second = version(dataset_id="one"), version(dataset_id="one")
    child = version(dataset_id="two", parent_id=first.id)
    alone, stranger = version(dataset_id=None), version(dataset_id="one", user_id=uuid4())
    families = families_of([child, alone, second, stranger, first])
    assert [family.versions for family in families] == [(child, second, first), (alone,), (stranger,)]


def test_standing_says_what_an_alias_waits_for() -> None:
    assert standing(alias()) == "waits for a worker to put it on the endpoint's volume"
    assert standing(alias(placed=True)).endswith("workers are being replaced")
    assert standing(alias(placed=True, served=True)) == "is live"
    assert standing(alias(problem="no GPU is free")) == "is not live yet: no GPU is free"
    assert "was deleted: roll it back" in standing(alias(served=True, deleted=True))
