"""Keeps the folder of served adapters on the trainers' volume as the rows say, by errands to the endpoint.

An adapter whose model was deleted must not be called any more, and an alias holds the adapter that it leads to. One
errand at a time does all that is due; none is launched while nothing is. It outlives its worker: its id stands in the
database, and whoever looks next goes on with it.
"""

from __future__ import annotations

import structlog
from pydantic import ValidationError

from lora_contract.errands import ErrandResult, ServingRequest
from lora_contract.error_codes import ErrorCode
from lora_worker.database.answers import ServingErrand
from lora_worker.duties.duty import RoundResult
from lora_worker.errors import LaunchInDoubtError, LaunchRefusedError, ServiceError, ServiceRefusedError
from lora_worker.launchers.base import Launcher, LaunchRef, LaunchState, Observation, Policy
from lora_worker.observability.actions import Action
from lora_worker.services import Services

log = structlog.get_logger(__name__)

SERVING_CALLS = 4
"""Calls of one round, one after another: a claim, a look and a cancel or a launch and its record, the end."""

_EXECUTION_SECONDS = 900.0
"""The longest time of an errand. It removes folders, and copies fifty adapters at the most."""
_QUEUE_SECONDS = 3600.0
"""How long it may wait for a GPU."""
_NO_VOLUME = ErrorCode.VOLUME_MISSING.value
_NO_ANSWER = "the endpoint's answer is none to this errand: does its image hold this release of the trainer?"


class ServedAdapters:
    """Launches an errand for all that is due, and writes down what became of it."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run_once(self) -> RoundResult:
        """Launch an errand, or look at the one that is under way.

        Raises:
            ServiceError: the database or the launcher did not answer; the next round goes on.
        """
        place = self._services.places.serving
        if place is None:
            return RoundResult()
        launcher = place.launcher
        errand = await self._services.queue.claim_serving_errand(launcher=launcher.name, endpoint=launcher.endpoint)
        if errand is None:
            return RoundResult()
        if errand["external_job_id"] is None:
            return await self._launch(errand, launcher)
        return await self._look(errand, errand["external_job_id"])

    async def _launch(self, errand: ServingErrand, launcher: Launcher) -> RoundResult:
        try:
            request = ServingRequest.model_validate(errand["request"])
            job = await launcher.launch(
                request.model_dump(mode="json"), Policy(_EXECUTION_SECONDS, _QUEUE_SECONDS + _EXECUTION_SECONDS)
            )
        except ValidationError:
            return await self._end(errand, problem="the rows hold a name that no errand takes")
        except (LaunchRefusedError, ServiceRefusedError, LaunchInDoubtError) as error:
            # One in doubt may run, and a later one asks for the same again: an errand that runs twice does no harm.
            return await self._end(errand, problem=str(error))
        try:
            await self._services.queue.record_serving_errand(
                errand["id"], errand["lease_token"], endpoint=launcher.endpoint, external_job_id=job
            )
        except ServiceError as error:
            # Without its id the next round would launch it again, and so would each after that.
            return await self._end(errand, problem=str(error))
        log.info(
            "an errand for served adapters is launched", action=Action.SERVED_ASKED, external_job_id=job,
            removals=len(request.remove), aliases=len(request.aliases),
        )  # fmt: skip
        return RoundResult(1)

    async def _look(self, errand: ServingErrand, external_job_id: str) -> RoundResult:
        places, launch = self._services.places, LaunchRef(errand["endpoint"], external_job_id)
        seen = await places.observe(launch)
        if seen.ended:
            result = read_result(seen)
            if result is None:
                return await self._end(errand, problem=_NO_ANSWER, seen=seen)
            told = [*([result.error.sentence()] if result.error else []), *result.problems]
            return await self._end(errand, result=result, problem="; ".join(told) or None, seen=seen)
        overdue = errand["age_seconds"] > _QUEUE_SECONDS + 2 * _EXECUTION_SECONDS
        if seen.state is LaunchState.MISSING or overdue:
            await places.cancel(launch)
            return await self._end(errand, problem=seen.reason or "the errand did not end in its time", seen=seen)
        if seen.state is LaunchState.UNKNOWN:
            return RoundResult(put_off=(seen.reason or "the launcher does not tell of the errand",))
        return RoundResult()

    async def _end(
        self,
        errand: ServingErrand,
        *,
        problem: str | None,
        result: ErrandResult | None = None,
        seen: Observation | None = None,
    ) -> RoundResult:
        removed, aliases = (result.removed, result.aliases) if result else ([], [])
        gpu_seconds = seen.execution_seconds if seen else None
        has_no_volume = result is not None and result.error is not None and result.error.code == _NO_VOLUME
        confirmed = await self._services.queue.end_serving_errand(
            errand["id"], errand["lease_token"], removed=removed, aliases=aliases, problem=problem,
            gpu_seconds=gpu_seconds, replace_workers=self._services.answering is not None, no_volume=has_no_volume,
        )  # fmt: skip
        if confirmed is None:
            return RoundResult()
        if problem is None:
            log.info(
                "served adapters are as the rows say", action=Action.SERVED_CHANGED, removals=confirmed,
                aliases=len(aliases), gpu_seconds=gpu_seconds,
            )  # fmt: skip
            return RoundResult(1)
        log.warning(
            "served adapters are not as the rows say", action=Action.SERVED_NOT_CHANGED, problem=problem[:500],
            removals=confirmed, gpu_seconds=gpu_seconds,
        )  # fmt: skip
        return RoundResult(put_off=(problem,))


def read_result(seen: Observation) -> ErrandResult | None:
    """What the errand's handler answered; None where it knows no such errand, or answered nothing that can be read."""
    try:
        result = ErrandResult.model_validate(seen.output)
    except ValidationError:
        return None
    return result if result.kind == "serving" else None
