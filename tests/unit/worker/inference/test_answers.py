"""Each shape of an error that an endpoint sends becomes one sentence, and an answer is read from every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_worker.errors import ModelUnknownError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.inference.answers import Part, base_name, explain, is_not_ready, read_part

UNKNOWN = "The model `adapter-1` does not exist. Valid aliases: example/base."
VLLMS = {"error": {"message": UNKNOWN, "type": "NotFoundError", "param": "model", "code": 404}}
WORKERS = {"error": {"message": f"vLLM returned HTTP 404: {json.dumps(VLLMS)}", "type": "worker_error", "code": None}}


def sentence(status: int, body: Any) -> str:
    error = explain(status, body, model="adapter-1", endpoint="chat")
    text = str(error)
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, VLLMS),
        (200, VLLMS),
        (200, WORKERS),
        (200, {"error": str(WORKERS["error"])}),
        (200, {"status": "FAILED", "error": str(WORKERS["error"])}),
        # worker-vllm#57
        (200, {"code": 404, "message": UNKNOWN, "object": "error", "param": None, "type": "NotFoundError"}),
    ],
    ids=["vllm", "vllm-200", "worker", "sdk", "failed-job", "flat"],
)
def test_an_unknown_name_is_told_from_every_shape(status: int, body: Any) -> None:
    error = explain(status, body, model="adapter-1", endpoint="chat")
    assert isinstance(error, ModelUnknownError)
    assert "The endpoint chat has no model adapter-1" in str(error)


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_names_the_variable(status: int) -> None:
    assert "set GPU_CLUSTER_API_KEY" in sentence(status, {"error": "unauthorized"})


def test_an_unknown_endpoint_is_no_unknown_model() -> None:
    assert "RunPod has no endpoint chat for this key" in sentence(404, {"detail": "endpoint not found"})


def of_vllm(status: int, message: str) -> dict[str, Any]:
    inner = json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}})
    return {"error": {"message": f"vLLM returned HTTP {status}: {inner}", "type": "worker_error", "code": None}}


def test_an_adapter_that_cant_be_loaded_names_the_rank() -> None:
    said = sentence(200, of_vllm(400, "LoRA adapter 'adapter-1' was found but could not be loaded."))
    assert "can't load it: its rank may be above the endpoint's MAX_LORA_RANK" in said


def test_a_question_beyond_the_context_has_its_limit() -> None:
    body = of_vllm(400, "This model's maximum context length is 8192 tokens. However, your prompt contains 9000 input")
    assert "longer than the 8192 tokens" in sentence(200, body)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "vLLM server process is not running; worker is unhealthy", "type": "worker_error"}},
        of_vllm(500, "The server had an error while processing your request."),
    ],
)
def test_a_worker_without_its_server_has_to_be_replaced(body: Any) -> None:
    error = explain(200, body, model="adapter-1", endpoint="chat")
    assert isinstance(error, ServiceUnavailableError)
    assert "until it is replaced" in str(error)


@pytest.mark.parametrize(
    "body", [None, [], {}, {"error": 5}, {"error": {"error": {"error": {"error": {"error": "x"}}}}}]
)
def test_what_nobody_can_read_is_a_sentence_too(body: Any) -> None:
    assert sentence(500, body) == "The endpoint does not answer: HTTP 500"


def test_long_and_secret_words_of_an_endpoint_are_not_passed_on() -> None:
    said = sentence(400, {"error": "Bearer rpa_0123456789abcdef " + "word\n" * 1000})
    assert "rpa_0123456789abcdef" not in said
    assert isinstance(explain(400, {"error": "x"}, model="m", endpoint="e"), ServiceRefusedError)


@pytest.mark.parametrize(
    ("status", "body", "waits"),
    [
        (524, None, True),
        (502, None, True),
        (200, {"id": "1", "status": "IN_QUEUE"}, True),
        (200, {"status": "FAILED"}, False),
        (404, None, False),
        (500, None, False),
    ],
)
def test_only_what_no_machine_took_may_be_sent_again(status: int, body: Any, waits: bool) -> None:
    assert is_not_ready(status, body) is waits


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"choices": [{"delta": {"content": "Hi"}, "finish_reason": None}]}, Part("Hi")),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, Part("", "stop")),
        ({"choices": [{"delta": {"role": "assistant", "content": None}}]}, Part()),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}, Part("", None, 3, 4)),
        (
            {"choices": [{"message": {"content": "Hi"}, "finish_reason": "length"}], "usage": {"prompt_tokens": -1}},
            Part("Hi", "length"),
        ),
        ({"choices": [5], "usage": [1]}, Part()),
        ({"choices": None}, None),
        (VLLMS, None),
        (None, None),
    ],
)
def test_parts_and_whole_answers_are_read_alike(body: Any, part: Part | None) -> None:
    assert read_part(body) == part


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"data": [{"id": "a", "parent": "base"}, {"id": "base", "parent": None}]}, "base"),
        ({"data": [{"id": 5}]}, None),
        ({"data": "base"}, None),
        (None, None),
    ],
)
def test_the_base_is_the_model_without_a_parent(body: Any, name: str | None) -> None:
    assert base_name(body) == name
