"""The account's pods: each is a real process with the environment that was asked for, started again whenever it ends.

As RunPod does it: a pod is billed from its creation to its termination, nothing but a call ends it, and one for which
there is no GPU is refused at once. What is made up: `slots`, the number of pods that get a machine at the same time.
The others stay PROVISIONING.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.processes import Child, start_child
from sandbox.runpod.keys import Keys
from sandbox.runpod.ledger import Ledger, PodLife
from sandbox.runpod.pool import FIRST_PROCESS, PASSED_ON
from sandbox.runpod.rest.account import Account, Resource, as_time, find, new_id
from sandbox.runpod.rest.api import Call, Operation
from sandbox.runpod.rest.problems import ProblemError
from sandbox.runpod.rest.requests import CreatePod, LogQuery, PodAction, PodListQuery
from sandbox.runpod.rest.workers import stream_log
from sandbox.runpod.worker_logs import WorkerLogs

_RESTART_SECONDS = 0.3
_MOST_VARIABLES = 50
_MOST_GPUS = 8
_PRICE_OF_PODS = 0.6
"""Of a serverless worker's price, as the sandbox's catalog has it."""
_NO_CAPACITY = "There are no longer any instances available with the requested specifications. Please try again later."
_ACTIONS = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
}
_QUIET = {"LORA_TRAINER_NEEDS_GPU": "false", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class PodHost:
    """What pods need of this machine."""

    folder: Path
    """For the containers' homes."""
    env: Mapping[str, str]
    """What their image brings."""
    module: str | None
    """What each container runs; None: the module that the pod's `args` name."""
    slots: int | None
    """How many pods get a machine at the same time; None: all."""
    volume_folder: Callable[[str], Path]
    volume_variable: str


@dataclass
class _Pod:
    shown: Resource
    life: PodLife
    key: str
    child: Child | None = None
    started_at: float = 0.0
    """Of its container, by the clock."""
    next_start: float = 0.0


