"""The one place that changes a held run: each event is written into it here, and nowhere else.

`tests/unit/worker/runs/test_one_writer.py` reads the code of the worker for any other place.
"""

from __future__ import annotations

from functools import singledispatch

from lora_worker.runs.outcomes.failures import NO_GPU_THERE
from lora_worker.runs.outcomes.results import parse_progress
from lora_worker.runs.outcomes.retries import patience_seconds
from lora_worker.runs.rows.progress_entries import make_report
from lora_worker.runs.rows.report_rows import merged
from lora_worker.runs.state.events import (
    CycleBegun,
    CycleDone,
    CycleFailed,
    CyclePutOff,
    EndBegun,
    EndpointSeen,
    Event,
    FetchBegun,
    Granted,
    GrantPutOff,
    HandlingBegun,
    LaunchBegun,
    Launched,
    Listened,
    LogKept,
    Observed,
    PlacesSeen,
    ProblemChanged,
    PutOff,
    Renewed,
    Reported,
    Settled,
    StopAsked,
    StopDecided,
)
from lora_worker.runs.state.held_run import HeldRun


def apply(held: HeldRun, event: Event) -> None:
    """Write into the held run what happened to it."""
    _write(event, held)


@singledispatch
def _write(event: object, _held: HeldRun) -> None:
    raise TypeError(f"{type(event).__name__} is no event of a held run")


@_write.register
def _(_event: CycleBegun, held: HeldRun) -> None:
    held.put_off, held.is_settling = None, False


@_write.register
def _(_event: CycleDone, held: HeldRun) -> None:
    held.faults_in_a_row, held.places_seen = 0, None


@_write.register
def _(event: CyclePutOff, held: HeldRun) -> None:
    held.put_off, held.places_seen = event.problem, None


@_write.register
def _(_event: CycleFailed, held: HeldRun) -> None:
    held.faults_in_a_row, held.places_seen = held.faults_in_a_row + 1, None


@_write.register
def _(event: Renewed, held: HeldRun) -> None:
    # The database counts from when the request arrives, which is later: so the lease is trusted a little less long.
    held.trusted_until = event.asked_at + held.services.settings.lease_seconds
    reported = parse_progress(event.news.progress, run_id=held.run_id)
    if reported is not None:
        held.progress = merged(held.progress, reported)
    known = {
        "external_job_id": event.news.external_job_id or held.news.external_job_id,
        "progress_number": event.news.progress_number or held.news.progress_number,
        "result": held.news.result if event.news.result is None else event.news.result,
        # It is read, and may be large.
        "progress": None,
    }
    held.news = event.news.model_copy(update=known)
    if held.news.withdrawn_at is not None and held.stopping is None:
        # The answer to the withdrawal was lost on its way. The run's trainers are refused since.
        held.stopping = NO_GPU_THERE


@_write.register
def _(event: PlacesSeen, held: HeldRun) -> None:
    held.places_seen = event.rows


@_write.register
def _(event: EndpointSeen, held: HeldRun) -> None:
    held.endpoint = event.view


@_write.register
def _(event: Reported, held: HeldRun) -> None:
    held.report = event.report


@_write.register
def _(event: Observed, held: HeldRun) -> None:
    held.observation, held.whereabouts = event.observation, event.whereabouts
    held.container = event.observation.container or held.container
    held.measured_seconds = max(held.measured_seconds, event.observation.execution_seconds or 0.0)
    if event.progress is not None:
        held.progress = merged(held.progress, event.progress)


@_write.register
def _(event: Listened, held: HeldRun) -> None:
    held.silence = event.silence


@_write.register
def _(event: ProblemChanged, held: HeldRun) -> None:
    held.problem = event.problem


@_write.register
def _(event: StopDecided, held: HeldRun) -> None:
    held.stopping = event.failure


@_write.register
def _(event: StopAsked, held: HeldRun) -> None:
    # The first request counts: from it on the launcher has its time to stop the run.
    if held.stop_asked_at is None:
        held.stop_asked_at = event.at


@_write.register
def _(event: HandlingBegun, held: HeldRun) -> None:
    held.handlings = {**held.handlings, event.phase: event.may_go_on}


@_write.register
def _(event: PutOff, held: HeldRun) -> None:
    held.put_off = event.problem
    held.report = make_report(held, {"current_stage": event.stage})
    held.doubtful_endpoint = event.doubtful_endpoint or held.doubtful_endpoint
    if event.refused_by is not None:
        held.refused_at = {**held.refused_at, event.refused_by: held.services.clock()}
    if event.declined_by is not None:
        held.declined_by = {*held.declined_by, event.declined_by}
    if event.exact_seconds is None:
        held.launch_tries += 1
        wait_seconds = patience_seconds(event.base_seconds, held.launch_tries)
    else:
        # Nothing is wrong with this launch. While the launcher pauses, it answers for launches that were never sent:
        # if those doubled their wait, a busy second would hold up a job for minutes.
        wait_seconds = event.exact_seconds
    held.launch_not_before = held.services.clock() + wait_seconds


@_write.register
def _(event: LaunchBegun, held: HeldRun) -> None:
    held.whereabouts = held.whereabouts.adding(event.endpoint)
    # From here on the database knows this token alone, whichever one an earlier launch was sent.
    held.token = event.token
    held.assignment = event.assignment


@_write.register
def _(event: Launched, held: HeldRun) -> None:
    # Unless another launch of the run has checked in meanwhile: then the run is that launch's.
    if held.news.external_job_id is None:
        known = {"external_job_id": event.external_job_id, "endpoint": event.endpoint}
        held.news = held.news.model_copy(update=known)


@_write.register
def _(_event: Granted, held: HeldRun) -> None:
    held.news = held.news.model_copy(update={"upload_request": None})


@_write.register
def _(event: GrantPutOff, held: HeldRun) -> None:
    held.put_off = event.problem


@_write.register
def _(event: EndBegun, held: HeldRun) -> None:
    held.is_settling = True
    held.end_summary, held.container_log = event.summary, event.log


@_write.register
def _(_event: LogKept, held: HeldRun) -> None:
    held.is_log_kept = True


@_write.register
def _(_event: FetchBegun, held: HeldRun) -> None:
    held.fetch_tries += 1


@_write.register
def _(event: Settled, held: HeldRun) -> None:
    held.settled_as, held.report = event.job_status, None
