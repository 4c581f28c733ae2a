"""The local RunPod with real workers of the official SDK: the facts that worker and trainer rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sandbox.errors import SandboxError
from sandbox.runpod import LocalRunPod, Outcome

HANDLER = "tests.handlers.errands"


class Caller:
    """A client of the public API, and a pair of eyes on it."""

    def __init__(self, runpod: LocalRunPod) -> None:
        self.runpod = runpod
        self.http = httpx.Client(
            base_url=runpod.api_url,
            headers={"authorization": f"Bearer {runpod.api_key}"},
            timeout=30,
            trust_env=False,
        )

    def run(self, do: str, policy: dict[str, int] | None = None, **rest: Any) -> str:
        body = {"input": {"do": do, **rest}, **({"policy": policy} if policy else {})}
        return self.http.post("/run", json=body).raise_for_status().json()["id"]

    def status(self, job_id: str) -> dict[str, Any]:
        return self.http.get(f"/status/{job_id}").raise_for_status().json()

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self.http.post(f"/cancel/{job_id}").raise_for_status().json()

    def until(self, job_id: str, *statuses: str) -> dict[str, Any]:
        return eventually(lambda: answer if (answer := self.status(job_id))["status"] in statuses else None)

    def until_output(self, job_id: str) -> dict[str, Any]:
        return eventually(lambda: answer if "output" in (answer := self.status(job_id)) else None)

    def outcomes(self, job_id: str) -> list[Outcome | None]:
        return [execution.outcome for execution in self.runpod.ledger.executions_of(job_id)]

    def until_done_with(self, job_id: str) -> list[Outcome | None]:
        """The outcomes of the job's executions, once there are some and all have ended."""
        return eventually(lambda: found if (found := self.outcomes(job_id)) and None not in found else None)


def eventually(probe: Callable[[], Any]) -> Any:
    """What the probe finds; pytest's time limit ends the wait."""
    while (found := probe()) is None:
        time.sleep(0.02)
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(*pids: int) -> bool | None:
    return None if any(is_alive(pid) for pid in pids) else True


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalRunPod]:
    with LocalRunPod.start(handler_module=HANDLER, workers_max=2, env={"SET_BY_TEMPLATE": "1"}) as runpod:
        yield runpod


@pytest.fixture
def caller(shared: LocalRunPod) -> Iterator[Caller]:
    caller = Caller(shared)
    with caller.http:
        yield caller
    shared.faults.clear()
    for execution in shared.orphans():
        shared.forget(execution.job_id)
    eventually(lambda: None if shared.orphans() else True)


