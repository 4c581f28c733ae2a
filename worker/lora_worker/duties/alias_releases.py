"""Replaces the machines that answer, after an alias was moved: a machine goes on with what it has loaded under a name.

The row in the database says that it is to be done and how far it is, so whichever worker comes next goes on with it. A
replacement that was asked for twice does no harm.
"""

from __future__ import annotations

import structlog

from lora_contract.words import counted
from lora_worker.database.version_rows import EndpointRelease, ReleaseNote
from lora_worker.deployment.answering import Answering, why_none
from lora_worker.duties.duty import RoundResult
from lora_worker.errors import DeploymentError, ServiceError
from lora_worker.observability.actions import Action
from lora_worker.services import Services

log = structlog.get_logger(__name__)

RELEASE_CALLS = 8
"""The most calls that one round makes: to the database two, to the endpoint's account six."""
_LEASE_SECONDS = 300
"""How long another worker leaves it to this one. A round takes seconds, and minutes where the account is slow."""
_UNABLE_LEASE_SECONDS = 10
"""The same of a worker that has no endpoint: it only writes down why, and one that has it shall be let in."""
_AGAIN_SECONDS = 1800
"""When old machines are still there after so long, they are replaced once more."""
_MOST_WORKERS = 200
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 30.0, 900.0
"""After a fault it is tried again so much later, and twice as much after each further one: a change whose answer was
lost may have replaced the machines, and new ones need time to get ready."""


class AliasReleases:
    """Replaces the machines that answer, and sees when the old ones are gone."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._faults = 0
        self._next_at = 0.0

    async def run_once(self) -> RoundResult:
        """Do the next step of a replacement that is due, if there is one.

        An account that does not answer is told with the alias; no other work waits for this.
        """
        queue = self._services.queue
        if self._faults and self._services.clock() < self._next_at:
            return RoundResult()
        lease_seconds = _UNABLE_LEASE_SECONDS if self._services.answering is None else _LEASE_SECONDS
        due = await queue.claim_endpoint_release(lease_seconds, _AGAIN_SECONDS)
        if due is None:
            return RoundResult()
        try:
            note = await self._step(due)
            self._faults = 0
        except (DeploymentError, ServiceError) as error:
            note = {"problem": str(error)}
            pause = min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2 ** min(self._faults, 10))
            self._faults, self._next_at = self._faults + 1, self._services.clock() + pause
        await queue.note_endpoint_release(note)
        self._tell(note)
        problem = note.get("problem")
        return RoundResult(1, put_off=(problem,) if problem else ())

    async def _step(self, due: EndpointRelease) -> ReleaseNote:
        endpoint, old = self._services.answering, set(due["old_workers"])
        if endpoint is None:
            raise DeploymentError(
                f"the machines that answer can't be replaced by this worker: {why_none(self._services.settings)}"
            )
        if due["release"]:
            return await self._replace(endpoint, old)
        return {"done": not old & await endpoint.workers()}

    async def _replace(self, endpoint: Answering, not_replaced: set[str]) -> ReleaseNote:
        # What starts after this look reads the volume as it is now. Looked at after the change, the list would hold new
        # workers, and those do not leave while they have work.
        old = await endpoint.workers()
        await endpoint.replace_workers(self._services.now())
        note: ReleaseNote = {"released": True, "old_workers": sorted(old)[:_MOST_WORKERS], "done": not old}
        if old & not_replaced:
            note["problem"] = (
                f"{counted(len(old & not_replaced), 'worker')} of the endpoint were not replaced in half an hour and "
                "may still answer with the adapter before: look at the endpoint's workers, and end these"
            )
        return note

    def _tell(self, note: ReleaseNote) -> None:
        problem = note.get("problem")
        if note.get("released"):
            log.info("the workers that answer are replaced", action=Action.ENDPOINT_RELEASED)
        if problem and self._services.repeats.is_due("alias releases", problem):
            log.warning("an alias is not served yet", action=Action.ALIAS_NOT_SERVED, problem=problem)
        elif note.get("done"):
            self._services.repeats.clear("alias releases")
            log.info("the moved aliases are served", action=Action.ALIASES_SERVED)
