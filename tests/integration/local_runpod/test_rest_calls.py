"""The REST API over HTTP: who may call it, how it refuses, and what its faults do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sandbox.runpod import Fault, LocalRunPod, Rights
from tests.integration.local_runpod.caller import ENDPOINT, HANDLER, RestCaller, faults_of
from tests.runpod_rest import operations

VOLUME = {"name": "models", "size": 20, "dataCenter": "EU-RO-1"}


@pytest.fixture(scope="module")
def runpod() -> Iterator[LocalRunPod]:
    with LocalRunPod.start(handler_module=HANDLER, workers_max=0, clock=lambda: 1_764_000_000) as runpod:
        yield runpod


def client(runpod: LocalRunPod, key: str | None = None) -> httpx.Client:
    return RestCaller(runpod, key).http


@pytest.fixture
def http(runpod: LocalRunPod) -> Iterator[httpx.Client]:
    with client(runpod) as http:
        yield http
        runpod.faults.clear()
        for name, key in (("serverless", "endpoints"), ("network-volumes", "networkVolumes")):
            for one in http.get(f"/{name}").json()[key]:
                http.delete(f"/{name}/{one['id']}").raise_for_status()


class TestKeys:
    def test_without_a_valid_key_nothing_is_answered(self, runpod: LocalRunPod) -> None:
        revoked = runpod.add_key()
        runpod.revoke_key(revoked)
        for key in ("wrong", revoked):
            with client(runpod, key) as http:
                for answer in (http.get("/serverless"), http.post("/network-volumes", json=VOLUME)):
                    assert answer.status_code == 401
                    assert faults_of(answer) == []

    def test_a_reading_key_writes_nothing(self, runpod: LocalRunPod) -> None:
        key = runpod.add_key(Rights.READ)
        with client(runpod, key) as http:
            assert http.get("/network-volumes").json() == {"networkVolumes": []}
            refused = http.post("/network-volumes", json=VOLUME)
            assert (refused.status_code, faults_of(refused)) == (403, [])
        job = httpx.post(f"{runpod.api_url}/run", headers={"authorization": f"Bearer {key}"}, json={"input": {"a": 1}})
        assert job.status_code == 403

    def test_a_key_for_jobs_sees_nothing_of_the_account(self, runpod: LocalRunPod) -> None:
        key = runpod.add_key(Rights.JOBS)
        with client(runpod, key) as http:
            assert http.get("/serverless").status_code == 403
        health = httpx.get(f"{runpod.api_url}/health", headers={"authorization": f"Bearer {key}"})
        assert health.status_code == 200


class TestCalls:
    def test_what_is_created_is_listed_changed_and_deleted(self, http: httpx.Client) -> None:
        made = http.post("/network-volumes", json=VOLUME)
        assert made.status_code == 201
        path = f"/network-volumes/{made.json()['id']}"
        assert http.patch(path, json={"size": 30}).json()["size"] == 30
        assert http.get("/network-volumes").json() == {"networkVolumes": [http.get(path).json()]}
        gone = http.delete(path)
        assert (gone.status_code, gone.content) == (204, b"")
        assert http.get(path).status_code == 404

    @pytest.mark.parametrize(
        ("method", "path", "sent", "status"),
        [
            ("GET", "/serverless?page=2", {}, 400),
            ("GET", "/catalog/gpus?include=AVAILABILITY", {}, 400),
            ("GET", "/catalog/gpus?include=STOCK", {}, 422),
            ("GET", "/catalog/gpus/NVIDIA%20L5", {}, 404),
            ("GET", "/serverless/gone", {}, 404),
            ("POST", "/network-volumes", {"json": {**VOLUME, "region": "EU"}}, 422),
            ("POST", "/network-volumes", {"json": {**VOLUME, "size": "20"}}, 422),
            ("POST", "/network-volumes", {"content": b"{", "headers": {"content-type": "application/json"}}, 400),
            ("POST", "/network-volumes", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415),
            ("POST", "/serverless", {"json": {**ENDPOINT, "networkVolumes": ["gone"]}}, 400),
        ],
    )
    def test_refusals_have_their_status_and_shape(
        self, http: httpx.Client, method: str, path: str, sent: dict[str, Any], status: int
    ) -> None:
        answer = http.request(method, path, **sent)
        assert (answer.status_code, faults_of(answer)) == (status, [])
        assert answer.json()["status"] == status

    def test_unknown_paths_and_methods_are_problems_too(self, http: httpx.Client) -> None:
        assert http.get("/endpoints").status_code == 404
        answer = http.put("/serverless", json={})
        assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")

    def test_every_answer_tells_the_quota(self, http: httpx.Client) -> None:
        answer = http.get("/registries")
        assert answer.headers["ratelimit-policy"] == '"minute";q=600;w=60, "hour";q=36000;w=3600'
        assert answer.headers["ratelimit"].startswith('"minute";r=')

    def test_too_many_calls_are_refused_until_a_minute_is_over(self) -> None:
        with (
            LocalRunPod.start(handler_module=HANDLER, rest_calls_per_minute=1, clock=lambda: 0) as runpod,
            client(runpod) as http,
        ):
            http.get("/templates").raise_for_status()
            refused = http.get("/templates")
            assert (refused.status_code, refused.headers["retry-after"], faults_of(refused)) == (429, "60", [])
            runpod.advance(60)
            http.get("/templates").raise_for_status()


class TestFaults:
    @pytest.mark.parametrize("name", operations())
    def test_every_operation_of_the_description_is_served_and_can_fail(
        self, runpod: LocalRunPod, http: httpx.Client, name: str
    ) -> None:
        method, path = operations()[name]
        fault = Fault.model_validate({"operation": name, "action": "respond", "status": 503})
        number = runpod.faults.arm(fault)
        assert http.request(method, f"/{path}").status_code == 503
        assert runpod.faults.hits(number) == 1

    def test_a_write_can_fail_before_it_is_carried_out(self, runpod: LocalRunPod, http: httpx.Client) -> None:
        runpod.faults.add("createNetworkVolume", "respond", status=500)
        answer = http.post("/network-volumes", json=VOLUME)
        assert (answer.status_code, faults_of(answer)) == (500, [])
        assert http.get("/network-volumes").json() == {"networkVolumes": []}

    @pytest.mark.parametrize("action", ["respond_after", "drop_answer"])
    def test_a_write_can_be_carried_out_and_its_answer_lost(
        self, runpod: LocalRunPod, http: httpx.Client, action: str
    ) -> None:
        runpod.faults.add("createNetworkVolume", action, status=502, body="html")
        try:
            assert http.post("/network-volumes", json=VOLUME).status_code == 502
        except httpx.TransportError:
            assert action == "drop_answer"
        assert len(http.get("/network-volumes").json()["networkVolumes"]) == 1

    def test_the_ledger_has_every_write_and_no_password(self, runpod: LocalRunPod, http: httpx.Client) -> None:
        before = len(runpod.ledger.writes)
        runpod.faults.add("createRegistry", "respond", status=503)
        registry = {"name": "r", "username": "somebody", "password": "hunter2"}
        http.post("/registries", json=registry)
        made = http.post("/registries", json=registry).json()
        http.delete(f"/registries/{made['id']}")
        http.delete(f"/registries/{made['id']}")
        written = [(write.operation, write.status) for write in runpod.ledger.writes[before:]]
        assert written == [("createRegistry", 201), ("deleteRegistry", 204), ("deleteRegistry", 404)]
        assert "hunter2" not in repr(runpod.ledger.writes)
