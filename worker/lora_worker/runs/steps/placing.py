"""Where a run is launched, and when it leaves a place without a GPU for another one.

A run leaves its place only before any of its trainers has checked in. The database decides that under the lock that the
check-in takes (`withdraw_launch`), so a trainer that comes at the same moment either begins, and the run stays, or is
refused. Then its launch is stopped, its end is waited for, and its job goes back into the queue, where the next claim
chooses anew. That counts as no failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from uuid import UUID

import structlog

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_worker.database.answers import PlaceRow
from lora_worker.database.rows import parse_gpu_config, parse_hyperparameters
from lora_worker.datasets.placing import Candidates, look_at_places
from lora_worker.errors import LeaseLostError, PreflightError
from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.launchers.places import Place
from lora_worker.launchers.routing import Choice, Hurdle
from lora_worker.launchers.routing_table import RoutingTable
from lora_worker.observability.actions import Action
from lora_worker.runs.outcomes.failures import NO_GPU_THERE
from lora_worker.runs.state.events import PutOff, Settled, StopDecided
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.services import Services

log = structlog.get_logger(__name__)

MOST_LOOKED_FOR = 100
"""Runs of one look at the places: the database computes it for each run and place within its time for a statement."""
_LOOK_AGAIN_SECONDS = 60
_SENTENCE = (
    "All GPU machines for this job are taken at the moment. The job waits without counting an attempt, and is tried "
    "again by itself."
)


async def choose_place(held: HeldRun) -> Place | PutOff | Settled | StopDecided:
    """Where the run is launched now; or that it waits, or leaves the place where a launch of it is in doubt.

    Raises:
        LeaseLostError: the run is another worker's.
        ServiceError: the database did not answer.
    """
    places, table = held.services.places, held.services.routes
    if table is None:
        return places.default
    bound = places.at(held.doubtful_endpoint) if held.doubtful_endpoint else None
    if held.doubtful_endpoint and bound is None:
        return await _leave_unknown(held, table)
    candidates = await _candidates(held)
    if candidates is None:
        return places.default
    if bound is not None:
        return await _stay_or_leave(held, candidates, bound)
    choice = candidates.choose(_refused(held, table))
    name = choice.place or (None if _was_sent(held) else choice.held_place)
    if name is None:
        return await _wait(held, choice)
    # Where jobs are held for it, the step before the launch holds the job, too, and says for what.
    log.info("place chosen", action=Action.PLACE_CHOSEN, place=name, rule=choice.rule)
    return places.named(name)


def _was_sent(held: HeldRun) -> bool:
    """Whether the run was sent to a launcher before, so that no breaker holds it any more."""
    return bool(held.assignment.run.launches or held.refused_at or held.declined_by)


async def _leave_unknown(held: HeldRun, table: RoutingTable) -> PutOff | StopDecided:
    """Take the run from an endpoint that the table does not have, where a launch of it is in doubt.

    A launch elsewhere would overwrite where the first one is found, and what it costs: so the job gets a new run. The
    time in which the doubtful launch may have checked in is over.
    """
    if await _withdraw(held, table):
        log.warning("the run leaves an endpoint of no place", action=Action.PLACE_LEFT, endpoint=held.doubtful_endpoint)
        return StopDecided(NO_GPU_THERE)
    return PutOff("a trainer of the run has begun", 0.0, exact_seconds=0.0)


async def _stay_or_leave(held: HeldRun, candidates: Candidates, bound: Place) -> Place | PutOff | Settled | StopDecided:
    """Where a run goes that may have a launch already, whose id is not known."""
    choice = candidates.look(_refused(held, candidates.table))
    others_fit = any(option.hurdle is not Hurdle.UNFIT for option in choice.options if option.place != bound.name)
    declines = bound.name in held.declined_by and others_fit
    if declines or _has_waited_in_vain(held, choice, bound, candidates.table):
        if await _leave(held, candidates, bound, choice):
            return StopDecided(NO_GPU_THERE)
        if declines:
            return await _wait(held, choice)
    # Only there its launch is found again, where the launcher knows it by its name.
    return bound


def may_fall_back(held: HeldRun) -> bool:
    """Whether the run leaves its place if its launch still waits there and another place is free."""
    table, places = held.services.routes, held.services.places
    if table is None or held.has_checked_in or held.is_to_stop or held.news.external_job_id is None:
        return False
    if min(held.endpoint.without_gpu_seconds, held.launch_age_seconds) < table.fall_back_minutes * 60:
        return False
    # Where its place is the only one, there is no other.
    return len(places.all) > 1 or places.at(held.launch_ref.endpoint) is None


async def look_for_all(leaving: Mapping[UUID, str], services: Services) -> dict[UUID, list[PlaceRow]]:
    """Ask once what the database knows of the places, for these runs on these base models; by run.

    A single one asks for itself, if its launch still waits, and so do those beyond `MOST_LOOKED_FOR`.

    Raises:
        ServiceError: the database did not answer.
    """
    if len(leaving) < 2:
        return {}
    asked = dict(islice(leaving.items(), MOST_LOOKED_FOR))
    return await services.queue.training_places_of_runs([place.endpoint for place in services.places.all], asked)


def base_model_of_leaving(held: HeldRun) -> str | None:
    """The base model of a run that may leave its place; None of any other, and where its job can't be read."""
    read = _read_job(held) if may_fall_back(held) else None
    return read and (read[0].base_model or "")


