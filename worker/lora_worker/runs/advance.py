"""One cycle of work on a held run: look at it, decide, act.

`advance` is called once a poll cycle. The steps are in `observing`, `launching`, `granting` and `settling`, and return
what happened; this module takes them in their order and has `applying` write each result into the held run before the
next step begins. It writes progress only by leaving a report, which the daemon sends with those of all other runs.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import structlog

from lora_contract.crash_points import crash_point
from lora_contract.protocol import Result
from lora_worker.datasets.preflight import Plan
from lora_worker.errors import LeaseLostError
from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.launchers.places import Place
from lora_worker.observability.actions import Action
from lora_worker.runs.applying import apply
from lora_worker.runs.outcomes.failures import (
    ARTIFACT_MISSING,
    NEVER_READY,
    NO_GPU_THERE,
    TRAINER_OUTDATED,
    UPDATE_IMAGE,
    WORKER_FAULT,
    WORKER_KILLED,
)
from lora_worker.runs.outcomes.results import parse_result
from lora_worker.runs.outcomes.verdicts import AwaitManifest, Finish, Stop, Verdict, judge
from lora_worker.runs.rows.progress_entries import make_report, progress_report
from lora_worker.runs.state.events import (
    Ending,
    FetchBegun,
    HandlingBegun,
    LaunchBegun,
    Launched,
    Listened,
    LogKept,
    ProblemChanged,
    PutOff,
    Renewed,
    Reported,
    Settled,
    StopAsked,
    StopDecided,
)
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.state.journey import spanning
from lora_worker.runs.steps import container_log, launching, placing, settling
from lora_worker.runs.steps.claims import warn_of_contradiction
from lora_worker.runs.steps.granting import answer
from lora_worker.runs.steps.limits import exceeded_limit, longest_seconds
from lora_worker.runs.steps.observing import observe, with_report
from lora_worker.runs.steps.settling import Collected, ForeignFiles
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.storage.publication import has_manifest

log = structlog.get_logger(__name__)


async def advance(held: HeldRun) -> None:
    """Do what comes next for the run.

    Raises:
        ServiceError: a service did not answer; the next cycle tries again.
        LeaseLostError: the run is another worker's now.
    """
    held.require_lease()
    if held.news.upload_request is not None and not held.is_to_stop:
        answered = await answer(held, held.news.upload_request)
        if answered is not None:
            apply(held, answered)
    if held.is_to_stop:
        await _stop(held)
    elif held.news.external_job_id is not None:
        await _look(held, held.news.external_job_id)
    elif held.services.clock() >= held.launch_not_before:
        await launch(held)


# ── launching ───────────────────────────────────────────────────────────────────────────────────────


async def launch(held: HeldRun) -> None:
    """Check the job and launch it; a job that can't be trained is settled as failed before a GPU is paid for.

    Raises:
        LeaseLostError: the run is another worker's.
        ServiceError: the database or the storage did not answer.
    """
    place = await _find_place(held)
    if place is None:
        return
    async with AsyncExitStack() as slot:
        await slot.enter_async_context(held.services.heavy_slots.take(alone=held.is_suspect))
        if await _begin_handling(held, "preflight"):
            with spanning(held, "preflight"):
                plan = await launching.check_job(held, place)
        else:
            plan = Ending(WORKER_KILLED)
        if isinstance(plan, Ending):
            await finish(held, plan)
            return
        if not held.is_suspect:
            # A suspect stays alone until it is launched: if it ends this worker, too, it must be clear which run did.
            await slot.aclose()
        await _send(held, plan)


async def _find_place(held: HeldRun) -> Place | None:
    """Where the run is launched now; None where it can't be now, which is applied here."""
    place = await placing.choose_place(held)
    if not isinstance(place, Place):
        apply(held, place)
        return None
    obstacle = await launching.find_obstacle(held, place)
    if obstacle is not None:
        apply(held, obstacle)
        return None
    return place


async def _send(held: HeldRun, plan: Plan) -> None:
    """Write down the intent of the launch, send it, and write down its id."""
    request = await launching.prepare_request(held, plan)
    if isinstance(request, PutOff):
        apply(held, request)
        return
    if isinstance(request, Ending):
        await finish(held, request)
        return
    begun = await launching.begin_launch(held, request, plan)
    if begun is not None:
        apply(held, begun)
    if not isinstance(begun, LaunchBegun):
        return
    with spanning(held, "launch"):
        sent = await launching.send(held, request, plan)
    if isinstance(sent, Ending):
        await finish(held, sent)
        return
    # Before the database is told, which may fail: this worker polls the launch from the next cycle on.
    apply(held, sent)
    if isinstance(sent, Launched):
        await launching.record_launch(held, sent)


