"""The stand-in of vLLM beside vLLM's own source, where that is at hand: names, words and keys are the same.

vLLM's file about names runs here, with small stand-ins of what it imports, and is asked what the sandbox's is asked.
"""

from __future__ import annotations

import ast
import asyncio
import shutil
import sys
import types
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from sandbox.inference import answers
from sandbox.inference.answers import Head, RefusedError
from sandbox.inference.resolver import find_adapter
from sandbox.inference.served import ServedModels, ServeSettings
from tests.unit.sandbox.inference.speaking import BASE, SpeakingModel, put_adapter
from tests.vllm_source import vllm_source

NAMES = "vllm/entrypoints/openai/models/serving.py"
CHAT, TEXT = "vllm/entrypoints/openai/chat_completion/protocol.py", "vllm/entrypoints/openai/completion/protocol.py"
COMMON = "vllm/entrypoints/serve/engine/protocol.py"
HEAD = Head.make("chatcmpl", BASE)
COUNTS = answers.usage(1, 2)
CARD = answers.model_card(BASE, BASE, parent=None, max_model_len=1)
CHAT_ANSWER = answers.chat_answer(HEAD, "Hi", "stop", COUNTS)
TEXT_ANSWER = answers.text_answer(HEAD, "Hi", "stop", COUNTS)
CHAT_CHUNK, TEXT_CHUNK = answers.chat_chunk(HEAD, {"content": "Hi"}, None), answers.text_chunk(HEAD, "Hi", None)


def fields(path: str, name: str) -> set[str]:
    """The fields of one of vLLM's models."""
    (found,) = (
        node for node in ast.walk(ast.parse(vllm_source(path))) if isinstance(node, ast.ClassDef) and node.name == name
    )
    return {
        node.target.id for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@pytest.mark.parametrize(
    ("path", "name", "ours", "left_out"),
    [
        (COMMON, "ErrorInfo", RefusedError(HTTPStatus.NOT_FOUND, "x").body["error"], set()),
        (COMMON, "ModelCard", CARD, set()),
        (COMMON, "ModelPermission", CARD["permission"][0], set()),
        (COMMON, "UsageInfo", COUNTS, set()),
        # What is left out is vLLM's own, and null unless it is asked for; an empty list of tool calls is dropped.
        (CHAT, "ChatMessage", CHAT_ANSWER["choices"][0]["message"], {"tool_calls"}),
        (CHAT, "ChatCompletionResponse", CHAT_ANSWER, None),
        (CHAT, "ChatCompletionResponseChoice", CHAT_ANSWER["choices"][0], None),
        (CHAT, "ChatCompletionStreamResponse", CHAT_CHUNK, None),
        (CHAT, "ChatCompletionResponseStreamChoice", CHAT_CHUNK["choices"][0], None),
        (TEXT, "CompletionResponse", TEXT_ANSWER, None),
        (TEXT, "CompletionResponseChoice", TEXT_ANSWER["choices"][0], None),
        (TEXT, "CompletionStreamResponse", TEXT_CHUNK, None),
        (TEXT, "CompletionResponseStreamChoice", TEXT_CHUNK["choices"][0], None),
    ],
)
def test_keys_of_each_answer_are_fields_of_vllms_class(
    path: str, name: str, ours: dict[str, Any], left_out: set[str] | None
) -> None:
    theirs = fields(path, name)
    assert ours.keys() <= theirs
    assert left_out is None or theirs - ours.keys() == left_out


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("vllm/entrypoints/serve/engine/serving.py", "Valid aliases: {served_names}."),
        ("vllm/entrypoints/serve/engine/serving.py", "The model `{request.model}` does not exist. "),
        (NAMES, "LoRA adapter '{lora_name}' was found but could not be loaded."),
        ("vllm/v1/engine/exceptions.py", "The server had an error while processing your request."),
        ("vllm/renderers/params.py", "exceeds this limit even without any output tokens. "),
    ],
)
def test_words_of_each_refusal_stand_in_vllms_source(path: str, words: str) -> None:
    assert words in vllm_source(path)


