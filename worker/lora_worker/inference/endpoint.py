"""Calls the endpoint that answers with finished adapters: the OpenAI protocol at `<API>/<id>/openai/v1`.

The official client of that protocol takes a second and 60 MB to import, and shows an error that comes with status 200
as an answer without choices. So these two calls are made with httpx; the tests compare each request and answer with the
official client's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from lora_contract.connections import why_unreachable
from lora_worker.errors import AnswerBrokenError, ServiceError, ServiceUnavailableError
from lora_worker.inference.answers import DONE, SERVICE, Part, base_name, explain, is_not_ready, read_part
from lora_worker.launchers.answers import Answer, read_answer
from lora_worker.launchers.base import EndpointHealth
from lora_worker.launchers.runpod.event_streams import read_lines
from lora_worker.observability.calls import called

_TIMEOUT = httpx.Timeout(30, read=180)
"""RunPod's edge answers after about 100 s in any case, and between two tokens no model takes longer than these."""
_PAUSE_SECONDS = 3.0
_TELL_SECONDS = 30.0
"""How often it is told that a call still waits for the same reason."""
_SEE_WORKERS = "see its workers in RunPod's console"
_CHECK_NETWORK = "check the network and GPU_CLUSTER_API_URL"
_MOST_CHARACTERS = 1_000_000

Message = Mapping[str, str]
_Answered = TypeVar("_Answered")


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked."""

    model: str
    messages: Sequence[Message]
    max_tokens: int

    def body(self) -> dict[str, Any]:
        """The request. The most likely tokens are taken, so that the same question has the same answer."""
        return {
            "model": self.model,
            "messages": [dict(message) for message in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass(frozen=True, slots=True)
class Said:
    """A whole answer."""

    model: str
    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long a call may wait for a machine, by which clock, and who is told."""

    seconds: float
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep


class InferenceEndpoint:
    """One endpoint. `address` is RunPod's for it, without `/openai/v1`.

    All methods raise the following. Texts are one sentence each and show no key.

    Raises:
        ModelUnknownError: nobody at the endpoint has this name.
        ServiceRefusedError: the key, the endpoint or the request is wrong.
        ServiceUnavailableError: no machine was ready in time, or it has failed.
        AnswerBrokenError: the answer broke off half-way.
    """

    def __init__(self, address: str, key: str, *, http: httpx.AsyncClient, waiting: Waiting) -> None:
        self._address = address
        self._id = address.rpartition("/")[2]
        self._headers = {"Authorization": f"Bearer {key}"}
        self._http = http
        self._waiting = waiting
        self._began_at = waiting.clock()
        self._told: tuple[str, float] | None = None
        """The reason for waiting that was told last, and when."""

    async def wake(self, health: EndpointHealth) -> None:
        """Where no machine is up, have one started and wait for it. A list of models costs no answer of a model."""
        if not health.reachable or health.ready or health.running:
            return  # the first call says what is wrong, or is answered
        why = f" ({health.problem})" if health.problem else ""
        self._waiting.say(f"The endpoint is asleep: a machine starts and loads the model, which takes minutes{why}.")
        await self.base_model()

    async def base_model(self) -> str:
        """Return the name by which the base model is called."""

        async def look() -> str:
            async with self._send("GET", "models") as response:
                answer = await read_answer(response)
            body = await _json_of(answer)
            if (found := base_name(body)) is None:
                self._raise_for(answer.status_code, body, "")
            return str(found)

        return await self._patiently(look)

    async def ask(self, question: Question, on_text: Callable[[str], None]) -> Said:
        """Ask, and tell `on_text` of each piece of the answer as it comes."""

        async def attempt() -> Said:
            said = Part()
            try:
                async for part in self._parts(question):
                    on_text(part.text)
                    said = _joined(said, part)
                    if len(said.text) > _MOST_CHARACTERS:
                        raise AnswerBrokenError(SERVICE, "The answer has no end; lower --max-tokens.")
            except _NotReadyError:
                # Asked again, it would begin anew behind what has been shown.
                if not said.text:
                    raise
            if said.finish_reason is None:
                raise AnswerBrokenError(
                    SERVICE, f"The answer broke off after {len(said.text):,} characters; ask again."
                )
            return Said(question.model, said.text, said.finish_reason, said.prompt_tokens, said.completion_tokens)

        return await self._patiently(attempt)

    async def _parts(self, question: Question) -> AsyncIterator[Part]:
        async with self._send("POST", "chat/completions", question.body()) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                answer = await read_answer(response)
                body = await _json_of(answer)
                yield self._part_of(body, answer.status_code, question.model)
                return
            async for data in self._data_of(response):
                yield self._part_of(_parsed(data), response.status_code, question.model)

    async def _data_of(self, response: httpx.Response) -> AsyncIterator[str]:
        """The data of each event up to the last; a connection that breaks off is the end, too."""
        try:
            async for line in read_lines(response):
                data = line.removeprefix("data:").strip()
                if data == DONE:
                    return
                # RunPod may put a plain error between the events.
                if line.startswith(("data:", "{")):
                    yield data
        except httpx.HTTPError:
            return

    def _part_of(self, body: Any, status: int, model: str) -> Part:
        part = read_part(body)
        if part is None or status >= 400:
            self._raise_for(status, body, model)
        assert part is not None
        return part

    def _raise_for(self, status: int, body: Any, model: str) -> None:
        if is_not_ready(status, body):
            raise _NotReadyError(SERVICE, f"HTTP {status}")
        raise explain(status, body, model=model, endpoint=self._id)

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        return self._http.stream(
            method, f"{self._address}/openai/v1/{path}", json=body, headers=self._headers, timeout=_TIMEOUT,
            extensions=called("inference", path.replace("/", "_")),
        )  # fmt: skip

    async def _patiently(self, call: Callable[[], Awaitable[_Answered]]) -> _Answered:
        """Repeat a call that no machine has taken, until the time is over."""
        waiting = self._waiting
        while True:
            try:
                return await call()
            except _NotReadyError:
                why, remedy = "no machine is ready", _SEE_WORKERS
            except httpx.HTTPError as error:
                # A machine that is too slow was reached.
                remedy = _SEE_WORKERS if isinstance(error, httpx.ReadTimeout) else _CHECK_NETWORK
                why = why_unreachable(error)
            waited = waiting.clock() - self._began_at
            if waited + _PAUSE_SECONDS >= waiting.seconds:
                raise ServiceUnavailableError(
                    SERVICE,
                    f"The endpoint {self._id} has not answered for {waited:.0f} s ({why}): {remedy}, or allow more "
                    "time with --wait.",
                )
            self._tell(why, waited)
            await waiting.sleep(_PAUSE_SECONDS)

    def _tell(self, why: str, waited: float) -> None:
        if self._told is None or why != self._told[0] or waited - self._told[1] >= _TELL_SECONDS:
            self._waiting.say(f"Still waiting after {waited:.0f} s: {why}.")
            self._told = (why, waited)


class _NotReadyError(ServiceError):
    """No machine has taken the request; it may be sent again."""


def _joined(said: Part, part: Part) -> Part:
    return Part(
        said.text + part.text,
        part.finish_reason or said.finish_reason,
        part.prompt_tokens if part.prompt_tokens is not None else said.prompt_tokens,
        part.completion_tokens if part.completion_tokens is not None else said.completion_tokens,
    )


async def _json_of(answer: Answer) -> Any:
    try:
        return await answer.json()
    except (ValueError, RecursionError):
        return None


def _parsed(data: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
