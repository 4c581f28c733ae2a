"""The database's functions as Python methods. Nothing else talks to the tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar
from uuid import UUID

import httpx
import structlog
from pydantic import ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tenacity.wait import wait_base

from lora_worker.database import functions
from lora_worker.database.functions import Function, T
from lora_worker.database.rest import MEND, SERVICE, Rest
from lora_worker.database.rows import Assignment, DatasetClaim, News, parse_assignment, parse_news, places_of
from lora_worker.errors import SchemaMismatchError, ServiceUnavailableError

SCHEMA_VERSIONS = frozenset({1})
"""Versions of `worker_schema_version()` that this worker speaks."""

log = structlog.get_logger(__name__)


_Parsed = TypeVar("_Parsed")


def _readable(parse: Callable[[dict[str, Any]], _Parsed], rows: Iterable[dict[str, Any]]) -> list[_Parsed]:
    """The rows that can be read: one that can't must not hold up the others. Its lease runs out by itself."""
    parsed = []
    for row in rows:
        try:
            parsed.append(parse(row))
        except ValidationError as error:
            run = row.get("run")
            run_id = row.get("run_id") or (run.get("id") if isinstance(run, dict) else None)
            log.error("a run's row is unreadable; update the worker", run_id=run_id, columns=places_of(error))
    return parsed


