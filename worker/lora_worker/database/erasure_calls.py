"""The calls that erase what is known of a user."""

from __future__ import annotations

from uuid import UUID

from lora_worker.database import functions
from lora_worker.database.caller import Caller
from lora_worker.database.erasure_rows import Erased, UserObject, UserState


class ErasureCalls(Caller):
    """The methods of `DatabaseCalls` that erase a user. They raise only `ServiceError`s."""

    async def training_user_state(self, user_id: UUID) -> UserState:
        """Return how much there is of a user, and how many of the runs still have a GPU."""
        return await self._call(functions.TRAINING_USER_STATE, user_id=user_id)

    async def stop_user_training(self, user_id: UUID) -> int:
        """Cancel all jobs of a user; returns how many had not ended."""
        return await self._call(functions.STOP_USER_TRAINING, user_id=user_id)

    async def training_user_objects(self, user_id: UUID, artifacts_bucket: str, max_objects: int) -> list[UserObject]:
        """Return the first objects of a user in the buckets of datasets and artifacts."""
        return await self._call(
            functions.TRAINING_USER_OBJECTS,
            user_id=user_id,
            artifacts_bucket=artifacts_bucket,
            max_objects=max_objects,
        )

    async def erase_training_user(self, user_id: UUID) -> Erased:
        """Delete the rows of a user; refused while a run still has a GPU."""
        return await self._call(functions.ERASE_TRAINING_USER, user_id=user_id)
