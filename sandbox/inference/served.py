"""Which names a vLLM server answers to, and which adapters are in its memory.

Two parts of vLLM 0.33.0 come together here. Names are found once and then known until the server ends, whatever becomes
of their folders (`OpenAIServingModels`, entrypoints/openai/models/serving.py). Weights are held as
far as they fit, those of the latest used adapters (`LRUCacheWorkerLoRAManager`, lora/worker_manager.py). One that was
pushed out is read from its folder again, in the middle of the engine's work, and the engine ends where it is gone.
"""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from sandbox.inference.answers import EngineDiedError, Json, RefusedError, model_card
from sandbox.inference.loading import check_loadable
from sandbox.inference.resolver import find_adapter


@dataclass(frozen=True)
class ServeSettings:
    """With which arguments `vllm serve` was started."""

    model: str
    """`--model`. The resolver compares the base that an adapter names with it."""
    served_model_name: str | None = None
    """`--served-model-name`, the name by which the base is called; None: it is called by `model`."""
    max_loras: int = 1
    max_cpu_loras: int | None = None
    """How many adapters are kept in memory; None: as many as `max_loras`."""
    max_lora_rank: int = 16
    resolver_folder: Path | None = None
    """`VLLM_LORA_RESOLVER_CACHE_DIR`, with the plugin and VLLM_ALLOW_RUNTIME_LORA_UPDATING; None: without these, no
    adapter is looked for."""

    @property
    def base(self) -> str:
        """The name by which the base is called."""
        return self.served_model_name or self.model


class HoldsAdapters(Protocol):
    """What the memory needs of a language model."""

    def add_adapter(self, number: int, folder: Path) -> None:
        """Read an adapter's files. Raises OSError where they are missing, ValueError where they don't fit."""

    def remove_adapter(self, number: int) -> None:
        """Forget an adapter."""


@dataclass(frozen=True)
class Adapter:
    """A known adapter (`LoRARequest`)."""

    name: str
    number: int
    folder: Path


class AdapterMemory:
    """The adapters in memory, least recently used first."""

    def __init__(self, model: HoldsAdapters, settings: ServeSettings) -> None:
        self._model = model
        self._settings = settings
        self._held: OrderedDict[int, None] = OrderedDict()

    def add(self, adapter: Adapter) -> None:
        """Bring an adapter into memory, where it isn't yet.

        Raises:
            OSError: its files are missing.
            ValueError: this server can't serve it.
        """
        if adapter.number in self._held:
            self._held.move_to_end(adapter.number)
            return
        config = json.loads((adapter.folder / "adapter_config.json").read_text())
        check_loadable(config, max_rank=self._settings.max_lora_rank)
        # Read before another one is removed: what can't be read pushes nothing out.
        self._model.add_adapter(adapter.number, adapter.folder)
        if len(self._held) + 1 > (self._settings.max_cpu_loras or self._settings.max_loras):
            oldest, _ = self._held.popitem(last=False)
            self._model.remove_adapter(oldest)
        self._held[adapter.number] = None


class ServedModels:
    """The names that one running server answers to."""

    def __init__(self, settings: ServeSettings, model: HoldsAdapters, *, max_model_len: int) -> None:
        self._settings = settings
        self._memory = AdapterMemory(model, settings)
        self._max_model_len = max_model_len
        self._known: dict[str, Adapter] = {}
        self._numbers = itertools.count(1)
        self.is_dead = False
        """Whether the engine has ended. Nothing but another server helps."""

    def cards(self) -> list[Json]:
        """The elements of `/v1/models`: the base, and each adapter that was called. Others are not listed."""
        base = self._settings.base
        adapters = [
            model_card(one.name, str(one.folder), parent=base, max_model_len=None) for one in self._known.values()
        ]
        card = model_card(base, self._settings.model, parent=None, max_model_len=self._max_model_len)
        return [card, *adapters]

    def find(self, name: str | None) -> Adapter | None:
        """The adapter of this name, looked for at its first request; None for the base, which an empty name means.

        Raises:
            RefusedError: 404 for a name that nobody has, 400 for an adapter that can't be loaded.
        """
        if not name or name == self._settings.base:
            return None
        if name not in self._known:
            self._known[name] = self._look_for(name)
        return self._known[name]

    def _look_for(self, name: str) -> Adapter:
        folder = self._settings.resolver_folder
        try:
            found = None if folder is None else find_adapter(folder, self._settings.model, name)
        except (ValueError, KeyError) as error:
            text = f"{type(error).__name__} in the adapter's configuration"
            raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, text, kind="InternalServerError") from None
        if found is None:
            raise RefusedError(
                HTTPStatus.NOT_FOUND,
                f"The model `{name}` does not exist. Valid aliases: {self._settings.base}.",
                kind="NotFoundError",
                param="model",
            )
        adapter = Adapter(name, next(self._numbers), found)
        try:
            self._memory.add(adapter)
        except Exception:
            text = f"LoRA adapter '{name}' was found but could not be loaded."
            raise RefusedError(HTTPStatus.BAD_REQUEST, text) from None
        return adapter

    def hold(self, adapter: Adapter | None) -> None:
        """Make sure that a known adapter is in memory, as the engine does before each step.

        Raises:
            EngineDiedError: it was pushed out and can't be read again. The engine has ended with that.
        """
        if adapter is None:
            return
        try:
            self._memory.add(adapter)
        except Exception as error:
            self.is_dead = True
            raise EngineDiedError(str(error)) from None
