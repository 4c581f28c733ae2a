"""Invalid jobs, invalid settings and a missing database are reported before a GPU is paid for."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest

from sandbox.processes import free_ports
from sandbox.runpod import LocalRunPod
from sandbox.supabase.project import Project
from tests.application.user import BASE_MODEL, DATASET_WORD, LINE
from tests.processes.serving import serving
from tests.processes.stage import Stage
from tests.processes.waiting import PATIENCE_SECONDS, until
from tests.processes.warm_python import run_command

_ONLY_ASKED = b'{"messages": [{"role": "user", "content": "only asked"}]}\n'
_LINE_17_BROKEN = b"\n".join([*[LINE] * 16, b'{"messages": [', LINE])


@dataclass(frozen=True)
class Case:
    """A job that can't be trained, and the words that its error message must contain."""

    words: tuple[str, ...]
    dataset: dict[str, Any]
    job: dict[str, Any]
    file_is_gone: bool = False


def case(*words: str, dataset: dict[str, Any] | None = None, file_is_gone: bool = False, **job: Any) -> Case:
    return Case(words, dataset or {}, job, file_is_gone)


CASES = {
    "file missing": case("not in the storage", "upload", file_is_gone=True),
    "bucket missing": case("not in the storage", "upload", dataset={"storage_bucket": "nowhere"}),
    "file empty": case("empty", dataset={"content": b" \n"}),
    "not JSON on line 17": case("Line 17", "JSON", dataset={"content": _LINE_17_BROKEN}, max_bad_line_share=0),
    "no usable pair": case("Line 1", dataset={"content": _ONLY_ASKED}),
    "epochs 0": case("epochs", "0", "greater than or equal to 1", epochs=0),
    "batch size 0": case("batch_size", "0", batch_size=0),
    "lr instead of learning_rate": case("'lr'", "'learning_rate' may be meant", lr=1e-5),
    "rank 3": case("rank", "3", "4", rank=3),
    "learning rate 5": case("learning_rate", "5", learning_rate=5),
    "base model unknown": case("nobody/nothing", BASE_MODEL, base_model="nobody/nothing"),
    "dataset's validation failed": case(
        "failed: Line 3", dataset={"status": "error", "training_ready": False, "error_message": "Line 3: no JSON."}
    ),
    "dataset deleted": case("deleted", dataset={"deleted_at": "2026-01-01T00:00:00Z"}),
    "file of somebody else": case("somebody else", dataset={"storage_path": "another-user/dataset/Zebras.jsonl"}),
    "GPU unknown": case("Abacus", gpu_config={"type": "Abacus", "count": 1}),
    "no GPU": case("count", "0", gpu_config={"type": "H100", "count": 0}),
}


@pytest.fixture(scope="module")
def refused(
    supabase: Project, gpus: LocalRunPod, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stage, dict[str, str]]]:
    """The jobs of all cases, after one pass of one worker."""
    with closing(Stage(supabase, gpus, tmp_path_factory.mktemp("refused"))) as stage:
        jobs = {}
        for name, wrong in CASES.items():
            dataset_id = stage.user.upload(**wrong.dataset)
            if wrong.file_is_gone:
                stage.user.remove_file(dataset_id)
            jobs[name] = stage.user.queue(dataset_id, **wrong.job)
        stage.one_pass()
        yield stage, jobs


@pytest.mark.parametrize("name", CASES)
@pytest.mark.fault(43, 61)
def test_bad_input_fails_with_one_sentence_and_without_a_gpu(refused: tuple[Stage, dict[str, str]], name: str) -> None:
    stage, jobs = refused
    job = stage.user.job(jobs[name])
    assert job["status"] == "failed"
    assert job["completed_at"] is not None
    assert job["error_stack"] is None
    for word in CASES[name].words:
        assert word in job["error_message"]
    assert "\n" not in job["error_message"]
    assert DATASET_WORD not in job["error_message"]
    assert stage.launches(jobs[name]) == []
    assert stage.user.costs(jobs[name]) == []
    assert stage.user.notices(jobs[name]) == ["job_failed"]


