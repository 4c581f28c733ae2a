"""Names: of base models, and misspelt ones of settings and keys, with the one that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

_NEAR = 0.75
_MAX_NAMED = 5
_MAX_CHARACTERS = 60


def base_model_name(asked: str) -> str:
    """Return the name of the base model that a job asks for: a folder's own name where it asks by an absolute path.

    That is the name in an adapter's configuration: paths of one machine mean nothing on another.
    """
    path = PurePosixPath(asked)
    return path.name if path.is_absolute() else asked


def nearest(name: str, candidates: Iterable[str], *, cutoff: float = _NEAR) -> str | None:
    """Return the candidate that is most similar to `name`, or None if no similarity reaches `cutoff` (0 to 1)."""
    # Comparing takes time that grows with both lengths, and a name from outside may have any length.
    near = difflib.get_close_matches(name[: 2 * _MAX_CHARACTERS], candidates, n=1, cutoff=cutoff)
    return near[0] if near else None


def unread_variables(
    names: Iterable[str], own: re.Pattern[str], known: Collection[str], *, whose: str, otherwise: str
) -> list[str]:
    """Write a sentence about each environment variable that looks like one of our settings and is none.

    The first few variables get a sentence each; one more sentence counts the rest.

    Args:
        names: the names of all environment variables that are set.
        own: matches the beginning of names that are meant for us.
        known: the names that are read, in capital letters.
        whose: the program that the settings belong to, for the sentence.
        otherwise: the explanation for a name that is similar to no known name.
    """
    unknown = sorted(name for name in names if own.match(name) and name.upper() not in known)
    sentences = []
    for name in unknown[:_MAX_NAMED]:
        near = nearest(name.upper().replace("-", "_"), known)
        meant = f"{near} may be meant" if near else otherwise
        sentences.append(f"{name[:_MAX_CHARACTERS]} is no setting of {whose}: {meant}; rename it, or take it away.")
    more = len(unknown) - _MAX_NAMED
    return [*sentences, f"And {more} more."] if more > 0 else sentences
