"""Faults of RunPod: lost workers, no capacity, network faults, dead servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import httpx
import pytest

from sandbox.errors import SandboxError
from sandbox.runpod import LocalRunPod, Outcome
from tests.integration.local_runpod.caller import HANDLER, Caller, endpoint, is_alive
from tests.processes.waiting import awaited, until


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

    def test_killing_a_worker_ends_every_process_of_its_container(self, caller: Caller) -> None:
        job_id = caller.run("leave_children_and_wait")
        pids = caller.until_output(job_id)["output"]
        caller.runpod.faults.add("dispatch", "time_out")
        assert caller.runpod.kill_worker_of(job_id)
        until(lambda: not any(is_alive(pid) for pid in pids.values()), "every process of the container has ended")
        assert caller.until(job_id, "TIMED_OUT")["retries"] == 1

    @endpoint(workers_max=2, ping_interval_seconds=1, ping_timeout_seconds=8)
    def test_a_worker_whose_pings_are_lost_shares_its_job_with_another(self, own: Caller) -> None:
        job_id = own.run("report_and_wait")
        first = own.until_output(job_id)["workerId"]
        own.runpod.faults.add("ping", "respond", worker_id=first, times=None)
        until(lambda: len(own.outcomes(job_id)) == 2, "a second worker has the job")
        assert own.outcomes(job_id) == [None, None]
        assert {execution.worker_id for execution in own.runpod.orphans()} > {first}
        assert own.runpod.workers()[first] == "unhealthy"

    def test_a_job_can_be_delivered_to_two_workers_at_once(self, caller: Caller) -> None:
        caller.runpod.faults.add("dispatch", "deliver_twice")
        job_id = caller.run("report_and_wait")
        until(lambda: len(caller.outcomes(job_id)) == 2, "a second worker has the job")
        workers = {execution.worker_id for execution in caller.runpod.ledger.executions_of(job_id)}
        assert len(workers) == 2

    @pytest.mark.parametrize(("then", "status"), [("stuck", "IN_PROGRESS"), ("completed", "COMPLETED")])
    def test_sdk_gives_up_on_a_refused_result(self, caller: Caller, then: str, status: str) -> None:
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
        until(lambda: not own.runpod.workers(), "the endpoint has no workers")

    @endpoint(workers_max=2)
    def test_workers_can_be_started_before_there_are_jobs(self, own: Caller) -> None:
        own.runpod.start_workers()
        own.runpod.start_workers()
        until(lambda: list(own.runpod.workers().values()) == ["idle"] * 2, "both workers are idle")

    @endpoint(workers_max=0)
    def test_the_queue_can_be_purged(self, own: Caller) -> None:
        own.run("answer")
        assert own.http.post("/purge-queue").json() == {"removed": 1, "status": "completed"}

    def test_container_sees_only_its_templates_environment(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "secret")
        caller.runpod.replace_workers({"SET_FOR_THE_NEXT": "1"})
        until(lambda: not caller.runpod.workers(), "the former workers have gone")
        names = caller.until(caller.run("environment"), "COMPLETED")["output"]
        assert {"SET_BY_TEMPLATE", "SET_FOR_THE_NEXT", "RUNPOD_POD_ID"} <= set(names)
        assert "SUPABASE_SERVICE_ROLE_KEY" not in names


class TestFaultsOnTheWire:
    def test_accepted_run_with_a_lost_answer_still_runs(self, caller: Caller) -> None:
        launches = len(caller.runpod.ledger.launches)
        caller.runpod.faults.add("run", "drop_answer")
        with pytest.raises(httpx.RemoteProtocolError):
            caller.run("answer", **{"with": 1})
        assert len(caller.runpod.ledger.launches) == launches + 1

    def test_refused_run_creates_no_job(self, caller: Caller) -> None:
        launches = len(caller.runpod.ledger.launches)
        caller.runpod.faults.add("run", "disconnect")
        # The kernel may reset the connection or close it.
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            caller.run("answer")
        caller.runpod.faults.add("run", "respond", status=429, retry_after_seconds=7)
        answer = caller.http.post("/run", json={"input": {"do": "answer"}})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert len(caller.runpod.ledger.launches) == launches

    @pytest.mark.parametrize(("body", "content_type"), [("html", "text/html"), ("broken_json", "application/json")])
    def test_answer_can_be_made_invalid_json(self, caller: Caller, body: str, content_type: str) -> None:
        caller.runpod.faults.add("health", "respond", status=502, body=body)
        answer = caller.http.get("/health")
        assert answer.status_code == 502
        assert answer.headers["content-type"].startswith(content_type)
        with pytest.raises(json.JSONDecodeError):
            answer.json()

    @pytest.mark.parametrize("action", ["delay", "delay_answer"])
    def test_a_late_answer_makes_the_caller_give_up(self, caller: Caller, action: str) -> None:
        caller.runpod.faults.add("health", action, seconds=5)
        with pytest.raises(httpx.ReadTimeout):
            caller.http.get("/health", timeout=httpx.Timeout(30, read=0.1))

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
    def test_another_process_can_arm_faults(self, caller: Caller) -> None:
        with httpx.Client(base_url=caller.runpod.admin_url) as admin:
            armed = admin.post("/faults", json={"operation": "health", "action": "respond", "status": 503})
            assert caller.http.get("/health").status_code == 503
            listed = {fault["number"]: fault["hits"] for fault in admin.get("/faults").json()}
            assert listed[armed.json()["number"]] == 1
            assert admin.delete("/faults").json() == []
            refused = admin.post("/faults", json={"operation": "nowhere", "action": "respond"})
            assert refused.status_code == 400
            assert refused.json()["error"].startswith("operation:")
            assert admin.get("/ledger").json().keys() == {"launches", "executions", "pods", "writes", "calls"}
            assert admin.get("/orphans").json() == []
            worker_id = admin.get("/workers").json()[0]["id"]
            admin.post(f"/workers/{worker_id}/kill").raise_for_status()
            until(lambda: worker_id not in caller.runpod.workers(), "the killed worker is gone")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_no_process_outlives_the_server_however_it_ends(self, number: int) -> None:
        server = subprocess.Popen(
            [sys.executable, "-m", "sandbox.runpod", "--handler", HANDLER], stdout=subprocess.PIPE, text=True
        )
        with server:
            assert server.stdout is not None
            addresses = json.loads(server.stdout.readline())
            assert addresses.keys() == {"api_url", "rest_url", "api_key", "admin_url"}
            headers = {"authorization": f"Bearer {addresses['api_key']}"}
            with httpx.Client(base_url=addresses["api_url"], headers=headers) as http:
                body = {"input": {"do": "leave_children_and_wait"}}
                job_id = http.post("/run", json=body).json()["id"]
                pids = awaited(
                    lambda: http.get(f"/status/{job_id}").json().get("output"), "the container names its processes"
                )
            server.send_signal(number)
            assert server.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        until(lambda: not any(is_alive(pid) for pid in pids.values()), "every process of the container has ended")

    def test_handler_that_cannot_start_is_reported_and_not_restarted(self, caplog: pytest.LogCaptureFixture) -> None:
        with LocalRunPod.start(handler_module="no.such.module") as runpod:
            with Caller(runpod).http as http:
                http.post("/run", json={"input": {"x": 1}}).raise_for_status()
                until(lambda: http.get("/health").json()["workers"]["unhealthy"], "the worker is unhealthy")
            assert len(caplog.records) == 1
            assert "No module named 'no'" in caplog.text

    def test_a_port_that_is_taken_is_named(self, shared: LocalRunPod) -> None:
        port = httpx.URL(shared.api_url).port
        assert port is not None
        with pytest.raises(SandboxError, match=str(port)):
            LocalRunPod.start(port=port)
