"""SageMaker's stand-in with a scripted machine, and the launcher with boto3's own clients for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from lora_worker.launchers.sagemaker.addresses import Address
from lora_worker.launchers.sagemaker.api import AwsApi
from lora_worker.launchers.sagemaker.instances import INSTANCES
from lora_worker.launchers.sagemaker.jobs import JobShape
from lora_worker.launchers.sagemaker.launcher import SageMakerLauncher
from tests.integration.launchers.scenes import ScriptedScene
from tests.sagemaker_server import ACCOUNT, KEY, REGION, SageMakerServer

MARK = "0123456789"
_SPEED = 5.0
"""What is over its time after five seconds there is so after one here."""
SHAPE = JobShape(
    mark=MARK,
    role=f"arn:aws:iam::{ACCOUNT}:role/lora-trainer",
    image=f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/lora-trainer:1",
    s3_path="s3://lora-tests/trainer",
    is_spot=True,
)


class SageMakerScene(ScriptedScene):
    """A region of SageMaker with one instance."""

    without_output = "a training job has no output: its trainer reports by the run's own channel"

    def __init__(self, server: SageMakerServer, folder: Path) -> None:
        super().__init__(folder)
        self.server = server
        self._clients: dict[tuple[str, str], Any] = {}

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[SageMakerScene]:
        """The scene, until the context ends."""
        server = SageMakerServer(folder, module="tests.handlers.scripted_machine", speed=_SPEED)
        try:
            yield cls(server, folder)
        finally:
            server.close()

    def payload(self, act: str) -> dict[str, Any]:
        return {**super().payload(act), "job_id": str(uuid4())}

    def launcher(
        self,
        http: httpx.AsyncClient,
        *,
        key: str | None = None,
        url: str | None = None,
        shape: JobShape = SHAPE,
    ) -> SageMakerLauncher:
        make = partial(self._client, "AKIASTRANGER" if key else KEY)
        return SageMakerLauncher(Address(REGION, ACCOUNT), AwsApi(attempts=1, make=make), shape)

    def at(self, instance_type: str) -> SageMakerLauncher:
        """The launcher of the endpoint that has this type of instance."""
        api, address = AwsApi(attempts=1, make=partial(self._client, KEY)), Address(REGION, ACCOUNT, instance_type)
        return SageMakerLauncher(address, api, SHAPE, instance=INSTANCES.named(instance_type))

    def _client(self, key: str, service: str, **how: Any) -> Any:
        # boto3 takes a third of a second for each, which all launchers of a test may share.
        if (key, service) not in self._clients:
            self._clients[key, service] = self.server.client(service, key=key, **how)
        return self._clients[key, service]

    @contextmanager
    def outage(self) -> Iterator[None]:
        with self.server.outage():
            yield
