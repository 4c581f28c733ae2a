"""Decides what follows for a run from what its launcher and its trainer say. Pure functions, no I/O.

Every answer of the launcher ends in one row of this table (`judge`):

    launcher says            trainer says            what follows
    ───────────────────────  ──────────────────────  ─────────────────────────────────────────────
    QUEUED                   –                       keep
    RUNNING                  progress, heartbeats    keep
    RUNNING                  silent too long         stop it; then the manifest, else retry as the cloud's fault
    RUNNING                  never checked in        keep: an earlier trainer says nothing before its end; past the
                                                     longest time of a run stop it: over its time. Where a launcher
                                                     returns no output each trainer checks in, and a machine that has
                                                     not after `max_start_seconds` is stopped (`steps/limits.py`)
    UNKNOWN                  –                       keep, however often
    COMPLETED                completed               settle from the manifest
    COMPLETED                failed                  retry or fail, by the error's code
    COMPLETED                superseded              keep while another launch owns the run; else await the
                                                     manifest while the newer execution's heartbeat is fresh
    COMPLETED                unpublished             retry: the next attempt publishes
    COMPLETED                legacy success          copy its files, then settle
    COMPLETED                nothing, or unreadable  retry, as a passing fault
    FAILED                   failed                  retry or fail, by the error's code
    FAILED: over its time    –                       fail: over its time
    FAILED: lost             –                       retry, as the GPU cloud's fault
    FAILED: out of memory    –                       fail: the GPU is too small
    FAILED: any other cause  –                       retry, as a passing fault
    CANCELLED (not by us)    –                       fail: somebody stopped it at the launcher
    TIMED_OUT                –                       retry, as the GPU cloud's fault
    MISSING                  heartbeat is fresh      await the manifest
    MISSING                  silent too long         retry, as the GPU cloud's fault
    QUEUED, RUNNING,         has reported its        as COMPLETED with that result: its launcher carries none, and
    COMPLETED, FAILED,       result by the run's     its machine may go on until it is stopped
    MISSING                  own channel
    RUNNING, and its machine has reported its        keep for two minutes, since only an ended launch has its
    ends by itself           result                  bill; then as above

Before a run ends by any of these rows, its manifest is looked for: where there is one, the run has succeeded.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_contract.error_codes import FAULTS, ErrorCode
from lora_contract.protocol import Result
from lora_worker.launchers.base import EndCause, LaunchState, Observation
from lora_worker.runs.outcomes.failures import (
    ARTIFACT_MISSING,
    CANCELLED_ELSEWHERE,
    CRASHED,
    LOST,
    NEVER_STARTED,
    NO_RESULT,
    OUT_OF_MEMORY,
    OVER_TIME,
    SILENT,
    Failure,
)
from lora_worker.runs.outcomes.results import LegacyResult, parse_result


@dataclass(frozen=True, slots=True)
class Keep:
    """Go on polling."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over. It ends with `failure`, unless its manifest is found."""

    failure: Failure
    result: Result | None = None
    legacy: LegacyResult | None = None


@dataclass(frozen=True, slots=True)
class AwaitManifest:
    """The launcher ended or forgot the job, but its trainer may still be at work: wait for its manifest."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the launch, then finish."""

    failure: Failure


Verdict = Keep | Finish | AwaitManifest | Stop


def _judge_result(observation: Observation, run_id: str, *, owned_elsewhere: bool, alive: bool) -> Verdict:
    parsed = parse_result(observation.output, run_id=run_id)
    if parsed is None:
        return Finish(NO_RESULT)
    if isinstance(parsed, Failure):
        return Finish(parsed)
    if isinstance(parsed, LegacyResult):
        return Finish(ARTIFACT_MISSING, legacy=parsed)
    if parsed.status == "completed":
        return Finish(ARTIFACT_MISSING, result=parsed)
    if parsed.status == "superseded" and owned_elsewhere:
        return Keep("another launch of this run trains")
    if parsed.status == "superseded" and alive:
        return AwaitManifest()
    return Finish(_failure_of(parsed), result=parsed)


def _failure_of(result: Result) -> Failure:
    if result.error is not None:
        return Failure(result.error.code, FAULTS[result.error.code], result.error.sentence())
    code = {"unpublished": ErrorCode.GRANT_MISSING, "superseded": ErrorCode.SUPERSEDED}.get(result.status)
    if code is None:
        return NO_RESULT
    return Failure(code, FAULTS[code], "The result could not be collected in time; the next attempt does so.")


def _judge_failed(observation: Observation, run_id: str) -> Finish:
    parsed = parse_result(observation.output, run_id=run_id)
    if isinstance(parsed, Failure):
        return Finish(parsed)
    if isinstance(parsed, Result) and parsed.status != "completed":
        return Finish(_failure_of(parsed), result=parsed)
    return Finish(_FAILURES.get(observation.cause, CRASHED))


def _is_ending(observation: Observation) -> bool:
    return observation.is_reported and observation.ends_by_itself


_ENDING_SECONDS = 120.0
"""A machine that ends by itself is given so long after its trainer's last word, to be billed as its cloud bills it."""

_FAILURES = {EndCause.OVER_TIME: OVER_TIME, EndCause.LOST: LOST, EndCause.OUT_OF_MEMORY: OUT_OF_MEMORY}
"""The failure of a run whose trainer left no result, by the launcher's cause; any other cause counts as a crash."""


def judge(
    observation: Observation,
    *,
    run_id: str,
    owned_elsewhere: bool,
    checked_in: bool,
    silent_seconds: float,
    lost_seconds: float,
    longest_seconds: float,
) -> Verdict:
    """What a look at a launch means for its run; see the table above.

    `owned_elsewhere`: another launch of the run has checked in. `checked_in`: some launch has, so that its
    trainer has a heartbeat. `silent_seconds`: since this worker has heard anything new of the run, from the
    launcher or by the trainer's heartbeat. `longest_seconds`: more than a run may take.
    """
    match observation.state:
        case LaunchState.RUNNING if _is_ending(observation) and silent_seconds < _ENDING_SECONDS:
            return Keep("its machine is ending")
        case state if state is LaunchState.COMPLETED or observation.is_reported:
            alive = silent_seconds < lost_seconds
            return _judge_result(observation, run_id, owned_elsewhere=owned_elsewhere, alive=alive)
        case LaunchState.FAILED:
            return _judge_failed(observation, run_id)
        case LaunchState.CANCELLED:
            return Finish(CANCELLED_ELSEWHERE)
        case LaunchState.TIMED_OUT:
            return Finish(NEVER_STARTED)
        case LaunchState.MISSING if silent_seconds >= lost_seconds:
            return Finish(LOST)
        case LaunchState.MISSING:
            return AwaitManifest(observation.reason)
        case LaunchState.RUNNING if not checked_in and silent_seconds >= longest_seconds:
            return Stop(OVER_TIME)
        case LaunchState.RUNNING if checked_in and silent_seconds >= lost_seconds:
            # Its result was lost on the way, or its machine is cut off: the launcher may show both as RUNNING.
            return Stop(SILENT)
        case _:
            return Keep(observation.reason)
