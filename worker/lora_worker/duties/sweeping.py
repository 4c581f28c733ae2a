"""Uploads that nobody needs any more are removed: what was kept is a copy, and late uploads are nobody's."""

from __future__ import annotations

import structlog

from lora_worker.errors import ServiceError
from lora_worker.services import Services
from lora_worker.storage.places import STAGING

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 900.0
_MAX_OBJECTS = 500


class Sweeper:
    """Removes a bounded number of abandoned uploads, every quarter of an hour."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._not_before = 0.0

    async def round(self) -> None:
        """Remove what is due. Nobody's work waits for it, so a storage that is away is only told of."""
        services, now = self._services, self._services.clock()
        if now < self._not_before:
            return
        self._not_before = now + _EVERY_SECONDS
        bucket = services.settings.artifacts_bucket
        try:
            found = await services.queue.abandoned_uploads(bucket, _MAX_OBJECTS)
            names = [name for name in found if name.startswith(STAGING)]
            if names:
                await services.storage.remove(bucket, names)
                log.info("abandoned uploads removed", objects=len(names))
        except ServiceError as error:
            log.warning("abandoned uploads not removed", problem=str(error))
