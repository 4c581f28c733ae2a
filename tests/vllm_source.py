"""The source of vLLM, where it is at hand: installed, or as the wheel that the variable VLLM_WHEEL names.

vLLM itself needs a GPU's libraries to be installed. So the tests that compare our facts with it read single files, and
run small parts of them by themselves.
"""

from __future__ import annotations

import importlib.util
import os
import zipfile
from pathlib import Path

import pytest


def vllm_source(path: str) -> str:
    """The text of a file such as `vllm/lora/peft_helper.py`; where there is no vLLM, the test is skipped."""
    if (wheel := os.environ.get("VLLM_WHEEL")) and Path(wheel).is_file():
        with zipfile.ZipFile(wheel) as files:
            return files.read(path).decode()
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("no vLLM here: install it, or name its wheel in VLLM_WHEEL")
    return (Path(found.origin).parents[1] / path).read_text()
