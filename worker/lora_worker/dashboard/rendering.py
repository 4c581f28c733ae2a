"""Makes pages of templates. All that is filled in is escaped: names and errors come from users and containers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from lora_worker import words
from lora_worker.dashboard import charts
from lora_worker.dashboard.access import Access
from lora_worker.dashboard.board import Board
from lora_worker.dashboard.reads import Reading

STATIC_FOLDER = Path(__file__).with_name("static")

PAGES = (("overview", "/", "Overview"), ("jobs", "/jobs", "Jobs"), ("models", "/models", "Models"),
         ("spend", "/spend", "Spend"), ("workers", "/workers", "Workers"))  # fmt: skip
"""The navigation: name, path and title."""


def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lora_worker.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (words.duration, words.money, words.percent, words.measured, words.moment, words.plain,
                  words.short_id):  # fmt: skip
        environment.filters[write.__name__] = write
    environment.filters["kind_of_stage"] = charts.kind_of_stage
    environment.globals["PAGES"] = PAGES
    return environment


@dataclass(frozen=True)
class Desk:
    """What every request handler needs; `desk_of` returns it."""

    board: Board
    access: Access
    environment: Environment


def make_desk(board: Board, access: Access) -> Desk:
    """Make the desk of an application, with the templates loaded."""
    return Desk(board, access, _make_environment())


def desk_of(request: Request) -> Desk:
    """Return the desk of the application that answers this request."""
    desk: Desk = request.app.state.desk
    return desk


def render(
    request: Request, template: str, *, readings: Iterable[Reading[Any]] = (), status: int = 200, **context: Any
) -> Response:
    """Make a page. `readings` are what it shows: a problem of one of them stands above the page, with its age."""
    desk = desk_of(request)
    read = tuple(readings)
    filled = {
        "problem": next((reading.problem for reading in read if reading.problem), None),
        "read_at": min((reading.read_at for reading in read if reading.read_at), default=None),
        "here": template.removesuffix(".html"),
        "done": None,
        "now": desk.board.now(),
        **context,
    }
    return HTMLResponse(desk.environment.get_template(template).render(filled), status)
