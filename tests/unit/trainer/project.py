"""A Supabase project in memory as the trainer sees it: three functions, a dataset, upload URLs."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import httpx
import respx

from lora_contract.grants import seal_urls

TOKEN = "t" * 43
URL = "https://project.example"
DATASET = b'{"messages": []}\n'


class FakeProject:
    """Returns the answers that a test sets, and records calls and uploads."""

    def __init__(self, router: respx.MockRouter) -> None:
        self.router = router
        self.check_ins: list[dict[str, Any]] = []
        self.refusal: str | None = None
        self.heartbeats: list[dict[str, Any]] = []
        """The progress that was stored with each heartbeat."""
        self.heartbeat_fault: httpx.Response | None = None
        """What `heartbeat_run` answers instead, as a database of an earlier release does."""
        self.results: list[dict[str, Any]] = []
        """The calls of `finish_run`."""
        self.finish_fault: httpx.Response | None = None
        """What `finish_run` answers instead."""
        self.check_in_answers: list[httpx.Response] = []
        """Answers to the next check-ins, before `refusal` applies."""
        self.grants_after = 0
        self.upload_statuses: dict[str, list[int | httpx.Response]] = {}
        """Answers to uploads before one is accepted: a status, or an error body of Storage."""
        self.urls_live_seconds: int | None = None
        self.renewals = 0
        self.uploads: dict[str, bytes] = {}
        self.upload_order: list[str] = []
        self.upload_headers: dict[str, httpx.Headers] = {}
        self.requested: list[dict[str, Any]] = []
        self.dataset = DATASET
        rpc = f"{URL}/rest/v1/rpc"
        router.post(f"{rpc}/check_in_run").mock(side_effect=self._check_in)
        router.post(f"{rpc}/heartbeat_run").mock(side_effect=self._heartbeat)
        router.post(f"{rpc}/finish_run").mock(side_effect=self._finish)
        router.post(f"{rpc}/request_upload").mock(side_effect=self._request_upload)
        router.post(f"{rpc}/upload_grant").mock(side_effect=self._grant)
        router.get(f"{URL}/dataset").mock(side_effect=lambda request: httpx.Response(200, content=self.dataset))
        router.put(url__startswith=f"{URL}/upload/").mock(side_effect=self._upload)

    def _check_in(self, request: httpx.Request) -> httpx.Response:
        self.check_ins.append(json.loads(request.content))
        if self.check_in_answers:
            return self.check_in_answers.pop(0)
        reason = self.refusal or "ok"
        return httpx.Response(200, json={"may_train": self.refusal is None, "reason": reason})

    def _heartbeat(self, request: httpx.Request) -> httpx.Response:
        if self.heartbeat_fault is not None:
            return self.heartbeat_fault
        if self.check_in_answers:
            return self.check_in_answers.pop(0)
        answer = self._check_in(request).json()
        if answer["may_train"]:
            self.heartbeats.append(json.loads(request.content)["progress"])
        return httpx.Response(200, json={**answer, "progress_stored": answer["may_train"]})

    def _finish(self, request: httpx.Request) -> httpx.Response:
        if self.finish_fault is not None:
            return self.finish_fault
        self.results.append(json.loads(request.content))
        return httpx.Response(200, json={"may_train": True, "reason": "ok", "result_stored": True})

    def _request_upload(self, request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        self.requested = asked["files"]
        self.renewals += asked["renew"]
        return httpx.Response(200, json={"ok": True, "reason": None})

    def _grant(self, request: httpx.Request) -> httpx.Response:
        if self.grants_after > 0:
            self.grants_after -= 1
            return httpx.Response(200, json={"granted": False, "sealed": None})
        paths = [file["path"] for file in self.requested] + ["manifest.json"]
        token = "signed"
        if self.urls_live_seconds is not None:
            claims = json.dumps({"iat": 0, "exp": self.urls_live_seconds}).encode()
            token = f"h.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.s"
        sealed = seal_urls(TOKEN, {path: f"{URL}/upload/{path}?token={token}" for path in paths})
        return httpx.Response(200, json={"granted": True, "sealed": sealed})

    async def _upload(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/upload/")
        if statuses := self.upload_statuses.get(path):
            answer = statuses.pop(0)
            return httpx.Response(answer) if isinstance(answer, int) else answer
        self.uploads[path] = await request.aread()
        self.upload_order.append(path)
        self.upload_headers[path] = request.headers
        return httpx.Response(200, json={})


def request_input(**changes: Any) -> dict[str, Any]:
    """The `input` of a launch."""
    return {
        "protocol": 1,
        "job_id": "job-1",
        "run_id": "run-1",
        "dataset": {
            "url": f"{URL}/dataset",
            "sha256": hashlib.sha256(DATASET).hexdigest(),
            "bytes": len(DATASET),
        },
        "hyperparameters": {"base_model": "tiny", "epochs": 1},
        "gpu_config": {"type": "A100-80GB", "count": 1},
        "channel": {"url": URL, "key": "sb_publishable_x", "token": TOKEN},
        "output": {"bucket": "lora-models", "prefix": "user/run-1/"},
        "limits": {"max_seconds": 600, "grant_wait_seconds": 5},
        **changes,
    }


def refusal(status: str, code: str, message: str = "") -> httpx.Response:
    """The answer of Storage to a refused request: HTTP 400, with the real status in the body."""
    body = {"statusCode": status, "code": code, "error": code, "message": message or code}
    return httpx.Response(400, json=body)
