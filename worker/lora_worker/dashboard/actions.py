"""What can be done from the pages: cancel, retry, hold, release, resume. Each asks first, on a page of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs
from uuid import UUID

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from lora_worker.dashboard.rendering import desk_of, render
from lora_worker.database.calls import DatabaseCalls
from lora_worker.errors import ServiceError
from lora_worker.observability.actions import Action

log = structlog.get_logger(__name__)

_MAX_FORM_BYTES = 4096
_MAX_FIELDS = 8
_MAX_REASON, _MAX_NAME = 200, 300

Act = Callable[[DatabaseCalls, Mapping[str, str]], Awaitable[str | None]]
"""Does it, for the fields of the form; returns why it was refused, or None."""


@dataclass(frozen=True)
class Deed:
    """One action: what the page that asks first says, and what is said afterwards.

    `field` holds what it is done to, `target` is the name of that on the page, and `whole` what an empty field means.
    """

    title: str
    explanation: str
    button: str
    done: str
    act: Act
    field: str
    target: str
    whole: str = ""
    is_grave: bool = False
    asks_reason: bool = False


async def _cancel(queue: DatabaseCalls, fields: Mapping[str, str]) -> str | None:
    cancelled = await queue.cancel_training_job(UUID(fields["job_id"]))
    return None if cancelled else "the job has already ended"


async def _retry(queue: DatabaseCalls, fields: Mapping[str, str]) -> str | None:
    answer = await queue.retry_training_job(UUID(fields["job_id"]))
    return None if answer["retried"] else str(answer["reason"])


async def _hold(queue: DatabaseCalls, fields: Mapping[str, str]) -> str | None:
    reason = fields.get("reason", "").strip()
    if not reason or len(reason) > _MAX_REASON:
        return f"a hold needs a reason of at most {_MAX_REASON} characters: it is shown with each job that waits"
    await queue.hold_training(_user(fields), reason)
    return None


async def _release(queue: DatabaseCalls, fields: Mapping[str, str]) -> str | None:
    await queue.release_training(_user(fields))
    return None


async def _resume(queue: DatabaseCalls, fields: Mapping[str, str]) -> str | None:
    return None if await queue.resume_training(fields.get("name") or None) else "nothing is held for this any more"


def _user(fields: Mapping[str, str]) -> UUID | None:
    return UUID(fields["user"]) if fields.get("user") else None


OF_JOB = {
    "cancel": Deed(
        "Cancel this job?",
        "Its GPU is stopped, and what it has used so far is billed. Nothing of the training is kept for its user.",
        "Cancel the job",
        "The job is cancelled. A worker stops its GPU within seconds.",
        _cancel,
        field="job_id",
        target="Job",
        is_grave=True,
    ),
    "retry": Deed(
        "Retry this job?",
        "It is queued again with all its attempts, and goes on from its newest checkpoint where there is one.",
        "Retry the job",
        "The job is queued again.",
        _retry,
        field="job_id",
        target="Job",
    ),
}
OF_QUEUE = {
    "hold": Deed(
        "Hold jobs?",
        "None of these jobs is claimed until the hold is released. Trainings that run go on to their end.",
        "Hold",
        "Held: none of these jobs is claimed until you release them.",
        _hold,
        field="user",
        target="Jobs of",
        whole="all users",
        asks_reason=True,
    ),
    "release": Deed(
        "Release the hold?",
        "These jobs may be claimed again at once.",
        "Release",
        "Released: jobs are claimed again.",
        _release,
        field="user",
        target="Jobs of",
        whole="all users",
    ),
    "resume": Deed(
        "Try held jobs again?",
        "Jobs are held since a base model or the image failed for several users. Resume them after it is repaired: "
        "otherwise each of them fails at a GPU that is paid for.",
        "Resume",
        "The held jobs may go again.",
        _resume,
        field="name",
        target="Held for",
        whole="any base model or image",
    ),
}

DONE = {name: deed.done for name, deed in (OF_JOB | OF_QUEUE).items()}
"""What the next page says, by the word in its URL."""


async def of_job(request: Request) -> Response:
    """Ask whether something shall be done to a job, or do it."""
    job_id = str(request.path_params["job_id"])
    deed = _find(OF_JOB, request)
    return await _ask_or_act(request, deed, {"job_id": job_id}, back=f"/jobs/{job_id}")


async def of_queue(request: Request) -> Response:
    """Ask whether something shall be done to the queue, a user or a held model, or do it."""
    deed = _find(OF_QUEUE, request)
    fields = {name: request.query_params.get(name, "") for name in ("user", "name")}
    if len(fields["name"]) > _MAX_NAME:
        raise HTTPException(400, "this name is too long")
    try:
        _user(fields)
    except ValueError:
        raise HTTPException(400, "a user is named by an id") from None
    return await _ask_or_act(request, deed, fields, back="/")


def _find(deeds: Mapping[str, Deed], request: Request) -> Deed:
    deed = deeds.get(request.path_params["action"])
    if deed is None:
        raise HTTPException(404, "there is no such action")
    return deed


async def _ask_or_act(request: Request, deed: Deed, fields: dict[str, str], *, back: str) -> Response:
    desk = desk_of(request)
    refused, status = None, 200
    if request.method == "POST":
        form = await read_form(request)
        try:
            refused = await deed.act(desk.board.queue, {**form, **fields})
            status = 409
        except ServiceError as error:
            refused, status = str(error), 503
        if refused is None:
            desk.board.reads.forget()
            name = request.path_params["action"]
            # A reason is the operator's own words, so it stays out of the log.
            about = {field: value for field, value in fields.items() if value}
            log.info("done from the dashboard", action=Action.DASHBOARD_ACTED, done=name, **about)
            return RedirectResponse(f"{back}?done={name}", 303)
    return render(
        request, "confirm.html", status=status, deed=deed, fields=fields, back=back, refused=refused, here="",
        form_token=desk.access.form_token(request.state.session), reason_length=_MAX_REASON,
    )  # fmt: skip


async def read_form(request: Request) -> dict[str, str]:
    """Read a small form of ours.

    Raises:
        HTTPException: 413 if it is too large, 400 if it is no form, 403 if no page of this session has made it.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            raise HTTPException(413, "this form is too large")
    try:
        found = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise HTTPException(400, "this is no form") from None
    form = {name: values[0] for name, values in found.items()}
    if not desk_of(request).access.form_fits(request.state.session, form.get("form_token", "")):
        raise HTTPException(403, "this form was made by no page of your session; go back, reload, try again")
    return form
