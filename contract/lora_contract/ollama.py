"""The Modelfile with which Ollama makes a model of an adapter or of a merged model (docs.ollama.com/modelfile).

Ollama takes adapters as safetensors for some families only (docs.ollama.com/import), and as GGUF for what llama.cpp
takes. It converts no safetensors of whole models to GGUF by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODELFILE_NAME = "Modelfile"
ENVIRONMENT_NAME = "environment.json"
"""The file of an artifact that says with what it was trained."""
SAFETENSORS_FAMILIES = frozenset({"llama", "mistral", "mixtral"})
"""Architectures, as transformers calls them, whose adapters Ollama imports as safetensors: those of Ollama's list
(Llama, Mistral, Gemma) that a trainer's table has."""

_MAX_JSON_BYTES = 100_000_000
"""The largest tokenizer.json that is read; published ones have up to some 40 MB."""
_MOST_STOPS = 20


def modelfile(
    source: str,
    *,
    adapter: str | None = None,
    template: str | None = None,
    stops: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> str:
    """Write a Modelfile.

    Args:
        source: what `FROM` names: a file, or the name of a model at Ollama.
        adapter: the path of the adapter, relative to the Modelfile.
        template: the chat template in Go's language; without one Ollama takes that of `source`.
        stops: texts that end an answer. Those that can't be written in quotes are left out.
        remarks: lines of comment at the beginning.
    """
    lines = [*(f"# {remark}" for remark in remarks), f"FROM {source}"]
    if adapter is not None:
        lines.append(f"ADAPTER {adapter}")
    if template is not None and '"""' not in template:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if stop.isprintable() and '"' not in stop]
    return "\n".join([*lines, ""])


def architecture_of(folder: Path) -> str | None:
    """The architecture of an adapter's base, as transformers calls it; None where its folder does not tell."""
    found = _read_object(folder / ENVIRONMENT_NAME).get("base_architecture")
    return found if isinstance(found, str) else None


def stop_texts(folder: Path) -> list[str]:
    """The texts of the tokens at which an answer ends, as an adapter's folder tells them; none where it tells none."""
    ends = _read_object(folder / "generation_config.json").get("eos_token_id")
    wanted = ends if isinstance(ends, list) else [ends]
    added = _read_object(folder / "tokenizer.json").get("added_tokens")
    tokens = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    found = {entry.get("id"): entry.get("content") for entry in tokens if isinstance(entry.get("id"), int)}
    texts = [found.get(number) for number in wanted[:_MOST_STOPS] if isinstance(number, int)]
    return [text for text in texts if isinstance(text, str) and text]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
