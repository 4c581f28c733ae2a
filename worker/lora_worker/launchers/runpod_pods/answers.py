"""What RunPod says of a pod, in the words of `launchers/base.py`. Pure functions.

A pod is not a job: it has no result and no end of its own. RunPod starts a container that has ended again, on the same
pod, and bills on (github.com/runpod/runpodctl/issues/149, github.com/dstackai/dstack/issues/1142). So a pod's end is
always a decision: of the worker, of its trainer, or of somebody in the console.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from lora_worker.launchers.base import EndCause, EndpointHealth, LaunchState, Observation, Policy
from lora_worker.launchers.marks import is_launch_id, is_mark, run_of_name
from lora_worker.launchers.runpod_pods.api import Pod
from lora_worker.launchers.runpod_pods.gpus import PodShape, gpu_ids

EXECUTION_VARIABLE, TTL_VARIABLE = "LORA_LAUNCH_EXECUTION_SECONDS", "LORA_LAUNCH_TTL_SECONDS"
"""A pod carries the limits of its launch itself: RunPod has none for pods, and the worker that set them may be gone."""
ENDPOINT_VARIABLE = "LORA_LAUNCH_ENDPOINT"
"""And the endpoint for which it was made: by its GPUs alone it may be of several."""
MAX_LAUNCH_SECONDS = 30 * 86_400
MOST_RESTARTS = 2
"""After so many starts anew the next one is the pod's end: its trainer dies before it can say why."""

_WAITING = frozenset({"PROVISIONING", "STARTING"})
_STOPPED = frozenset({"EXITED", "ERROR"})
_GONE = "TERMINATED"
_MOST_DIGITS = 9


def pod_name(launch_id: str, mark: str) -> str:
    """The name of a launch's pod: by it a pod whose creation was in doubt is found again."""
    return f"{launch_id}-{mark}"


def limits_of(policy: Policy) -> dict[str, str]:
    """The variables by which a pod carries its limits."""
    return {
        EXECUTION_VARIABLE: str(int(min(policy.execution_seconds, MAX_LAUNCH_SECONDS))),
        TTL_VARIABLE: str(int(min(policy.ttl_seconds, MAX_LAUNCH_SECONDS))),
    }


