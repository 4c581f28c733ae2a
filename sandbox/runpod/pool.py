"""The endpoint's workers: processes of the official SDK that are started on demand and stay until they are idle."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from sandbox.processes import Child, start_child
from sandbox.runpod import container, program
from sandbox.runpod.worker_logs import WorkerLogs

log = logging.getLogger(__name__)

# A container does not inherit the machine's environment; above all it must not see keys that are set there.
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")
FIRST_PROCESS = (sys.executable, "-S", "-E", container.__file__)
_START_BACKOFF_SECONDS = 2.0
_LONGEST_BACKOFF_SECONDS = 30.0


_HOPELESS = "import signal; signal.pause()"


@dataclass(frozen=True)
class Image:
    """The module that a worker runs, and its environment. Each worker gets a home directory in `folder`.

    `handler_module` is None for an image that can't be pulled: its workers never get ready. `version` is that of the
    endpoint's configuration; workers of a former one end as soon as they have no job.
    """

    handler_module: str | None
    env: Mapping[str, str]
    folder: Path
    name: str = "local"
    version: int = 1
    gpu_count: int = 1
    env_by_center: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What else a worker's environment has in a data centre: the network volume there."""


class Placement(NamedTuple):
    """Where a worker runs; `gpu` is None on a machine without one."""

    gpu: str | None
    data_center: str


@dataclass(frozen=True)
class Wire:
    """How a worker calls the endpoint. `key` is that of the workers; they never get the key of the callers."""

    url: str
    endpoint: str
    key: str
    ping_interval_seconds: int

    def env(self, worker_id: str) -> dict[str, str]:
        """Return the variables that the SDK reads when it is imported. The SDK replaces the `$…` in them."""
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?gpu=local",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID?gpu=local",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=local",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID?gpu=local",
            "RUNPOD_PING_INTERVAL": str(self.ping_interval_seconds * 1000),
            "RUNPOD_AI_API_KEY": self.key,
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_ENDPOINT_ID": self.endpoint,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_LOG_LEVEL": "INFO",
            # Each worker would load torch for its checks, and hundreds are started in the tests.
            "LORA_TRAINER_FITNESS_AT_START": "false",
            "LORA_TRAINER_NEEDS_GPU": "false",
            "OMP_NUM_THREADS": "1",
        }


@dataclass
class Worker:
    """A worker in its container. Times are seconds of the machine's monotonic clock, except `started_at`."""

    id: str
    child: Child
    image: Image
    placement: Placement
    last_ping: float
    started_at: float
    """Seconds of the endpoint's clock."""
    idle_since: float | None = None
    """When the worker last asked for work; None if it has not yet."""
    kill_at: float | None = None
    """Set when the worker must end: it gets no more work, and is killed at this time."""
    polls: int = 0
    """How often the worker has asked for work."""
    killed: bool = False
    """Set when the worker is killed. Calls that it makes in its last milliseconds are not answered."""
    is_extra: bool = False
    """Whether a test started the worker. It does not count towards the limit, and does not end when idle."""

    @property
    def takes_work(self) -> bool:
        """Whether the worker is running and must not end."""
        return self.kill_at is None and self.child.returncode is None


