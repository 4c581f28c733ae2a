"""Names that nobody reads, and what was meant by them: misspelt variables and keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

_NEAR = 0.75
_MAX_NAMED = 5
_MAX_CHARACTERS = 60


def nearest(name: str, candidates: Iterable[str], *, cutoff: float = _NEAR) -> str | None:
    """The candidate that is written most like the name, from 0 to 1 at least `cutoff`; None where none is."""
    # A name may have any length, and comparing takes as long as both have.
    near = difflib.get_close_matches(name[: 2 * _MAX_CHARACTERS], candidates, n=1, cutoff=cutoff)
    return near[0] if near else None


def unread_variables(
    names: Iterable[str], own: re.Pattern[str], known: Collection[str], *, whose: str, otherwise: str
) -> list[str]:
    """Sentences on variables that are named like ours and are none; the first few, then how many more.

    Args:
        names: of all the variables that are set.
        own: how a name begins that is meant for us.
        known: the names that are read, in capitals.
        whose: settings they would be.
        otherwise: what is said where no known name is near.
    """
    unknown = sorted(name for name in names if own.match(name) and name.upper() not in known)
    told = []
    for name in unknown[:_MAX_NAMED]:
        near = nearest(name.upper().replace("-", "_"), known)
        meant = f"{near} may be meant" if near else otherwise
        told.append(f"{name[:_MAX_CHARACTERS]} is no setting of {whose}: {meant}; rename it, or take it away.")
    more = len(unknown) - _MAX_NAMED
    return [*told, f"And {more} more."] if more > 0 else told