async def _begin_handling(held: HeldRun, phase: str) -> bool:
    """Count in the database that this worker begins a phase that might end it; False when too many workers have.

    Raises:
        LeaseLostError: the lease is lost.
        ServiceError: the database did not answer.
    """
    if phase not in held.handlings:
        run, services = held.assignment.run, held.services
        handlings = await services.queue.begin_handling(run.id, run.lease_token)
        if handlings is None:
            raise LeaseLostError(f"the lease was lost before {phase}")
        apply(held, HandlingBegun(phase, may_go_on=handlings <= services.settings.max_handlings))
    return held.handlings[phase]


# ── looking ─────────────────────────────────────────────────────────────────────────────────────────


async def _observe(held: HeldRun, external_job_id: str) -> Observation:
    """Look at the launch, and keep what it says of time and progress."""
    observed = await observe(held, external_job_id)
    apply(held, observed)
    _note_problem(
        held,
        held.whereabouts.unseen(external_job_id, held.news.endpoint, observed.observation),
        event="status unknown",
        action=Action.RUN_STATUS_UNKNOWN,
    )
    if held.progress is not None:
        warn_of_contradiction(held, held.progress)
    return observed.observation


def _note_problem(held: HeldRun, problem: str | None, *, event: str, action: Action) -> None:
    """Tell the operator what keeps the run from going on; None: nothing does."""
    subject = (held.run_id, "problem")
    apply(held, ProblemChanged(problem))
    if problem is None:
        held.services.repeats.clear(subject)
    elif held.services.repeats.is_due(subject, problem):
        log.error(event, action=action, problem=problem)


async def _look(held: HeldRun, external_job_id: str) -> None:
    """Look at the launch; settle the run where it has ended, else decide whether it may go on."""
    observation = await _observe(held, external_job_id)
    verdict = _judge(held, external_job_id, observation)
    if isinstance(verdict, Finish):
        had_result = held.news.result is not None
        # A trainer reports its result just before its machine ends: where the renewal brings it only now, the next
        # cycle judges by it.
        if await _is_owner(held, external_job_id) and had_result is (held.news.result is not None):
            await finish(held, Ending(verdict.failure, result=verdict.result, legacy=verdict.legacy, look=True))
            await _end_machine(held, external_job_id, observation)
        return
    if observation.state is LaunchState.MISSING and held.services.repeats.is_due((held.run_id, "missing"), "missing"):
        log.warning("the launcher has forgotten the launch", action=Action.RUN_MISSING, reason=observation.reason)
    if isinstance(verdict, AwaitManifest) and await _has_manifest(held):
        await finish(held, Ending(ARTIFACT_MISSING, look=True))
        return
    if isinstance(verdict, Stop):
        log.warning("the GPU is silent", action=Action.RUN_SILENT, external_job_id=external_job_id)
        apply(held, StopDecided(verdict.failure))
    left = await placing.fall_back(held, observation)
    if left is not None:
        apply(held, left)
    exceeded = exceeded_limit(held, observation)
    if exceeded is not None and left is None:
        apply(held, StopDecided(exceeded))
    if exceeded is NEVER_READY:
        log.error("the endpoint's machines never get ready", action=Action.RUN_NEVER_READY)
    if exceeded is TRAINER_OUTDATED:
        log.error("the endpoint's image is too old", action=Action.TRAINER_OUTDATED, remedy=UPDATE_IMAGE)
    apply(held, Reported(progress_report(held)))


def _judge(held: HeldRun, external_job_id: str, observation: Observation) -> Verdict:
    """What the look at the launch means for the run, with the silence that it ends or prolongs."""
    now = held.services.clock()
    apply(held, Listened(held.silence.listen(observation, held.news.last_seen_at, now)))
    return judge(
        observation,
        run_id=held.run_id,
        owned_elsewhere=held.has_checked_in and held.news.external_job_id != external_job_id,
        silent_seconds=held.silence.seconds(now),
        checked_in=held.has_checked_in,
        lost_seconds=held.services.settings.lost_seconds,
        longest_seconds=longest_seconds(held),
    )


async def _is_owner(held: HeldRun, external_job_id: str) -> bool:
    """Whether the run is still this launch's, as the database says now.

    Another launch of the run may have checked in since the last renewal, and a worker that knew it may have cancelled
    this launch as a stray.
    """
    asked_at = held.services.clock()
    (news,) = await held.services.queue.renew([held.lease])
    if news.settled_as:
        # This worker settled it in an earlier cycle, and the answer was lost on its way.
        apply(held, Settled(news.settled_as))
        return False
    if not news.held:
        raise LeaseLostError("the lease was lost before the end")
    apply(held, Renewed(news, asked_at))
    return held.news.external_job_id == external_job_id


async def _has_manifest(held: HeldRun) -> bool:
    run, services = held.assignment.run, held.services
    return held.assignment.job is not None and await has_manifest(
        services.storage, services.settings.artifacts_bucket, ArtifactPaths.of(run)
    )


