"""An account at RunPod in memory: what the REST API v2 keeps of requests, with faults that a test sets.

It knows no rules of RunPod; the emulator in sandbox/ refuses what RunPod refuses.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.runpod_rest import faults_of_request

CATALOG = [
    {"id": "NVIDIA A100 80GB PCIe", "name": "A100 PCIe", "pool": "AMPERE_80", "memory": 80,
     "price": {"serverless": 2.74}, "availability": "MEDIUM"},
    {"id": "NVIDIA A100-SXM4-80GB", "name": "A100 SXM", "pool": "AMPERE_80", "memory": 80,
     "price": {"serverless": 2.74}, "availability": "LOW"},
    {"id": "NVIDIA H100 80GB HBM3", "name": "H100 SXM", "pool": "ADA_80_PRO", "memory": 80,
     "price": {"serverless": 4.18}, "availability": "HIGH",
     "dataCenters": [{"id": "EU-RO-1", "name": "", "availability": "LOW"}]},
    {"id": "NVIDIA L4", "name": "L4", "pool": None, "memory": 24, "price": {"secure": 1}},
]  # fmt: skip
CENTERS = [{"id": "EU-RO-1", "networkVolumeTypes": ["STANDARD"]}, {"id": "US-KS-2", "networkVolumeTypes": ["STANDARD"]}]
KINDS = {"serverless": "endpoints", "network-volumes": "networkVolumes", "registries": "registries"}


@dataclass(frozen=True)
class Fault:
    """A call to spoil, such as “POST serverless”."""

    call: str
    status: int
    carried_out: bool
    """The call is carried out before, so that only its answer is lost."""
    then: str
    """A call that fails from then on."""


@dataclass
class Account:
    """Resources by kind and id. Call it as httpx calls a transport."""

    items: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    releases: dict[str, int] = field(default_factory=dict)
    """The number of each endpoint's release, as far as it was changed."""
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def fail(self, call: str, status: int, *, carried_out: bool = False, times: int = 1, then: str = "") -> None:
        self.faults.extend([Fault(call, status, carried_out, then)] * times)

    @property
    def endpoints(self) -> dict[str, dict[str, Any]]:
        return self.items["serverless"]

    @property
    def volumes(self) -> dict[str, dict[str, Any]]:
        return self.items["network-volumes"]

    @property
    def writes(self) -> list[str]:
        """The calls so far that may have changed something, without ids."""
        return [f"{method} {path.split('/')[2]}" for method, path in self.requests if method != "GET"]

    def add(self, kind: str, **fields: Any) -> str:
        """Put a resource there, as somebody else would, and return its id."""
        key = f"{kind[:2]}{next(self._numbers)}"
        self.items[kind][key] = {"id": key, **fields}
        return key

    def change(self, kind: str, key: str, **fields: Any) -> None:
        """Change a resource, as anybody may; each that differs makes a release of an endpoint."""
        before = dict(self.items[kind][key])
        self.items[kind][key].update(fields)
        if self.items[kind][key] != before:
            self.releases[key] = self.releases.get(key, 1) + 1

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        assert faults_of_request(request.method, str(request.url), body) == []
        self.requests.append((request.method, request.url.path))
        call = f"{request.method} {request.url.path.split('/')[2]}"
        found = next((fault for fault in self.faults if fault.call == call), None)
        if found is None:
            return self._answer(request)
        self.faults.remove(found)
        if found.carried_out:
            self._answer(request)
        if found.then:
            self.fail(found.then, 500, times=20)
        return httpx.Response(found.status, json={"title": "A fault", "detail": "made by the test"})

    def _answer(self, request: httpx.Request) -> httpx.Response:
        _, _, kind, *rest = request.url.path.split("/")
        if kind == "catalog":
            return httpx.Response(200, json={"gpus": CATALOG, "dataCenters": CENTERS})
        if rest[1:] == ["workers"]:
            return httpx.Response(200, json={"workers": [{"id": "w1", "status": "RUNNING", "isStale": False}]})
        if rest[1:] == ["releases"]:
            return httpx.Response(200, json={"endpointVersion": self.releases.get(rest[0], 1), "releases": []})
        body = json.loads(request.content) if request.content else {}
        if request.method == "POST":
            key = self.add(kind, **body)
            self._complete(kind, self.items[kind][key])
            return httpx.Response(201, json=self.items[kind][key])
        if not rest:
            return httpx.Response(200, json={KINDS[kind]: list(self.items[kind].values())})
        if rest[0] not in self.items[kind]:
            return httpx.Response(404, json={"title": "Not Found", "detail": "gone"})
        if request.method == "DELETE":
            del self.items[kind][rest[0]]
            return httpx.Response(204)
        self.change(kind, rest[0], **body)
        return httpx.Response(200, json=self.items[kind][rest[0]])

    @staticmethod
    def _complete(kind: str, made: dict[str, Any]) -> None:
        if kind == "serverless":
            made["requestUrls"] = {"run": f"https://api.runpod.ai/v2/{made['id']}/run"}