def run_worker(stage: Stage, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run `lora-worker run` to its end; a variable that is None is unset."""
    chosen = {**stage.environment(), **environment}
    kept = {name: value for name, value in chosen.items() if value is not None}
    return run_command("run", *arguments, environment=kept, cwd=stage.folder)


def test_bad_settings_are_named_and_exit_with_2(stage: Stage) -> None:
    done = run_worker(stage, SUPABASE_SERVICE_ROLE_KEY=None, LORA_WORKER_SLOTS="many")
    assert done.returncode == 2
    assert "SUPABASE_SERVICE_ROLE_KEY" in done.stderr
    assert "LORA_WORKER_SLOTS" in done.stderr
    assert "many" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.fault(33)
def test_unsuitable_bucket_holds_launches_and_fails_no_job(stage: Stage) -> None:
    job_id = stage.user.queue()
    done = run_worker(stage, "--once", LORA_WORKER_ARTIFACTS_BUCKET="nowhere")
    assert done.returncode == 1
    assert "the bucket nowhere is missing: make it, private, or set LORA_WORKER_ARTIFACTS_BUCKET" in done.stderr
    assert "Traceback" not in done.stderr
    job = stage.user.job(job_id)
    assert (job["status"], job["current_stage"], job["error_message"]) == ("initializing", "waiting_for_storage", None)
    assert stage.launches(job_id) == []
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"


class _WithoutMigrations(BaseHTTPRequestHandler):
    """A Supabase project before our migrations: PostgREST knows none of our functions."""

    calls = 0

    def do_POST(self) -> None:
        type(self).calls += 1
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = {"code": "PGRST202", "message": "Could not find the function in the schema cache", "details": None}
        content = json.dumps({**body, "hint": None}).encode()
        self.send_response(404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class Useless:
    """A URL at which no worker can work, and the message that the worker must log."""

    url: str
    words: str
    await_call: Callable[[], None]
    """Waits for the next call of a worker."""


def _await_post() -> None:
    before = _WithoutMigrations.calls
    until(lambda: _WithoutMigrations.calls > before, "the worker calls once more")


@pytest.fixture(params=["unreachable", "not migrated"])
def useless_supabase(request: pytest.FixtureRequest) -> Iterator[Useless]:
    """Each useless Supabase in turn."""
    with ExitStack() as stack:
        (port,) = free_ports(1)

        def await_connection() -> None:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
            listener.settimeout(PATIENCE_SECONDS)
            # The connection stays open and unanswered until the worker has ended; closing it would be another fault.
            stack.enter_context(listener.accept()[0])

        if request.param == "unreachable":
            yield Useless(f"http://127.0.0.1:{port}", "not reachable", await_connection)
        else:
            url = stack.enter_context(serving(_WithoutMigrations))
            yield Useless(url, "lora-worker migrate", _await_post)


def test_single_pass_that_cannot_work_exits_with_1_and_the_reason(stage: Stage, useless_supabase: Useless) -> None:
    done = run_worker(stage, "--once", SUPABASE_URL=useless_supabase.url)
    assert done.returncode == 1
    assert useless_supabase.words in done.stderr
    assert "Traceback" not in done.stderr


def test_daemon_that_cannot_work_logs_the_reason_and_retries(stage: Stage, useless_supabase: Useless) -> None:
    words = useless_supabase.words
    (port,) = free_ports(1)
    daemon = stage.worker(
        SUPABASE_URL=useless_supabase.url, LORA_WORKER_HTTP_PORT=str(port), LORA_WORKER_POLL_SECONDS="0.1"
    )
    until(lambda: words in stage.log(), "the worker says why", state=stage.log)
    ready = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30)
    assert ready.status_code == 503
    assert words in ready.json()["problem"]
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=30).status_code == 200
    useless_supabase.await_call()
    assert daemon.poll() is None
    assert stage.stop(daemon) == 0
    # A lasting fault is logged once, however often it occurs.
    assert stage.log().count('"service fault"') == 1


@pytest.mark.parametrize("arguments", [(), ("--once",)], ids=["daemon", "single pass"])
def test_sigterm_ends_a_worker_whose_calls_get_no_answer(stage: Stage, arguments: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        worker = stage.worker(*arguments, SUPABASE_URL=url)
        silent.settimeout(PATIENCE_SECONDS)
        call, _ = silent.accept()
        with call:
            assert stage.stop(worker) == (1 if arguments else 0)
    assert "Traceback" not in stage.log()
    assert ("stopped before its end" if arguments else "stopped before the database answered") in stage.log()
