"""The page of models: their versions, what each gained on its base, and where the aliases lead."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lora_worker.dashboard.rendering import desk_of, render
from lora_worker.versions.listing import Family
from lora_worker.versions.promotion import alias_value, names_of
from lora_worker.versions.version import Version

_LISTED = 100
"""So many of the newest versions are shown."""


async def models(request: Request) -> Response:
    """Show the newest versions by model, the best of each marked, and the aliases."""
    board = desk_of(request).board
    found, aliases = await asyncio.gather(board.models(_LISTED), board.aliases())
    return render(
        request, "models.html", readings=(found, aliases),
        models=None if found.value is None else [_model(family) for family in found.value],
        aliases=None if aliases.value is None else [alias_value(alias) for alias in aliases.value],
    )  # fmt: skip


def _model(family: Family) -> dict[str, Any]:
    best = family.verdict.best
    return {
        "name": family.name,
        "why": family.verdict.sentence,
        "versions": [_version(version, is_best=version is best) for version in family.versions],
    }


def _version(version: Version, *, is_best: bool) -> dict[str, Any]:
    return {
        **version.row,
        "figures": version.figures,
        "guard_failed": version.guard_passed is False,
        "called": names_of(version),
        "is_best": is_best,
    }
