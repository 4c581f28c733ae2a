"""Removes uploads that nobody needs any more.

What is kept of an upload is a copy in the run's folder; and an upload that came too late belongs to no artifact.
"""

from __future__ import annotations

import structlog

from lora_worker.duties.duty import RoundResult
from lora_worker.errors import ServiceError
from lora_worker.observability.actions import Action
from lora_worker.services import Services
from lora_worker.storage.artifact_paths import STAGING

log = structlog.get_logger(__name__)

_MAX_OBJECTS = 500
"""The most objects that one round removes."""


class Sweeper:
    """Removes a bounded number of abandoned uploads in each round."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run_once(self) -> RoundResult:
        """Remove abandoned uploads.

        No other work waits for this. So a storage or a database that is away is logged, and the round has not failed.
        """
        services, bucket = self._services, self._services.settings.artifacts_bucket
        try:
            found = await services.queue.abandoned_uploads(bucket, _MAX_OBJECTS)
            names = [name for name in found if name.startswith(STAGING)]
            if names:
                await services.storage.remove(bucket, names)
                log.info("abandoned uploads removed", action=Action.UPLOADS_SWEPT, objects=len(names))
        except ServiceError as error:
            log.warning("abandoned uploads not removed", action=Action.UPLOADS_NOT_SWEPT, problem=str(error))
            return RoundResult(put_off=(str(error),))
        return RoundResult(len(names))
