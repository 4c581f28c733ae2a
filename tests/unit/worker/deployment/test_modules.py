"""Adapters in an endpoint's variables are written as vLLM reads them, and other variables stay."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any

import pytest

from lora_worker.deployment.modules import MAX_MODULES, changed_modules, parse_module, read_modules, with_modules
from lora_worker.errors import ArgumentError, DeploymentError

OTHERS = {"MODEL_NAME": "org/base", "VLLM_EXTRA_ARGS": "--seed 3 --chat-template 'a b'"}


def as_vllm_reads(variables: dict[str, str]) -> dict[str, str]:
    """What `vllm serve` makes of worker-vllm's arguments: one for LORA_MODULES, then those of VLLM_EXTRA_ARGS.

    By vLLM's rules (0.33.0, `LoRAParserAction`): each argument is a JSON object, and the last option counts.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--lora-modules", nargs="*", default=[])
    parser.add_argument("--seed")
    parser.add_argument("--chat-template")
    first = ["--lora-modules", variables["LORA_MODULES"]] if "LORA_MODULES" in variables else []
    read = parser.parse_args([*first, *shlex.split(variables.get("VLLM_EXTRA_ARGS", ""))])
    assert (read.seed, read.chat_template) == ("3", "a b")
    objects: list[dict[str, Any]] = [json.loads(text) for text in read.lora_modules]
    return {one["name"]: one["path"] for one in objects}


@pytest.mark.parametrize("number", [0, 1, 2, MAX_MODULES])
def test_any_number_of_adapters_is_written_as_vllm_reads_it(number: int) -> None:
    modules = {f"bot-{index}": f"org/bot_{index}" for index in range(number)}
    written = with_modules({**OTHERS, "LORA_MODULES": '{"name": "old", "path": "org/old"}'}, modules)
    assert as_vllm_reads(written) == read_modules(written) == modules
    assert with_modules(written, {}) == OTHERS


@pytest.mark.parametrize(
    "variables",
    [
        {"LORA_MODULES": '[{"name": "a", "path": "org/a"}]'},
        {"LORA_MODULES": "{"},
        {"LORA_MODULES": "[" * 100_000},
        {"VLLM_EXTRA_ARGS": "'"},
        {"VLLM_EXTRA_ARGS": "--lora-modules=a=b"},
        {"VLLM_EXTRA_ARGS": "a" * 100_000},
    ],
)
def test_what_vllm_does_not_take_is_told_and_not_replaced(variables: dict[str, str]) -> None:
    with pytest.raises(DeploymentError, match="correct it or take it out in RunPod's console"):
        read_modules(variables)


def test_adapters_of_the_older_form_are_read() -> None:
    assert read_modules({"LORA_MODULES": "bot=/models/bot"}) == {"bot": "/models/bot"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bot", "NAME=PATH"),
        ("a b=org/bot", "NAME=PATH"),
        ("bot=https://x.supabase.co/storage/v1/object/sign/a?token=secret", "is an address, and vLLM downloads"),
        ("bot=s3://bucket/bot", "is an address, and vLLM downloads"),
        ("bot=/models/../etc", "is neither a folder from the root"),
        ("bot=relative", "is neither a folder from the root"),
        ("bot=", "is neither a folder from the root"),
    ],
)
def test_a_path_that_vllm_can_not_load_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence) as caught:
        parse_module(text)
    assert "secret" not in str(caught.value)


def test_adapters_are_added_replaced_and_removed_in_bounds() -> None:
    assert parse_module("bot:live=/runpod-volume/a/bot") == ("bot:live", "/runpod-volume/a/bot")
    present = {"a": "org/a", "b": "org/b"}
    assert changed_modules(present, {"b": "org/c"}, frozenset({"a"})) == {"b": "org/c"}
    with pytest.raises(ArgumentError, match="no adapter c: it has a, b"):
        changed_modules(present, {}, frozenset({"c"}))
    with pytest.raises(DeploymentError, match=f"gets {MAX_MODULES} adapters at most"):
        changed_modules(present, {f"x{number}": "org/x" for number in range(MAX_MODULES)}, frozenset())
