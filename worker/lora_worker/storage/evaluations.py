"""The `evaluation.json` of an artifact: prompts that the base and the adapter have answered, side by side.

Its texts are a user's, and its trainer wrote it. So what is read is bounded, and whoever shows it makes it harmless.
"""

from __future__ import annotations

from uuid import UUID

from pydantic import ValidationError

from lora_contract.evaluation import EVALUATION_NAME, EvaluationFile, Sample
from lora_worker.errors import ArtifactError, ServiceRefusedError
from lora_worker.storage.artifact_paths import run_folder
from lora_worker.storage.objects import Storage

_MAX_BYTES = 10_000_000
"""The trainer's own samples have less (`lora_contract.evaluation`). Parsed it takes a few times as much memory."""


class Evaluations:
    """The evaluations beside the adapters in their bucket."""

    def __init__(self, storage: Storage, bucket: str) -> None:
        self._storage = storage
        self._bucket = bucket

    async def samples(self, user_id: UUID, run_id: UUID) -> list[Sample] | None:
        """Return the answers side by side; None where the artifact has no such file.

        Raises:
            ArtifactError: the file is too large, or is no evaluation.
            ServiceError: the storage did not answer.
        """
        path = run_folder(user_id, run_id) + EVALUATION_NAME
        try:
            content = await self._storage.read(self._bucket, path, max_bytes=_MAX_BYTES)
        except ServiceRefusedError as error:
            if error.status != 413:
                raise
            raise ArtifactError(f"{EVALUATION_NAME} of run {run_id} is larger than {_MAX_BYTES:,} bytes") from None
        if content is None:
            return None
        try:
            return EvaluationFile.model_validate_json(content).samples
        except ValidationError:
            # Its text would quote the file, which holds text of a dataset.
            raise ArtifactError(f"{EVALUATION_NAME} of run {run_id} can't be read") from None
