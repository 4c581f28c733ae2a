"""The look at an account's pods: which are this project's, and which of them must not go on."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from weakref import WeakValueDictionary

import httpx
import structlog

from lora_worker.errors import ServiceError
from lora_worker.launchers.base import Observation
from lora_worker.launchers.runpod_pods.answers import OwnPod, judge_end, launch_pod, launch_pods
from lora_worker.launchers.runpod_pods.api import PodsApi
from lora_worker.observability.actions import Action

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 3.0
"""One list serves all looks of so many seconds: RunPod allows a key about sixty calls a minute."""
_ANEW_SECONDS = 1.0
"""And so many where a newer one is wanted: twenty runs that are stopped side by side ask for one list."""
_LISTED_SECONDS = 30.0
"""A pod of a list that is no older is ended without another one."""
_CLOCK_SECONDS = 60.0
"""By less than so much clocks may differ: RunPod's answer tells the second, and took some to arrive."""
_MOST_CLOCK_SECONDS = 10 * 366 * 86_400.0
_MOST_KNOWN = 2000

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class _Starts:
    """For how long a pod's container was up at a look at that moment, and how often it had been started again."""

    uptime_seconds: float
    at: datetime
    again: int
    is_gone: bool = False
    """Whether no container was seen since."""

    def is_over(self, uptime_seconds: float, elapsed_seconds: float) -> bool:
        """Whether the container was started again, by its uptime so many seconds later.

        A start anew begins at nought: its figure is less than half the one before. Of a container that dies as soon as
        it starts it is less than half the time since, or not above the one before where there was none in between. A
        figure that lags, comes again as it was, or is corrected by a second must not end a training.
        """
        fell = uptime_seconds < self.uptime_seconds / 2
        is_new = uptime_seconds != self.uptime_seconds and uptime_seconds < elapsed_seconds / 2
        return fell or is_new or (self.is_gone and uptime_seconds <= self.uptime_seconds)