def endpoint(**settings: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("own", [settings], indirect=True, ids=["own"])


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """A caller of an endpoint of the test's own, set up by `endpoint`."""
    with LocalRunPod.start(handler_module=HANDLER, **request.param) as runpod:
        caller = Caller(runpod)
        with caller.http:
            yield caller


class TestAnswers:
    def test_a_job_goes_from_the_queue_to_its_output(self, caller: Caller) -> None:
        accepted = caller.http.post("/run", json={"input": {"do": "answer", "with": {"x": 1}}}).json()
        assert accepted == {"id": accepted["id"], "status": "IN_QUEUE"}
        answer = caller.until(accepted["id"], "COMPLETED")
        assert answer.keys() == {"id", "status", "output", "delayTime", "executionTime", "workerId"}
        assert answer["output"] == {"x": 1}
        assert answer["workerId"] in caller.runpod.workers()

    def test_an_exception_of_the_handler_is_json_in_a_string(self, caller: Caller) -> None:
        answer = caller.until(caller.run("raise"), "FAILED")
        error = json.loads(answer["error"])
        assert (error["error_type"], error["error_message"]) == ("<class 'ValueError'>", "boom")

    def test_an_error_that_the_handler_returns_keeps_its_other_keys_in_the_output(self, caller: Caller) -> None:
        answer = caller.until(caller.run("answer", **{"with": {"error": "evicted", "step": 4}}), "FAILED")
        assert (answer["error"], answer["output"]) == ("evicted", {"step": 4})

    def test_an_empty_output_is_left_out(self, caller: Caller) -> None:
        assert "output" not in caller.until(caller.run("answer", **{"with": {}}), "COMPLETED")

    def test_runsync_answers_with_the_result(self, caller: Caller) -> None:
        answer = caller.http.post("/runsync", json={"input": {"do": "answer", "with": 7}}).json()
        assert (answer["status"], answer["output"]) == ("COMPLETED", 7)

    def test_health_counts_jobs_and_workers(self, caller: Caller) -> None:
        health = caller.http.get("/health").json()
        assert health["jobs"].keys() == {"completed", "failed", "inProgress", "inQueue", "retried"}
        states = {"idle", "initializing", "ready", "running", "throttled", "unhealthy"}
        assert health["workers"].keys() == states

    def test_a_result_with_nan_is_refused_as_it_is_no_json(self, caller: Caller) -> None:
        job_id = caller.run("answer_nan")
        assert caller.until_done_with(job_id) == [Outcome.RESULT_LOST]
        assert caller.status(job_id)["status"] == "IN_PROGRESS"

    def test_a_generator_streams_nothing_of_ours_but_the_route_answers(self, caller: Caller) -> None:
        job_id = caller.run("answer", **{"with": 1})
        caller.until(job_id, "COMPLETED")
        assert caller.http.get(f"/stream/{job_id}").json() == {"status": "COMPLETED", "stream": []}


class TestRefusals:
    def test_a_wrong_key_is_refused(self, caller: Caller) -> None:
        answer = httpx.get(f"{caller.runpod.api_url}/health", headers={"authorization": "Bearer wrong"})
        assert answer.status_code == 401

    def test_an_unknown_endpoint_is_not_found(self, caller: Caller) -> None:
        url = caller.runpod.api_url.replace("/v2/local", "/v2/other")
        assert caller.http.get(f"{url}/health").json() == {"detail": "endpoint not found"}

    @pytest.mark.parametrize("path", ["/status/x", "/stream/x"])
    def test_an_unknown_job_is_not_found(self, caller: Caller, path: str) -> None:
        assert caller.http.get(path).status_code == 404

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"input": 1}', b'{"input": {"x": NaN}}'])
    def test_a_body_that_is_no_request_is_refused(self, caller: Caller, body: bytes) -> None:
        assert caller.http.post("/run", content=body).status_code == 400

    def test_a_body_over_ten_megabytes_is_refused(self, caller: Caller) -> None:
        body = {"input": {"x": "x" * (10 * 1024 * 1024)}}
        assert caller.http.post("/run", json=body).status_code == 413

    @endpoint(workers_max=0, rate_limits={"status": 3}, retry_after_seconds=4)
    def test_too_many_calls_are_refused_until_the_window_has_passed(self, own: Caller) -> None:
        job_id = own.run("answer")
        codes = [own.http.get(f"/status/{job_id}").status_code for _ in range(4)]
        assert codes == [200, 200, 200, 429]
        assert own.http.get(f"/status/{job_id}").headers["retry-after"] == "4"
        own.runpod.advance(10)
        assert own.http.get(f"/status/{job_id}").status_code == 200


class TestProgress:
    def test_an_update_is_the_output_while_the_job_runs(self, caller: Caller) -> None:
        answer = caller.until_output(caller.run("report_and_wait"))
        assert (answer["status"], answer["output"]) == ("IN_PROGRESS", {"step": 1})

    def test_awaited_updates_never_overtake_the_result(self, caller: Caller) -> None:
        caller.runpod.faults.add("progress", "unguarded", times=None)
        job_id = caller.run("report", updates=[{"step": step} for step in range(30)])
        assert caller.until(job_id, "COMPLETED")["output"] == {"done": True}
        assert caller.until_done_with(job_id) == [Outcome.COMPLETED]
        assert caller.status(job_id)["status"] == "COMPLETED"

    def test_the_sdks_own_updates_overtake_the_result_and_hang_the_job(self, caller: Caller) -> None:
        unguarded = caller.runpod.faults.add("progress", "unguarded", times=None)
        job_id = caller.run("report_carelessly")
        eventually(lambda: caller.runpod.faults.hits(unguarded) or None)
        assert caller.until_done_with(job_id) == [Outcome.COMPLETED]
        assert caller.until(job_id, "IN_PROGRESS")["output"] == {"step": 1}

    def test_the_last_update_can_be_made_to_overwrite_the_result(self, caller: Caller) -> None:
        caller.runpod.faults.add("job-done", "late_progress")
        job_id = caller.run("report", updates=[{"step": 5}])
        assert caller.until_done_with(job_id) == [Outcome.COMPLETED]
        assert caller.status(job_id)["output"] == {"step": 5}


