"""The application: its routes behind the guard, and pages for what can't be answered."""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from lora_worker.dashboard import actions, models, pages
from lora_worker.dashboard.access import HEADERS, Access, Guard
from lora_worker.dashboard.board import Board
from lora_worker.dashboard.rendering import STATIC_FOLDER, make_desk, render
from lora_worker.observability.actions import Action

log = structlog.get_logger(__name__)

ROUTES = (
    Route("/", pages.overview),
    Route("/jobs", pages.jobs),
    Route("/jobs/{job_id:uuid}", pages.job),
    Route("/jobs/{job_id:uuid}/runs/{run_id:uuid}/log", pages.run_log),
    Route("/jobs/{job_id:uuid}/samples", pages.samples),
    Route("/jobs/{job_id:uuid}/{action}", actions.of_job, methods=["GET", "POST"]),
    Route("/queue/{action}", actions.of_queue, methods=["GET", "POST"]),
    Route("/models", models.models),
    Route("/spend", pages.spend),
    Route("/workers", pages.workers),
    Mount("/static", StaticFiles(directory=STATIC_FOLDER)),
)


def make_app(board: Board, access: Access, names: Iterable[str] = ()) -> Starlette:
    """Make the application. `names` are host names under which it may be called, beside localhost and addresses."""
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Guard, access=access, names=tuple(names))],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )
    app.state.desk = make_desk(board, access)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    texts = {404: "there is no such page", 405: "this page can't be asked so"}
    detail = error.detail if error.detail not in {"Not Found", "Method Not Allowed"} else texts[error.status_code]
    answer = render(request, "error.html", status=error.status_code, text=detail, here="")
    answer.headers.update(error.headers or {})
    return answer


async def _fail(request: Request, error: Exception) -> Response:
    # Its text may hold values of rows, which are the users'; where it happened does not.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace else ""
    log.error(
        "a page of the dashboard failed",
        action=Action.DASHBOARD_PAGE_FAILED,
        path=request.url.path,
        error=type(error).__name__,
        place=place,
    )
    text = f"this page could not be made ({type(error).__name__}); the log of the dashboard says where"
    answer = render(request, "error.html", status=500, text=text, here="")
    # Starlette answers this outside the `Guard`, which adds them to all others.
    answer.headers.update(HEADERS)
    return answer
