"""The calls with which the daemon keeps the folder of served adapters as the rows say."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from lora_worker.database import functions
from lora_worker.database.answers import ServingErrand
from lora_worker.database.caller import Caller


class ServingCalls(Caller):
    """The methods of `DatabaseCalls` for errands of serving. They raise only `ServiceError`s."""

    async def claim_serving_errand(self, *, launcher: str, endpoint: str) -> ServingErrand | None:
        """Take the launcher's errand that is under way, or begin one; None if this worker has nothing to do."""
        return await self._call(
            functions.CLAIM_SERVING_ERRAND,
            worker=self.worker,
            launcher=launcher,
            endpoint=endpoint,
            lease_seconds=self.lease_seconds,
        )

    async def record_serving_errand(
        self, errand_id: UUID, lease_token: UUID, *, endpoint: str, external_job_id: str
    ) -> bool:
        """Write down the launcher's id of an errand; False if another worker has it."""
        return await self._call(
            functions.RECORD_SERVING_ERRAND,
            errand_id=errand_id,
            lease_token=lease_token,
            endpoint=endpoint,
            external_job_id=external_job_id,
        )

    async def end_serving_errand(
        self,
        errand_id: UUID,
        lease_token: UUID,
        *,
        removed: Sequence[str],
        aliases: Sequence[str],
        problem: str | None,
        gpu_seconds: float | None,
        replace_workers: bool,
        no_volume: bool,
    ) -> int | None:
        """End an errand: what it has confirmed is forgotten, the rest is due again later.

        `replace_workers`: there are machines that answer, which go on with what they have loaded until replaced.
        `no_volume`: the endpoint has none, so runs that were never heard to be served are given up.

        Returns of how many runs nothing is served any more; None if another worker has the errand.
        """
        outcome = {
            "removed": removed, "aliases": aliases, "problem": problem, "gpu_seconds": gpu_seconds,
            "replace_workers": replace_workers, "no_volume": no_volume,
        }  # fmt: skip
        return await self._call(
            functions.END_SERVING_ERRAND, errand_id=errand_id, lease_token=lease_token, outcome=outcome
        )