class TestEnding:
    def test_a_cancel_reaches_the_handler_and_frees_the_worker(self, caller: Caller) -> None:
        job_id = caller.run("report_and_wait")
        caller.until_output(job_id)
        assert caller.cancel(job_id) == {"id": job_id, "status": "CANCELLED"}
        assert caller.until_done_with(job_id) == [Outcome.STOPPED]
        assert caller.status(job_id)["status"] == "CANCELLED"

    def test_a_stop_that_is_lost_once_is_told_again(self, caller: Caller) -> None:
        caller.runpod.faults.add("job-stop", "respond", status=500, times=2)
        job_id = caller.run("report_and_wait")
        caller.until_output(job_id)
        caller.cancel(job_id)
        assert caller.until_done_with(job_id) == [Outcome.STOPPED]

    def test_the_execution_timeout_fails_the_job_and_stops_the_handler(self, caller: Caller) -> None:
        job_id = caller.run("report_and_wait", policy={"executionTimeout": 5_000})
        caller.until_output(job_id)
        caller.runpod.advance(5)
        answer = caller.status(job_id)
        assert (answer["status"], answer["error"]) == ("FAILED", "executionTimeout exceeded")
        assert caller.until_done_with(job_id) == [Outcome.STOPPED]

    def test_the_ttl_deletes_a_running_job(self, caller: Caller) -> None:
        job_id = caller.run("report_and_wait", policy={"ttl": 10_000})
        caller.until_output(job_id)
        caller.runpod.advance(10)
        assert caller.http.get(f"/status/{job_id}").status_code == 404
        assert caller.until_done_with(job_id) == [Outcome.STOPPED]

    def test_a_result_is_forgotten_after_half_an_hour(self, caller: Caller) -> None:
        job_id = caller.run("answer", **{"with": 1})
        caller.until(job_id, "COMPLETED")
        caller.runpod.advance(30 * 60)
        assert caller.http.get(f"/status/{job_id}").status_code == 404
        assert caller.http.post(f"/retry/{job_id}").status_code == 404

    @endpoint(stop_by="kill", stop_grace_seconds=0.2)
    def test_a_cancel_may_also_kill_the_worker(self, own: Caller) -> None:
        job_id = own.run("leave_children_and_wait")
        pids = own.until_output(job_id)["output"]
        own.cancel(job_id)
        assert own.until_done_with(job_id) == [Outcome.STOPPED]
        assert eventually(lambda: gone(*pids.values()))


