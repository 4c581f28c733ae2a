"""An execution with a stand-in for the training process, and what that process has noted."""

import asyncio
import json
from pathlib import Path

from lora_contract.protocol import Result
from lora_trainer.handler import parse_request
from lora_trainer.run.execution import Execution
from lora_trainer.settings import Settings
from tests.unit.trainer.project import request_input


class Run:
    def __init__(self, settings: Settings, **changes):
        self.posts: list[dict] = []
        self.execution = Execution(parse_request(request_input(**changes)), "runpod-job-1", settings, self._send)
        self.volume = settings.volume

    async def _send(self, payload):
        self.posts.append(payload)

    async def result(self) -> Result:
        return await self.execution.run()

    def start(self) -> asyncio.Task:
        return asyncio.create_task(self.execution.run())

    async def until_file(self, name: str) -> Path:
        while not (found := list(self.volume.glob(f"lora-jobs/job-1/*/{name}"))):
            await asyncio.sleep(0.02)
        return found[0]


def child_note(tmp_path) -> dict:
    return json.loads((tmp_path / "note.json").read_text())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