class Pool:
    """Up to `max_workers` workers. Not thread-safe: only the endpoint's event loop may use it."""

    def __init__(
        self,
        image: Image,
        wire: Wire,
        *,
        clock: Callable[[], float],
        place: Callable[[], Placement | None],
        max_workers: int,
        idle_timeout_seconds: float,
        ping_timeout_seconds: float,
        stop_grace_seconds: float,
    ) -> None:
        self.image = image
        self.max_workers = max_workers
        self.min_workers = 0
        self.idle_timeout_seconds = idle_timeout_seconds
        self.logs = WorkerLogs(clock)
        self.failed: Worker | None = None
        """The last worker that ended before it took a job, until one takes a job."""
        self.throttled = False
        """Whether no GPU is available: then no worker starts, and none gets a job."""
        self.next_env: Mapping[str, str] = {}
        """Additional environment variables for the next worker only."""
        self._wire = wire
        self._clock = clock
        self._place = place
        self._ping_timeout_seconds = ping_timeout_seconds
        self._stop_grace_seconds = stop_grace_seconds
        self._workers: dict[str, Worker] = {}
        self._failures = 0
        self._next_start = 0.0

    def get(self, worker_id: str) -> Worker | None:
        """Return a worker, or None if it does not exist or its process has ended."""
        return self._workers.get(worker_id)

    def all(self) -> list[Worker]:
        """Return all workers, oldest first."""
        return list(self._workers.values())

    def asked_for_work(self, worker: Worker) -> int:
        """Record that a worker asks for work; returns the number of this poll. Only its latest poll gets a job."""
        self._failures, self.failed, worker.idle_since = 0, None, time.monotonic()
        worker.polls += 1
        return worker.polls

    def may_work(self, worker: Worker) -> bool:
        """Tell whether the worker may get a job now."""
        return (
            not self.throttled
            and self.max_workers > 0
            and worker.takes_work
            and not self.is_stale(worker)
            and not self.is_silent(worker)
        )

    @property
    def is_throttled(self) -> bool:
        """Whether no worker can start, because no GPU is available."""
        return self.throttled or self._place() is None

    def is_stale(self, worker: Worker) -> bool:
        """Tell whether the worker was started with a former configuration."""
        return worker.image.version != self.image.version

    def pinged(self, worker: Worker) -> None:
        """Record a ping of the worker."""
        worker.last_ping = time.monotonic()

    def is_silent(self, worker: Worker) -> bool:
        """Tell whether the worker has started, but its pings no longer arrive."""
        return worker.idle_since is not None and time.monotonic() - worker.last_ping > self._ping_timeout_seconds

    def adjust(self, waiting: int, busy: Set[str]) -> None:
        """Start workers for waiting jobs, and stop those that were idle for too long or are above the limit."""
        able = [worker for worker in self.all() if worker.takes_work and not self.is_silent(worker)]
        self._retire_stale(able, busy)
        usable = [worker for worker in able if not worker.is_extra]
        self._retire_idle(usable, waiting, busy)
        free = sum(1 for worker in able if worker.takes_work and worker.id not in busy)
        wanted = max(waiting - free, self.min_workers - len(usable))
        if time.monotonic() >= self._next_start:
            self._start(min(wanted, self.max_workers - len(usable)))

    def fill(self) -> None:
        """Start as many workers as the limit allows, even if no job waits."""
        self._start(self.max_workers - sum(1 for worker in self.all() if not worker.is_extra))

    def start_extra(self, env: Mapping[str, str]) -> str:
        """Start one more worker now, even beyond the limit, with additional `env`; returns its id."""
        self.next_env = env
        (worker,) = self._start(1)
        worker.is_extra = True
        return worker.id

    def retire(self, worker_id: str) -> None:
        """Send SIGTERM to the worker, and SIGKILL after the grace period."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.kill_at is None:
            worker.kill_at = time.monotonic() + self._stop_grace_seconds
            worker.child.send(signal.SIGUSR1)

    def kill(self, worker_id: str) -> None:
        """Send SIGKILL to all processes in the worker's container."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.killed, worker.kill_at = True, time.monotonic()
            worker.child.send(signal.SIGTERM)

    def reap(self) -> list[str]:
        """Remove workers that have ended and return their ids; kill those whose grace period is over."""
        ended = []
        for worker in self.all():
            if worker.child.returncode is not None:
                ended.append(worker.id)
                self._note_end(worker)
            elif worker.kill_at is not None and time.monotonic() > worker.kill_at:
                self.kill(worker.id)
        return ended

    def state(self, worker: Worker, busy: Set[str]) -> str:
        """Return RunPod's name for the state of a worker."""
        if self.is_silent(worker):
            return "unhealthy"
        if worker.id in busy:
            return "running"
        return "initializing" if worker.idle_since is None else "idle"

    def counts(self, busy: Set[str]) -> dict[str, int]:
        """Return the `workers` of `/health`."""
        states = Counter(self.state(worker, busy) for worker in self.all())
        return {
            "idle": states["idle"],
            "initializing": states["initializing"],
            "ready": states["idle"],
            "running": states["running"],
            "throttled": self.max_workers if self.is_throttled else 0,
            "unhealthy": states["unhealthy"] + min(self._failures, 1),
        }

    def close(self) -> None:
        """Kill all workers."""
        for worker in self.all():
            self.kill(worker.id)
        for worker in self.all():
            worker.child.stop()
            del self._workers[worker.id]
        self.logs.close()

    def _retire_stale(self, workers: list[Worker], busy: Set[str]) -> None:
        for worker in workers:
            if self.is_stale(worker) and worker.id not in busy:
                self.retire(worker.id)

    def _retire_idle(self, usable: list[Worker], waiting: int, busy: Set[str]) -> None:
        now, surplus = time.monotonic(), len(usable) - self.max_workers
        spare = len(usable) - self.min_workers
        for worker in usable:
            if worker.id in busy or worker.idle_since is None:
                continue
            is_idle = not waiting and spare > 0 and now - worker.idle_since > self.idle_timeout_seconds
            if surplus > 0 or is_idle:
                self.retire(worker.id)
                surplus, spare = surplus - 1, spare - 1

    def _start(self, count: int) -> list[Worker]:
        """Start so many workers, or none if there is no GPU for them."""
        placement = None if self.throttled else self._place()
        if placement is None:
            return []
        return [self._start_at(placement) for _ in range(count)]

    def _start_at(self, placement: Placement) -> Worker:
        worker_id = f"w{uuid4().hex[:13]}"
        image, home = self.image, self.image.folder / worker_id
        home.mkdir()
        log = self.logs.begin(worker_id, home / "worker.log")
        if image.handler_module is None:
            log.say(f"Pulling the image {image.name} failed: there is no such image.")
        else:
            log.say(f"The container of {image.name} starts.")
        child = start_child(
            [*FIRST_PROCESS, sys.executable, "-u", *_program(image)],
            name=f"The RunPod worker {worker_id}",
            log=home / "worker.log",
            env={
                **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
                # A home of its own, because the SDK would prefer a key of ~/.runpod/config.toml to its environment.
                "HOME": str(home),
                "TMPDIR": str(home),
                **self._wire.env(worker_id),
                "RUNPOD_DC_ID": placement.data_center,
                "RUNPOD_GPU_COUNT": str(image.gpu_count),
                **image.env,
                **image.env_by_center.get(placement.data_center, {}),
                **self.next_env,
            },
        )
        worker = Worker(worker_id, child, image, placement, last_ping=time.monotonic(), started_at=self._clock())
        self._workers[worker_id] = worker
        self.next_env = {}
        return worker

    def _note_end(self, worker: Worker) -> None:
        worker.child.kill()
        if (log_of_worker := self.logs.get(worker.id)) is not None:
            log_of_worker.end("The container ended.")
        del self._workers[worker.id]
        if worker.idle_since is None and worker.kill_at is None:
            self._failures += 1
            self.failed = worker
            pause = min(_START_BACKOFF_SECONDS**self._failures, _LONGEST_BACKOFF_SECONDS)
            self._next_start = time.monotonic() + pause
            log.error(
                "%s ended before it took a job; the next one starts in %.0f s. Its last words:\n%s",
                worker.child.name,
                pause,
                worker.child.last_words(),
            )


def _program(image: Image) -> list[str]:
    # A worker whose image can't be pulled stays as it is until it is removed.
    return ["-c", _HOPELESS] if image.handler_module is None else ["-m", program.__name__, image.handler_module]
