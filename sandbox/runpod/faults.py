"""Faults that a test can arm, by operation and call.

faults.add("run", "drop_answer")                          # the job is accepted, but the caller gets no answer
faults.add("status", "respond", status=502, body="html", times=3)
faults.add("dispatch", "kill_worker", seconds=0.5)        # half a second into the job
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sandbox.runpod.ledger import RefusedThen

PublicOperation = Literal["run", "runsync", "status", "stream", "cancel", "retry", "health", "requests", "purge-queue"]
WorkerOperation = Literal["job-take", "job-done", "progress", "job-stream", "job-stop", "ping"]
RestOperation = Literal[
    "listEndpoints",
    "createEndpoint",
    "getEndpoint",
    "updateEndpoint",
    "deleteEndpoint",
    "listEndpointWorkers",
    "listEndpointReleases",
    "getWorkerLogs",
    "listTemplates",
    "createTemplate",
    "getTemplate",
    "updateTemplate",
    "deleteTemplate",
    "listNetworkVolumes",
    "createNetworkVolume",
    "getNetworkVolume",
    "updateNetworkVolume",
    "deleteNetworkVolume",
    "listRegistries",
    "createRegistry",
    "getRegistry",
    "deleteRegistry",
    "listGpuTypes",
    "getGpuType",
    "listDataCenters",
    "listPods",
    "createPod",
    "getPod",
    "deletePod",
    "podAction",
    "getPodLogs",
]
Operation = Literal[PublicOperation, WorkerOperation, RestOperation, "dispatch"]
"""The name of a call, or `dispatch`: the moment when a job is given to a worker. `job-done` is a result and `progress`
an update, although both are posted to the same address."""

Action = Literal[
    "disconnect",
    "respond",
    "respond_after",
    "delay",
    "delay_answer",
    "drop_answer",
    "forget",
    "kill_worker",
    "deliver_twice",
    "time_out",
    "lose_result",
    "late_progress",
    "unguarded",
]

_ON_THE_WIRE: frozenset[Action] = frozenset(
    {"disconnect", "respond", "respond_after", "delay", "delay_answer", "drop_answer"}
)
_ON_THE_JOB: dict[str, frozenset[Action]] = {
    "status": frozenset({"forget"}),
    "dispatch": frozenset({"kill_worker", "deliver_twice", "time_out"}),
    "progress": frozenset({"kill_worker", "unguarded"}),
    "job-done": frozenset({"kill_worker", "lose_result", "late_progress"}),
}


class Fault(BaseModel):
    """A fault of one operation.

    Actions for any call:
        disconnect: nothing is done, and the connection is broken.
        respond: nothing is done, and the answer is `status` with `body`.
        respond_after: the call is carried out, but the answer is `status` with `body`.
        delay, delay_answer: the call waits for `seconds` before or after it is carried out.
        drop_answer: the call is carried out, but the connection is broken instead of an answer.

    Actions for a job:
        forget: the job is deleted, so the answer is 404.
        kill_worker: the worker gets SIGKILL after `seconds`.
        deliver_twice: two workers get the job.
        time_out: the job becomes TIMED_OUT instead of being given to a worker.
        lose_result: the result is refused until the SDK gives up; `then` is the job's fate (see `RefusedThen`).
        late_progress: the last update overwrites the result.
        unguarded: an update that arrives after the result overwrites it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operation: Operation
    action: Action
    times: int | None = Field(default=1, ge=1)
    """How many calls are affected; None means all, until the fault is cleared."""
    skip: int = Field(default=0, ge=0)
    """How many matching calls succeed before the first affected one."""
    probability: float = Field(default=1, gt=0, le=1)
    seed: int = 0
    job_id: str | None = None
    worker_id: str | None = None
    seconds: float = Field(default=0, ge=0)
    status: int = Field(default=500, ge=200, le=599)
    body: Literal["json", "broken_json", "html", "empty"] = "json"
    retry_after_seconds: int | None = Field(default=None, ge=0)
    then: RefusedThen = "stuck"

    @model_validator(mode="after")
    def _fits(self) -> Fault:
        on_the_wire = self.action in _ON_THE_WIRE and self.operation != "dispatch"
        if not on_the_wire and self.action not in _ON_THE_JOB.get(self.operation, frozenset()):
            raise ValueError(f"the fault {self.action!r} can't happen to {self.operation!r}")
        return self


@dataclass
class _Armed:
    fault: Fault
    number: int
    seen: int = 0
    hits: int = 0
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.fault.seed)  # noqa: S311 - reproducible, not secret

    def strikes(self, operation: str, job_id: str | None, worker_id: str | None) -> bool:
        fault = self.fault
        if fault.operation != operation or (fault.times is not None and self.hits >= fault.times):
            return False
        if fault.job_id not in {None, job_id} or fault.worker_id not in {None, worker_id}:
            return False
        self.seen += 1
        if self.seen <= fault.skip or self.dice.random() >= fault.probability:
            return False
        self.hits += 1
        return True


class Faults:
    """The armed faults of an endpoint. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._numbers = 0

    def add(self, operation: Operation, action: Action, **details: Any) -> int:
        """Arm a fault and return its number; `details` are the other fields of `Fault`."""
        return self.arm(Fault(operation=operation, action=action, **details))

    def arm(self, fault: Fault) -> int:
        """Arm a given `Fault` and return its number."""
        with self._lock:
            self._numbers += 1
            self._armed.append(_Armed(fault, self._numbers))
            return self._numbers

    def clear(self) -> None:
        """Disarm everything."""
        with self._lock:
            self._armed.clear()

    def hits(self, number: int) -> int:
        """Return how many calls an armed fault has affected."""
        with self._lock:
            return next((armed.hits for armed in self._armed if armed.number == number), 0)

    def draw(self, operation: str, *, job_id: str | None = None, worker_id: str | None = None) -> Fault | None:
        """Return the fault that affects this call, or None. Faults are tried in the order in which they were armed."""
        with self._lock:
            for armed in self._armed:
                if armed.strikes(operation, job_id, worker_id):
                    return armed.fault
        return None

    def as_json(self) -> list[dict[str, Any]]:
        """Return all armed faults with their numbers and hits."""
        with self._lock:
            return [{"number": armed.number, "hits": armed.hits, **armed.fault.model_dump()} for armed in self._armed]