class TestLostWorkers:
    def test_a_crash_is_tried_once_more_under_the_same_id_then_fails(self, caller: Caller) -> None:
        answer = caller.until(job_id := caller.run("die"), "FAILED")
        assert (answer["error"], answer["retries"]) == ("job timed out after 1 retries", 1)
        assert caller.outcomes(job_id) == [Outcome.LOST, Outcome.LOST]

    def test_an_empty_input_is_lost_on_the_way(self, caller: Caller) -> None:
        job_id = caller.http.post("/run", json={"input": {}}).json()["id"]
        assert caller.until(job_id, "FAILED")["error"] == "job timed out after 1 retries"

    def test_a_worker_can_be_killed_at_a_chosen_update(self, caller: Caller) -> None:
        caller.runpod.faults.add("progress", "kill_worker", skip=1)
        job_id = caller.run("report", updates=[{"step": step} for step in range(4)])
        assert caller.until(job_id, "COMPLETED")["retries"] == 1
        assert caller.outcomes(job_id) == [Outcome.LOST, Outcome.COMPLETED]

    def test_with_a_worker_everything_in_its_container_ends(self, caller: Caller) -> None:
        job_id = caller.run("leave_children_and_wait")
        pids = caller.until_output(job_id)["output"]
        caller.runpod.faults.add("dispatch", "time_out")
        assert caller.runpod.kill_worker_of(job_id)
        assert eventually(lambda: gone(*pids.values()))
        pings = caller.runpod.ledger.calls["ping"]
        assert caller.until(job_id, "TIMED_OUT")["retries"] == 1
        assert pings <= caller.runpod.ledger.calls["ping"]

    @endpoint(workers_max=2, ping_interval_seconds=1, ping_timeout_seconds=2.5)
    def test_a_worker_whose_pings_are_lost_shares_its_job_with_another(self, own: Caller) -> None:
        job_id = own.run("report_and_wait")
        first = own.until_output(job_id)["workerId"]
        own.runpod.faults.add("ping", "respond", worker_id=first, times=None)
        eventually(lambda: True if len(own.outcomes(job_id)) == 2 else None)
        assert own.outcomes(job_id) == [None, None]
        assert {execution.worker_id for execution in own.runpod.orphans()} > {first}
        assert own.runpod.workers()[first] == "unhealthy"

    def test_a_job_can_be_delivered_to_two_workers_at_once(self, caller: Caller) -> None:
        caller.runpod.faults.add("dispatch", "deliver_twice")
        job_id = caller.run("report_and_wait")
        eventually(lambda: True if len(caller.outcomes(job_id)) == 2 else None)
        workers = {execution.worker_id for execution in caller.runpod.ledger.executions_of(job_id)}
        assert len(workers) == 2

    @pytest.mark.parametrize(("then", "status"), [("stuck", "IN_PROGRESS"), ("completed", "COMPLETED")])
    def test_the_sdk_gives_a_refused_result_up(self, caller: Caller, then: str, status: str) -> None:
        caller.runpod.faults.add("job-done", "lose_result", then=then)
        job_id = caller.run("answer", **{"with": 1})
        assert caller.until_done_with(job_id) == [Outcome.RESULT_LOST]
        answer = caller.status(job_id)
        assert (answer["status"], "output" in answer) == (status, False)


class TestCapacity:
    @endpoint(workers_max=0)
    def test_without_workers_jobs_wait(self, own: Caller) -> None:
        job_id = own.run("answer", **{"with": 1})
        assert own.status(job_id) == {"id": job_id, "status": "IN_QUEUE"}
        assert [orphan.job_id for orphan in own.runpod.orphans()] == [job_id]
        own.runpod.set_workers(max_workers=1, throttled=True)
        assert own.http.get("/health").json()["workers"]["throttled"] == 1
        assert own.runpod.workers() == {}
        own.runpod.set_workers(throttled=False)
        own.until(job_id, "COMPLETED")
        own.runpod.set_workers(max_workers=0)
        eventually(lambda: None if own.runpod.workers() else True)

    @endpoint(workers_max=0)
    def test_the_queue_can_be_purged(self, own: Caller) -> None:
        own.run("answer")
        assert own.http.post("/purge-queue").json() == {"removed": 1, "status": "completed"}

    def test_the_container_sees_its_template_and_nothing_of_the_machine(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "secret")
        for worker_id in caller.runpod.workers():
            httpx.post(f"{caller.runpod.admin_url}/workers/{worker_id}/kill").raise_for_status()
        eventually(lambda: None if caller.runpod.workers() else True)
        names = caller.until(caller.run("environment"), "COMPLETED")["output"]
        assert "SET_BY_TEMPLATE" in names
        assert "RUNPOD_POD_ID" in names
        assert "SUPABASE_SERVICE_ROLE_KEY" not in names


