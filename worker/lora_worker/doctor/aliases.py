"""Checks that each alias leads to an adapter that is there, and that the endpoint answers with it."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.words import counted
from lora_worker.database.version_rows import AliasRow
from lora_worker.doctor.check import Check
from lora_worker.services import Services
from lora_worker.versions.promotion import LIVE

_MOST_NAMED = 5


async def check_aliases(services: Services) -> list[Check]:
    """Check the aliases of all users.

    Raises:
        ServiceError: the database does not answer.
    """
    return examine_aliases(await services.queue.list_training_aliases())


def examine_aliases(aliases: Sequence[AliasRow]) -> list[Check]:
    """Check aliases by their rows. Nothing is said where there are none."""
    if not aliases:
        return []
    deleted = [alias for alias in aliases if alias["deleted"]]
    stuck = [alias for alias in aliases if not alias["deleted"] and not alias["served"] and alias["problem"]]
    checks = []
    if deleted:
        finding = f"{_names(deleted)} lead to adapters that were deleted, and can't be called"
        remedy = "`lora-worker rollback NAME`, or `lora-worker promote` another version"
        checks.append(Check("aliases", False, finding, remedy))
    checks += [
        Check("aliases", False, f"{_names([alias])} is not served yet: {alias['problem']}")
        for alias in stuck[:_MOST_NAMED]
    ]
    if len(stuck) > _MOST_NAMED:
        finding = f"{counted(len(stuck) - _MOST_NAMED, 'more alias is', 'more aliases are')} not served yet"
        checks.append(Check("aliases", False, finding, "`lora-worker aliases` lists them and says why"))
    return checks or [
        Check("aliases", True, f"{counted(len(aliases), 'alias', 'aliases')}, with no deleted adapter behind")
    ]


def _names(aliases: Sequence[AliasRow]) -> str:
    shown = ", ".join(alias["name"] + LIVE for alias in aliases[:_MOST_NAMED])
    return f"{shown} and {len(aliases) - _MOST_NAMED} more" if len(aliases) > _MOST_NAMED else shown
