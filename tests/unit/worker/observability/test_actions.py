"""Each line of the log has a stable action, and the ids of what it is about."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from lora_worker.duties.daemon import Daemon
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.observability.actions import Action
from lora_worker.observability.telemetry import configure_logging
from tests.project import ROOT
from tests.scripted import FakeLauncher, FakeQueue, assignment, make_services

WORKER = ROOT / "worker" / "lora_worker"
SETTINGS = RunPodSettings(
    supabase_url="http://x",
    supabase_service_role_key="plain-service-key",
    supabase_publishable_key="plain-pub-key",
    gpu_cluster_api_url="http://x",
    gpu_cluster_api_key="plain-gpu-key",
    log_format="json",
    log_level="debug",
    name="worker-1",
    _env_file=None,
)
LEVELS = {"debug", "info", "warning", "warn", "error", "exception", "critical", "msg", "log"}


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(WORKER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            if is_logger(node.func.value):
                yield f"{path.relative_to(WORKER)}:{node.lineno}", node


def is_logger(value: ast.expr) -> bool:
    if isinstance(value, ast.Name):
        return value.id in {"log", "logger"}
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "get_logger"


def test_every_log_call_names_its_action() -> None:
    calls = list(log_calls())
    assert len(calls) > 40
    without = [
        place
        for place, call in calls
        # A text of its own would be a name that no list has; mypy sees that the others are actions.
        if not any(word.arg == "action" and not isinstance(word.value, ast.Constant) for word in call.keywords)
    ]
    assert without == []


def test_every_action_is_logged_somewhere() -> None:
    sources = "".join(path.read_text() for path in WORKER.rglob("*.py"))
    assert [action.name for action in Action if f"Action.{action.name}" not in sources] == []


def test_documented_actions_are_the_real_ones() -> None:
    page = (ROOT / "docs" / "telemetry.md").read_text()
    documented = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(Action)


class Stubborn(FakeLauncher):
    """A launcher whose looks fail with a bug."""

    async def observe(self, launch: Any) -> Any:
        raise RuntimeError("a bug")


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if type(handler).__name__ != "_Forwarder"]


@pytest.mark.usefixtures("_restored_logging")
async def test_lines_about_a_run_have_its_ids(
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = SETTINGS
    configure_logging(settings)
    # A logger that is kept would keep this test's stream, too.
    structlog.configure(cache_logger_on_first_use=False)
    queue, adopted = FakeQueue(), assignment()
    queue.to_adopt.append(adopted)
    await Daemon(make_services(settings=settings, queue=queue, launcher=Stubborn())).run_once()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    about_run = [line for line in lines if line["action"].startswith("run.")]
    assert {line["action"] for line in about_run} == {"run.adopted", "run.error"}
    ids = (str(adopted.run.id), str(adopted.run.job_id))
    assert {(line["run_id"], line["job_id"]) for line in about_run} == {ids}
    assert {line["worker_id"] for line in lines} == {settings.name}


@pytest.mark.usefixtures("_restored_logging")
def test_what_libraries_log_is_a_line_like_ours(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(SETTINGS)
    structlog.configure(cache_logger_on_first_use=False)
    logging.getLogger("asyncio").error("Task failed with %s", "plain-gpu-key")
    logging.getLogger("httpx").info("GET https://x/?token=abc")
    (line,) = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert (line["action"], line["level"], line["library"]) == ("library.reported", "error", "asyncio")
    assert line["message"] == "Task failed with [secret]"
