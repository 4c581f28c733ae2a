"""Endpoints that are created through the REST API run jobs, follow their configuration, and show workers and logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from sandbox.runpod import LocalRunPod
from tests.integration.local_runpod.caller import HANDLER, RestCaller
from tests.processes.waiting import awaited, until

IMAGES = {"errands:1": HANDLER, "errands:2": HANDLER, "broken:1": "tests.handlers.fails_at_import"}


@pytest.fixture(scope="module")
def runpod() -> Iterator[LocalRunPod]:
    with LocalRunPod.start(handler_module=HANDLER, workers_max=0, images=IMAGES) as runpod:
        yield runpod


@pytest.fixture
def rest(runpod: LocalRunPod) -> Iterator[RestCaller]:
    with closing(RestCaller(runpod)) as rest:
        before = {one["id"] for one in rest.call("GET", "/serverless")["endpoints"]}
        yield rest
        for one in rest.call("GET", "/serverless")["endpoints"]:
            if one["id"] not in before:
                rest.call("DELETE", f"/serverless/{one['id']}")


def lines_of(rest: RestCaller, endpoint_id: str, worker_id: str, **parameters: Any) -> Iterator[dict[str, str]]:
    """The events of a worker's log, as they come."""
    path = f"/serverless/{endpoint_id}/workers/{worker_id}/logs"
    with rest.http.stream("GET", path, **parameters) as answer:
        answer.raise_for_status()
        assert answer.headers["content-type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            event |= {name: value} if name else {}
            if not name:
                yield {"id": event["id"], **json.loads(event["data"])}
                event = {}


def line_with(text: str, *of: Any, **parameters: Any) -> dict[str, str]:
    with closing(lines_of(*of, **parameters)) as lines:
        return next(line for line in lines if text in line["line"])


class TestJobs:
    def test_a_created_endpoint_runs_jobs_with_its_environment(self, rest: RestCaller) -> None:
        volume = rest.call("POST", "/network-volumes", {"name": "v", "size": 10, "dataCenter": "EU-RO-1"})
        made = rest.create_endpoint(env={"SET_BY_ENDPOINT": "1"}, networkVolumes=[volume["id"]])
        jobs = rest.jobs_of(made["id"])
        names = jobs.until(jobs.run("environment"), "COMPLETED")["output"]
        assert {"SET_BY_ENDPOINT", "LORA_TRAINER_VOLUME", "RUNPOD_VOLUME_ID"} <= set(names)
        worker = rest.until_worker(made["id"], "IDLE")
        assert (worker["gpuTypeId"], worker["dataCenterId"]) == ("NVIDIA L4", "EU-RO-1")
        assert (worker["image"], worker["isStale"], worker["gpuCount"]) == ("errands:1", False, 1)
        rest.call("DELETE", f"/serverless/{made['id']}")
        rest.call("DELETE", f"/network-volumes/{volume['id']}")

    def test_jobs_of_an_endpoint_are_unknown_to_another(self, rest: RestCaller) -> None:
        first, second = rest.create_endpoint(workers={"max": 0}), rest.create_endpoint(workers={"max": 0})
        job_id = rest.jobs_of(first["id"]).run("answer")
        assert rest.jobs_of(second["id"]).http.get(f"/status/{job_id}").status_code == 404
        assert [orphan.job_id for orphan in rest.runpod.orphans()] == [job_id]

    def test_deleting_an_endpoint_ends_its_jobs_and_workers(self, rest: RestCaller) -> None:
        made = rest.create_endpoint()
        jobs = rest.jobs_of(made["id"])
        worker_id = jobs.until_output(jobs.run("report_and_wait"))["workerId"]
        rest.call("DELETE", f"/serverless/{made['id']}")
        assert jobs.http.get("/health").json() == {"detail": "endpoint not found"}
        until(lambda: worker_id not in rest.runpod.workers(), "its worker has ended")
        assert rest.runpod.orphans() == []

    def test_a_job_without_a_policy_has_the_endpoints_timeout(self, rest: RestCaller) -> None:
        made = rest.create_endpoint(timeout=60_000)
        jobs = rest.jobs_of(made["id"])
        job_id = jobs.run("report_and_wait")
        jobs.until_output(job_id)
        rest.runpod.advance(61)
        assert jobs.status(job_id)["error"] == "executionTimeout exceeded"

    def test_the_endpoint_of_the_console_is_in_the_account(self, rest: RestCaller) -> None:
        shown = rest.call("GET", "/serverless/local")
        assert shown["requestUrls"]["run"] == f"{rest.runpod.api_url}/run"
        rest.runpod.set_workers(max_workers=1)
        assert rest.call("GET", "/serverless/local")["workers"]["max"] == 1
        rest.call("PATCH", "/serverless/local", {"workers": {"max": 0}})
        assert rest.jobs_of("local").http.get("/health").json()["workers"]["idle"] == 0


class TestConfiguration:
    def test_a_new_image_replaces_idle_workers_and_leaves_busy_ones(self, rest: RestCaller) -> None:
        made = rest.create_endpoint(workers={"min": 1, "max": 1})
        idle = rest.until_worker(made["id"], "IDLE")
        rest.call("PATCH", f"/serverless/{made['id']}", {"image": "errands:2"})
        until(lambda: idle["id"] not in rest.runpod.workers(), "the idle worker was replaced")
        jobs = rest.jobs_of(made["id"])
        jobs.until_output(job_id := jobs.run("report_and_wait"))
        rest.call("PATCH", f"/serverless/{made['id']}", {"env": {"A": "1"}})
        busy = rest.until_worker(made["id"], "RUNNING")
        assert (busy["image"], busy["isStale"], busy["version"]) == ("errands:2", True, 2)
        releases = rest.call("GET", f"/serverless/{made['id']}/releases")
        assert releases["rollout"]["inProgress"]
        assert [release["version"] for release in releases["releases"]] == [3, 2, 1]
        jobs.cancel(job_id)
        until(lambda: busy["id"] not in rest.runpod.workers(), "the stale worker ended after its job")

    def test_without_stock_the_workers_are_throttled(self, rest: RestCaller) -> None:
        rest.runpod.set_stock("HOPPER_141", "NONE")
        made = rest.create_endpoint(gpu={"pools": ["HOPPER_141"]}, workers={"max": 2})
        jobs = rest.jobs_of(made["id"])
        jobs.run("answer", **{"with": 1})
        assert rest.until_worker(made["id"], "THROTTLED")["gpuTypeId"] is None
        assert jobs.http.get("/health").json()["workers"]["throttled"] == 2
        rest.runpod.set_stock("HOPPER_141", "LOW")
        assert rest.until_worker(made["id"], "IDLE")["gpuTypeId"] == "NVIDIA H200"

    def test_workers_end_after_the_idle_timeout(self, rest: RestCaller) -> None:
        made = rest.create_endpoint(workers={"idleTimeout": 1})
        jobs = rest.jobs_of(made["id"])
        jobs.until(jobs.run("answer", **{"with": 1}), "COMPLETED")
        until(lambda: rest.workers(made["id"]) == [], "the idle worker ended")

    def test_an_image_that_cannot_be_pulled_never_gets_ready(self, rest: RestCaller) -> None:
        made = rest.create_endpoint(image="errands:typo")
        rest.jobs_of(made["id"]).run("answer")
        worker = rest.until_worker(made["id"], "INITIALIZING")
        assert worker["startedAt"] is None
        assert line_with("errands:typo failed", rest, made["id"], worker["id"])["source"] == "system"


class TestLogs:
    def test_the_log_says_why_an_image_broke_at_import(self, rest: RestCaller) -> None:
        made = rest.create_endpoint(image="broken:1")
        rest.jobs_of(made["id"]).run("answer")
        worker = rest.until_worker(made["id"], "UNHEALTHY")
        line = line_with("Error", rest, made["id"], worker["id"], params={"source": "container"})
        assert line["source"] == "container"
        assert line_with("container ended", rest, made["id"], worker["id"])["source"] == "system"

    def test_a_log_is_dropped_two_minutes_after_the_worker_ended(self, rest: RestCaller) -> None:
        made = rest.create_endpoint()
        jobs = rest.jobs_of(made["id"])
        jobs.until_output(jobs.run("report_and_wait"))
        worker = rest.until_worker(made["id"], "RUNNING")
        rest.call("PATCH", f"/serverless/{made['id']}", {"workers": {"max": 0}})
        rest.runpod.kill_worker(worker["id"])
        until(lambda: worker["id"] not in rest.runpod.workers(), "the worker has ended")
        with closing(lines_of(rest, made["id"], worker["id"])) as lines:
            assert next(line for line in lines if "ended" in line["line"])
            rest.runpod.advance(121)
            assert list(lines) == []
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            line_with("", rest, made["id"], worker["id"])

    def test_a_reader_gets_the_last_lines_new_ones_and_goes_on(self, rest: RestCaller) -> None:
        made = rest.create_endpoint()
        jobs = rest.jobs_of(made["id"])
        jobs.until(jobs.run("print", lines=["one", "two"]), "COMPLETED")
        worker_id = rest.until_worker(made["id"], "IDLE")["id"]
        of = (rest, made["id"], worker_id)
        two = line_with("two", *of)
        with closing(lines_of(*of, params={"tail": 0})) as lines:
            jobs.run("print", lines=["three"])
            assert next(line for line in lines if "three" in line["line"])
        behind = {"headers": {"last-event-id": two["id"]}}
        with closing(lines_of(*of, **behind, params={"source": "container"})) as lines:
            read = [next(lines)["line"]]
            while "three" not in read[-1]:
                read.append(next(lines)["line"])
        assert not any("one" in line or "two" in line for line in read)
        since = {"params": {"since": two["ts"], "source": "container"}}
        assert awaited(lambda: line_with("two", *of, **since), "the line of that second") == two

    @pytest.mark.parametrize(
        ("parameters", "status"), [({"tail": 5001}, 422), ({"since": "yesterday"}, 422), ({"follow": 1}, 400)]
    )
    def test_unknown_parameters_of_a_log_are_refused(
        self, rest: RestCaller, parameters: dict[str, Any], status: int
    ) -> None:
        made = rest.create_endpoint(workers={"min": 1, "max": 1})
        worker_id = awaited(lambda: rest.workers(made["id"]) or None, "a worker")[0]["id"]
        path = f"/serverless/{made['id']}/workers/{worker_id}/logs"
        assert rest.http.get(path, params=parameters).status_code == status
