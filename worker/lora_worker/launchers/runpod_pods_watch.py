"""The look at an account's pods: which are this project's, and which of them must not go on."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

from lora_worker.errors import ServiceError
from lora_worker.launchers.base import Observation
from lora_worker.launchers.runpod_pods_answers import OwnPod, judge_end, own_pod, own_pods
from lora_worker.launchers.runpod_pods_api import PodsApi

_LOOK_SECONDS = 3.0
"""One list serves all looks of so many seconds: RunPod allows a key about sixty calls a minute."""
_MOST_KNOWN = 2000

Value = TypeVar("Value")


class PodWatch:
    """Finds pods by their launches. Each list ends all that must not go on, whoever has asked for it.

    So no pod outlives its limits by more than the time between two looks, also one whose run nobody holds.
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
        self.now = now
        self._api, self._mark, self._look_seconds, self._clock = api, mark, look_seconds, clock
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._seen: dict[str, OwnPod] = {}
        self._ids: OrderedDict[str, str] = OrderedDict()
        """RunPod's ids of the launches' pods: a list may lack what is seconds old."""
        self._ended: OrderedDict[str, Observation] = OrderedDict()
        """As what this worker has ended pods: RunPod remembers nothing of them."""
        self._starts: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """For how long each pod's container was up at the last look, and how often it was started again."""

    async def look(self, *, anew: bool = False) -> dict[str, OwnPod]:
        """The project's pods, by launch; `anew` where those of the last seconds don't do.

        Raises:
            ServiceError: they can't be listed; the text says why.
        """
        async with self._looking:
            if anew or self._clock() - self._looked_at >= self._look_seconds:
                self._seen = own_pods(await self._api.list_pods(), self._mark)
                self._looked_at = self._clock()
                for own in self._seen.values():
                    self._count_starts(own)
                    if (observation := self.judge_end(own)) is not None:
                        # What RunPod does not take now is asked for again at the next look.
                        with suppress(ServiceError):
                            await self.end(own, observation)
            return self._seen

    async def find(self, launch_id: str, *, anew: bool = False) -> OwnPod | None:
        """The pod of a launch; None where there is none.

        Raises:
            ServiceError: that can't be known now; the text says why.
        """
        own = (await self.look(anew=anew)).get(launch_id)
        if own is not None:
            self.note(own)
            return own
        pod_id = self._ids.get(launch_id)
        if pod_id is None:
            return None
        own = own_pod(await self._api.read_pod(pod_id), self._mark)
        return own if own is not None and own.launch_id == launch_id else None

    def note(self, own: OwnPod) -> None:
        """Remember where a launch's pod is."""
        _remember(self._ids, own.launch_id, own.pod_id)

    def expire(self) -> None:
        """Forget the last list: something was made or ended since."""
        self._looked_at = float("-inf")

    def judge_end(self, own: OwnPod) -> Observation | None:
        """As what a pod has to end; None where it may go on."""
        _, restarts = self._starts.get(own.launch_id, (0.0, 0))
        return judge_end(own, self.now(), restarts=restarts)

    async def end(self, own: OwnPod, observation: Observation) -> None:
        """Terminate a pod. Only a later look that does not find it says that it has ended.

        Raises:
            ServiceError: RunPod did not take it; the text says why.
        """
        await self._api.delete_pod(own.pod_id)
        self.note(own)
        if own.launch_id not in self._ended:
            _remember(self._ended, own.launch_id, observation)
        self.expire()

    def ended_as(self, launch_id: str) -> Observation | None:
        """As what this worker has ended a launch's pod; None where it has not."""
        return self._ended.get(launch_id)

    def _count_starts(self, own: OwnPod) -> None:
        uptime = own.uptime_seconds
        if uptime is None:
            return
        last, restarts = self._starts.get(own.launch_id, (uptime, 0))
        # A start anew begins at nought. A figure that lags, or is corrected by a second, must not end a training.
        _remember(self._starts, own.launch_id, (uptime, restarts + (uptime < last / 2)))


def _remember(known: OrderedDict[str, Value], launch_id: str, value: Value) -> None:
    known[launch_id] = value
    if len(known) > _MOST_KNOWN:
        known.popitem(last=False)
