"""Nobody without the key learns or starts anything, and no request is larger or odder than may be."""

from __future__ import annotations

from typing import Any

import pytest

from lora_worker.gpu_server import jobs as jobs_module
from lora_worker.launchers.http_launcher import MAX_REQUEST_BYTES
from tests.unit.worker.gpu_server.conftest import Serving, dumped

GUARDED = [
    ("POST", "/training/submit"), ("GET", "/training/status/job-1"), ("POST", "/training/cancel/job-1"),
    ("GET", "/training/logs/job-1"), ("GET", "/health"), ("GET", "/metrics"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic " + "k" * 32, "Bearer " + "é" * 16])
async def test_without_the_key_nothing_is_answered(
    serving: Serving, method: str, path: str, header: str | None
) -> None:
    async with serving() as server:
        headers = [] if header is None else [(b"authorization", header.encode())]
        server.http.headers.pop("authorization")
        answer = await server.http.request(method, path, headers=headers, content=b"{}")
        assert answer.status_code == 401
        assert list(answer.json()) == ["error"]


async def test_whoever_asks_learns_only_that_it_lives(serving: Serving) -> None:
    async with serving() as server:
        server.http.headers.pop("authorization")
        assert (await server.http.get("/healthz")).text == "ok\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the request is not a JSON object"), (b"[]", "the request: must be an object"),
        (b"{}", "input: is missing"),
        (b'{"input": []}', "input"), (b'{"input": {"run_id": 7}}', "input.run_id"),
        (dumped({"input": {"run_id": "r" * 401}}), "input.run_id"),
        (b'{"input": {}, "policy": {"execution_seconds": NaN}}', "the request is not a JSON object"),
        (b'{"input": {}, "policy": {"execution_seconds": -1}}', "policy.execution_seconds"),
        (b'{"input": {}, "policy": {"ttl_seconds": 1e300}}', "policy.ttl_seconds"),
        (b'{"input": {}, "webhook": "http://10.0.0.1/"}', "webhook: must be an address that begins with https://"),
        (dumped({"input": {}, "webhook": "https://" + "x" * 500}), "webhook"),
        (b"[" * 100_000, "the request is not a JSON object"),
    ],
)  # fmt: skip
async def test_request_that_is_none_is_refused_by_its_key(serving: Serving, body: bytes, said: str) -> None:
    async with serving() as server:
        answer = await server.http.post("/training/submit", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(said)


async def test_request_that_is_too_large_is_not_stored(serving: Serving) -> None:
    async with serving() as server:
        answer = await server.http.post("/training/submit", content=b"x" * (MAX_REQUEST_BYTES + 1))
        assert answer.status_code == 413


async def test_full_queue_asks_to_come_again(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_QUEUED", 0)
    async with serving() as server:
        answer = await server.http.post("/training/submit", json={"input": {"run_id": "r"}})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")


@pytest.mark.parametrize("name", ["nothing", "job-1'; drop table jobs; --", "..%2f..%2fetc", "x" * 9000])
async def test_unknown_job_is_not_found(serving: Serving, name: str) -> None:
    async with serving() as server:
        for method, path in (("GET", "status"), ("POST", "cancel"), ("GET", "logs")):
            assert (await server.http.request(method, f"/training/{path}/{name}")).status_code == 404


async def test_status_has_the_keys_of_the_contract(serving: Serving) -> None:
    async with serving() as server:
        job_id = await server.submit("linger")
        seen: dict[str, Any] = await server.trains(job_id)
        contract = ("status", "progress", "current_epoch", "current_step", "stage", "metrics")
        assert [seen[key] for key in contract] == ["running", 50, 1, 5, "training", {}]
        await server.http.post(f"/training/cancel/{job_id}")


async def test_what_a_trainer_printed_can_be_read(serving: Serving) -> None:
    async with serving() as server:
        job_id = await server.submit("complete")
        await server.ended(job_id)
        assert (await server.http.get(f"/training/logs/{job_id}")).text == "the trainer prints complete\n"


async def test_metrics_count_jobs_by_state(serving: Serving) -> None:
    async with serving(gpus=("0", "1")) as server:
        await server.ended(await server.submit("complete"))
        text = (await server.http.get("/metrics")).text
        assert "gpu_server_gpus 2.0" in text
        assert 'gpu_server_jobs{state="completed"} 1.0' in text
