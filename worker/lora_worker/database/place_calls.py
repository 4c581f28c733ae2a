"""The calls with which the daemon chooses the place of a run, and takes a run from a place without a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from lora_worker.database import functions
from lora_worker.database.answers import EndpointAnswer, MayLaunch, PlaceRow
from lora_worker.database.caller import Caller


class PlaceCalls(Caller):
    """The methods of `DatabaseCalls` for endpoints. They raise only `ServiceError`s."""

    async def note_endpoint(
        self, *, launcher: str, endpoint: str, state: str, problem: str | None, without_gpu: bool
    ) -> EndpointAnswer:
        """Store the state of an endpoint; returns for how long its workers have started in vain, or it had no GPU."""
        return await self._call(
            functions.NOTE_ENDPOINT,
            launcher=launcher,
            endpoint=endpoint,
            state=state,
            problem=problem,
            without_gpu=without_gpu,
        )

    async def training_places(
        self, endpoints: Sequence[str], *, base_model: str, run_id: UUID | None = None
    ) -> list[PlaceRow]:
        """Return what is known of endpoints, for a job on this base model; the launches of its own run don't count."""
        return await self._call(
            functions.TRAINING_PLACES, endpoints=list(endpoints), base_model=base_model, run_id=run_id
        )

    async def training_places_of_runs(
        self, endpoints: Sequence[str], runs: Mapping[UUID, str]
    ) -> dict[UUID, list[PlaceRow]]:
        """Return the same for many runs, 1000 at most, in one call, by run; `runs` has the base model of each."""
        asked = [{"run_id": str(run_id), "base_model": base_model} for run_id, base_model in runs.items()]
        return await self._call(functions.TRAINING_PLACES_OF_RUNS, endpoints=list(endpoints), runs=asked)

    async def begin_launch(
        self,
        run_id: UUID,
        lease_token: UUID,
        *,
        launcher: str,
        endpoint: str,
        slots: int | None,
        token_sha256: str,
        launched_with: dict[str, Any],
    ) -> MayLaunch:
        """Record the intent to launch a run at an endpoint; returns whether it may be launched.

        The parameters are stored in the run's row: the sha256 of its token, and what it is launched with. The database
        adds the keys that the job's columns lack. No more than `slots` runs have launches there at the same time.
        """
        # Not retried: the database counts every call that it carries out as a launch.
        return await self._call(
            functions.BEGIN_LAUNCH,
            attempts=1,
            run_id=run_id,
            lease_token=lease_token,
            launcher=launcher,
            token_sha256=token_sha256,
            endpoint=endpoint,
            slots=slots,
            launched_with=launched_with,
        )

    async def put_back_run(
        self, run_id: UUID, lease_token: UUID, *, reason: str, seconds: int
    ) -> Literal["put_back", "launched", "lease_lost"]:
        """Put a job back into the queue whose run was never sent to a launcher, as if it had not been claimed."""
        # Not retried: if the answer is lost, a retry would only find that the lease is lost.
        return await self._call(
            functions.PUT_BACK_RUN, attempts=1, run_id=run_id, lease_token=lease_token, reason=reason, seconds=seconds
        )

    async def withdraw_launch(self, run_id: UUID, lease_token: UUID, *, pass_over_seconds: int) -> bool:
        """Take a run from its endpoint before a trainer begins there; False where one has begun, or the lease is lost.

        From then on its trainers are refused, and other runs leave the endpoint out for `pass_over_seconds`.
        """
        return await self._call(
            functions.WITHDRAW_LAUNCH, run_id=run_id, lease_token=lease_token, pass_over_seconds=pass_over_seconds
        )
