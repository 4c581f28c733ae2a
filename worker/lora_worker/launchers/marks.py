"""The names that launches bear in a cloud's account: by them this project's are told from all else that runs there."""

from __future__ import annotations

import hashlib
import re
import secrets
from uuid import UUID

_MARK_CHARACTERS = 10
_LAUNCH_ID = re.compile(r"(lora-[0-9a-f]{32})-[0-9a-f]{8}")
_MARK = re.compile(rf"[0-9a-f]{{{_MARK_CHARACTERS}}}")
_NAME = re.compile(r"lora-([0-9a-f]{32})(?![0-9a-f])")


def project_mark(supabase_url: str) -> str:
    """The mark of a project's launches: 10 hexadecimal digits. Several projects may share one account of a cloud.

    It hangs on how the settings spell the address. So it tells which launches are a project's only where no row knows
    them; a launch that a row names is found by its id.
    """
    return hashlib.sha256(supabase_url.rstrip("/").lower().encode()).hexdigest()[:_MARK_CHARACTERS]


def is_mark(text: str) -> bool:
    """Whether a text can be a project's mark."""
    return _MARK.fullmatch(text) is not None


def launch_name(run_id: str) -> str:
    """The name of a run's launch, `lora-` and the run's id without hyphens: the same for each try of its submission.

    Raises:
        ValueError: that is no run's id, as in a request that is no training.
    """
    try:
        return f"lora-{UUID(run_id).hex}"
    except ValueError:
        raise ValueError("its machines are started for runs only, and the request names none") from None


def run_of_name(name: str) -> str | None:
    """The id of the run whose launch bears this name, also with more after it; None if it is no such name."""
    found = _NAME.match(name)
    return str(UUID(found[1])) if found else None


def new_launch_id(run_id: str) -> str:
    """An id for one more launch of a run, whose last part nobody can guess: no container of another run can name it.

    Raises:
        ValueError: the run's id is no UUID.
    """
    return f"{launch_name(run_id)}-{secrets.token_hex(4)}"


def is_launch_id(text: str) -> bool:
    """Whether a text can be such an id: containers name their own, and what they name goes into searches."""
    return _LAUNCH_ID.fullmatch(text) is not None