class PodWatch:
    """Finds pods by their launches. Each list ends all that must not go on, whoever has asked for it.

    So no pod outlives its limits by more than the time between two looks, also one whose run nobody holds. It
    ends pods with the project's mark, and those that a run was found to have: where the address of the project is
    spelled anew, its mark is another one, and the launch of a row is still its run's.
    """

    def __init__(
        self,
        api: PodsApi,
        mark: str,
        *,
        look_seconds: float = _LOOK_SECONDS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._local_now = now
        self._clock_ahead = timedelta()
        """How much RunPod's clock is ahead of this machine's: its times of pods are compared with its own."""
        self._is_clock_told = False
        self._api, self._mark, self._look_seconds, self._clock = api, mark, look_seconds, clock
        self._looking = asyncio.Lock()
        self._looked_at = self._listed_at = float("-inf")
        self._seen: dict[str, OwnPod] = {}
        self._others: dict[str, OwnPod] = {}
        """Launches under another mark."""
        self._ids: OrderedDict[str, str] = OrderedDict()
        """RunPod's ids of the launches' pods: a list may lack what is seconds old."""
        self._ended: OrderedDict[str, tuple[Observation, float]] = OrderedDict()
        """As what this worker has ended pods, and when: RunPod remembers nothing of them."""
        self._starts: OrderedDict[str, _Starts] = OrderedDict()
        self._refusals: dict[str, str] = {}
        """Why RunPod did not take the end of a pod that is still there, by its launch."""

    async def look(self, *, anew: bool = False) -> dict[str, OwnPod]:
        """The project's pods, by launch; `anew` where those of the last seconds don't do.

        Raises:
            ServiceError: they can't be listed; the text says why.
        """
        async with self._looking:
            seconds = min(self._look_seconds, _ANEW_SECONDS) if anew else self._look_seconds
            if self._clock() - self._looked_at >= seconds:
                begun, begun_at = self._local_now(), self._clock()
                listed, answered_at = await self._api.list_pods()
                self._compare_clocks(answered_at)
                pods = launch_pods(listed)
                self._seen = {own.launch_id: own for own in pods if own.mark == self._mark}
                self._others = {own.launch_id: own for own in pods if own.mark != self._mark}
                there = self._seen.keys() | self._others.keys()
                self._refusals = {launch: why for launch, why in self._refusals.items() if launch in there}
                self._looked_at, self._listed_at = self._clock(), begun_at
                for own in pods:
                    if own.mark == self._mark or own.launch_id in self._ids:
                        self._count_starts(own, begun)
                        await self._end_if_due(own)
            return self._seen

    def now(self) -> datetime:
        """The time by RunPod's clock: by a wrong one of this machine all workers' pods would be over time."""
        return self._local_now() + self._clock_ahead

    @property
    def problem(self) -> str | None:
        """What RunPod said when it did not take the end of a pod; None where all were taken."""
        if not self._refusals:
            return None
        return f"{len(self._refusals)} of its pods could not be ended: {next(iter(self._refusals.values()))}"

    async def find(self, launch_id: str, *, anew: bool = False) -> OwnPod | None:
        """The pod of a launch, under whichever mark; None where there is none.

        Raises:
            ServiceError: that can't be known now; the text says why.
        """
        own = (await self.look(anew=anew)).get(launch_id) or self._others.get(launch_id)
        if own is not None:
            self.note(own)
            return own
        pod_id = self._ids.get(launch_id)
        if pod_id is None or self._is_ended(launch_id):
            return None
        own = launch_pod(await self._api.read_pod(pod_id))
        return own if own is not None and own.launch_id == launch_id else None

    async def find_to_end(self, launch_id: str) -> OwnPod | None:
        """The pod of a launch, to be ended; one whose bill has begun is taken from the last list.

        Raises:
            ServiceError: that can't be known now; the text says why.
        """
        own = self._seen.get(launch_id) or self._others.get(launch_id)
        is_new = self._clock() - self._listed_at < _LISTED_SECONDS
        if own is not None and is_new and own.billed_seconds(self.now()) is not None:
            return own
        return await self.find(launch_id, anew=True)

    def note(self, own: OwnPod) -> None:
        """Remember where a launch's pod is."""
        _remember(self._ids, own.launch_id, own.pod_id)

    def expire(self) -> None:
        """Let no look be served by the last list: something was made since."""
        self._looked_at = float("-inf")

    def judge_end(self, own: OwnPod) -> Observation | None:
        """As what a pod has to end; None where it may go on."""
        known = self._starts.get(own.launch_id)
        return judge_end(own, self.now(), restarts=known.again if known else 0)

    async def end(self, own: OwnPod, observation: Observation) -> None:
        """Terminate a pod. Only a later look that does not find it says that it has ended.

        Raises:
            ServiceError: RunPod did not take it; the text says why.
        """
        try:
            await self._api.delete_pod(own.pod_id)
        except ServiceError as error:
            self._refusals[own.launch_id] = str(error)
            raise
        self._refusals.pop(own.launch_id, None)
        self.note(own)
        if own.launch_id not in self._ended:
            _remember(self._ended, own.launch_id, (observation, self._clock()))
        # A list of before still has the pod. But of twenty that are ended side by side not each asks for a list.
        self._looked_at = min(self._looked_at, self._clock() - self._look_seconds + _ANEW_SECONDS)

    def ended_as(self, launch_id: str) -> Observation | None:
        """As what this worker has ended a launch's pod; None where it has not."""
        known = self._ended.get(launch_id)
        return known and known[0]

    def _is_ended(self, launch_id: str) -> bool:
        """Whether the last list was asked for after the end of a launch's pod: where that lacks it, it is gone."""
        known = self._ended.get(launch_id)
        return known is not None and known[1] < self._listed_at

    def _compare_clocks(self, answered_at: datetime | None) -> None:
        """Take in what an answer says of RunPod's clock; one that says nothing leaves it as it was."""
        problem = "its answer tells no time"
        if answered_at is not None:
            ahead = answered_at - self._local_now()
            seconds = abs(ahead.total_seconds())
            is_wrong = _CLOCK_SECONDS < seconds < _MOST_CLOCK_SECONDS
            self._clock_ahead = ahead if is_wrong else timedelta()
            problem = f"it differs by {seconds:.0f} s from this machine's" if is_wrong else ""
        if problem and not self._is_clock_told:
            log.warning("RunPod's clock", action=Action.CLOCK_DIFFERS, problem=problem)
        self._is_clock_told = bool(problem)

    async def _end_if_due(self, own: OwnPod) -> None:
        if (observation := self.judge_end(own)) is not None:
            # What RunPod does not take now is asked for again at the next look.
            with suppress(ServiceError):
                await self.end(own, observation)

    def _count_starts(self, own: OwnPod, begun: datetime) -> None:
        """Count a start of a pod's container that came since the last look; `begun` is when this one was asked for."""
        uptime, last = own.uptime_seconds, self._starts.get(own.launch_id)
        if uptime is None:
            if last is not None:
                self._starts[own.launch_id] = replace(last, is_gone=True)
            return
        again = last.again + last.is_over(uptime, (begun - last.at).total_seconds()) if last else 0
        _remember(self._starts, own.launch_id, _Starts(uptime, self._local_now(), again))


_WATCHES: WeakValueDictionary[tuple[int, str, str, str], PodWatch] = WeakValueDictionary()


def shared_watch(api: PodsApi, base: str, key: str, mark: str, *, http: httpx.AsyncClient) -> PodWatch:
    """The watch of an account's pods, one for all endpoints that a client reaches with a key.

    RunPod allows a key so many calls a minute, and what was ended for one endpoint is known for the others.
    """
    # A watch holds its client, so no other client has this id while the watch is there.
    of_account = (id(http), base, key, mark)
    watch = _WATCHES.get(of_account)
    if watch is None:
        watch = _WATCHES[of_account] = PodWatch(api, mark)
    return watch


def _remember(known: OrderedDict[str, Value], launch_id: str, value: Value) -> None:
    known[launch_id] = value
    if len(known) > _MOST_KNOWN:
        known.popitem(last=False)