class Theirs:
    """vLLM's own `OpenAIServingModels`, on the sandbox's resolver and memory."""

    def __init__(self, folder: Path, module: types.ModuleType) -> None:
        self.model = SpeakingModel()
        self.refuse = False

        async def add_lora(request: Any) -> None:
            if self.refuse:
                raise ValueError("it does not fit")
            self.model.add_adapter(request.lora_int_id, Path(request.lora_path))

        async def resolve(base: str, name: str) -> Any:
            found = find_adapter(folder, base, name)
            return found and types.SimpleNamespace(lora_name=name, lora_path=str(found), lora_int_id=0)

        engine = types.SimpleNamespace(
            add_lora=add_lora, model_config=types.SimpleNamespace(model=BASE), renderer=None, input_processor=None
        )
        paths = [types.SimpleNamespace(name=BASE, model_path=BASE)]
        self.models = module.OpenAIServingModels(engine, paths)
        self.models.lora_resolvers = [types.SimpleNamespace(resolve_lora=resolve)]

    def find(self, name: str) -> int:
        """200, or the status of the refusal; a name that it knows is not looked for, as in `_check_model`."""
        if name in self.models.lora_requests or self.models.is_base_model(name):
            return 200
        found = asyncio.run(self.models.resolve_lora(name))
        return getattr(found, "status_code", 200)


class Ours:
    """The sandbox's names."""

    def __init__(self, folder: Path) -> None:
        self.model = SpeakingModel()
        self.refuse = False
        self.served = ServedModels(ServeSettings(BASE, resolver_folder=folder, max_loras=9), self, max_model_len=9)

    def add_adapter(self, number: int, folder: Path) -> None:
        if self.refuse:
            raise ValueError("it does not fit")
        self.model.add_adapter(number, folder)

    def remove_adapter(self, number: int) -> None:
        self.model.remove_adapter(number)

    def find(self, name: str) -> int:
        try:
            self.served.find(name)
        except RefusedError as refused:
            return refused.status
        return 200


@pytest.fixture(params=["ours", "vllm"])
def names(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ours | Theirs:
    return Ours(tmp_path) if request.param == "ours" else Theirs(tmp_path, vllms_names(monkeypatch))


def vllms_names(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module of vLLM's that knows names. All that it imports of vLLM is empty, but for the registry and errors."""
    text = vllm_source(NAMES)

    class Anything(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {"__init__": lambda *_, **__: None})

    imported = {
        node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.module
    } - {"asyncio", "collections", "http"}
    for name in imported | {"vllm"}:
        monkeypatch.setitem(sys.modules, name, Anything(name))
    modules = {name: sys.modules[name] for name in imported}
    counter, loaded = iter(range(1, 99)), types.SimpleNamespace(info=_silent, warning=_silent)
    registry = types.SimpleNamespace(get_supported_resolvers=list, get_resolver=_silent)
    replaced: dict[str, dict[str, Callable[..., Any] | Any]] = {
        "vllm.entrypoints.serve": {"create_error_response": lambda **told: types.SimpleNamespace(**told)},
        "vllm.logger": {"init_logger": lambda _: loaded},
        "vllm.lora.resolver": {"LoRAResolverRegistry": registry},
        "vllm.utils.counter": {"AtomicCounter": lambda _: types.SimpleNamespace(inc=lambda _: next(counter))},
    }
    for name, attributes in replaced.items():
        modules[name].__dict__.update(attributes)
    module = types.ModuleType("vllms_names")
    exec(compile(text, NAMES, "exec"), module.__dict__)
    return module


def _silent(*_: Any, **__: Any) -> None:
    pass


def test_names_are_found_while_the_server_runs(names: Ours | Theirs, tmp_path: Path) -> None:
    assert (names.find(BASE), names.find("first")) == (200, 404)
    put_adapter(tmp_path, "first")
    assert (names.find("first"), names.find("second")) == (200, 404)


def test_a_known_name_stays_known_without_its_folder(names: Ours | Theirs, tmp_path: Path) -> None:
    place = put_adapter(tmp_path, "first")
    assert names.find("first") == 200
    shutil.rmtree(place)
    assert names.find("first") == 200


def test_what_was_found_and_not_loaded_is_400_and_tried_again(names: Ours | Theirs, tmp_path: Path) -> None:
    put_adapter(tmp_path, "first")
    names.refuse = True
    assert names.find("first") == 400
    names.refuse = False
    assert names.find("first") == 200
