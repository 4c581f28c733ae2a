"""Versions as tests need them: their rows, what was measured of them, and a queue that has them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from pydantic import TypeAdapter

from lora_worker.database.version_rows import AliasChange, AliasMove, AliasMoved, AliasRow, VersionFilter, VersionRow
from lora_worker.versions.version import Version, version_of
from sandbox.standin_proof import applied

USER = UUID("aaaaaaaa-1111-4222-8333-444455556666")
DATASET = "dddddddd-1111-4222-8333-444455556666"
BASE = "some/base"
AT = "2026-11-26T12:00:00+00:00"


def row(**columns: Any) -> VersionRow:
    run_id = columns.get("id", uuid4())
    made = {
        "id": run_id, "queue": "training_jobs", "job_id": uuid4(), "run_id": run_id, "user_id": USER,
        "name": "Zebras", "version": "1.0.0", "dataset_id": DATASET, "dataset_name": "Zebras", "parent_id": None,
        "made_at": AT, "deleted": False, "base_model": BASE, "method": "sft",
        "measured": measured(f"adapter-{str(run_id)[:8]}"), "figures": {}, "aliases": [],
    }  # fmt: skip
    return TypeAdapter(VersionRow).validate_python({**made, **columns})


def figures(base: float, tuned: float, **more: float) -> dict[str, float]:
    return {"base_validation_loss": base, "tuned_validation_loss": tuned, "held_out_gain": base - tuned, **more}


def measured(name: str | None = None, *, guard_passed: bool | None = True, **more: Any) -> dict[str, Any]:
    """What a run has brought that is proven and lies on the endpoint's volume."""
    return {"evaluation": {"guard_passed": guard_passed}, "application": applied("b" * 64), "serving_name": name,
            "method": "sft", "dataset_sha256": "a" * 64, **more}  # fmt: skip


def version(
    base: float | None = 2.0, tuned: float = 1.5, told: dict[str, Any] | None = None, **columns: Any
) -> Version:
    """A proven version; `base=None` is one that was not compared with its base. `told` changes what is measured."""
    found = {} if base is None else figures(base, tuned)
    return version_of(row(**{"figures": found, "measured": measured("adapter-0123abcd", **(told or {})), **columns}))


def alias(of: VersionRow | None = None, **columns: Any) -> AliasRow:
    target = of or row()
    made = {
        "name": "zebras", "user_id": USER, "number": 1, "run_id": target["id"], "job_id": target["job_id"],
        "adapter": f"adapter-{str(target['job_id'])[:8]}", "base_model": BASE, "moved_at": AT, "moved_by": "ann",
        "deleted": False, "placed": False, "served": False, "problem": None, "rollback": None,
    }  # fmt: skip
    return TypeAdapter(AliasRow).validate_python({**made, **columns})


class VersionsQueue:
    """What commands about versions ask the database, with answers that a test sets."""

    def __init__(self, rows: list[VersionRow], aliases: list[AliasRow] | None = None) -> None:
        self.rows = rows
        self.aliases = aliases or []
        self.moves: list[AliasMove] = []
        self.wanted: list[VersionFilter] = []
        self.changes: list[AliasChange] = []
        self.refusal: str | None = None

    async def training_versions(self, wanted: VersionFilter) -> list[VersionRow]:
        self.wanted.append(wanted)
        return self.rows

    async def list_training_aliases(self, name: str | None = None, user_id: UUID | None = None) -> list[AliasRow]:
        return [found for found in self.aliases if name in {None, found["name"]}]

    async def training_alias_history(self, name: str) -> list[AliasMove]:
        return self.moves

    async def move_training_alias(self, change: AliasChange) -> AliasMoved:
        self.changes.append(change)
        if self.refusal:
            return {"moved": False, "reason": self.refusal, "alias": None}
        (target,) = (found for found in self.rows if str(found["id"]) == change["run_id"])
        self.aliases = [alias(target, name=change["name"], number=change["number"] + 1)]
        return {"moved": True, "reason": None, "alias": self.aliases[0]}


class FakeAnswering:
    """An endpoint that serves one base, and counts how often its workers were replaced."""

    def __init__(self, base: str = BASE) -> None:
        self.base = base
        self.replaced = 0

    async def served_base(self) -> str:
        return self.base

    async def replace_workers(self, at: Any) -> None:
        self.replaced += 1
