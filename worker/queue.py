"""The database's functions as Python methods, through PostgREST. Nothing else talks to the tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar
from uuid import UUID

import httpx
import structlog
from postgrest import AsyncPostgrestClient
from postgrest.exceptions import APIError
from pydantic import ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from trainer.connections import why_unreachable
from worker.errors import (
    SchemaMismatchError,
    SchemaMissingError,
    ServiceRefusedError,
    ServiceUnavailableError,
    ValueRefusedError,
)
from worker.jobs import Assignment, DatasetClaim, News, parse_assignment, parse_news, places_of

SCHEMA_VERSIONS = frozenset({1})
"""Versions of `worker_schema_version()` that this worker speaks."""

_SERVICE = "Supabase's database"
_MEND = "run `lora-worker migrate` with this worker's release, or update the worker"

# Postgres classes and codes that pass: connection failures, resources, operator intervention,
# serialisation failures and deadlocks, and PostgREST's own "cannot reach the database".
_PASSING_CODES = ("08", "53", "57", "40", "PGRST000", "PGRST001", "PGRST002", "PGRST003")

# Data exceptions and constraints of Postgres, and what this schema's functions say of an argument.
_VALUE_CODES = ("22", "23", "PT400")

# The gateway in front of PostgREST gives no code with these.
_KEY_REFUSED = re.compile(r"api ?key|jwt|unauthori[sz]ed|forbidden|authentication credentials", re.IGNORECASE)

log = structlog.get_logger(__name__)


def api_headers(key: str) -> dict[str, str]:
    """Headers for a Supabase key: only a legacy JWT may also stand in `Authorization`."""
    return {"apikey": key, "Authorization": f"Bearer {key}"} if key.startswith("eyJ") else {"apikey": key}


def explain_api_error(error: APIError) -> Exception:
    """What an error of PostgREST means for the worker: pass, mend, or wrong."""
    code = str(error.code or "")
    message = str(error.message or "no message")[:300]
    if code in {"PGRST202", "PGRST106"} or code == "42883":
        return SchemaMissingError(_SERVICE, f"the worker's functions are missing in the database: {_MEND}")
    if code in {"401", "403", "42501", "PGRST301", "PGRST302", "PGRST303"} or (
        not code and _KEY_REFUSED.search(message)
    ):
        return ServiceRefusedError(
            _SERVICE, f"{_SERVICE} refused the key ({message}): check SUPABASE_SERVICE_ROLE_KEY", status=401
        )
    gateway_failed = code.startswith("5") and len(code) == 3
    # "SUP" is the local lightweight Supabase's word for an error of Postgres that it does not map.
    if code.startswith(_PASSING_CODES) or gateway_failed or code in {"429", "408", "SUP", ""}:
        return ServiceUnavailableError(_SERVICE, f"{_SERVICE} is not available ({code or 'no code'}: {message})")
    if code.startswith(_VALUE_CODES):
        # Without the message, which quotes the value.
        return ValueRefusedError(_SERVICE, f"{_SERVICE} can't hold a value of the call ({code})", status=400)
    return ServiceRefusedError(_SERVICE, f"{_SERVICE} refused the call ({code}: {message})", status=400)


_Parsed = TypeVar("_Parsed")


def _readable(parse: Callable[[dict[str, Any]], _Parsed], rows: Iterable[dict[str, Any]]) -> list[_Parsed]:
    """The rows that can be read: one that can't must not hold up the others. Its lease runs out by itself."""
    parsed = []
    for row in rows:
        try:
            parsed.append(parse(row))
        except ValidationError as error:
            run_id = row.get("run_id") or row.get("run", {}).get("id")
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
        self._client = AsyncPostgrestClient(
            f"{url}/rest/v1",
            headers={"Accept": "application/json", "Content-Type": "application/json", **api_headers(key)},
            http_client=http,
            retry_enabled=False,
        )

    async def _call_once(self, function: str, arguments: Mapping[str, Any]) -> Any:
        try:
            response = await self._client.rpc(function, storable(arguments)).execute()
        except APIError as error:
            raise explain_api_error(error) from None
        except httpx.HTTPError as error:
            raise ServiceUnavailableError(_SERVICE, f"{_SERVICE} is not reachable: {why_unreachable(error)}") from None
        except (ValueError, RecursionError):
            # An HTML page of a gateway in front of it, or JSON that is nested beyond what can be read.
            raise ServiceUnavailableError(_SERVICE, f"{_SERVICE} answered something unreadable") from None
        return response.data

    async def _call(self, function: str, attempts: int = 3, **arguments: Any) -> Any:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ServiceUnavailableError),
            stop=stop_after_attempt(attempts),
            wait=wait_random_exponential(multiplier=0.3, max=3),
            reraise=True,
        ):
            with attempt:
                return await self._call_once(function, arguments)
        raise AssertionError("unreachable")

    async def check_schema(self) -> int:
        """The schema's version.

        Raises:
            SchemaMismatchError: this worker does not speak it; says which command mends that.
        """
        version = int(await self._call("worker_schema_version"))
        if version not in SCHEMA_VERSIONS:
            known = ", ".join(map(str, sorted(SCHEMA_VERSIONS)))
            raise SchemaMismatchError(
                _SERVICE, f"the database's schema has version {version}, this worker knows {known}: {_MEND}"
            )
        return version

    async def publish_terms(self, terms: Mapping[str, Any]) -> bool:
        """Write the terms that the application's estimates stand on; whether they changed.

        Raises:
            SchemaMissingError: the database's schema is older than this worker.
        """
        return bool(await self._call("publish_training_terms", document=dict(terms), worker=self.worker))

    async def report_worker(self, report: Mapping[str, Any]) -> None:
        """Leave a sign of life: version, running_seconds, slots, held, max_per_user, problem."""
        await self._call("report_worker", worker=self.worker, report=dict(report))

    async def estimate_job(self, job_id: UUID) -> dict[str, Any] | None:
        """What a job would take and cost, as the application is told; None where nothing can be said."""
        found = await self._call("estimate_training_job", job_id=str(job_id))
        return None if found is None else dict(found)

    async def claim(self, max_jobs: int, max_per_user: int | None) -> list[Assignment]:
        """Claim queued jobs, oldest first."""
        rows = await self._call(
            "claim_training_jobs",
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
            "adopt_training_runs",
            attempts=1,
            worker=self.worker,
            max_runs=max_runs,
            lease_seconds=self.lease_seconds,
        )
        return _readable(parse_assignment, rows)

    async def renew(self, leases: Iterable[tuple[UUID, UUID]]) -> list[News]:
        """Renew leases given as (run id, lease token), and learn what changed beside them."""
        rows = await self._call(
            "renew_training_runs",
            leases=[{"run_id": str(run), "lease_token": str(token)} for run, token in leases],
            lease_seconds=self.lease_seconds,
        )
        return _readable(parse_news, rows)

    async def release(self) -> int:
        """Give up every lease of this worker."""
        return int(await self._call("release_training_runs", worker=self.worker))

    async def begin_handling(self, run_id: UUID, lease_token: UUID) -> int | None:
        """Count the begin of work that might kill this worker; how often that was, None if the lease is lost."""
        count = await self._call("begin_handling", run_id=str(run_id), lease_token=str(lease_token))
        return None if count is None else int(count)

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
            "begin_launch",
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
        return bool(
            await self._call(
                "record_launch",
                run_id=str(run_id),
                lease_token=str(lease_token),
                launcher=launcher,
                external_job_id=external_job_id,
                endpoint=endpoint,
            )
        )

    async def grant_upload(
        self, run_id: UUID, lease_token: UUID, *, request: list[dict[str, Any]], sealed_urls: str
    ) -> bool:
        """Answer an upload request; False when the lease is lost or the request is another one now."""
        return bool(
            await self._call(
                "grant_upload",
                run_id=str(run_id),
                lease_token=str(lease_token),
                upload_request=request,
                sealed_urls=sealed_urls,
            )
        )

    async def record_progress(self, reports: list[dict[str, Any]]) -> dict[UUID, bool]:
        """Write all runs' progress in one call: per run, whether it was applied."""
        rows = await self._call("record_progress", reports=reports)
        for row in rows:
            if row.get("refused"):
                log.warning("progress can't be stored", run_id=row["run_id"], code=row["refused"])
        return {UUID(row["run_id"]): bool(row["applied"]) for row in rows}

    async def settle(self, run_id: UUID, lease_token: UUID, outcome: dict[str, Any]) -> str | None:
        """Close a run; the job's status afterwards, or None when the lease is lost."""
        status = await self._call("settle_run", run_id=str(run_id), lease_token=str(lease_token), outcome=outcome)
        return None if status is None else str(status)

    async def claim_dataset(self) -> DatasetClaim | None:
        """Claim the dataset that has waited longest for its validation; None when none waits."""
        row = await self._call("claim_dataset", attempts=1, worker=self.worker, lease_seconds=self.lease_seconds)
        return None if row is None else DatasetClaim.model_validate(row)

    async def renew_dataset_claim(self, dataset_id: UUID, lease_token: UUID) -> bool:
        """Renew a dataset's claim; False when it is lost."""
        return bool(
            await self._call(
                "renew_dataset_claim",
                dataset_id=str(dataset_id),
                lease_token=str(lease_token),
                lease_seconds=self.lease_seconds,
            )
        )

    async def put_off_dataset(self, dataset_id: UUID, lease_token: UUID, *, seconds: int) -> bool:
        """Give a dataset's claim back, for nobody before so many seconds; False when it was lost."""
        return bool(
            await self._call(
                "put_off_dataset", dataset_id=str(dataset_id), lease_token=str(lease_token), seconds=seconds
            )
        )

    async def settle_dataset(self, dataset_id: UUID, lease_token: UUID, outcome: dict[str, Any]) -> bool:
        """Write what was found; False when the claim is lost or the dataset was changed meanwhile."""
        return bool(
            await self._call(
                "settle_dataset", dataset_id=str(dataset_id), lease_token=str(lease_token), outcome=outcome
            )
        )

    async def stray_launches(self, max_launches: int) -> list[dict[str, Any]]:
        """Launches that no live run owns and that have not been seen to end."""
        return list(await self._call("stray_launches", max_launches=max_launches))

    async def close_launches(self, reports: list[dict[str, Any]]) -> int:
        """Note launches as ended: `[{external_job_id, gpu_seconds}]`."""
        return int(await self._call("close_launches", reports=reports))

    async def abandoned_uploads(self, bucket: str, max_objects: int) -> list[str]:
        """Names of uploads in the bucket that no run needs any more."""
        return [str(name) for name in await self._call("abandoned_uploads", bucket=bucket, max_objects=max_objects)]

    async def health(self) -> dict[str, Any]:
        """The queue's depth, oldest wait, live runs and why each waiting job waits."""
        return dict(await self._call("queue_health"))
