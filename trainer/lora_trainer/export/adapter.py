"""Reads a published adapter for an export: what is added to which module, without loading a matrix.

The files come from outside: only safetensors is read, and whatever changes a model otherwise than LoRA and DoRA on
linear layers do is refused, since an export would leave it out without a word.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_contract.protocol import ADAPTER_FILES
from lora_trainer.errors import ExportRefusedError
from lora_trainer.models.weight_files import Span, read_spans
from lora_trainer.run.files import sha256_of

_CONFIG_NAME, _WEIGHTS_NAME = ADAPTER_FILES
_MAX_CONFIG_BYTES = 1_000_000
_MOST_PATTERNS = 1000
_MOST_PATTERN_CHARACTERS = 300
_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")

_UNCHANGED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "init_lora_weights": (True, False, None, "gaussian"),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
}
"""Keys of PEFT's configuration, and the values with which an adapter is nothing but LoRA or DoRA on linear layers.

With other values of `init_lora_weights` (PiSSA, OLoRA, …) the base itself was changed before the training."""


@dataclass(frozen=True)
class LoraModule:
    """What is added to one linear layer: `scale · B A`; with DoRA its rows get the lengths in `magnitude`, too."""

    name: str
    """As in the base model."""
    a: Span
    """(rank, in)."""
    b: Span
    """(out, rank)."""
    scale: float
    magnitude: Span | None = None
    """(out,)."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the layer's weight: (out, in)."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class Adapter:
    """A published adapter."""

    folder: Path
    base_name: str
    base_revision: str | None
    sha256: str
    """Of its weights' file."""
    config_sha256: str
    modules: tuple[LoraModule, ...]

    @property
    def uses_dora(self) -> bool:
        """Whether a module has a magnitude."""
        return any(module.magnitude is not None for module in self.modules)


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`, in PEFT's layout.

    Raises:
        ExportRefusedError: its files are missing or damaged, or it is more than LoRA or DoRA on linear layers.
    """
    content = _read_config(folder / _CONFIG_NAME)
    config = _parse_config(content)
    weights = folder / _WEIGHTS_NAME
    try:
        spans = read_spans(weights)
        digest = sha256_of(weights)
    except OSError as error:
        raise _unreadable(weights, error) from None
    except ValueError:
        raise ExportRefusedError(f"{_WEIGHTS_NAME} is damaged.", "Fetch the adapter once more.") from None
    revision = config.get("revision")
    return Adapter(
        folder,
        str(config.get("base_model_name_or_path") or ""),
        revision if isinstance(revision, str) else None,
        digest,
        hashlib.sha256(content).hexdigest(),
        _modules(spans, config),
    )


def _read_config(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(content) > _MAX_CONFIG_BYTES:
        raise ExportRefusedError(f"{path.name} has more than {_MAX_CONFIG_BYTES:,} bytes.")
    return content


def _unreadable(path: Path, error: OSError) -> ExportRefusedError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ExportRefusedError(f"{path.parent} holds no {path.name}.", "Name the folder of an adapter.")
    reason = error.strerror or type(error).__name__
    return ExportRefusedError(f"{path} can't be read ({reason}).", "Name the folder of an adapter that you may read.")


def _parse_config(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ExportRefusedError(f"{_CONFIG_NAME} can't be read as JSON.", "Fetch the adapter once more.")
    for key, values in _UNCHANGED.items():
        if config.get(key) not in values:
            raise ExportRefusedError(
                f"The adapter's {key} is {str(config[key])[:60]!r}: an export takes LoRA and DoRA of linear layers.",
                "Merge it with PEFT's merge_and_unload, on a base that is loaded in bf16.",
            )
    return config


def _modules(spans: dict[str, Span], config: dict[str, Any]) -> tuple[LoraModule, ...]:
    parts: dict[str, dict[str, Span]] = {}
    for name, span in spans.items():
        found = _MATRIX.fullmatch(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
        if found is None:
            raise ExportRefusedError(
                f"The adapter holds {name!r:.200}, which is no matrix of LoRA on a linear layer.",
                "Merge it with PEFT's merge_and_unload, on a base that is loaded in bf16.",
            )
        parts.setdefault(found["module"], {})[found["part"]] = span
    if not parts:
        raise ExportRefusedError("The adapter holds no matrices.", "Fetch the adapter once more.")
    scales = _Scales(config)
    return tuple(_module(name, found, scales, dora=bool(config.get("use_dora"))) for name, found in parts.items())


def _module(name: str, parts: dict[str, Span], scales: _Scales, *, dora: bool) -> LoraModule:
    a, b, magnitude = parts.get("lora_A"), parts.get("lora_B"), parts.get("lora_magnitude_vector")
    whole = a is not None and b is not None and len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] > 0
    if not whole or dora != (magnitude is not None):
        raise ExportRefusedError(f"The adapter's matrices of {name!r:.200} don't fit each other, or one is missing.")
    assert a is not None and b is not None  # noqa: PT018 for the type checker: `whole` has looked
    if magnitude is not None and math.prod(magnitude.shape) != b.shape[0]:
        raise ExportRefusedError(f"The adapter's magnitudes of {name!r:.200} don't fit its matrices.")
    return LoraModule(name, a, b, scales.of(name, rank=a.shape[0]), magnitude)


class _Scales:
    """The factor of each module's product, as PEFT computes it (peft.tuners.lora.layer, `update_layer`)."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._alpha = _number(config.get("lora_alpha"), "lora_alpha")
        self._root = bool(config.get("use_rslora"))
        patterns = config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or len(patterns) > _MOST_PATTERNS:
            raise ExportRefusedError("The adapter's alpha_pattern can't be read.")
        self._patterns = [
            (_pattern(key), _number(value, f"alpha_pattern.{key[:60]}")) for key, value in patterns.items()
        ]

    def of(self, name: str, *, rank: int) -> float:
        """`alpha / rank`, or with rank-stabilised LoRA `alpha / √rank`; the first pattern that fits gives alpha."""
        alpha = next((value for pattern, value in self._patterns if pattern.match(name)), self._alpha)
        return alpha / (math.sqrt(rank) if self._root else rank)


def _pattern(key: str) -> re.Pattern[str]:
    """A pattern matches whole last parts of a module's name (peft.utils.other, `get_pattern_key`)."""
    try:
        if len(key) <= _MOST_PATTERN_CHARACTERS:
            return re.compile(rf"(.*\.)?({key})$")
    except re.error:
        pass
    raise ExportRefusedError(f"The adapter's alpha_pattern has a key that is no pattern: {key!r:.100}.")


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ExportRefusedError(f"The adapter's {key} is no number.", "Fetch the adapter once more.")
    return float(value)
