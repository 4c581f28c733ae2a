"""The trainer's handler; but a job whose seed is one of `Lie` is handled by a dishonest container.
It calls database and storage without the trainer's models, which would refuse its values.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any
from uuid import uuid4

import httpx

import lora_trainer.handler
from lora_contract.grants import open_urls
from sandbox.standin_proof import applied

_honest = lora_trainer.handler.handler

_ENDLESS_SECONDS = 10_000_000
_MOST_STEPS = 3_000_000_000
_MUCH_TEXT = "x" * 5_000_000
_INVENTED_IDS = 150
_FILE = b"weights of an adapter that nobody has trained"


class Lie(IntEnum):
    """Seeds of jobs whose container is dishonest."""

    LONG_BILL = 9101
    """Publishes an artifact, and reports ten million seconds on 64 GPUs of the most expensive kind."""
    IMPOSSIBLE_NUMBERS = 9102
    """Publishes a manifest whose numbers fit no column."""
    IMPOSSIBLE_PROGRESS = 9103
    """Reports such numbers as progress, and ends with an unreadable result."""
    FOREIGN_FILES = 9104
    """Ends as the earlier trainer does, and names addresses of this machine as its files."""
    INVENTED_IDS = 9105
    """Checks in under invented ids, and sends arguments of megabytes."""
    HUGE_MANIFEST = 9106
    """Publishes a manifest larger than the worker reads."""
    NO_PROOF = 9107
    """Publishes an adapter that nobody has tried on its base."""
    PROOF_OF_ANOTHER = 9108
    """Publishes an adapter with the proof of another one."""


class Container:
    """The calls that a container can make with the run's token and its RunPod job."""

    def __init__(self, job: dict[str, Any], http: httpx.AsyncClient) -> None:
        self.job = job
        self.run_id: str = job["input"]["run_id"]
        self.execution_id = str(uuid4())
        self._channel: dict[str, str] = job["input"]["channel"]
        self._http = http

    async def call(self, function: str, **arguments: Any) -> Any:
        """Call a database function with the run's token; None if it was refused."""
        answer = await self._http.post(
            f"{self._channel['url']}/rest/v1/rpc/{function}",
            headers={"apikey": self._channel["key"]},
            json={"token": self._channel["token"], "execution_id": self.execution_id, **arguments},
        )
        return answer.json() if answer.is_success else None

    async def check_in(self) -> None:
        """Check in as the trainer does."""
        await self.call("check_in_run", external_job_id=self.job["id"])

    async def show(self, progress: dict[str, Any]) -> None:
        """Post a progress output to RunPod."""
        from runpod.http_client import AsyncClientSession
        from runpod.serverless.modules import rp_http

        async with AsyncClientSession() as session:
            await rp_http.send_result(session, {"status": "IN_PROGRESS", "output": progress}, self.job)

    async def publish(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Upload one file and a manifest that lists it; the manifest."""
        file = {
            "name": "adapter_model.safetensors",
            "path": "adapter_model.safetensors",
            "bytes": len(_FILE),
            "sha256": hashlib.sha256(_FILE).hexdigest(),
        }
        await self.call("request_upload", files=[file])
        while not (grant := await self.call("upload_grant") or {}).get("granted"):
            await asyncio.sleep(0.2)
        urls = open_urls(self._channel["token"], grant["sealed"])
        whole = {
            "protocol": 1,
            "job_id": self.job["input"]["job_id"],
            "run_id": self.run_id,
            "files": [file],
            "application": applied(file["sha256"]),
            **manifest,
        }
        await self._put(urls["adapter_model.safetensors"], _FILE, "application/octet-stream")
        # `json.dumps` writes `Infinity` and `NaN`, which are not JSON.
        await self._put(urls["manifest.json"], json.dumps(whole).encode(), "application/json")
        return whole

    async def _put(self, url: str, content: bytes, kind: str) -> None:
        answer = await self._http.put(url, content=content, headers={"content-type": kind, "x-upsert": "true"})
        answer.raise_for_status()


_INVENTED_GAIN = {
    "base": {"loss": 2.0, "token_accuracy": 0.5, "tokens": 100},
    "tuned": {"loss": 1.9, "token_accuracy": 0.5, "tokens": 100},
    "conversations": 10,
    "gain": 1e5,
    "gain_low": 9e4,
    "gain_high": 2e5,
}
"""A gain that no conversations with these losses have."""


def _point(**numbers: Any) -> dict[str, Any]:
    return {"step": 1, "epoch": 1, "training_loss": 2.0, **numbers}


async def _claim_a_long_bill(container: Container) -> dict[str, Any]:
    await container.check_in()
    claimed = {
        "execution_seconds": _ENDLESS_SECONDS,
        "train_seconds": _ENDLESS_SECONDS,
        "gpu_type": "NVIDIA B200",
        "gpu_count": 64,
    }
    manifest = await container.publish({"summary": claimed, "points": [_point()]})
    return {"run_id": container.run_id, "status": "completed", "manifest": manifest, "summary": claimed}


async def _publish_impossible_numbers(container: Container) -> dict[str, Any]:
    await container.check_in()
    summary = {
        "execution_seconds": float("inf"),
        "train_seconds": float("nan"),
        "total_steps": _MOST_STEPS,
        "epochs_completed": 1e300,
        "notes": ["A note."] * 10_000,
    }
    await container.publish(
        {
            "summary": summary,
            "metrics": {"final_training_loss": float("nan"), "final_validation_loss": 1e300},
            "evaluation": {"held_out": _INVENTED_GAIN, "general_change_percent": float("-inf")},
            "serving": {"name": "../" + _MUCH_TEXT[:100_000], "folder": "/"},
            "points": [_point(timestamp=1e30), _point(step=_MOST_STEPS, epoch=1e300, training_loss=float("inf"))],
        }
    )
    return {"run_id": container.run_id, "status": "completed"}


async def _report_impossible_progress(container: Container) -> dict[str, Any]:
    await container.check_in()
    for progress in (
        {"current_step": _MOST_STEPS, "total_steps": _MOST_STEPS, "current_epoch": 1e300},
        {"eta_seconds": "Infinity", "points": [_point(timestamp=1e30)]},
        {"metrics": {"training_loss": "NaN"}, "points": [_point(step=_MOST_STEPS)] * 1000},
        {"message": _MUCH_TEXT},
    ):
        common = {"run_id": container.run_id, "proves": True, "stage": "training", "progress": 50, "total_steps": 10}
        await container.show({**common, **progress})
        await asyncio.sleep(1)
    return {"run_id": container.run_id, "status": "failed", "error": {"code": "internal", "message": "y" * 3000}}


async def _name_foreign_files(container: Container) -> dict[str, Any]:
    # It never checks in: the earlier trainer does not, either.
    port = container.job["input"]["channel"]["url"].rpartition(":")[2]
    files = {"../../adapter.safetensors": f"http://127.0.0.1:{port}/rest/v1/", "b": "http://169.254.169.254/latest"}
    return {"status": "success", "model_files": files, "model_metadata": {"final_loss": 1.0}}


async def _invent_ids(container: Container) -> dict[str, Any]:
    for _ in range(_INVENTED_IDS):
        await container.call("check_in_run", external_job_id=uuid4().hex)
    await container.check_in()
    container.execution_id = "not an id"
    await container.check_in()
    await container.call("request_upload", files=[_MUCH_TEXT])
    await container.call("check_in_run", external_job_id=_MUCH_TEXT)
    error = {"code": "internal", "message": "It is over."}
    return {"run_id": container.run_id, "status": "failed", "error": "over", "failure": error}


async def _publish_a_huge_manifest(container: Container) -> dict[str, Any]:
    await container.check_in()
    await container.publish({"summary": {"notes": [_MUCH_TEXT] * 3}})
    return {"run_id": container.run_id, "status": "completed"}


async def _publish_without_proof(container: Container) -> dict[str, Any]:
    await container.check_in()
    await container.publish({"application": None})
    return {"run_id": container.run_id, "status": "completed"}


async def _publish_another_proof(container: Container) -> dict[str, Any]:
    await container.check_in()
    await container.publish({"application": applied(hashlib.sha256(b"another adapter").hexdigest())})
    return {"run_id": container.run_id, "status": "completed"}


_CONTAINERS: dict[int, Callable[[Container], Awaitable[dict[str, Any]]]] = {
    Lie.LONG_BILL: _claim_a_long_bill,
    Lie.IMPOSSIBLE_NUMBERS: _publish_impossible_numbers,
    Lie.IMPOSSIBLE_PROGRESS: _report_impossible_progress,
    Lie.FOREIGN_FILES: _name_foreign_files,
    Lie.INVENTED_IDS: _invent_ids,
    Lie.HUGE_MANIFEST: _publish_a_huge_manifest,
    Lie.NO_PROOF: _publish_without_proof,
    Lie.PROOF_OF_ANOTHER: _publish_another_proof,
}


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Handle a job honestly, unless its seed is one of `Lie`."""
    hyperparameters = job["input"].get("hyperparameters", {})
    lie = _CONTAINERS.get(hyperparameters.get("seed"))
    if lie is None:
        return await _honest(job)
    async with httpx.AsyncClient(timeout=60) as http:
        return await lie(Container(job, http))


if __name__ == "__main__":
    lora_trainer.handler.handler = handler
    lora_trainer.handler.main()