def storable(value: Any) -> Any:
    """The JSON value without what Postgres takes in no text: the zero character, and halves of characters.

    Nor with NaN and infinity, which JSON can't hold. Names, notes and errors come from datasets and GPU containers;
    refused for one of these, an outcome would be refused again in every cycle.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if value.isascii() and "\x00" not in value else _clean(value)
    if isinstance(value, Mapping):
        return {storable(key): storable(item) for key, item in value.items()}
    return [storable(item) for item in value] if isinstance(value, list | tuple) else value


def _clean(text: str) -> str:
    return text.replace("\x00", "").encode(errors="replace").decode()


class Queue:
    """The queue as one worker sees it. Every method raises `ServiceError`s and nothing else.

    Calls that may be repeated without harm are, a few times; a claim is not: its answer may have been
    lost after it was carried out, and those leases run out by themselves.
    """

    def __init__(self, url: str, key: str, *, worker: str, lease_seconds: int, http: httpx.AsyncClient) -> None:
        self.worker = worker
        self.lease_seconds = lease_seconds
        self.rest = Rest(url, key, http=http)
        self._wait: wait_base = wait_random_exponential(multiplier=0.3, max=3)

    async def _call(self, function: Function[T], attempts: int = 3, **arguments: Any) -> T:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ServiceUnavailableError),
            stop=stop_after_attempt(attempts),
            wait=self._wait,
            reraise=True,
        ):
            with attempt:
                return await self.rest.call(function, storable(arguments))
        raise AssertionError("unreachable")

    async def check_schema(self) -> int:
        """The schema's version.

        Raises:
            SchemaMismatchError: this worker does not speak it; says which command mends that.
        """
        version = await self._call(functions.WORKER_SCHEMA_VERSION)
        if version not in SCHEMA_VERSIONS:
            known = ", ".join(map(str, sorted(SCHEMA_VERSIONS)))
            raise SchemaMismatchError(
                SERVICE, f"the database's schema has version {version}, this worker knows {known}: {MEND}"
            )
        return version

    async def publish_terms(self, terms: Mapping[str, Any]) -> bool:
        """Write the terms that the application's estimates stand on; whether they changed.

        Raises:
            SchemaMissingError: the database's schema is older than this worker.
        """
        return await self._call(functions.PUBLISH_TRAINING_TERMS, document=dict(terms), worker=self.worker)

    async def report_worker(self, report: Mapping[str, Any]) -> None:
        """Leave a sign of life: version, running_seconds, slots, held, max_per_user, problem, single_pass."""
        await self._call(functions.REPORT_WORKER, worker=self.worker, report=dict(report))

    async def estimate_job(self, job_id: UUID) -> dict[str, Any] | None:
        """What a job would take and cost, as the application is told; None where nothing can be said."""
        return await self._call(functions.ESTIMATE_TRAINING_JOB, job_id=str(job_id))

    async def claim(self, max_jobs: int, max_per_user: int | None) -> list[Assignment]:
        """Claim queued jobs, oldest first."""
        rows = await self._call(
            functions.CLAIM_TRAINING_JOBS,
            attempts=1,
            worker=self.worker,
            max_jobs=max_jobs,
            lease_seconds=self.lease_seconds,
            max_per_user=max_per_user,
        )
        return _readable(parse_assignment, rows)

    async def adopt(self, max_runs: int) -> list[Assignment]:
        """Take over live runs whose lease ran out."""
        rows = await self._call(
            functions.ADOPT_TRAINING_RUNS,
            attempts=1,
            worker=self.worker,
            max_runs=max_runs,
            lease_seconds=self.lease_seconds,
        )
        return _readable(parse_assignment, rows)

    async def renew(self, leases: Iterable[tuple[UUID, UUID]]) -> list[News]:
        """Renew leases given as (run id, lease token), and learn what changed beside them.

        What is said of one run may be unreadable and is left out; an answer that says nothing is none.
        """
        asked = dict(leases)
        rows = await self._call(
            functions.RENEW_TRAINING_RUNS,
            leases=[{"run_id": str(run), "lease_token": str(token)} for run, token in asked.items()],
            lease_seconds=self.lease_seconds,
        )
        news = [found for found in _readable(parse_news, rows) if found.run_id in asked]
        if asked and not news:
            raise ServiceUnavailableError(SERVICE, f"{SERVICE} is not available: it says nothing of any lease")
        return news

    async def release(self) -> int:
        """Give up every lease of this worker."""
        return await self._call(functions.RELEASE_TRAINING_RUNS, worker=self.worker)

    async def begin_handling(self, run_id: UUID, lease_token: UUID) -> int | None:
        """Count the begin of work that might kill this worker; how often that was, None if the lease is lost."""
        return await self._call(functions.BEGIN_HANDLING, run_id=str(run_id), lease_token=str(lease_token))

    async def pass_breakers(
        self, run_id: UUID, lease_token: UUID, *, base_model: str, endpoint: str, look_again_seconds: int
    ) -> functions.Passed:
        """Ask whether a run may be launched on its base model; where not, it is back in the queue (see the SQL)."""
        # Not repeated: where the answer is lost, a run that was put back reads as a lost lease, which it is.
        return await self._call(
            functions.PASS_BREAKERS,
            attempts=1,
            run_id=str(run_id),
            lease_token=str(lease_token),
            base_model=base_model,
            endpoint=endpoint,
            look_again_seconds=look_again_seconds,
        )

    async def note_endpoint(self, *, launcher: str, endpoint: str, state: str, problem: str | None) -> float:
        """Note how an endpoint was seen; for how many seconds its workers have been starting in vain."""
        noted = await self._call(
            functions.NOTE_ENDPOINT, launcher=launcher, endpoint=endpoint, state=state, problem=problem
        )
        return noted["starting_seconds"]

    async def resume_training(self, named: str | None) -> list[functions.Resumed]:
        """Let jobs go that are held for a base model or an endpoint, or all; what was held."""
        return await self._call(functions.RESUME_TRAINING, named=named)

    async def begin_launch(
        self,
        run_id: UUID,
        lease_token: UUID,
        *,
        launcher: str,
        endpoint: str,
        token_sha256: str,
        enrichment: dict[str, Any],
        launched_with: dict[str, Any],
    ) -> str | None:
        """Record the intent to launch, and where; None means go, otherwise the reason not to."""
        # Not repeated: every call that was carried out counts as a launch.
        answer = await self._call(
            functions.BEGIN_LAUNCH,
            attempts=1,
            run_id=str(run_id),
            lease_token=str(lease_token),
            launcher=launcher,
            token_sha256=token_sha256,
            enrichment=enrichment,
            endpoint=endpoint,
            launched_with=launched_with,
        )
        return None if answer["may_launch"] else str(answer["reason"])

    async def record_launch(
        self, run_id: UUID, lease_token: UUID, *, launcher: str, endpoint: str, external_job_id: str
    ) -> bool:
        """Record the launcher's id of the run; False when the lease is lost."""
        return await self._call(
            functions.RECORD_LAUNCH,
            run_id=str(run_id),
            lease_token=str(lease_token),
            launcher=launcher,
            external_job_id=external_job_id,
            endpoint=endpoint,
        )

    async def grant_upload(
        self, run_id: UUID, lease_token: UUID, *, request: list[dict[str, Any]], sealed_urls: str
    ) -> bool:
        """Answer an upload request; False when the lease is lost or the request is another one now."""
        return await self._call(
            functions.GRANT_UPLOAD,
            run_id=str(run_id),
            lease_token=str(lease_token),
            upload_request=request,
            sealed_urls=sealed_urls,
        )

    async def record_progress(self, reports: list[dict[str, Any]]) -> dict[UUID, bool]:
        """Write all runs' progress in one call: per run, whether it was applied."""
        rows = await self._call(functions.RECORD_PROGRESS, reports=reports)
        for row in rows:
            if row.get("refused"):
                log.warning("progress can't be stored", run_id=str(row["run_id"]), code=row.get("refused"))
        return {row["run_id"]: row["applied"] for row in rows}

    async def settle(self, run_id: UUID, lease_token: UUID, outcome: dict[str, Any]) -> str | None:
        """Close a run; the job's status afterwards, or None when the lease is lost."""
        return await self._call(functions.SETTLE_RUN, run_id=str(run_id), lease_token=str(lease_token), outcome=outcome)

    async def claim_dataset(self) -> DatasetClaim | None:
        """Claim the dataset that has waited longest for its validation; None when none waits."""
        row = await self._call(
            functions.CLAIM_DATASET, attempts=1, worker=self.worker, lease_seconds=self.lease_seconds
        )
        if row is None:
            return None
        try:
            return DatasetClaim.model_validate(row)
        except ValidationError as error:
            log.error("a dataset's row is unreadable; update the worker", columns=places_of(error))
            return None

    async def renew_dataset_claim(self, dataset_id: UUID, lease_token: UUID) -> bool:
        """Renew a dataset's claim; False when it is lost."""
        return await self._call(
            functions.RENEW_DATASET_CLAIM,
            dataset_id=str(dataset_id),
            lease_token=str(lease_token),
            lease_seconds=self.lease_seconds,
        )

    async def put_off_dataset(self, dataset_id: UUID, lease_token: UUID, *, seconds: int) -> bool:
        """Give a dataset's claim back, for nobody before so many seconds; False when it was lost."""
        return await self._call(
            functions.PUT_OFF_DATASET, dataset_id=str(dataset_id), lease_token=str(lease_token), seconds=seconds
        )

    async def settle_dataset(self, dataset_id: UUID, lease_token: UUID, outcome: dict[str, Any]) -> bool:
        """Write what was found; False when the claim is lost or the dataset was changed meanwhile."""
        return await self._call(
            functions.SETTLE_DATASET, dataset_id=str(dataset_id), lease_token=str(lease_token), outcome=outcome
        )

    async def stray_launches(self, max_launches: int) -> list[functions.Stray]:
        """Launches that no live run owns and that have not been seen to end."""
        return await self._call(functions.STRAY_LAUNCHES, max_launches=max_launches)

    async def close_launches(self, reports: list[dict[str, Any]]) -> int:
        """Note launches as ended: `[{external_job_id, gpu_seconds}]`."""
        return await self._call(functions.CLOSE_LAUNCHES, reports=reports)

    async def abandoned_uploads(self, bucket: str, max_objects: int) -> list[str]:
        """Names of uploads in the bucket that no run needs any more."""
        return await self._call(functions.ABANDONED_UPLOADS, bucket=bucket, max_objects=max_objects)

    async def health(self) -> functions.QueueHealth:
        """The queue's depth, oldest wait, live runs and why each waiting job waits."""
        return await self._call(functions.QUEUE_HEALTH)