async def fall_back(held: HeldRun, observation: Observation) -> StopDecided | None:
    """Whether the run leaves its place, since it waits there for a GPU in vain and another place is free.

    Raises:
        ServiceError: the database did not answer.
    """
    table = held.services.routes
    if table is None or observation.state is not LaunchState.QUEUED or not may_fall_back(held):
        return None
    here = held.services.places.at(held.launch_ref.endpoint)
    candidates = await _candidates(held)
    if candidates is None:
        return None
    choice = candidates.look(_refused(held, table))
    name = here.name if here else None
    if choice.place == name or not choice.leads_on(name):
        return None
    return StopDecided(NO_GPU_THERE) if await _leave(held, candidates, here, choice) else None


async def _candidates(held: HeldRun) -> Candidates | None:
    """The run's job and all places; None where the job can't be read, which the preflight tells its user."""
    job, table, read = held.assignment.job, held.services.routes, _read_job(held)
    if job is None or table is None or read is None:
        return None
    run = held.assignment.run
    found = await look_at_places(
        *read, held.services, table,
        user=run.user_id, gpu_config=job.gpu_config, run_id=run.id, seen=held.places_seen,
    )  # fmt: skip
    return found.without(held.declined_by)


def _read_job(held: HeldRun) -> tuple[Hyperparameters, GpuConfig] | None:
    job = held.assignment.job
    if job is None:
        return None
    try:
        chosen = parse_hyperparameters(job, default_base_model=held.services.settings.default_base_model)
        return chosen, parse_gpu_config(job)
    except PreflightError:
        return None


def _refused(held: HeldRun, table: RoutingTable) -> dict[str, float]:
    """The places whose launcher refused the run not long ago."""
    since = held.services.clock() - table.pass_over_minutes * 60
    return {name: at for name, at in held.refused_at.items() if at > since}


def _has_waited_in_vain(held: HeldRun, choice: Choice, bound: Place, table: RoutingTable) -> bool:
    there = next((option.hurdle for option in choice.options if option.place == bound.name), None)
    waited = held.launch_age_seconds >= table.fall_back_minutes * 60
    return waited and choice.leads_on(bound.name) and there in {Hurdle.NO_GPU, Hurdle.REFUSED}


async def _leave(held: HeldRun, candidates: Candidates, here: Place | None, choice: Choice) -> bool:
    """Take the run from its place for another; False where a trainer was faster, or others take all slots there."""
    departures, to = held.services.departures, choice.place
    if to is None or not departures.book(to, candidates.free_slots(to)):
        return False
    withdrawn = False
    try:
        withdrawn = await _withdraw(held, candidates.table)
    finally:
        if not withdrawn:
            departures.give_back(to)
    if withdrawn:
        log.warning(
            "the run leaves a place without a GPU", action=Action.PLACE_LEFT, place=here and here.name, next_place=to
        )
    return withdrawn


async def _withdraw(held: HeldRun, table: RoutingTable) -> bool:
    run = held.assignment.run
    held.require_lease()
    return await held.services.queue.withdraw_launch(
        run.id, run.lease_token, pass_over_seconds=math.ceil(table.pass_over_minutes * 60)
    )


async def _wait(held: HeldRun, choice: Choice) -> PutOff | Settled:
    """Put the job back into the queue, where it takes no slot of this worker; a run that was sent before waits here."""
    run, services = held.assignment.run, held.services
    if services.repeats.is_due(("places", choice.rule), choice.why_waiting):
        log.info("jobs wait for a place", action=Action.PLACES_TAKEN, rule=choice.rule, reason=choice.why_waiting)
    answer = await services.queue.put_back_run(run.id, run.lease_token, reason=_SENTENCE, seconds=_LOOK_AGAIN_SECONDS)
    if answer == "lease_lost":
        raise LeaseLostError("the lease was lost before the launch")
    if answer == "put_back":
        return Settled("queued")
    return PutOff(choice.why_waiting, _LOOK_AGAIN_SECONDS, exact_seconds=_LOOK_AGAIN_SECONDS, stage="waiting_for_gpu")
