"""A vLLM server: its routes, its streams and its refusals (vLLM 0.33.0, entrypoints/openai and entrypoints/serve).

The model is loaded when the server starts. One answer is generated at a time; further requests wait, as they do in vLLM
when its batch is full.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from sandbox.inference import answers
from sandbox.inference.answers import EngineDiedError, Head, Json, RefusedError
from sandbox.inference.language_model import LanguageModel, Piece, Sampling, Tokens
from sandbox.inference.served import Adapter, ServedModels, ServeSettings

CHAT_ROUTE, TEXT_ROUTE, MODELS_ROUTE = "/v1/chat/completions", "/v1/completions", "/v1/models"
_MOST_REPORTED = 10


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Request(BaseModel):
    # vLLM takes fields that it does not know, and passes over them.
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None


class ChatRequest(_Request):
    """The body of `/v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None


class TextRequest(_Request):
    """The body of `/v1/completions`."""

    prompt: str
    max_tokens: Annotated[int, Field(ge=0)] | None = 16


_AnyRequest = TypeVar("_AnyRequest", bound=_Request)


@dataclass(frozen=True)
class Reply:
    """What the server answers: JSON, or the events of a stream."""

    status: int
    body: Json | None = None
    events: AsyncIterator[str] | None = None
    """Each a line `data: …` with its empty line."""


@dataclass(frozen=True)
class _Work:
    """A request that was taken: what is generated, and how it is told."""

    model: str
    adapter: Adapter | None
    prompt: Tokens
    sampling: Sampling


class VllmServer:
    """One running server. `open_model` loads the base; a new server begins without any adapter."""

    def __init__(self, settings: ServeSettings, model: LanguageModel) -> None:
        self._settings = settings
        self._model = model
        self._served = ServedModels(settings, model, max_model_len=model.max_model_len)
        self._turn = asyncio.Lock()

    @property
    def is_dead(self) -> bool:
        """Whether its engine has ended, and the process with it."""
        return self._served.is_dead

    async def call(self, method: str, route: str, body: Any = None) -> Reply:
        """Answer a request; refusals are answers, too."""
        if (method, route) == ("GET", MODELS_ROUTE):
            return Reply(200, {"object": "list", "data": self._served.cards()})
        handle = {CHAT_ROUTE: self._chat, TEXT_ROUTE: self._complete}.get(route)
        if method != "POST" or handle is None:
            kind = HTTPStatus.NOT_FOUND.phrase
            return Reply(404, RefusedError(HTTPStatus.NOT_FOUND, "Not Found", kind=kind).body)
        try:
            return await handle(body)
        except RefusedError as refused:
            return Reply(refused.status, refused.body)

    async def _chat(self, body: Any) -> Reply:
        request = _parse(ChatRequest, body)
        adapter = await self._find(request.model)
        try:
            prompt = self._model.prompt_of(request.messages)
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from None
        most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        work, head = (
            self._work(request, adapter, prompt, most),
            Head.make("chatcmpl", request.model or self._settings.base),
        )
        if request.stream:
            return Reply(200, events=self._stream(work, _ChatEvents(head, _wants_usage(request))))
        text, last = await self._whole(work)
        counts = answers.usage(len(prompt), last.tokens)
        return Reply(200, answers.chat_answer(head, text, last.finish_reason or "stop", counts))

    async def _complete(self, body: Any) -> Reply:
        request = _parse(TextRequest, body)
        adapter = await self._find(request.model)
        prompt = self._model.tokens_of(request.prompt)
        work = self._work(request, adapter, prompt, request.max_tokens)
        head = Head.make("cmpl", request.model or self._settings.base)
        if request.stream:
            return Reply(200, events=self._stream(work, _TextEvents(head, _wants_usage(request))))
        text, last = await self._whole(work)
        counts = answers.usage(len(prompt), last.tokens)
        return Reply(200, answers.text_answer(head, text, last.finish_reason or "stop", counts))

    async def _find(self, name: str | None) -> Adapter | None:
        async with self._turn:
            return await run_in_threadpool(self._served.find, name)

    def _work(self, request: _Request, adapter: Adapter | None, prompt: Tokens, most: int | None) -> _Work:
        limit = self._model.max_model_len
        if len(prompt) > limit:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                f"This model's maximum context length is {limit} tokens. However, your prompt contains {len(prompt)} "
                "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of "
                "the input prompt.",
                param="input_tokens",
            )
        room = limit - len(prompt)
        sampling = Sampling(
            most_tokens=room if most is None else min(most, room),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
        )
        return _Work(request.model or self._settings.base, adapter, prompt, sampling)

    async def _pieces(self, work: _Work) -> AsyncIterator[Piece]:
        if work.sampling.most_tokens < 1:
            yield Piece("", 0, "length")
            return
        async with self._turn:
            await run_in_threadpool(self._served.hold, work.adapter)
            number = None if work.adapter is None else work.adapter.number
            pieces = self._model.answer(work.prompt, number, work.sampling)
            while True:
                piece = await run_in_threadpool(next, pieces)
                yield piece
                if piece.finish_reason is not None:
                    return

    async def _whole(self, work: _Work) -> tuple[str, Piece]:
        text, last = "", Piece("", 0)
        try:
            async for last in self._pieces(work):
                text += last.text
        except EngineDiedError:
            raise answers.engine_died() from None
        return text, last

    async def _stream(self, work: _Work, events: _Events) -> AsyncIterator[str]:
        """The status has been sent before the first token, so a fault is an event, too."""
        last = Piece("", 0)
        try:
            async for piece in self._pieces(work):
                if last.tokens == 0:
                    for chunk in events.first():
                        yield _event(chunk)
                last = piece
                if piece.text or piece.finish_reason is not None:
                    yield _event(events.part(piece))
            if events.wants_usage:
                yield _event(events.end(answers.usage(len(work.prompt), last.tokens, full=False)))
        except EngineDiedError:
            yield _event(answers.engine_died().body)
        yield "data: [DONE]\n\n"


class _Events:
    """The parts of a streamed answer."""

    kind = ""

    def __init__(self, head: Head, wants_usage: bool) -> None:
        self._head = head
        self.wants_usage = wants_usage

    def first(self) -> list[Json]:
        """What comes before the first text."""
        return []

    def part(self, piece: Piece) -> Json:
        """Some text, and at the end the reason."""
        raise NotImplementedError

    def end(self, counts: Json) -> Json:
        """The counts of tokens."""
        return answers.usage_chunk(self._head, self.kind, counts)


class _ChatEvents(_Events):
    kind = "chat.completion.chunk"

    def first(self) -> list[Json]:
        return [answers.chat_chunk(self._head, {"role": "assistant", "content": ""}, None)]

    def part(self, piece: Piece) -> Json:
        return answers.chat_chunk(self._head, {"content": piece.text}, piece.finish_reason)


class _TextEvents(_Events):
    kind = "text_completion"

    def part(self, piece: Piece) -> Json:
        return answers.text_chunk(self._head, piece.text, piece.finish_reason)


def _wants_usage(request: _Request) -> bool:
    return request.stream_options is not None and request.stream_options.include_usage


def _event(chunk: Json) -> str:
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def _parse(kind: type[_AnyRequest], body: Any) -> _AnyRequest:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = "".join(f"  {one}\n" for one in found[:_MOST_REPORTED])
        where = ".".join(str(part) for part in ("body", *found[0]["loc"]))
        text = f"{len(found)} validation error{'s' if len(found) > 1 else ''}:\n{lines}".rstrip()
        phrase = HTTPStatus.BAD_REQUEST.phrase
        raise RefusedError(HTTPStatus.BAD_REQUEST, text, kind=phrase, param=where) from None
