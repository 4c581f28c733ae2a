"""RunPod as one object. A thread of this process serves it, and any other thread may control it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.applications import Starlette

from sandbox.processes import remove_folder, temporary_folder
from sandbox.runpod.admin_api import AdminApi
from sandbox.runpod.endpoint import Clock, EndpointSettings
from sandbox.runpod.faults import Faults
from sandbox.runpod.keys import Keys, Rights
from sandbox.runpod.ledger import Execution, Ledger, PodLife
from sandbox.runpod.listener import Listener
from sandbox.runpod.platform import Machine, Platform
from sandbox.runpod.public_api import PublicApi
from sandbox.runpod.rest.account import Account
from sandbox.runpod.rest.api import RestApi, account_operations
from sandbox.runpod.rest.catalog import Catalog
from sandbox.runpod.rest.pods import PodHost, Pods
from sandbox.runpod.rest.quota import Quota
from sandbox.runpod.rest.requests import Stock
from sandbox.runpod.rest.workers import worker_operations
from sandbox.runpod.worker_api import WorkerApi

T = TypeVar("T")


class LocalRunPod:
    """RunPod on this machine, with one endpoint from the start. `start` starts it; the end of its context stops it.

    `faults` and `ledger` may be used from any thread. All processes end with this one, even if it is killed.
    """

    def __init__(
        self,
        platform: Platform,
        keys: Keys,
        folder: Path,
        *,
        public: Listener,
        internal: Listener,
        rest: Listener,
    ) -> None:
        self.api_key = keys.first
        self.api_url = f"{public.url}/v2/{platform.first.settings.endpoint}"
        """The value for `GPU_CLUSTER_API_URL`."""
        self.rest_url = f"{rest.url}/v2"
        """The value for `LORA_WORKER_RUNPOD_API_URL`."""
        self.admin_url = f"{internal.url}/sandbox"
        self.faults: Faults = platform.faults
        self.ledger: Ledger = platform.ledger
        self._platform = platform
        self._endpoint = platform.first
        self._keys = keys
        self._folder = folder
        self._public = public
        self._internal = internal
        self._rest = rest
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="local-runpod")

    @classmethod
    def start(
        cls,
        *,
        api_key: str | None = None,
        port: int = 0,
        rest_port: int = 0,
        rest_calls_per_minute: int = 600,
        images: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
        pod_module: str | None = None,
        pod_slots: int | None = None,
        **settings: Any,
    ) -> Self:
        """Serve a new endpoint until `stop`.

        Args:
            api_key: the bearer token of callers; a new one by default.
            port: the port of the public API; 0 means any free one.
            rest_port: the port of the REST API; 0 means any free one.
            rest_calls_per_minute: the REST API's limit for each key; further calls are refused with 429. The example
                in RunPod's description has 60.
            images: the handler module of each image that can be pulled, for endpoints that are created through the
                REST API; None: every image can, and is `handler_module`.
            clock: returns seconds, for time-outs, ttl and retention; `advance` moves it forward.
            pod_module: what the containers of pods run; None: the module that a pod's `args` name.
            pod_slots: how many pods get a machine at the same time, the others waiting; None: all.
            **settings: the fields of `EndpointSettings`, for the endpoint that exists from the start. The others
                have the same, as far as their configuration does not say otherwise; `env` is what their images bring.
                Handler modules must be importable with the working directory and environment of this process.
                `env` should set `LORA_TRAINER_VOLUME` if the attempts of a job shall share a network volume; with a
                volume of the account it is set to the folder of that.

        Raises:
            SandboxError: the port can't be used.
        """
        keys, time_of_jobs, folder = Keys(api_key), Clock(clock), temporary_folder()
        apps = {name: Starlette() for name in ("public", "internal", "rest")}
        public, rest = Listener(apps["public"], port), Listener(apps["rest"], rest_port)
        internal = Listener(apps["internal"])
        machine = Machine(
            folder=folder, worker_url=f"{internal.url}/worker", images=images, volume_variable="LORA_TRAINER_VOLUME"
        )
        account = Account(Catalog(), time_of_jobs, f"{public.url}/v2")
        platform = Platform(account, EndpointSettings(**settings), machine, time_of_jobs)
        apps["public"].router.routes.extend(PublicApi(platform, keys).routes())
        apps["internal"].router.routes.extend([*WorkerApi(platform).routes(), *AdminApi(platform).routes()])
        quota = Quota(time_of_jobs, {"minute": rest_calls_per_minute, "hour": 60 * rest_calls_per_minute})
        api = RestApi(keys, quota, platform.faults, platform.ledger, time_of_jobs)
        host = PodHost(
            folder=folder,
            env=platform.first.settings.env,
            module=pod_module,
            slots=pod_slots,
            volume_folder=platform.volume_folder,
            volume_variable=machine.volume_variable,
        )
        platform.pods = Pods(account, host, keys, platform.ledger, time_of_jobs)
        api.serve(
            apps["rest"],
            [*account_operations(account), *worker_operations(platform), *platform.pods.operations()],
        )
        pod = cls(platform, keys, folder, public=public, internal=internal, rest=rest)
        pod._thread.start()
        pod._started.result()
        return pod

    def stop(self) -> None:
        """End the workers with all their processes, then the server. A second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            remove_folder(self._folder)

    def add_key(self, rights: Rights = Rights.ALL) -> str:
        """Create another key and return it."""
        return self._keys.add(rights)

    def revoke_key(self, key: str) -> None:
        """Make a key invalid."""
        self._keys.revoke(key)

    def set_stock(self, gpu: str, level: Stock, data_center: str | None = None) -> None:
        """Set the stock of a GPU type or of a whole pool, in one data centre or in all."""
        self._on_loop(lambda: self._platform.account.catalog.set_stock(gpu, level, data_center))

    def orphans(self) -> list[Execution]:
        """Return the executions that have not ended, and an entry without worker for each queued job."""
        return self._on_loop(self._platform.orphans)

    def workers(self) -> dict[str, str]:
        """Return the state of each worker process, by its id."""
        return self._on_loop(self._platform.states)

    def pods(self) -> list[dict[str, Any]]:
        """Return the pods that live, as the REST API shows them."""
        return self._on_loop(self._pods().all)

    def time(self) -> float:
        """Return the seconds of the clock that `advance` moves."""
        return self._platform.clock()

    def key_of_pod(self, pod_id: str) -> str:
        """Return the key that a pod's container has."""
        return self._on_loop(lambda: self._pods().key_of(pod_id))

    def stop_pod(self, pod_id: str) -> None:
        """Stop a pod, as somebody may in the console, or as RunPod does for want of balance."""
        self._on_loop(lambda: self._pods().act(pod_id, "stop"))

    def kill_container(self, pod_id: str) -> None:
        """Send SIGKILL to all processes of a pod's container; RunPod starts it again."""
        self._on_loop(lambda: self._pods().kill_container(pod_id))

    @contextmanager
    def unlisted_pods(self, is_unlisted: Callable[[PodLife], bool]) -> Iterator[None]:
        """Have lists miss such pods until the context ends; each is still there by its id."""
        pods = self._pods()
        before, pods.is_unlisted = pods.is_unlisted, is_unlisted
        try:
            yield
        finally:
            pods.is_unlisted = before

    def _pods(self) -> Pods:
        assert self._platform.pods is not None
        return self._platform.pods

    def volume_folder(self, volume_id: str) -> Path:
        """Return the folder with the content of a network volume."""
        return self._platform.volume_folder(volume_id)

    def set_workers(self, *, max_workers: int | None = None, throttled: bool | None = None) -> None:
        """Set the highest number of workers, and whether no GPU is available (`throttled`)."""
        self._on_loop(lambda: self._platform.set_workers(max_workers=max_workers, throttled=throttled))

    def replace_workers(self, env: Mapping[str, str]) -> None:
        """Send SIGKILL to every worker, and add `env` to the environment of the next one only.

        So a crash point that `env` arms acts in one worker, and not again in the workers after it.
        """

        def act() -> None:
            self._endpoint.pool.next_env = env
            for worker in self._endpoint.pool.all():
                self._endpoint.pool.kill(worker.id)

        self._on_loop(act)

    def start_workers(self) -> None:
        """Start as many workers as the limit allows, even if there is no work for them yet."""
        self._on_loop(lambda: self._endpoint.pool.fill())

    def start_worker(self, env: Mapping[str, str]) -> str:
        """Start one more worker now, even beyond the limit, with additional `env`; returns its id."""
        return self._on_loop(lambda: self._endpoint.pool.start_extra(env))

    def kill_worker(self, worker_id: str) -> None:
        """Send SIGKILL to all processes of a worker's container. Does nothing if the worker has ended."""
        self._on_loop(lambda: self._platform.kill_worker(worker_id))

    def kill_worker_of(self, job_id: str) -> bool:
        """Send SIGKILL to the worker that has the job; returns whether there was one."""
        return self._on_loop(lambda: any(one.kill_worker_of(job_id) for one in self._platform.all()))

    def forget(self, job_id: str) -> None:
        """Delete a job, as if its ttl or its retention were over."""
        self._on_loop(lambda: [one.jobs.forget(job_id) for one in self._platform.all()])

    def advance(self, seconds: float) -> None:
        """Move the clock forward. Everything that is due at the new time happens before this returns."""

        def act() -> None:
            self._platform.clock.advance(seconds)
            self._platform.apply_time()

        self._on_loop(act)

    def logs(self) -> str:
        """Return the output of all workers, including those that have ended."""
        logs = sorted([*self._folder.glob("*/worker.log"), *self._folder.glob("*/pod.log")])
        return "\n".join(path.read_text(errors="replace") for path in logs)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Refuse all connections of callers until the context ends. The workers continue."""
        with self._closed(self._public):
            yield

    @contextmanager
    def rest_outage(self) -> Iterator[None]:
        """Refuse all connections to the REST API until the context ends. The pods continue."""
        with self._closed(self._rest):
            yield

    @contextmanager
    def _closed(self, listener: Listener) -> Iterator[None]:
        self._await(listener.close())
        try:
            yield
        finally:
            self._await(listener.open())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _on_loop(self, act: Callable[[], T]) -> T:
        async def call() -> T:
            return act()

        return self._await(call())

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        await self._public.open()
        await self._internal.open()
        await self._rest.open()
        self._started.set_result(None)
        stopping = asyncio.create_task(self._stopping.wait())
        keeping = asyncio.create_task(self._platform.keep())
        done, _ = await asyncio.wait({stopping, keeping}, return_when=asyncio.FIRST_COMPLETED)
        keeping.cancel()
        await asyncio.wait({keeping})
        await self._public.close()
        await self._internal.close()
        await self._rest.close()
        if keeping in done:
            keeping.result()  # `keep` never returns, so it has failed: raise its exception
