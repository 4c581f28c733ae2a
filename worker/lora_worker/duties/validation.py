"""Validates uploaded datasets: claims one, reads it once, writes down what it holds. Replaces `validate-datasets`.

Uses the loader that the trainer uses, so that what is `ready` here can be trained on there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from lora_contract.hyperparameters import Hyperparameters
from lora_conversations.errors import DatasetUnusableError
from lora_conversations.reader import ERRORS_KEPT
from lora_conversations.survey import Survey, Surveyor
from lora_worker.database.rows import Dataset, DatasetClaim
from lora_worker.datasets.columns import MAX_INT, counted_columns
from lora_worker.duties.duty import RoundResult, no_sign
from lora_worker.duties.faults import Faults, Meaning, dataset_work
from lora_worker.errors import LeaseLostError, ObjectMissingError, ServiceError, ServiceRefusedError
from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import FAULTS_SEEN
from lora_worker.runs.rows import notices
from lora_worker.services import Services

log = structlog.get_logger(__name__)

_UNREADABLE = DatasetUnusableError("The dataset could not be read to its end.", "Split it and upload it again.")
_FOREIGN = DatasetUnusableError("The dataset's file lies outside its owner's folder.", "Upload it again.")
_MISSING = DatasetUnusableError("The dataset's file is not in the storage.", "Upload it again.")


class Validator:
    """Validates one dataset at a time, since parsing takes processor time, of which a small worker has little."""

    def __init__(
        self,
        services: Services,
        stop: asyncio.Event,
        *,
        beat: Callable[[], None] = no_sign,
        rest: Callable[[], None] = no_sign,
    ) -> None:
        self._services = services
        self._beat, self._rest = beat, rest
        self._stop = stop
        self._faults = Faults(services.repeats)

    async def run_once(self) -> RoundResult:
        """Validate all datasets that wait for it.

        Raises:
            ServiceError: the database did not answer; claims run out by themselves.
        """
        validated = 0
        while not self._stop.is_set():
            # Adapters of any size may be read before it is this one's turn.
            self._rest()
            async with self._services.heavy_slots.take():
                self._beat()
                claim = await self._services.queue.claim_dataset()
                if claim is None:
                    break
                await self._validate(claim)
                validated += 1
        return RoundResult(validated)

    async def _validate(self, claim: DatasetClaim) -> None:
        """Settle one dataset, or leave its claim to run out, which counts as an attempt.

        Raises:
            ServiceError: the database did not answer.
        """
        dataset_id = str(claim.dataset.id)
        try:
            await self._settle(claim)
        except ServiceRefusedError as error:
            if error.status != 400:
                raise
            FAULTS_SEEN.labels(error.service).inc()
            log.error(
                "dataset not settled", action=Action.DATASET_NOT_SETTLED, dataset_id=dataset_id, problem=str(error)
            )
        except ServiceError:
            raise
        except Exception as error:
            self._faults.note(dataset_work(dataset_id), error)

    async def _settle(self, claim: DatasetClaim) -> None:
        queue, dataset = self._services.queue, claim.dataset
        try:
            outcome = await self._examine(claim)
        except (LeaseLostError, ServiceError) as error:
            if self._faults.note(dataset_work(str(dataset.id)), error) is Meaning.LOST:
                log.warning(
                    "dataset given up", action=Action.DATASET_GIVEN_UP, dataset_id=str(dataset.id), reason=str(error)
                )
                return
            await queue.put_off_dataset(
                dataset.id, claim.lease_token, seconds=round(self._services.settings.retry_base_seconds)
            )
            return
        if outcome is None:
            await queue.put_off_dataset(dataset.id, claim.lease_token, seconds=0)
            return
        applied = await queue.settle_dataset(dataset.id, claim.lease_token, outcome)
        log.info(
            "dataset validated",
            action=Action.DATASET_VALIDATED,
            dataset_id=str(dataset.id),
            status=outcome["status"],
            applied=applied,
        )

    async def _examine(self, claim: DatasetClaim) -> dict[str, Any] | None:
        """Read the dataset; the outcome to write, or None when the worker stopped in the middle."""
        dataset = claim.dataset
        if claim.unreadable is not None:
            text = f"The dataset can't be read: {claim.unreadable}."
            return failed(dataset, DatasetUnusableError(text, "Upload it again under a shorter name."))
        if claim.attempts > self._services.settings.max_handlings:
            return failed(dataset, _UNREADABLE)
        if not dataset.is_readable_by(dataset.user_id):
            return failed(dataset, _FOREIGN)
        # Nobody has chosen a method yet, so pairs and thumbs are as welcome as answers.
        surveyor = Surveyor(method=None)
        try:
            if not await self._read(claim, surveyor):
                return None
            survey = surveyor.result()
            # The share that a job allows by default. A job with another share is checked again before its launch.
            survey.check(Hyperparameters().max_bad_line_share)
        except ObjectMissingError:
            return failed(dataset, _MISSING)
        except DatasetUnusableError as error:
            return failed(dataset, error, surveyor.result())
        return ready(dataset, survey)

    async def _read(self, claim: DatasetClaim, surveyor: Surveyor) -> bool:
        """Stream the file through the surveyor, renewing the claim on the way; False when the worker stops."""
        services, dataset = self._services, claim.dataset
        renewed_at = services.clock()
        async with services.storage.stream(dataset.bucket, dataset.storage_path) as chunks:
            async for chunk in chunks:
                # In a thread, because parsing a megabyte of JSON would hold up the renewals of leases.
                await asyncio.to_thread(surveyor.feed, chunk)
                self._beat()
                if self._stop.is_set():
                    return False
                if services.clock() - renewed_at > services.settings.lease_seconds / 3:
                    renewed_at = services.clock()
                    if not await services.queue.renew_dataset_claim(dataset.id, claim.lease_token):
                        raise LeaseLostError("another worker reads it now")
        await asyncio.to_thread(surveyor.close)
        return True


def ready(dataset: Dataset, survey: Survey) -> dict[str, Any]:
    """The outcome of a usable dataset, in the columns of `datasets`."""
    notes = [note.text for note in survey.notes if not note.harmless]
    return {
        "status": "ready",
        **counted_columns(survey),
        "error_message": None,
        "notice": notices.dataset_ready(dataset.id, dataset.name, survey.answers, survey.bad, notes),
    }


def failed(dataset: Dataset, error: DatasetUnusableError, survey: Survey | None = None) -> dict[str, Any]:
    """The outcome of a dataset that can't be used. A fault of the whole file is listed under its first line."""
    lines = list(dict.fromkeys([*error.errors, *(survey.errors if survey else ())]))
    whole_file = {"line": 1, "error": error.message, "suggestion": error.hint}
    sentence = error.sentence()
    return {
        "status": "error",
        "total_training_pairs": min(survey.answers, MAX_INT) if survey else None,
        "validation_errors": [line.as_row() for line in lines[:ERRORS_KEPT]] or [whole_file],
        "sample_data": None,
        "error_message": sentence,
        "notice": notices.dataset_failed(dataset.id, dataset.name, sentence),
    }
