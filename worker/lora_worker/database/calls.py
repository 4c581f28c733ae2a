"""All calls of the worker to the database: its SQL functions as Python methods.

The worker reads and writes tables only through these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

import structlog
from pydantic import ValidationError

from lora_worker.database import functions
from lora_worker.database.answers import BreakersAnswer, OwnedFound, Stray, WorkerOrders
from lora_worker.database.erasure_calls import ErasureCalls
from lora_worker.database.money_calls import MoneyCalls
from lora_worker.database.operator_calls import OperatorCalls
from lora_worker.database.place_calls import PlaceCalls
from lora_worker.database.project_report import ProjectReport
from lora_worker.database.rest import MEND, SERVICE
from lora_worker.database.rows import Assignment, DatasetClaim, Lease, News, parse_assignment, parse_news, places_of
from lora_worker.database.serving_calls import ServingCalls
from lora_worker.database.submission_calls import SubmissionCalls
from lora_worker.database.version_calls import VersionCalls
from lora_worker.database.webhook_calls import WebhookCalls
from lora_worker.errors import SchemaMismatchError, ServiceUnavailableError
from lora_worker.observability.actions import Action

SCHEMA_VERSIONS = frozenset({functions.SCHEMA_VERSION})
"""The values of `worker_schema_version()` with which this worker can work.

