"""Released migrations never change, since a database that has applied them would not get the change."""

from __future__ import annotations

from hashlib import sha256

from lora_worker.database.functions import SCHEMA_VERSION
from lora_worker.database.migrations import migration_files
from tests.frozen import frozen_hashes

_RULE = (
    "This migration is released, so databases were made by it: leave it as it is. A change is a new file with a later "
    "name, which raises worker_schema_version() and adds a function worker_schema_<version>. A function whose "
    "arguments or answer change gets a new name there, so that workers of both versions call what they know."
)


def test_released_migrations_never_change() -> None:
    files = {name: sha256(text.encode()).hexdigest() for name, text in migration_files()}
    for release, hashes in frozen_hashes().items():
        for name, frozen in hashes.items():
            assert files.get(name) == frozen, f"{release}, {name}: {_RULE}"


def test_new_migrations_come_after_released_ones_and_raise_the_version() -> None:
    released = {name for hashes in frozen_hashes().values() for name in hashes}
    new = [(name, text) for name, text in migration_files() if name not in released]
    assert all(name > max(released) for name, _ in new), _RULE
    if new:
        last = "\n".join(text for _, text in new)
        assert f"function public.worker_schema_{SCHEMA_VERSION}(" in last, _RULE
        assert f"select {SCHEMA_VERSION} $$" in last, _RULE
        assert len(frozen_hashes()) < SCHEMA_VERSION, _RULE
