"""The calls to the endpoint have the official client's shape; a sleeping one is waited for, by a clock passed in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from lora_worker.errors import AnswerBrokenError, ModelUnknownError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.inference.endpoint import InferenceEndpoint, Question, Said, Waiting
from lora_worker.launchers.base import EndpointHealth

ADDRESS, KEY = "https://api.runpod.ai/v2/chat", "rpa_callers"
QUESTION = Question("adapter-1", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}], 40)
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "adapter-1"}
MODELS = {"object": "list", "data": [{"id": "example/base", "object": "model", "parent": None}]}
ASLEEP, AWAKE = EndpointHealth(True, 0, 0), EndpointHealth(True, 1, 0, ready=1)

Handler = Callable[[httpx.Request], httpx.Response]


def event(delta: dict[str, Any], reason: str | None = None) -> str:
    return f"data: {json.dumps({**HEAD, 'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n"


def stream(*events: str) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, text="".join(events))


USAGE = f"data: {json.dumps({**HEAD, 'choices': [], 'usage': {'prompt_tokens': 7, 'completion_tokens': 2}})}\n\n"
ANSWER = (
    event({"role": "assistant", "content": ""}),
    event({"content": "Ahoy"}),
    event({"content": "!"}, "stop"),
    USAGE,
)
DONE = "data: [DONE]\n\n"


class Asker:
    """An endpoint of scripted answers, and a clock that only waiting moves."""

    def __init__(self, handler: Handler, *, wait_seconds: float = 600) -> None:
        self.now = 0.0
        self.told: list[str] = []
        self.pieces: list[str] = []
        http = httpx.AsyncClient(transport=httpx.MockTransport(handler))
        waiting = Waiting(wait_seconds, self.told.append, lambda: self.now, self._sleep)
        self.endpoint = InferenceEndpoint(ADDRESS, KEY, http=http, waiting=waiting)

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds

    async def ask(self) -> Said:
        return await self.endpoint.ask(QUESTION, self.pieces.append)


def in_order(*answers: httpx.Response | httpx.HTTPError) -> Handler:
    remaining: Iterator[httpx.Response | httpx.HTTPError] = iter(answers)

    def handle(_: httpx.Request) -> httpx.Response:
        answer = next(remaining)
        if isinstance(answer, httpx.HTTPError):
            raise answer
        return answer

    return handle


async def test_an_answer_is_told_piece_by_piece_with_its_counts() -> None:
    asker = Asker(in_order(stream(*ANSWER, DONE)))
    assert await asker.ask() == Said("adapter-1", "Ahoy!", "stop", 7, 2)
    assert [piece for piece in asker.pieces if piece] == ["Ahoy", "!"]


async def test_requests_are_those_of_the_official_client() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return stream(*ANSWER, DONE) if request.method == "POST" else httpx.Response(200, json=MODELS)

    asker = Asker(handle)
    await asker.ask()
    await asker.endpoint.base_model()
    async with openai.AsyncOpenAI(
        base_url=f"{ADDRESS}/openai/v1",
        api_key=KEY,
        http_client=httpx.AsyncClient(transport=httpx.MockTransport(handle)),
    ) as client:
        await client.chat.completions.create(
            model=QUESTION.model,
            messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        await client.models.list()
    ours, theirs = seen[:2], seen[2:]
    for mine, official in zip(ours, theirs, strict=True):
        assert (mine.method, mine.url) == (official.method, official.url)
        assert mine.headers["authorization"] == official.headers["authorization"]
    assert json.loads(ours[0].content) == json.loads(theirs[0].content)


async def test_an_answer_that_comes_whole_is_an_answer_too() -> None:
    whole = {**HEAD, "choices": [{"message": {"role": "assistant", "content": "Ahoy!"}, "finish_reason": "stop"}]}
    asker = Asker(in_order(httpx.Response(200, json=whole)))
    assert (await asker.ask()).text == "Ahoy!"


@pytest.mark.parametrize(
    "events", [ANSWER[:2], (*ANSWER[:2], DONE), ("data: {\n\n", DONE)], ids=["no end", "no reason", "no JSON"]
)
async def test_a_broken_answer_is_never_taken_for_a_whole_one(events: tuple[str, ...]) -> None:
    with pytest.raises((AnswerBrokenError, ServiceRefusedError)):
        await Asker(in_order(stream(*events))).ask()


async def test_a_connection_that_breaks_in_an_answer_is_a_sentence() -> None:
    class Breaking(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield event({"content": "Aho"}).encode()
            raise httpx.ReadError("gone")

    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Breaking())
    with pytest.raises(AnswerBrokenError, match=r"^The answer broke off after 3 characters; ask again\.$"):
        await Asker(in_order(answer)).ask()


async def test_an_answer_without_an_end_is_broken_off() -> None:
    endless = event({"content": "x" * 150_000})
    with pytest.raises(AnswerBrokenError, match="no end"):
        await Asker(in_order(stream(*[endless] * 8))).ask()


async def test_an_error_in_a_stream_ends_it_with_its_sentence() -> None:
    error = {"error": {"message": "The model `adapter-1` does not exist.", "type": "NotFoundError", "code": 404}}
    for line in (f"data: {json.dumps(error)}\n\n", json.dumps(error) + "\n"):
        with pytest.raises(ModelUnknownError):
            await Asker(in_order(stream(line, DONE))).ask()


async def test_a_sleeping_endpoint_is_woken_by_asking_for_its_models() -> None:
    seen: list[str] = []
    answers = in_order(httpx.Response(524), httpx.ReadTimeout("slow"), httpx.Response(200, json=MODELS))

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return answers(request)

    asker = Asker(handle)
    await asker.endpoint.wake(ASLEEP)
    assert set(seen) == {"/v2/chat/openai/v1/models"}
    assert asker.told[0].startswith("The endpoint is asleep: a machine starts")
    assert asker.told[1:] == [
        "Still waiting after 0 s: no machine is ready.",
        "Still waiting after 3 s: api.runpod.ai did not answer in time.",
    ]


async def test_an_endpoint_that_is_awake_is_asked_at_once() -> None:
    asker = Asker(in_order())
    await asker.endpoint.wake(AWAKE)
    assert asker.told == []


async def test_a_machine_that_is_up_but_still_loads_is_waited_for() -> None:
    asker = Asker(
        in_order(httpx.Response(524), httpx.Response(200, json={"status": "IN_QUEUE"}), stream(*ANSWER, DONE))
    )
    assert (await asker.ask()).text == "Ahoy!"
    assert (asker.told, asker.now) == (["Still waiting after 0 s: no machine is ready."], 6)


async def test_waiting_ends_with_a_sentence_that_names_the_flag() -> None:
    asker = Asker(lambda _: httpx.Response(524), wait_seconds=60)
    with pytest.raises(ServiceUnavailableError, match=r"endpoint chat has not answered for \d+ s.*--wait") as ended:
        await asker.ask()
    assert asker.now <= 60
    assert "see its workers in RunPod's console" in str(ended.value)


async def test_without_a_network_the_network_is_named_and_told_rarely() -> None:
    def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route", request=request)

    asker = Asker(unreachable, wait_seconds=100)
    with pytest.raises(ServiceUnavailableError, match="check the network and GPU_CLUSTER_API_URL") as ended:
        await asker.ask()
    assert "console" not in str(ended.value)
    assert [text.partition(":")[0] for text in asker.told] == [
        f"Still waiting after {seconds} s" for seconds in (0, 30, 60, 90)
    ]


async def test_a_machine_that_goes_away_half_way_is_not_asked_again() -> None:
    gone = "data: " + json.dumps({"status": "IN_QUEUE"}) + "\n\n"
    asker = Asker(in_order(stream(event({"content": "Aho"}), gone)))
    with pytest.raises(AnswerBrokenError):
        await asker.ask()


@pytest.mark.parametrize("status", [401, 403, 404, 400])
async def test_a_refusal_is_not_repeated_and_shows_no_key(status: int) -> None:
    with pytest.raises(ServiceRefusedError) as caught:
        await Asker(in_order(httpx.Response(status, json={"error": f"no {KEY}"}))).ask()
    assert KEY not in str(caught.value)
