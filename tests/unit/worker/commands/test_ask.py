"""`ask`: what MODEL means, the answer as text and as JSON, and a sentence for each thing that can be wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
from click.testing import Result

from lora_worker.commands.ask import safe_text
from lora_worker.database.job_reports import JobDetails
from lora_worker.database.version_rows import VersionRow
from lora_worker.launchers.base import EndpointHealth
from lora_worker.launchers.places import Place
from lora_worker.services import Services
from tests.commands import check_keys, give_services, run_command
from tests.scripted import FakeLauncher, make_services
from tests.unit.worker.commands.job_data import details
from tests.unit.worker.versions import made
from tests.unit.worker.versions.made import VersionsQueue

ROW = made.row()
MODELS = {"data": [{"id": "example/base", "parent": None}, {"id": "adapter-1", "parent": "example/base"}]}


class Endpoint:
    """Answers with the name that it was called by, and keeps the requests."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.finish_reason = "stop"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer rpa_abcdef"
        assert request.url.host == "api.runpod.ai"
        if request.method == "GET":
            return httpx.Response(200, json=MODELS)
        body = json.loads(request.content)
        self.asked.append(body)
        if body["model"] not in {"example/base", "adapter-1", "bot:live"}:
            return httpx.Response(200, json={"error": {"message": "The model `x` does not exist.", "code": 404}})
        words = [f"I am \x1b[2J{body['model']}", ".\n"]
        choices = [{"delta": {"content": word}, "finish_reason": None} for word in words]
        choices.append({"delta": {}, "finish_reason": self.finish_reason})
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}
        events = [*({"choices": [choice]} for choice in choices), usage]
        text = "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n"
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=text)


@pytest.fixture
def endpoint(environment: pytest.MonkeyPatch) -> Endpoint:
    environment.setenv("LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID", "chat")
    answering = Endpoint()
    give_services(environment, with_http(answering))
    return answering


def with_http(handler: Callable[[httpx.Request], httpx.Response], **more: Any) -> Services:
    http = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return dataclasses.replace(make_services(launcher=AwakeLauncher(), **more), http=http)


class AwakeLauncher(FakeLauncher):
    """Its endpoint has a machine that waits for questions."""

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        assert endpoint == "https://api.runpod.ai/v2/chat"
        return EndpointHealth(True, 1, 0, ready=1)


def test_an_answer_is_printed_without_what_acts_on_a_terminal(endpoint: Endpoint) -> None:
    done = run_command("ask", "adapter-1", "Who are you?", "--system", "Be brief.", "--max-tokens", "9")
    assert (done.exit_code, done.stdout) == (0, "I am \ufffd[2Jadapter-1.\n\n")
    (asked,) = endpoint.asked
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
    ]
    assert asked["max_tokens"] == 9


def test_compare_asks_the_base_first_and_then_the_adapter(endpoint: Endpoint) -> None:
    done = run_command("ask", "adapter-1", "Who?", "--compare")
    assert [asked["model"] for asked in endpoint.asked] == ["example/base", "adapter-1"]
    assert done.stdout.index("── example/base") < done.stdout.index("── adapter-1")


def test_json_has_stable_keys_with_and_without_the_base(endpoint: Endpoint) -> None:
    alone = json.loads(run_command("ask", "bot:live", "Who?", "--json").stdout)
    assert (alone["model"], alone["base"]) == ("bot:live", None)
    both = json.loads(run_command("ask", "adapter-1", "Who?", "--compare", "--json").stdout)
    assert both["answer"] == "I am \x1b[2Jadapter-1.\n"
    assert both["base"]["model"] == "example/base"
    check_keys("ask", both)


@pytest.mark.parametrize("argument", [(), ("-",)])
def test_the_question_may_come_from_a_pipe(endpoint: Endpoint, argument: tuple[str, ...]) -> None:
    assert run_command("ask", "adapter-1", *argument, stdin="Who\nare you?").exit_code == 0
    assert endpoint.asked[0]["messages"][-1]["content"] == "Who\nare you?"


@pytest.mark.parametrize("question", ["", " \n", "x" * 1_000_001], ids=["empty", "blank", "long"])
def test_no_question_or_one_without_an_end_is_refused(endpoint: Endpoint, question: str) -> None:
    done = run_command("ask", "adapter-1", stdin=question)
    assert done.exit_code == 2
    assert done.stderr.startswith("lora-worker: QUESTION: ")
    assert endpoint.asked == []


@pytest.mark.parametrize(
    ("arguments", "stdin", "at_fault"),
    [
        ((), b"Gr\xfc\xdfe?", "QUESTION"),
        (("Gr\udcfc\udcdfe?",), None, "QUESTION"),
        (("Who?", "--system", "Gr\udcfc\udcdfe"), None, "--system"),
    ],
    ids=["pipe", "argument", "system"],
)
def test_text_that_is_not_utf8_is_one_sentence(
    endpoint: Endpoint, arguments: tuple[str, ...], stdin: bytes | None, at_fault: str
) -> None:
    done = run_command("ask", "adapter-1", *arguments, stdin=stdin)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"lora-worker: {at_fault}: it is not written in UTF-8")
    assert endpoint.asked == []