It can also work with a newer database, for as long as that keeps the functions of this worker's newest version.
"""

log = structlog.get_logger(__name__)


_Parsed = TypeVar("_Parsed")


def _readable(parse: Callable[[dict[str, Any]], _Parsed], rows: Iterable[dict[str, Any]]) -> list[_Parsed]:
    """Parse rows. A row that can't be parsed is logged and left out, so that it does not stop the work on others.

    The lease of its run then expires by itself.
    """
    parsed = []
    for row in rows:
        try:
            parsed.append(parse(row))
        except ValidationError as error:
            run = row.get("run")
            run_id = row.get("run_id") or (run.get("id") if isinstance(run, dict) else None)
            log.error(
                "a run's row is unreadable; update the worker",
                action=Action.RUN_UNREADABLE,
                run_id=run_id,
                job_id=run.get("job_id") if isinstance(run, dict) else None,
                columns=places_of(error),
            )
    return parsed


class DatabaseCalls(
    OperatorCalls, SubmissionCalls, MoneyCalls, ErasureCalls, VersionCalls, ServingCalls, PlaceCalls, WebhookCalls
):
    """The calls of one worker to the database. The methods raise only `ServiceError`s.

    Idempotent calls are retried a few times. A claim or an adoption is not: if its answer was lost after the database
    had carried it out, a retry would take further runs. The leases of the lost answer expire by themselves.
    """

    async def check_schema(self) -> int:
        """Return the version of the database's schema.

        It is one that this worker knows, or a newer one that still has the functions of this worker's version.

        Raises:
            SchemaMismatchError: this worker can't work with that version; the text says what to do.
        """
        version = await self._call(functions.WORKER_SCHEMA_VERSION)
        newest = max(SCHEMA_VERSIONS)
        if version not in SCHEMA_VERSIONS and not (version > newest and await self.rest.serves_version(newest)):
            known = ", ".join(map(str, sorted(SCHEMA_VERSIONS)))
            raise SchemaMismatchError(
                SERVICE, f"the database's schema has version {version}, this worker knows {known}: {MEND}"
            )
        return version

    async def publish_terms(self, terms: Mapping[str, Any]) -> bool:
        """Store the terms with which the database estimates costs for the application; returns whether they changed.

        Raises:
            SchemaMissingError: the database's schema is older than this worker.
        """
        return await self._call(functions.PUBLISH_TRAINING_TERMS, document=dict(terms), worker=self.worker)

    async def report_worker(self, report: Mapping[str, Any]) -> WorkerOrders:
        """Report that this worker is alive; returns what an operator wants of it.

        `report` has the keys version, running_seconds, slots, held, max_per_user, problem and single_pass.
        """
        return await self._call(functions.REPORT_WORKER, worker=self.worker, report=dict(report))

    async def claim(self, max_jobs: int, max_per_user: int | None) -> list[Assignment]:
        """Claim at most `max_jobs` queued jobs, oldest first. A user gets at most `max_per_user` live runs."""
        rows = await self._call(
            functions.CLAIM_TRAINING_JOBS,
            attempts=1,
            worker=self.worker,
            max_jobs=max_jobs,
            lease_seconds=self.lease_seconds,
            max_per_user=max_per_user,
        )
        return _readable(parse_assignment, rows)

    async def adopt(self, max_runs: int, launchers: Sequence[str]) -> list[Assignment]:
        """Take over at most `max_runs` live runs whose lease has expired, and that no other launcher has started."""
        rows = await self._call(
            functions.ADOPT_TRAINING_RUNS,
            attempts=1,
            worker=self.worker,
            max_runs=max_runs,
            lease_seconds=self.lease_seconds,
            launchers=list(launchers),
        )
        return _readable(parse_assignment, rows)

    async def renew(self, leases: Iterable[Lease]) -> list[News]:
        """Renew leases and return the news about these runs. A run whose news can't be parsed is left out.

        Raises:
            ServiceUnavailableError: the answer contains no news about any of the runs.
        """
        asked = {lease.run_id: lease for lease in leases}
        rows = await self._call(
            functions.RENEW_TRAINING_RUNS,
            leases=[
                {
                    "run_id": run,
                    "lease_token": lease.token,
                    "progress_number": lease.progress_number,
                    "has_result": lease.has_result,
                }
                for run, lease in asked.items()
            ],
            lease_seconds=self.lease_seconds,
        )
        news = [found for found in _readable(parse_news, rows) if found.run_id in asked]
        if asked and not news:
            raise ServiceUnavailableError(SERVICE, f"{SERVICE} is not available: it says nothing of any lease")
        return news

    async def release(self) -> int:
        """Release every lease of this worker; returns how many there were."""
        return await self._call(functions.RELEASE_TRAINING_RUNS, worker=self.worker)

    async def begin_handling(self, run_id: UUID, lease_token: UUID) -> int | None:
        """Record that this worker begins work on a run that might kill it, such as reading a dataset.

        Returns how often any worker has begun such work on the run, this time included; None if the lease is lost.
        """
        return await self._call(functions.BEGIN_HANDLING, run_id=run_id, lease_token=lease_token)

    async def pass_breakers(
        self, run_id: UUID, lease_token: UUID, *, base_model: str, endpoint: str, look_again_seconds: int
    ) -> BreakersAnswer:
        """Ask whether a run may be launched with this base model, or whether jobs are held for the model or the image.

        If they are, the database has put the run back into the queue (see the SQL function).
        """
        # Not retried: if the answer is lost and the run was put back, a retry would only find that the lease is lost.
        return await self._call(
            functions.PASS_BREAKERS,
            attempts=1,
            run_id=run_id,
            lease_token=lease_token,
            base_model=base_model,
            endpoint=endpoint,
            look_again_seconds=look_again_seconds,
        )

    async def record_launch(
        self, run_id: UUID, lease_token: UUID, *, launcher: str, endpoint: str, external_job_id: str
    ) -> bool:
        """Record the id that the launcher gave to the run; False if the lease is lost."""
        return await self._call(
            functions.RECORD_LAUNCH,
            run_id=run_id,
            lease_token=lease_token,
            launcher=launcher,
            external_job_id=external_job_id,
            endpoint=endpoint,
        )

    async def grant_upload(
        self, run_id: UUID, lease_token: UUID, *, request: list[dict[str, Any]], sealed_urls: str
    ) -> bool:
        """Answer an upload request; False if the lease is lost, or the trainer has made another request since."""
        return await self._call(
            functions.GRANT_UPLOAD,
            run_id=run_id,
            lease_token=lease_token,
            upload_request=request,
            sealed_urls=sealed_urls,
        )

    async def record_progress(self, reports: list[dict[str, Any]]) -> dict[UUID, bool]:
        """Store the progress of several runs in one call; returns for each run whether it was stored."""
        rows = await self._call(functions.RECORD_PROGRESS, reports=reports)
        for row in rows:
            if row.get("refused"):
                log.warning(
                    "progress can't be stored",
                    action=Action.RUN_PROGRESS_REFUSED,
                    run_id=str(row["run_id"]),
                    code=row.get("refused"),
                )
        return {row["run_id"]: row["applied"] for row in rows}

    async def settle(self, run_id: UUID, lease_token: UUID, outcome: dict[str, Any]) -> str | None:
        """Settle a run: store its outcome and end it. Returns the job's new status, or None if the lease is lost."""
        return await self._call(functions.SETTLE_RUN, run_id=run_id, lease_token=lease_token, outcome=outcome)

    async def claim_dataset(self) -> DatasetClaim | None:
        """Claim the dataset that has waited longest for its validation; None if none is waiting."""
        row = await self._call(
            functions.CLAIM_DATASET, attempts=1, worker=self.worker, lease_seconds=self.lease_seconds
        )
        if row is None:
            return None
        try:
            return DatasetClaim.model_validate(row)
        except ValidationError as error:
            log.error(
                "a dataset's row is unreadable; update the worker",
                action=Action.DATASET_UNREADABLE,
                columns=places_of(error),
            )
            return None

    async def renew_dataset_claim(self, dataset_id: UUID, lease_token: UUID) -> bool:
        """Renew the claim of a dataset; False if it is lost."""
        return await self._call(
            functions.RENEW_DATASET_CLAIM,
            dataset_id=dataset_id,
            lease_token=lease_token,
            lease_seconds=self.lease_seconds,
        )

    async def put_off_dataset(self, dataset_id: UUID, lease_token: UUID, *, seconds: int) -> bool:
        """Give up the claim of a dataset, which can be claimed again after `seconds`; False if the claim is lost."""
        return await self._call(
            functions.PUT_OFF_DATASET, dataset_id=dataset_id, lease_token=lease_token, seconds=seconds
        )

    async def settle_dataset(self, dataset_id: UUID, lease_token: UUID, outcome: dict[str, Any]) -> bool:
        """Store the result of a validation; False if the claim is lost or the dataset was changed meanwhile."""
        return await self._call(
            functions.SETTLE_DATASET, dataset_id=dataset_id, lease_token=lease_token, outcome=outcome
        )

    async def stray_launches(self, max_launches: int) -> list[Stray]:
        """Return launches that belong to no live run and of which no worker has seen the end."""
        return await self._call(functions.STRAY_LAUNCHES, max_launches=max_launches)

    async def note_owned_launches(
        self, launches: list[dict[str, str]], *, launcher: str, endpoint: str
    ) -> list[OwnedFound]:
        """Compare what lives in a launcher's account, `[{external_job_id, run_id}]`, with what was recorded.

        Returns those that were not recorded as they are. Such a launch of a known run is that run's from now on.
        """
        return await self._call(functions.NOTE_OWNED_LAUNCHES, launcher=launcher, endpoint=endpoint, launches=launches)

    async def close_launches(self, reports: list[dict[str, Any]]) -> int:
        """Record that launches have ended: `[{external_job_id, gpu_seconds}]`. Returns how many were recorded."""
        return await self._call(functions.CLOSE_LAUNCHES, reports=reports)

    async def abandoned_uploads(self, bucket: str, max_objects: int) -> list[str]:
        """Return the names of uploaded objects that no run needs any more."""
        return await self._call(functions.ABANDONED_UPLOADS, bucket=bucket, max_objects=max_objects)

    async def claim_operator_notice(self, key: str, again_seconds: int) -> bool:
        """Ask whether this worker is to tell operators of a condition, which no worker has told for so long."""
        # Not retried: the answer of a second try would be that somebody has claimed it.
        return await self._call(
            functions.CLAIM_OPERATOR_NOTICE, attempts=1, notice_key=key, again_seconds=again_seconds
        )

    async def project_report(self) -> ProjectReport:
        """Return what the REST API does not show: rights, policies, default rights, other dispatchers."""
        return await self._call(functions.PROJECT_REPORT)