@dataclass(frozen=True, slots=True)
class OwnPod:
    """A pod that a worker has made for a launch."""

    launch_id: str
    run_id: str
    mark: str
    """Of the project whose worker made it, as that worker's settings spelled its address."""
    pod_id: str
    pod: Pod

    @property
    def is_live(self) -> bool:
        """Whether it works, or gets ready to."""
        return self.pod.status == "RUNNING" or self.pod.status in _WAITING

    def is_on(self, shape: PodShape) -> bool:
        """Whether it has the GPUs of an endpoint; True where the endpoint, or RunPod, does not say which."""
        gpu, ids = self.pod.gpu, gpu_ids(shape.gpu_type)
        if gpu is None:
            return True
        return (not ids or gpu.id in {None, *ids}) and gpu.count in {None, shape.gpu_count}

    def is_at(self, endpoint: str, shape: PodShape) -> bool:
        """Whether it was made for an endpoint; by its GPUs where it does not say so itself."""
        named = (self.pod.env or {}).get(ENDPOINT_VARIABLE)
        return self.is_on(shape) if named is None else named == endpoint

    def age_seconds(self, now: datetime) -> float | None:
        """Since it was made."""
        return _between(self.pod.created_at, now)

    def billed_seconds(self, now: datetime) -> float | None:
        """How long RunPod has billed it: from its creation, with the pull of the image, once it has a machine."""
        has_machine = self.pod.data_center_id is not None or self.pod.status != "PROVISIONING"
        return self.age_seconds(now) if has_machine else None

    def is_over_execution(self, now: datetime) -> bool:
        """Whether its container works for longer than it may."""
        since = self.pod.started_at or self.pod.created_at
        return self.pod.status == "RUNNING" and _is_over(_between(since, now), self._limit(EXECUTION_VARIABLE))

    def is_over_ttl(self, now: datetime) -> bool:
        """Whether it is older than its launch may get."""
        return _is_over(self.age_seconds(now), self._limit(TTL_VARIABLE))

    @property
    def uptime_seconds(self) -> float | None:
        """Since its container was started last; None while RunPod does not say."""
        return self.pod.runtime.uptime if self.pod.status == "RUNNING" and self.pod.runtime else None

    def _limit(self, variable: str) -> float:
        text = (self.pod.env or {}).get(variable, "")
        # Whoever made a pod of this name without limits: it gets no more than the longest.
        return float(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else MAX_LAUNCH_SECONDS


def launch_pods(pods: Iterable[Pod]) -> list[OwnPod]:
    """Those of an account's pods that are launches, of whichever project; the terminated ones are left out."""
    return [own for own in map(launch_pod, pods) if own is not None]


def own_pod(pod: Pod | None, mark: str) -> OwnPod | None:
    """The pod as one with this project's mark; None where it bears another name, or is gone."""
    own = launch_pod(pod)
    return own if own is not None and own.mark == mark else None


def launch_pod(pod: Pod | None) -> OwnPod | None:
    """The pod as a launch of some project; None where it bears another name, or is gone."""
    if pod is None or pod.id is None or pod.name is None or pod.status == _GONE:
        return None
    launch_id, _, its_mark = pod.name.rpartition("-")
    run_id = run_of_name(launch_id)
    if not is_mark(its_mark) or run_id is None or not is_launch_id(launch_id):
        return None
    return OwnPod(launch_id, run_id, its_mark, pod.id, pod)


def judge_end(own: OwnPod, now: datetime, *, restarts: int) -> Observation | None:
    """As what a pod has to end that would go on by itself; None where it may."""
    seconds = own.billed_seconds(now)
    status = own.pod.status

    def ended(state: LaunchState, cause: EndCause, reason: str) -> Observation:
        return Observation(state, cause=cause, execution_seconds=seconds, reason=reason, container=own.pod_id)

    if status in _STOPPED:
        # Stopped in the console, for want of balance, or since its machine broke. Its disk costs on.
        return ended(LaunchState.FAILED, EndCause.LOST, f"the pod has stopped ({status})")
    if restarts > MOST_RESTARTS:
        return ended(LaunchState.FAILED, EndCause.LOST, f"its container was started again {restarts} times")
    if own.is_over_execution(now):
        return ended(LaunchState.FAILED, EndCause.OVER_TIME, "it ran longer than its policy allows")
    if own.is_over_ttl(now):
        state = LaunchState.FAILED if status == "RUNNING" else LaunchState.TIMED_OUT
        return ended(state, EndCause.OVER_TIME, "it lived longer than its policy allows")
    return None


def read_observation(own: OwnPod, now: datetime) -> Observation:
    """A look at a pod that may go on. It has no output: its trainer reports by the run's own channel."""
    seconds = own.billed_seconds(now)
    if own.pod.status == "RUNNING":
        waited = _between(own.pod.created_at, own.pod.started_at or now)
        return Observation(LaunchState.RUNNING, execution_seconds=seconds, queue_seconds=waited, container=own.pod_id)
    if own.pod.status in _WAITING:
        return Observation(
            LaunchState.QUEUED, execution_seconds=seconds, queue_seconds=own.age_seconds(now), container=own.pod_id
        )
    return Observation(LaunchState.UNKNOWN, reason=f"RunPod calls the pod's status {own.pod.status!s:.40}")


def read_health(pods: Iterable[OwnPod], problem: str | None) -> EndpointHealth:
    """What the project's pods say together. A pod that waits is a job and its worker at once."""
    states = [own.pod.status for own in pods if own.is_live]
    running, starting = states.count("RUNNING"), len(states) - states.count("RUNNING")
    return EndpointHealth(
        True, len(states), starting, problem, running=running, starting=starting, jobs_running=running
    )


def _is_over(seconds: float | None, limit: float) -> bool:
    return seconds is not None and seconds > limit


def _between(begin: datetime | None, end: datetime) -> float | None:
    return max((end - begin).total_seconds(), 0.0) if begin is not None else None
