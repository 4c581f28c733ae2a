"""How vLLM finds an adapter's folder by the model's name of a request.

The rules of its filesystem resolver in words of our own (vLLM 0.33.0, `plugins/lora_resolvers/filesystem_resolver.py`).
`tests/unit/sandbox/test_resolver.py` checks them, and asks vLLM's own file the same where it is at hand.
"""

from __future__ import annotations

import json
from pathlib import Path

_CONFIG = "adapter_config.json"


def find_adapter(folder: Path, base_model: str, name: str) -> Path | None:
    """The folder of the adapter `name` below `folder`; None where there is none for this base.

    The base that the adapter's configuration names must be, letter for letter, the name with which the server was
    started (`--model`), whatever clients call it. Nothing else of the folder is looked at: files that are missing, or
    don't fit, are found when the adapter is loaded.

    Raises:
        ValueError: the configuration is no JSON. vLLM answers with the status 500.
        KeyError: it has no `peft_type`, or no `base_model_name_or_path`. The same.
    """
    path = folder / name
    config = path / _CONFIG
    if not config.exists():
        return None
    content = json.loads(config.read_text(encoding="utf-8"))
    if content["peft_type"] != "LORA" or content["base_model_name_or_path"] != base_model:
        return None
    return path