class TestFaultsOnTheWire:
    def test_an_accepted_run_whose_answer_is_lost_runs_all_the_same(self, caller: Caller) -> None:
        launches = len(caller.runpod.ledger.launches)
        caller.runpod.faults.add("run", "drop_answer")
        with pytest.raises(httpx.RemoteProtocolError):
            caller.run("answer", **{"with": 1})
        assert len(caller.runpod.ledger.launches) == launches + 1

    def test_a_refused_run_leaves_nothing_behind(self, caller: Caller) -> None:
        launches = len(caller.runpod.ledger.launches)
        caller.runpod.faults.add("run", "disconnect")
        with pytest.raises(httpx.RemoteProtocolError):
            caller.run("answer")
        caller.runpod.faults.add("run", "respond", status=429, retry_after_seconds=7)
        answer = caller.http.post("/run", json={"input": {"do": "answer"}})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert len(caller.runpod.ledger.launches) == launches

    @pytest.mark.parametrize(("body", "content_type"), [("html", "text/html"), ("broken_json", "application/json")])
    def test_an_answer_may_be_no_json(self, caller: Caller, body: str, content_type: str) -> None:
        caller.runpod.faults.add("health", "respond", status=502, body=body)
        answer = caller.http.get("/health")
        assert answer.status_code == 502
        assert answer.headers["content-type"].startswith(content_type)
        with pytest.raises(json.JSONDecodeError):
            answer.json()

    @pytest.mark.parametrize("action", ["delay", "delay_answer"])
    def test_a_late_answer_makes_the_caller_give_up(self, caller: Caller, action: str) -> None:
        caller.runpod.faults.add("health", action, seconds=0.5)
        with pytest.raises(httpx.ReadTimeout):
            caller.http.get("/health", timeout=0.1)

    def test_a_job_can_be_forgotten(self, caller: Caller) -> None:
        job_id = caller.run("answer", **{"with": 1})
        caller.runpod.faults.add("status", "forget", job_id=job_id)
        assert caller.http.get(f"/status/{job_id}").status_code == 404

    @endpoint(workers_max=0)
    def test_in_an_outage_connections_are_refused_and_nothing_is_lost(self, own: Caller) -> None:
        job_id = own.run("answer")
        with own.runpod.outage(), pytest.raises(httpx.ConnectError):
            own.status(job_id)
        assert own.status(job_id)["status"] == "IN_QUEUE"


class TestProcesses:
    def test_another_process_can_work_the_switchboard(self, caller: Caller) -> None:
        with httpx.Client(base_url=caller.runpod.admin_url) as admin:
            armed = admin.post("/faults", json={"operation": "health", "action": "respond", "status": 503})
            assert caller.http.get("/health").status_code == 503
            listed = {fault["number"]: fault["hits"] for fault in admin.get("/faults").json()}
            assert listed[armed.json()["number"]] == 1
            assert admin.delete("/faults").json() == []
            refused = admin.post("/faults", json={"operation": "nowhere", "action": "respond"})
            assert refused.status_code == 400
            assert refused.json()["error"].startswith("operation:")
            assert admin.get("/ledger").json().keys() == {"launches", "executions", "calls"}
            assert admin.get("/orphans").json() == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_nothing_outlives_the_server_however_it_ends(self, number: int) -> None:
        server = subprocess.Popen(
            [sys.executable, "-m", "sandbox.runpod", "--handler", HANDLER], stdout=subprocess.PIPE, text=True
        )
        with server:
            assert server.stdout is not None
            addresses = json.loads(server.stdout.readline())
            headers = {"authorization": f"Bearer {addresses['api_key']}"}
            with httpx.Client(base_url=addresses["api_url"], headers=headers) as http:
                body = {"input": {"do": "leave_children_and_wait"}}
                job_id = http.post("/run", json=body).json()["id"]
                pids = eventually(lambda: http.get(f"/status/{job_id}").json().get("output"))
            server.send_signal(number)
            assert server.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        assert eventually(lambda: gone(*pids.values()))

    def test_a_handler_that_cannot_start_is_reported_and_not_started_in_a_loop(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with LocalRunPod.start(handler_module="no.such.module") as runpod:
            with Caller(runpod).http as http:
                http.post("/run", json={"input": {"x": 1}}).raise_for_status()
                eventually(lambda: http.get("/health").json()["workers"]["unhealthy"] or None)
            assert len(caplog.records) == 1
            assert "No module named 'no'" in caplog.text

    def test_a_port_that_is_taken_is_named(self, shared: LocalRunPod) -> None:
        port = httpx.URL(shared.api_url).port
        assert port is not None
        with pytest.raises(SandboxError, match=str(port)):
            LocalRunPod.start(port=port)