@dataclass
class Pods:
    """The pods that live. Only the event loop may use it."""

    account: Account
    host: PodHost
    keys: Keys
    ledger: Ledger
    clock: Callable[[], float]
    is_unlisted: Callable[[PodLife], bool] = lambda _: False
    """Whether a list misses a pod, as an account's lists may miss what is seconds old."""
    _all: dict[str, _Pod] = field(default_factory=dict)
    _ending: list[Child] = field(default_factory=list)
    _is_closing: bool = False

    def __post_init__(self) -> None:
        self.logs = WorkerLogs(self.clock)

    def operations(self) -> list[Operation]:
        """Return the operations on pods."""
        one = "pods/{id}"
        return [
            Operation("listPods", "GET", "pods", lambda _: {"pods": self._listed()}, query=PodListQuery),
            Operation("createPod", "POST", "pods", lambda c: self.create(c.body), CreatePod),
            Operation("getPod", "GET", one, lambda c: self._show(self._get(c.id))),
            Operation("deletePod", "DELETE", one, lambda c: self.delete(c.id)),
            Operation("podAction", "POST", f"{one}/action", lambda c: self.act(c.id, c.body.action), PodAction),
            Operation("getPodLogs", "GET", f"{one}/logs", self._stream_log, query=LogQuery),
        ]

    def all(self) -> list[Resource]:
        """Return all pods as the API shows them, oldest first."""
        return [self._show(pod) for pod in self._all.values()]

    def _listed(self) -> list[Resource]:
        return [self._show(pod) for pod in self._all.values() if not self.is_unlisted(pod.life)]

    def create(self, body: CreatePod) -> Resource:
        """Create a pod on one type of GPU, where there is one."""
        if body.cpu is not None or body.gpu is None:
            raise ProblemError(400, "Exactly one of gpu and cpu is required, and the sandbox has no CPU pods.")
        given, catalog = body.given(), self.account.catalog
        if len(body.env or {}) > _MOST_VARIABLES:
            raise ProblemError(400, f"More than {_MOST_VARIABLES} environment variables.")
        if body.registry is not None and body.registry not in self.account.registries:
            raise ProblemError(400, "There is no such registry.")
        if body.gpu.min_cuda_version is not None and body.gpu.allowed_cuda_versions:
            raise ProblemError(400, "allowedCudaVersions and minCudaVersion exclude each other.")
        kind = catalog.gpus.get(body.gpu.id)
        if kind is None:
            raise ProblemError(400, f"There is no GPU type {body.gpu.id}.")
        centers = self._centers(body)
        placed = catalog.placement([kind.id], centers)
        if placed is None or body.gpu.count > _MOST_GPUS or body.cloud == "COMMUNITY":
            raise ProblemError(400, _NO_CAPACITY)
        pod_id, now = new_id(14), self.clock()
        shown: Resource = {
            "id": pod_id, "name": body.name, "image": body.image or "", "args": body.args or "",
            "disk": body.disk or 20, "ports": body.ports or [], "env": body.env or {}, "registry": body.registry,
            "status": "PROVISIONING", "mounts": given.get("mounts", {}), "cloud": body.cloud or "SECURE",
            "gpu": {"id": kind.id, "count": body.gpu.count}, "dataCenterId": None, "cudaVersion": None,
            "ssh": {"proxy": None, "direct": None}, "template": None, "locked": False,
            "cost": round(_PRICE_OF_PODS * (kind.usd_per_hour or 1.0) * body.gpu.count, 2),
            "globalNetworking": {"enabled": False}, "createdAt": as_time(now), "startedAt": None,
            "_placed": placed[1],
        }  # fmt: skip
        life = PodLife(pod_id, body.name, now)
        self.ledger.pods.append(life)
        self._all[pod_id] = pod = _Pod(shown, life, self.keys.add_for_pod(pod_id))
        (self.host.folder / pod_id).mkdir()
        self.logs.begin(pod_id, self.host.folder / pod_id / "pod.log").say(f"{body.image} is pulled.")
        return self._show(pod)

    def delete(self, pod_id: str) -> None:
        """Terminate a pod: its processes end, and nothing more is billed."""
        pod = self._get(pod_id)
        del self._all[pod_id]
        self._stop_container(pod)
        self.keys.revoke(pod.key)
        pod.life.ended_at = self.clock()

    def act(self, pod_id: str, action: str) -> Resource | None:
        """Carry out an action that the pod's status permits."""
        pod = self._get(pod_id)
        if action not in _ACTIONS[pod.shown["status"]]:
            raise ProblemError(409, f"{action} is not valid for a pod that is {pod.shown['status']}.")
        if action == "terminate":
            self.delete(pod_id)
            return None
        self._stop_container(pod)
        pod.shown["status"] = "EXITED" if action == "stop" else "STARTING"
        return self._show(pod)

    def key_of(self, pod_id: str) -> str:
        """Return the key that a pod's container has."""
        return self._get(pod_id).key

    def kill_container(self, pod_id: str) -> None:
        """Send SIGKILL to all processes of a pod's container, as the kernel does for want of memory."""
        self._stop_container(self._get(pod_id))

    def keep(self) -> None:
        """Give machines to pods, start their containers, and start those again that have ended."""
        for pod in list(self._all.values()):
            status = pod.shown["status"]
            if status == "PROVISIONING" and self._has_machine_left():
                pod.shown |= {"status": "STARTING", "dataCenterId": pod.shown["_placed"], "cudaVersion": "12.8"}
            elif status == "STARTING":
                self._start_container(pod)
                pod.shown |= {"status": "RUNNING", "startedAt": as_time(self.clock())}
            elif status == "RUNNING":
                self._keep_running(pod)
        for child in [child for child in self._ending if child.returncode is not None]:
            child.kill()
            self._ending.remove(child)
        self.logs.keep()

    def close(self) -> None:
        """End all processes."""
        self._is_closing = True
        for pod in self._all.values():
            self._stop_container(pod)
        for child in self._ending:
            child.stop()
        self.logs.close()

    def _get(self, pod_id: str) -> _Pod:
        if pod_id not in self._all:
            raise ProblemError(404, "There is no pod with this id.")
        return self._all[pod_id]

    def _show(self, pod: _Pod) -> Resource:
        shown, status = {key: value for key, value in pod.shown.items() if key != "_placed"}, pod.shown["status"]
        running = status == "RUNNING" and pod.child is not None
        uptime = {"uptime": max(int(self.clock() - pod.started_at), 0), "gpus": [], "ports": []}
        return {
            **shown,
            "actions": _ACTIONS[status],
            "cost": 0.0 if status == "EXITED" else shown["cost"],
            "runtime": uptime if running else None,
        }

    def _centers(self, body: CreatePod) -> list[str]:
        centers = list(body.data_center_ids or [])
        for mount in (body.mounts and body.mounts.network) or []:
            volume = find(self.account.volumes, mount.volume_id, "network volume")
            if centers and volume["dataCenter"] not in centers:
                raise ProblemError(400, "The network volume is in another data center.")
            centers = [volume["dataCenter"]]
        return centers

    def _has_machine_left(self) -> bool:
        used = sum(pod.shown["status"] in {"STARTING", "RUNNING"} for pod in self._all.values())
        return self.host.slots is None or used < self.host.slots

    def _keep_running(self, pod: _Pod) -> None:
        now = self.clock()
        if pod.child is not None and pod.child.returncode is not None:
            self._stop_container(pod)
            pod.next_start = now + _RESTART_SECONDS
        elif pod.child is None and now >= pod.next_start:
            self._start_container(pod)

    def _start_container(self, pod: _Pod) -> None:
        pod_id = pod.shown["id"]
        home = self.host.folder / pod_id
        if (log := self.logs.get(pod_id)) is not None:
            log.say("The container starts.")
        pod.child = start_child(
            [*FIRST_PROCESS, sys.executable, "-u", "-m", self.host.module or _module_of(pod.shown["args"])],
            name=f"The pod {pod_id}",
            log=home / "pod.log",
            env={
                **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
                "HOME": str(home),
                "TMPDIR": str(home),
                **_QUIET,
                **self.host.env,
                **self._volume(pod),
                **pod.shown["env"],
                "RUNPOD_POD_ID": pod_id,
                "RUNPOD_API_KEY": pod.key,
                "RUNPOD_DC_ID": pod.shown["dataCenterId"],
                "RUNPOD_GPU_COUNT": str(pod.shown["gpu"]["count"]),
            },
        )
        pod.started_at, pod.life.starts = self.clock(), pod.life.starts + 1

    def _volume(self, pod: _Pod) -> dict[str, str]:
        mounted: list[dict[str, Any]] = pod.shown["mounts"].get("network") or []
        if not mounted:
            return {}
        return {self.host.volume_variable: str(self.host.volume_folder(mounted[0]["volumeId"]))}

    def _stop_container(self, pod: _Pod) -> None:
        if pod.child is not None:
            pod.child.send(signal.SIGTERM)
            self._ending.append(pod.child)
            pod.child = None

    def _stream_log(self, call: Call) -> Any:
        log = self.logs.get(call.id)
        if log is None:
            raise ProblemError(404, "There is no pod with this id.")
        return stream_log(log, call, lambda: not self._is_closing)


def _module_of(args: str) -> str:
    words = shlex.split(args)
    return words[words.index("-m") + 1]