def test_an_answer_that_is_cut_off_is_said(endpoint: Endpoint) -> None:
    endpoint.finish_reason = "length"
    done = run_command("ask", "adapter-1", "Who?", "--max-tokens", "3")
    assert (done.exit_code, done.stderr) == (0, "cut off after 3 tokens (--max-tokens)\n")


def test_without_an_endpoint_the_command_says_how_to_get_one(environment: pytest.MonkeyPatch) -> None:
    done = run_command("ask", "adapter-1", "Who?")
    assert done.exit_code == 2
    assert "`lora-worker deploy inference apply`" in done.stderr
    assert "LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID" in done.stderr


def test_an_unknown_name_is_one_sentence(endpoint: Endpoint) -> None:
    done = run_command("ask", "adapter-2", "Who?")
    assert done.exit_code == 1
    assert done.stderr.startswith("lora-worker: The endpoint chat has no model adapter-2: ")


@pytest.mark.parametrize("name", ["", "../secrets", "a b", "x" * 201, "a\x1b[2J", "a/../../b"])
def test_a_name_that_leads_elsewhere_is_never_sent(endpoint: Endpoint, name: str) -> None:
    done = run_command("ask", name, "Who?")
    assert done.exit_code == 2
    assert endpoint.asked == []


class Queue(VersionsQueue):
    """Knows at which endpoint the runs of its versions were launched."""

    async def training_job_details(self, job_id: UUID) -> JobDetails:
        told = details(job_id)
        run = {"run_id": str(self.rows[-1]["run_id"]), "endpoint": FakeLauncher.endpoint}
        return {**told, "runs": [{**told["runs"][0], **run}]}  # type: ignore[typeddict-item]


def ask_by_id(environment: pytest.MonkeyPatch, named: UUID, *rows: VersionRow, **services: Any) -> Result:
    environment.setenv("LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID", "chat")
    give_services(environment, with_http(Endpoint(), queue=Queue(list(rows)), **services))
    return run_command("ask", str(named), "Who?")


@pytest.mark.parametrize("named", [ROW["job_id"], ROW["id"]], ids=["job", "artifact"])
def test_an_id_means_the_name_that_the_worker_has_checked(environment: pytest.MonkeyPatch, named: UUID) -> None:
    """Not the manifest's in the storage, which a container wrote: no storage is there to be read."""
    done = ask_by_id(environment, named, made.row(), {**ROW, "measured": made.measured("adapter-1")})
    assert done.stdout == "I am \ufffd[2Jadapter-1.\n\n"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "MODEL: no job or artifact {job} has an adapter\n"),
        ([{**ROW, "run_id": None}], "MODEL: no job or artifact {job} has an adapter\n"),
        ([{**ROW, "deleted": True}], "MODEL: the adapter of job {job} was deleted\n"),
        (
            [{**ROW, "measured": made.measured()}],
            "MODEL: the adapter of job {job} was not put where",
        ),
    ],
)
def test_an_adapter_that_cant_be_called_is_a_sentence(
    environment: pytest.MonkeyPatch, rows: list[VersionRow], sentence: str
) -> None:
    done = ask_by_id(environment, ROW["job_id"], *rows)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"lora-worker: {sentence.format(job=ROW['job_id'])}")


@pytest.mark.parametrize(
    ("takes_errands", "serves", "reason"),
    [
        (True, True, "its trainer had no network volume"),
        (True, False, "it was trained at the endpoint eu of the routing table, which does not serve"),
        (False, True, "it was trained by runpod, which puts none there"),
    ],
)
def test_an_adapter_without_a_name_is_told_with_what_its_place_does(
    environment: pytest.MonkeyPatch, takes_errands: bool, serves: bool, reason: str
) -> None:
    launcher = FakeLauncher()
    launcher.takes_errands = takes_errands
    place = Place("eu", cast(Any, launcher), serves=serves)
    row: VersionRow = {**ROW, "measured": made.measured()}
    done = ask_by_id(environment, ROW["job_id"], row, routed_places=(place,))
    assert f"was not put where an endpoint finds it: {reason}" in done.stderr
    assert "docs/serving.md" in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Line\nnext\r\nlast\ttab", "Line\nnext\nlast tab"),
        ("\x1b]0;title\x07 \x9b31m \r \u202etxt", "\ufffd]0;title\ufffd \ufffd31m \ufffd \ufffdtxt"),
        ("👩\u200d🚀 ok", "👩\u200d🚀 ok"),
    ],
)
def test_only_lines_and_letters_reach_the_terminal(text: str, shown: str) -> None:
    assert safe_text(text) == shown


def test_line_break_that_is_cut_between_two_pieces_is_one() -> None:
    assert [safe_text(piece) for piece in ("Line\r", "\nnext")] == ["Line", "\nnext"]
