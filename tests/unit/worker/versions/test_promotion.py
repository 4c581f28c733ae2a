"""What must not be served is refused with a sentence; a promotion writes one row, and a rollback goes back by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from lora_worker.errors import ArgumentError
from lora_worker.services import Services
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.versions.listing import families_of, list_versions
from lora_worker.versions.promotion import checked_name, name_for, objection, promote, roll_back, standing
from lora_worker.versions.version import Version
from tests.unit.artifact_stores import MemoryBucket
from tests.unit.worker.versions.made import BASE, FakeAnswering, VersionsQueue, alias, manifest, row, version


def services_of(queue: VersionsQueue, *, answering: FakeAnswering | None = None, **manifests: bytes) -> Services:
    """Services whose bucket has a good manifest of each version, or the given bytes under the version's id."""
    objects = {}
    for found in queue.rows:
        paths = ArtifactPaths.of_run(
            queue=found["queue"], job_id=found["job_id"], user_id=found["user_id"], run_id=found["id"]
        )
        objects[paths.final("manifest.json")] = manifests.get(str(found["id"]), manifest(found))
    made = SimpleNamespace(
        queue=queue,
        storage=MemoryBucket(**objects),
        settings=SimpleNamespace(artifacts_bucket="lora-models"),
        answering=answering or FakeAnswering(),
    )
    return cast(Services, made)


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (version(deleted=True), "was deleted"),
        (version(run_id=None), "stored by another program"),
        (version(proofs={"applied": False}), "nothing proves that the adapter"),
        (version(base_model="other/base"), "was trained on other/base, and the endpoint serves some/base"),
        (version(proofs={"base_model": "other/base"}), "was trained on other/base"),
        (version(proofs={"serving_name": None}), "is not on the endpoint's volume"),
    ],
)
@pytest.mark.parametrize("anyway", [False, True])
def test_what_must_not_be_served_is_refused_whatever_is_said(refused: Version, why: str, anyway: bool) -> None:
    assert why in str(objection(refused, served_base=BASE, anyway=anyway))


def test_failed_guard_is_a_matter_of_judgement() -> None:
    failed = version(proofs={"guard_passed": False})
    assert "--anyway promotes it all the same" in str(objection(failed, served_base=BASE))
    assert objection(failed, served_base=BASE, anyway=True) is None
    assert objection(version(proofs={"guard_passed": None}), served_base=BASE) is None


def test_version_without_a_manifest_is_refused() -> None:
    unread = version()
    assert "can't be read" in str(objection(Version(unread.row, unread.figures, None), served_base=BASE))


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
            "name": "zebras", "run_id": str(target["id"]), "adapter": f"adapter-{str(target['job_id'])[:8]}",
            "moved_by": "ann", "number": 7, "restores": None,
        }
    ]  # fmt: skip
    assert (done.before, done.alias["job_id"]) == (before["job_id"], target["job_id"])


async def test_loser_of_two_promotions_gets_the_sentence() -> None:
    queue = VersionsQueue([row()])
    queue.refusal = "zebras was moved by bob at 12:00 UTC, after you looked"
    with pytest.raises(ArgumentError, match="was moved by bob"):
        await promote(services_of(queue), queue.rows[0]["job_id"], name=None, anyway=False, by="ann")


async def test_refused_promotions_write_nothing() -> None:
    queue = VersionsQueue([row()])
    target = queue.rows[0]
    job = target["job_id"]
    for services, why in (
        (services_of(queue, answering=FakeAnswering("other/base")), "the endpoint serves other/base"),
        (services_of(queue, **{str(target["id"]): b"{"}), "can't be read"),
        (services_of(queue, **{str(target["id"]): manifest(target, application=None)}), "nothing proves"),
        (cast(Services, SimpleNamespace(**{**vars(services_of(queue)), "answering": None})), "no endpoint is set"),
    ):
        with pytest.raises(ArgumentError, match=why):
            await promote(services, job, name=None, anyway=False, by="ann")
    with pytest.raises(ArgumentError, match="has no adapter"):
        await promote(services_of(queue), uuid4(), name=None, anyway=False, by="ann")
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
    with pytest.raises(ArgumentError, match="has no earlier target"):
        await roll_back(services_of(queue), "zebras", by="ann")
    with pytest.raises(ArgumentError, match="there is no alias other:live"):
        await roll_back(services_of(queue), "other", by="ann")


async def test_figures_come_from_rows_and_proofs_from_manifests() -> None:
    good, lost = row(figures={"held_out_gain": 0.5, "overall_score": 4.0}, dataset_sha256=None), row(deleted=True)
    foreign = row(run_id=None)
    queue = VersionsQueue([good, lost, foreign])
    services = services_of(queue)
    read, deleted, other = await list_versions(services, {"limit": 3})
    assert (read.figures.gain, read.figures.score, read.dataset_sha256) == (0.5, 4, "a" * 64)
    assert read.proofs is not None
    assert (read.proofs.applied, read.guard_passed) == (True, True)
    assert deleted.proofs is other.proofs is None
    assert len(cast(Any, services.storage).calls) == 1


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
