"""The life of a job with a real worker of the SDK: the behaviour that worker and trainer rely on."""

from __future__ import annotations

import json

import httpx
import pytest

from sandbox.runpod import Outcome
from tests.integration.local_runpod.caller import Caller, endpoint, is_alive
from tests.processes.waiting import until


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

    def test_error_returned_by_the_handler_keeps_the_other_output_keys(self, caller: Caller) -> None:
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

    def test_result_with_nan_is_refused_as_invalid_json(self, caller: Caller) -> None:
        job_id = caller.run("answer_nan")
        assert caller.until_done_with(job_id) == [Outcome.RESULT_LOST]
        assert caller.status(job_id)["status"] == "IN_PROGRESS"

    def test_streamed_results_are_delivered_once(self, caller: Caller) -> None:
        job_id = caller.run("stream", chunk={"line": 1})
        caller.until(job_id, "COMPLETED")
        answers = [caller.http.get(f"/stream/{job_id}").json() for _ in range(2)]
        assert answers[0] == {"status": "COMPLETED", "stream": [{"output": {"line": 1}}]}
        assert answers[1] == {"status": "COMPLETED", "stream": []}


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
    def test_invalid_request_body_is_refused(self, caller: Caller, body: bytes) -> None:
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
        # The SDK sends an update from a thread. It may win against the result, above all on a busy machine.
        for sent in range(1, 20):
            job_id = caller.run("report_carelessly")
            assert caller.until_done_with(job_id) == [Outcome.COMPLETED]
            until(lambda sent=sent: caller.runpod.faults.hits(unguarded) == sent, "the update arrives")
            if (found := caller.status(job_id))["status"] == "IN_PROGRESS":
                break
        assert (found["status"], found["output"]) == ("IN_PROGRESS", {"step": 1})

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

    def test_lost_stop_message_is_repeated(self, caller: Caller) -> None:
        caller.runpod.faults.add("job-stop", "respond", status=500, times=2)
        job_id = caller.run("report_and_wait")
        caller.until_output(job_id)
        caller.cancel(job_id)
        assert caller.until_done_with(job_id) == [Outcome.STOPPED]

    def test_the_execution_timeout_fails_the_job_and_stops_the_handler(self, caller: Caller) -> None:
        job_id = caller.run("report_and_wait", policy={"executionTimeout": 600_000})
        caller.until_output(job_id)
        caller.runpod.advance(600)
        answer = caller.status(job_id)
        assert (answer["status"], answer["error"]) == ("FAILED", "executionTimeout exceeded")
        assert caller.until_done_with(job_id) == [Outcome.STOPPED]

    def test_the_ttl_deletes_a_running_job(self, caller: Caller) -> None:
        job_id = caller.run("report_and_wait", policy={"ttl": 300_000})
        caller.until_output(job_id)
        caller.runpod.advance(300)
        assert caller.http.get(f"/status/{job_id}").status_code == 404
        assert caller.until_done_with(job_id) == [Outcome.STOPPED]

    def test_a_result_is_forgotten_after_half_an_hour(self, caller: Caller) -> None:
        job_id = caller.run("answer", **{"with": 1})
        caller.until(job_id, "COMPLETED")
        caller.runpod.advance(30 * 60)
        assert caller.http.get(f"/status/{job_id}").status_code == 404
        assert caller.http.post(f"/retry/{job_id}").status_code == 404

    @endpoint(stop_by="kill", stop_grace_seconds=0.2)
    def test_cancel_can_be_configured_to_kill_the_container(self, own: Caller) -> None:
        job_id = own.run("leave_children_and_wait")
        pids = own.until_output(job_id)["output"]
        own.cancel(job_id)
        assert own.until_done_with(job_id) == [Outcome.STOPPED]
        until(lambda: not any(is_alive(pid) for pid in pids.values()), "every process of the container has ended")
