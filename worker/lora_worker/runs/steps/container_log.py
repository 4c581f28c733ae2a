"""Keeps the log of an ended run's container, for the operator: the launcher drops it within minutes.

A trainer sends the end of its log with its result, and it is stored before the run is settled. Where no result came
(the container was killed, or its image broke before it took the job) the launcher's own log is read after the run is
settled. Neither may hold up or prevent a settlement, so all that fails here is logged and passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import structlog

from lora_contract.crash_points import crash_point
from lora_contract.log_lines import MAX_LOG_LINES, keep_lines, lines_of_run, printable
from lora_contract.redaction import redact
from lora_worker.errors import ServiceError, ServiceRefusedError
from lora_worker.launchers.base import ContainerLine, Observation
from lora_worker.observability.actions import Action
from lora_worker.runs.state.events import EndBegun, Ending
from lora_worker.runs.state.held_run import HeldRun

log = structlog.get_logger(__name__)

_STORE_SECONDS = 5.0
"""How long the settlement of a run waits for its log to be stored."""
_READ_SECONDS = 20.0
_PAUSES_SECONDS = (0.0, 2.0, 4.0, 8.0, 12.0)
"""Pauses before each try after the settlement. With the reading, all of it takes less than a minute; two minutes after
a container's end its log is gone."""
_CLOCK_DOUBT = timedelta(minutes=1)
"""How far the launcher's clock may be from this worker's."""


def end_of(ending: Ending) -> EndBegun:
    """What there is to tell the operator of an ending."""
    result, failure = ending.result, ending.failure
    if result is not None:
        error = f": {result.error.sentence()}" if result.error else ""
        return EndBegun(f"its trainer says {result.status}{error}", tuple(result.log))
    reason = f"{failure.code}: {failure.message}" if failure else "cancelled"
    return EndBegun(f"without a result of its trainer ({reason})")


async def keep(held: HeldRun) -> bool:
    """Store the log that the trainer has sent, within a few seconds; False where another try may succeed."""
    if held.assignment.job is None:
        # Its user may be deleted: then nothing new of theirs is stored.
        return False
    kept = await _store(held, await _sent_lines(held), source="sent by the trainer")
    crash_point("worker.container_log.after")
    return kept


def is_missing(held: HeldRun) -> bool:
    """Whether a settled run has a log that is still to be kept."""
    if held.is_log_kept or held.assignment.job is None or held.news.external_job_id is None:
        return False
    return bool(held.container_log) or held.settled_as != "completed"


async def keep_late(held: HeldRun) -> bool:
    """Store the log after the settlement: the trainer's, or what the launcher has. Tries for less than a minute.

    Returns False where another try might succeed.
    """
    lines = await _sent_lines(held)
    source, problem, may_change = "sent by the trainer", None, not lines
    for pause_seconds in _PAUSES_SECONDS:
        await asyncio.sleep(pause_seconds)
        if may_change:
            async with held.services.log_slots.take():
                lines, problem, may_change = await _read(held)
            source = f"read from {held.services.places.guide_of(held.launch_ref.endpoint).title}"
        if not may_change and await _store(held, lines, source=problem or source):
            break
    else:
        if not may_change or not await _store(held, lines, source=problem or source):
            return False
    await _remove_if_erased(held)
    return True


async def _remove_if_erased(held: HeldRun) -> None:
    """Remove the log again where the job was erased with its user since the run was settled."""
    run, services = held.assignment.run, held.services
    try:
        if await services.queue.training_job_details(run.job_id) is None:
            await services.logs.remove(run.user_id, run.id)
    except ServiceError as error:
        log.warning(
            "it is not known whether the job was erased", action=Action.CONTAINER_LOG_NOT_KEPT, problem=str(error)
        )


