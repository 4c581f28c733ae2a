"""What the launchers have running, compared with what was recorded, so that no machine works for nobody.

A worker that dies between a submission and the record of its id leaves a launch that no row names. The launcher finds
it by this project's mark, and its name says for which run it was started:

    its run                         what follows
    ──────────────────────────────  ────────────────────────────────────────────────────────────────────────────
    is live and has no launch       the launch is recorded: whoever holds the run goes on with it
    is live with another launch     it is recorded: whichever checks in first trains, the other is a stray
    has ended                       it is a stray: stopped, and billed
    is unknown to this database     the operator is told; it is ended once it is an hour old
    is not the one that has its id  a container has lied about its launch: the operator is told

Of a run that this database does not know (it was restored from a backup, or the run was deleted) nobody would ever ask
again. Where the project's address is one of a private network, it is only told: two people with a Supabase of their own
on such an address have the same mark.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from lora_worker.configuration.addresses import host_of, is_private
from lora_worker.database.answers import OwnedFound
from lora_worker.duties.duty import RoundResult, no_sign
from lora_worker.errors import ServiceError
from lora_worker.launchers.base import LaunchRef, OwnedLaunch, OwnerOfLaunches
from lora_worker.launchers.places import Place
from lora_worker.observability.actions import Action
from lora_worker.services import Services

log = structlog.get_logger(__name__)

OWNED_CALLS = 30
"""Calls that are made for one account, one after another: a list in several pages, the database, and some cancels."""
_MOST_LAUNCHES = 1000
_UNKNOWN_SECONDS = 3600.0
"""How old a launch of a run that this database does not know must be before it is ended. A run is written before its
launch, so that none is unknown for long."""
_MOST_ENDED = 10
"""So many launches of unknown runs are ended in one round."""


class OwnedLaunches:
    """Finds launches that were never recorded. A duty of its own."""

    def __init__(self, services: Services, *, beat: Callable[[], None] = no_sign) -> None:
        self._services = services
        self._beat = beat
        self._first_seen: dict[str, float] = {}
        """When launches of unknown runs were seen first, by the lease clock: not every launcher says how old one is."""

    @property
    def places(self) -> list[Place]:
        """One place for each account whose launcher can say what runs there."""
        found: dict[tuple[str, str], Place] = {}
        for place in self._services.places.all:
            if isinstance(place.launcher, OwnerOfLaunches):
                found.setdefault((place.launcher.name, place.launcher.account), place)
        return list(found.values())

    async def run_once(self) -> RoundResult:
        """Compare once, account by account.

        Raises:
            ServiceError: an account or the database did not answer; the others were compared all the same.
        """
        noted, unknown, failed = 0, set[str](), None
        for place in self.places:
            self._beat()
            try:
                found = await self._compare(place)
            except ServiceError as error:
                failed = failed or error
                continue
            noted += sum(entry["found"] in {"noted", "reopened"} for entry in found)
            unknown |= {entry["external_job_id"] for entry in found if entry["found"] == "no_run"}
        if failed is not None:
            raise failed
        self._first_seen = {name: at for name, at in self._first_seen.items() if name in unknown}
        return RoundResult(noted)

    async def _compare(self, place: Place) -> list[OwnedFound]:
        launcher = place.launcher
        assert isinstance(launcher, OwnerOfLaunches)
        owned = {launch.external_job_id: launch for launch in (await launcher.owned())[:_MOST_LAUNCHES]}
        if not owned:
            return []
        found = await self._services.queue.note_owned_launches(
            [{"external_job_id": each.external_job_id, "run_id": each.run_id} for each in owned.values()],
            launcher=place.launcher.name,
            endpoint=place.endpoint,
        )
        ended = 0
        for entry in found:
            launch = owned[entry["external_job_id"]]
            self._tell(place, entry)
            if entry["found"] == "no_run" and ended < _MOST_ENDED and self._may_end(launch):
                self._beat()
                await self._end(place, launch)
                ended += 1
        return found

    def _tell(self, place: Place, entry: OwnedFound) -> None:
        external_job_id, run_id, found = entry["external_job_id"], entry["run_id"], entry["found"]
        if found in {"noted", "reopened"}:
            event, action, told = "an unrecorded launch was found", Action.OWNED_FOUND, log.warning
        elif found == "another_runs":
            event, action, told = "a launch is recorded for another run", Action.OWNED_UNKNOWN, log.error
        else:
            event, action, told = "a launch has no run of this database", Action.OWNED_UNKNOWN, log.error
        if self._services.repeats.is_due((external_job_id, "owned"), found):
            told(event, action=action, external_job_id=external_job_id, run_id=run_id, found=found,
                 endpoint=place.endpoint, console=place.launcher.guide.console)  # fmt: skip

    def _may_end(self, launch: OwnedLaunch) -> bool:
        now = self._services.clock()
        seen_seconds = now - self._first_seen.setdefault(launch.external_job_id, now)
        age_seconds = max(seen_seconds, launch.age_seconds or 0.0)
        return age_seconds >= _UNKNOWN_SECONDS and not is_private(host_of(self._services.settings.supabase_url))

    async def _end(self, place: Place, launch: OwnedLaunch) -> None:
        asked = await place.launcher.cancel(LaunchRef(place.endpoint, launch.external_job_id))
        if self._services.repeats.is_due((launch.external_job_id, "owned end"), str(asked)):
            log.warning("a launch of an unknown run is ended", action=Action.OWNED_ENDED,
                        external_job_id=launch.external_job_id, run_id=launch.run_id, asked=asked)  # fmt: skip
