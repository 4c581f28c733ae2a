"""What the stand-in of vLLM answers is what vLLM 0.33.0's source says; each test names the file that it was read in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.inference.served import ServeSettings
from sandbox.inference.vllm import Reply, VllmServer
from tests.unit.sandbox.inference.speaking import BASE, SpeakingModel, put_adapter

Open = Callable[..., VllmServer]
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Starts a server on `tmp_path` as the resolver's folder."""

    def start(**settings: Any) -> VllmServer:
        return VllmServer(
            ServeSettings(BASE, **{"resolver_folder": tmp_path, "max_loras": 2, **settings}), SpeakingModel()
        )

    return start


async def chat(server: VllmServer, model: str | None, **more: Any) -> Reply:
    return await server.call("POST", "/v1/chat/completions", {"model": model, "messages": HELLO, **more})


async def said(server: VllmServer, model: str | None, **more: Any) -> str:
    reply = await chat(server, model, **more)
    assert reply.status == 200, reply.body
    assert reply.body is not None
    return str(reply.body["choices"][0]["message"]["content"])


def error_of(reply: Reply) -> dict[str, Any]:
    assert reply.body is not None
    error: dict[str, Any] = reply.body["error"]
    assert reply.status == error["code"]
    return error


async def test_a_new_folder_is_served_by_its_name_without_a_restart(opened: Open, tmp_path: Path) -> None:
    # plugins/lora_resolvers/filesystem_resolver.py
    server = opened()
    assert await said(server, BASE) == "base"
    put_adapter(tmp_path, "first")
    put_adapter(tmp_path, "second")
    assert [await said(server, name) for name in ("first", "second", BASE, "")] == ["first", "second", "base", "base"]