async def _read(held: HeldRun) -> tuple[list[str], str | None, bool]:
    """The lines that the launcher has; why there are none; and whether a later look may bring some."""
    services, endpoint = held.services, held.launch_ref.endpoint
    reader, title = services.container_logs_at(endpoint), services.places.guide_of(endpoint).title
    if reader is None:
        return [], f"no lines: the log can't be read from {title} with these settings", False
    try:
        async with asyncio.timeout(_READ_SECONDS):
            found = await reader.read(held.launch_ref, held.container, most_lines=MAX_LOG_LINES)
    except TimeoutError:
        return [], f"no lines: {title} did not send the log in time", True
    except ServiceError as error:
        return [], f"no lines: {error}", not isinstance(error, ServiceRefusedError)
    except Exception as error:
        log.exception("the container's log could not be read", action=Action.CONTAINER_LOG_NOT_KEPT)
        return [], f"no lines: reading failed ({type(error).__name__})", False
    lines = await asyncio.to_thread(lines_since_launch, held, found)
    return lines, None if lines else f"no lines: {title} has none of this run any more, or none yet", not lines


def lines_since_launch(held: HeldRun, found: Iterable[ContainerLine]) -> list[str]:
    """Of lines from the launcher, those that belong to this run, without secrets and text of the dataset."""
    since = held.services.now() - timedelta(seconds=held.launch_age_seconds) - _CLOCK_DOUBT
    own = [line for line in found if line.at is None or line.at >= since]
    return container_lines(own, held.run_id, _own_secrets(held))


def container_lines(found: Iterable[ContainerLine], run_id: str, secrets: tuple[str, ...] = ()) -> list[str]:
    """The lines of each container that belong to the run and may be kept; between them, which container it was."""
    by_container: dict[str, list[ContainerLine]] = {}
    for line in found:
        by_container.setdefault(line.container, []).append(line)
    kept: list[str] = []
    for name, lines in by_container.items():
        told = [f"system: {printable(redact(line.text, secrets))}" for line in lines if line.is_launchers]
        said = keep_lines(lines_of_run([line.text for line in lines if not line.is_launchers], run_id), secrets)
        if told or said:
            kept += [f"── container {name}", *told, *said]
    return kept


async def _sent_lines(held: HeldRun) -> list[str]:
    # In a thread: a container may send lines for which the filter takes long.
    return await asyncio.to_thread(keep_lines, held.container_log, _own_secrets(held))


def _own_secrets(held: HeldRun) -> tuple[str, ...]:
    return (held.token,) if held.token else ()


async def _store(held: HeldRun, lines: list[str], *, source: str) -> bool:
    """Store the log; False where another try may succeed."""
    run = held.assignment.run
    try:
        async with asyncio.timeout(_STORE_SECONDS):
            await held.services.logs.write(run.user_id, run.id, notes=_notes(held, source), lines=lines)
    except (ServiceError, TimeoutError) as error:
        problem = str(error) or "the storage did not answer in time"
        log.warning("the container's log is not stored", action=Action.CONTAINER_LOG_NOT_KEPT, problem=problem)
        return isinstance(error, ServiceRefusedError)
    except Exception:
        log.exception("the container's log is not stored", action=Action.CONTAINER_LOG_NOT_KEPT)
        return False
    see = f"lora-worker logs {run.job_id} --run {run.attempt}"
    log.info("the container's log is kept", action=Action.CONTAINER_LOG_KEPT, lines=len(lines), see=see)
    return True


def _notes(held: HeldRun, source: str) -> list[str]:
    run, title = held.assignment.run, held.services.places.guide_of(held.launch_ref.endpoint).title
    notes = [
        f"run {run.id} of job {run.job_id}, attempt {run.attempt}, launch {held.news.external_job_id}",
        f"ended {held.services.now():%Y-%m-%d %H:%M:%S} UTC {held.end_summary}",
    ]
    if held.observation is not None:
        notes.append(f"{title} says {_words_of(held.observation, held.container)}")
    return [*notes, f"log {source}" if not source.startswith("no lines") else source]


def _words_of(look: Observation, container: str | None) -> str:
    cause = f" ({look.cause})" if look.cause != "unknown" else ""
    seconds = f" after {look.execution_seconds:.0f} s" if look.execution_seconds is not None else ""
    reason = f": {look.reason}" if look.reason else ""
    return f"{look.state}{cause}{seconds}{reason}, container {container or 'unknown'}"