async def _end_machine(held: HeldRun, external_job_id: str, observation: Observation) -> None:
    """Stop the machine of a run that was settled by what its trainer has reported; else it is stopped as a stray.

    Only once the run is settled: a worker that dies before that would leave a run that somebody seems to have stopped.
    """
    if held.settled_as is None or not observation.is_reported or observation.ended:
        return
    asked = await held.whereabouts.cancel(external_job_id, held.news.endpoint)
    log.info("the machine is stopped", action=Action.MACHINE_STOPPED, external_job_id=external_job_id, asked=asked)


# ── stopping ────────────────────────────────────────────────────────────────────────────────────────


async def _stop(held: HeldRun) -> None:
    """Stop the GPU, see that it has stopped, then settle: as cancelled, or with why it was stopped."""
    external_job_id = held.news.external_job_id
    if external_job_id is None:
        # No launch was accepted, as far as is known. One that is in doubt is refused when it checks in.
        await finish(held, Ending(held.stopping))
        return
    observation = await _cancel(held, external_job_id)
    if observation.ended or observation.state is LaunchState.MISSING:
        # Where another launch of the run is known by now, that one is stopped in the next cycle. This last renewal also
        # brings the last heartbeat, up to which the run is billed.
        if await _is_owner(held, external_job_id):
            # A trainer that heard of the stop first has ended by itself, and its result tells how far it came.
            output = with_report(held, external_job_id, observation).output
            found = parse_result(output, run_id=held.run_id)
            result = found if isinstance(found, Result) else None
            # A run whose handling fails in this worker gets no further handling.
            look = held.stopping not in {None, WORKER_FAULT, NO_GPU_THERE}
            await finish(held, Ending(held.stopping, result=result, look=look))
        return
    asked_at = held.stop_asked_at or 0.0
    overdue = held.services.clock() - asked_at > held.services.settings.cancel_seconds
    if overdue and observation.state is not LaunchState.UNKNOWN:
        console = held.services.places.guide_of(held.launch_ref.endpoint).console
        _note_problem(
            held,
            f"{external_job_id} goes on; see {console}",
            event="the GPU does not stop",
            action=Action.RUN_NOT_STOPPING,
        )
    apply(held, Reported(make_report(held, {})))


async def _cancel(held: HeldRun, external_job_id: str) -> Observation:
    """Ask the launcher to stop the launch, and look at what became of it."""
    is_first = held.stop_asked_at is None
    if is_first:
        # The launcher deletes its progress with the job, and a worker that adopted the run has not seen any yet.
        await _observe(held, external_job_id)
    crash_point("worker.cancel.before")
    held.require_lease()
    apply(held, StopAsked(held.services.clock()))
    asked = await held.whereabouts.cancel(external_job_id, held.news.endpoint)
    crash_point("worker.cancel.after")
    if is_first:
        log.info("stopping the GPU", action=Action.RUN_STOPPING, asked=asked)
    return await _observe(held, external_job_id)


# ── settling ────────────────────────────────────────────────────────────────────────────────────────


async def finish(held: HeldRun, ending: Ending) -> None:
    """Settle the run; afterwards `settled_as` holds the job's status. Raises as `settle` does."""
    apply(held, container_log.end_of(ending))
    if held.container_log and not held.is_log_kept and await container_log.keep(held):
        apply(held, LogKept())
    with spanning(held, "settle"):
        settled = await settle(held, ending)
    apply(held, settled)


async def finish_log(held: HeldRun) -> None:
    """Keep the log of a settled run where that was not done before it was settled. Raises nothing."""
    if container_log.is_missing(held) and await container_log.keep_late(held):
        apply(held, LogKept())


async def settle(held: HeldRun, ending: Ending) -> Settled:
    """Close the run: with its artifact, where that is looked for and found, else as `ending` says.

    Raises:
        LeaseLostError: another worker has the run; nothing was written.
        ServiceError: the storage or the database did not answer; either nothing was written, or all of it.
    """
    if not settling.looks_for_artifact(held, ending):
        return await settling.close_run(held, ending, None)
    async with AsyncExitStack() as place:
        services = held.services
        # Files at an address of a container's choice may come as slowly as that lets them, so they have places of
        # their own.
        slots = services.foreign_slots if ending.legacy and not held.is_suspect else services.heavy_slots
        await place.enter_async_context(slots.take(alone=held.is_suspect))
        if await _begin_handling(held, "settling"):
            collected = await _collect(held, ending)
        else:
            collected = Collected(None, Ending(WORKER_KILLED, result=ending.result))
        if not held.is_suspect:
            # A suspect stays alone until it is settled: if it ends this worker, too, it must be clear which run did.
            await place.aclose()
        return await settling.close_run(held, collected.ending, collected.manifest)


async def _collect(held: HeldRun, ending: Ending) -> Collected:
    collected = await settling.collect_artifact(held, ending)
    if isinstance(collected, ForeignFiles):
        apply(held, FetchBegun())
        return await settling.fetch_artifact(held, ending, collected.legacy)
    return collected