async def test_an_unknown_name_is_refused_in_vllms_words(opened: Open) -> None:
    # entrypoints/serve/engine/serving.py, BaseServing._check_model
    assert error_of(await chat(opened(), "nobody")) == {
        "message": f"The model `nobody` does not exist. Valid aliases: {BASE}.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


async def test_an_adapter_of_another_base_is_unknown(opened: Open, tmp_path: Path) -> None:
    put_adapter(tmp_path, "other", base_model_name_or_path="example/another")
    assert error_of(await chat(opened(), "other"))["code"] == 404


@pytest.mark.parametrize("config", [{"r": 17}, {"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 32}}])
async def test_what_vllm_cant_load_is_refused_and_tried_again(
    opened: Open, tmp_path: Path, config: dict[str, Any]
) -> None:
    # entrypoints/openai/models/serving.py, resolve_lora; lora/peft_helper.py, validate_legal
    place, server = put_adapter(tmp_path, "strange", **config), opened()
    for _ in range(2):
        error = error_of(await chat(server, "strange"))
        assert (error["code"], error["type"]) == (400, "BadRequestError")
        assert error["message"] == "LoRA adapter 'strange' was found but could not be loaded."
    shutil.rmtree(place)
    put_adapter(tmp_path, "strange")
    assert await said(server, "strange") == "strange"


async def test_without_a_resolver_no_adapter_is_looked_for(opened: Open, tmp_path: Path) -> None:
    put_adapter(tmp_path, "first")
    assert error_of(await chat(opened(resolver_folder=None), "first"))["code"] == 404


async def test_a_served_name_replaces_the_models_own(opened: Open, tmp_path: Path) -> None:
    # The resolver compares with --model (models/serving.py: base_model_name = self.model_config.model).
    put_adapter(tmp_path, "first")
    server = opened(served_model_name="chat")
    assert [await said(server, name) for name in ("chat", "first")] == ["base", "first"]
    assert error_of(await chat(server, BASE))["code"] == 404


async def test_a_removed_adapter_is_answered_until_the_server_is_replaced(opened: Open, tmp_path: Path) -> None:
    # entrypoints/openai/models/serving.py: a name in lora_requests is looked for no more.
    server, place = opened(), put_adapter(tmp_path, "first")
    assert await said(server, "first") == "first"
    shutil.rmtree(place)
    assert await said(server, "first") == "first"
    assert error_of(await chat(opened(), "first"))["code"] == 404


async def test_a_removed_adapter_that_was_pushed_out_ends_the_engine(opened: Open, tmp_path: Path) -> None:
    # lora/worker_manager.py, add_adapter: the folder is read again in the middle of a step; v1/engine/core.py ends.
    server, place = opened(), put_adapter(tmp_path, "first")
    put_adapter(tmp_path, "second")
    put_adapter(tmp_path, "third")
    for name in ("first", "second", "third"):
        assert await said(server, name) == name
    shutil.rmtree(place)
    error = error_of(await chat(server, "first"))
    assert (error["code"], error["message"]) == (500, "The server had an error while processing your request.")
    assert server.is_dead


async def test_an_adapter_that_was_pushed_out_is_read_again(opened: Open, tmp_path: Path) -> None:
    server = opened(max_loras=1)
    for name in ("first", "second"):
        put_adapter(tmp_path, name)
    assert [await said(server, name) for name in ("first", "second", "first")] == ["first", "second", "first"]


async def test_models_lists_the_base_and_what_was_called(opened: Open, tmp_path: Path) -> None:
    # entrypoints/openai/models/serving.py, show_available_models
    server = opened()
    for name in ("first", "second"):
        put_adapter(tmp_path, name)
    await said(server, "second")
    reply = await server.call("GET", "/v1/models")
    assert reply.body is not None
    shown = [(card["id"], card["parent"], card["max_model_len"]) for card in reply.body["data"]]
    assert shown == [(BASE, None, 40), ("second", BASE, None)]


async def test_a_prompt_beyond_the_context_is_refused(opened: Open) -> None:
    # renderers/params.py, _token_len_check
    reply = await opened().call("POST", "/v1/completions", {"model": BASE, "prompt": "x" * 41})
    error = error_of(reply)
    assert (error["code"], error["param"]) == (400, "input_tokens")
    assert "maximum context length is 40 tokens. However, your prompt contains 41 input tokens" in error["message"]


async def test_a_body_without_messages_is_refused_with_its_field(opened: Open) -> None:
    # entrypoints/serve/exception_handling/handlers/validation.py
    error = error_of(await opened().call("POST", "/v1/chat/completions", {"model": BASE}))
    assert (error["type"], error["code"], error["param"]) == ("Bad Request", 400, "body.messages")
    assert error["message"].startswith("1 validation error:\n")


async def test_an_answer_ends_by_itself_or_at_the_most_tokens(opened: Open) -> None:
    server = opened()
    whole, cut = await chat(server, BASE), await chat(server, BASE, max_tokens=2)
    assert whole.body is not None
    assert cut.body is not None
    assert whole.body["choices"][0]["finish_reason"] == "stop"
    choice = cut.body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ba", "length")
    assert cut.body["usage"]["completion_tokens"] == 2


async def test_a_stream_has_role_text_reason_counts_and_an_end(opened: Open) -> None:
    # entrypoints/openai/chat_completion/serving.py, chat_completion_stream_generator_raw
    reply = await chat(opened(), BASE, stream=True, stream_options={"include_usage": True})
    assert reply.events is not None
    events = [event async for event in reply.events]
    assert events[-1] == "data: [DONE]\n\n"
    assert all(event.startswith("data: ") and event.endswith("\n\n") for event in events)
    *parts, counts = [json.loads(event[6:]) for event in events[:-1]]
    assert [part["choices"][0]["delta"] for part in parts] == [
        {"role": "assistant", "content": ""},
        *({"content": letter} for letter in ("b", "a", "s", "e", "")),
    ]
    assert [part["choices"][0]["finish_reason"] for part in parts][-1] == "stop"
    assert counts["choices"] == []
    assert counts["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}


async def test_an_engine_that_ends_in_a_stream_is_an_event(opened: Open, tmp_path: Path) -> None:
    server, place = opened(max_loras=1), put_adapter(tmp_path, "first")
    put_adapter(tmp_path, "second")
    for name in ("first", "second"):
        await said(server, name)
    shutil.rmtree(place)
    reply = await chat(server, "first", stream=True)
    assert reply.events is not None
    first, end = [event async for event in reply.events]
    assert json.loads(first[6:])["error"]["code"] == 500
    assert end == "data: [DONE]\n\n"


async def test_the_official_client_reads_every_kind_of_answer(opened: Open, tmp_path: Path) -> None:
    put_adapter(tmp_path, "first")
    async with client_of(opened()) as client:
        answer = await client.chat.completions.create(model="first", messages=[{"role": "user", "content": "Hello"}])
        assert answer.choices[0].message.content == "first"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 11
        text = await client.completions.create(model=BASE, prompt="Hello")
        assert text.choices[0].text == "base"
        models = await client.models.list()
        assert [model.id for model in models.data] == [BASE, "first"]
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.completions.create(model="nobody", prompt="Hello")


def client_of(server: VllmServer) -> openai.AsyncOpenAI:
    async def call(request: Any) -> Response:
        body = await request.body()
        reply = await server.call(request.method, request.url.path, json.loads(body) if body else None)
        return JSONResponse(reply.body, reply.status)

    app = Starlette(routes=[Route("/{path:path}", call, methods=["GET", "POST"])])
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app))
    return openai.AsyncOpenAI(base_url="http://vllm/v1", api_key="unused", max_retries=0, http_client=http)
