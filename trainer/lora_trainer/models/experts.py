"""Quantises fused experts to 4 bits while the model is loaded.

transformers 5 keeps all experts of a layer in two parameters with three dimensions. `load_in_4bit` skips these without
a warning: 77.3 of the 79.7 billion weights of Qwen3-Next-80B would stay in bf16. Here they are quantised one parameter
at a time, before they are put into the model. So memory never holds more than the quantised model and the experts of
one layer in full precision. When a layer reads its experts, bitsandbytes' parametrisation dequantises them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, _register_parametrization_hooks
from torch.nn.utils import parametrize
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.moe import _can_use_grouped_mm
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from typing_extensions import override

if TYPE_CHECKING:
    from transformers import PretrainedConfig

from lora_trainer.models.packed import PackedWeight


def is_fused_expert(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter holds one matrix of each expert of a layer; its shape is then (experts, rows, columns)."""
    return ".experts." in name and parameter.ndim == 3


def has_experts(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration is a mixture of experts."""
    return getattr(config.get_text_config(), "num_experts_per_tok", None) is not None


class _QuantizeExperts(ConversionOps):
    """Quantises the weights that transformers' loader passes: linear layers as usual, and also fused experts."""

    def __init__(self, quantizer: _ExpertQuantizer) -> None:
        self._quantizer = quantizer
        self._linear = Bnb4bitQuantize(quantizer)

    @override
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, list[torch.Tensor]]:
        """Turn `{name: weights}` into `{name: [quantised parameter]}`.

        Empties `input_dict`, so that the memory of each weight is freed as soon as it is quantised.
        """
        model, converted = kwargs["model"], dict[str, list[torch.Tensor]]()
        for name in list(input_dict):
            value = input_dict.pop(name)
            module, _ = get_module_from_name(model, name)
            weights = value[0] if isinstance(value, list) else value
            if isinstance(weights, PackedWeight):
                converted[name] = [self._quantizer.take_packed(name, module, weights)]
            elif isinstance(module, bnb.nn.Linear4bit):
                converted[name] = [self._linear.convert({name: value}, model=model)[name]]
            else:
                converted[name] = [self._quantizer.quantize_expert(name, weights)]
        return converted


class _ExpertQuantizer(Bnb4BitHfQuantizer):
    """transformers' 4-bit quantiser, which here quantises fused experts, too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._states: dict[str, functional.QuantState] = {}

    def quantize_expert(self, name: str, value: torch.Tensor) -> torch.nn.Parameter:
        """Quantise the weights of one parameter: two 4-bit values per byte. Keeps its quantisation constants."""
        config = self.quantization_config
        packed, state = functional.quantize_4bit(
            value.contiguous(),
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
        )
        self._states[name] = state
        return torch.nn.Parameter(packed, requires_grad=False)

    def take_packed(self, name: str, module: torch.nn.Module, weight: PackedWeight) -> torch.nn.Parameter:
        """The parameter of a weight that was quantised before."""
        if isinstance(module, bnb.nn.Linear4bit):
            return weight.for_linear(module)
        parameter, self._states[name] = weight.for_expert(module.get_parameter(name.rsplit(".", 1)[-1]).shape)
        return parameter

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        """Whether the loader must quantise this parameter. From this it also computes how much memory to reserve."""
        module, leaf = get_module_from_name(model, param_name)
        parameter = getattr(module, leaf, None)
        if isinstance(parameter, torch.Tensor) and is_fused_expert(param_name, parameter):
            return True
        return bool(super().param_needs_quantization(model, param_name, **options))

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that the loader applies to each such parameter, after it has merged a layer's experts."""
        return _QuantizeExperts(self)

    def finish_experts(self, model: torch.nn.Module, prefix: str = "") -> None:
        """Let modules whose names begin with `prefix` unpack their experts when they read them."""
        for name in [name for name in self._states if name.startswith(prefix)]:
            module, leaf = get_module_from_name(model, name)
            state = self._states.pop(name)
            parametrize.register_parametrization(module, leaf, Bnb4bitParametrization(state), unsafe=True)
            _register_parametrization_hooks(module, leaf)

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        self.finish_experts(model)
        return super()._process_model_after_weight_loading(model, **options)


@contextmanager
def quantising_experts() -> Iterator[None]:
    """While this context is open, `from_pretrained` with 4-bit bitsandbytes quantises fused experts, too."""
    before = AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"]
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = _ExpertQuantizer
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = before


def experts_kernel(model: torch.nn.Module) -> str | None:
    """How the products of routed experts are computed here, as transformers calls it; None: there are none.

    `grouped_mm` is one kernel for all experts. Where the GPU has none (before compute capability 8.0), transformers
    computes one expert after the other: `grouped_mm_fallback`.
    """
    text: Any = getattr(model, "config", None)
    parameter = next((p for name, p in model.named_parameters() if ".experts." in name), None)
    if text is None or parameter is None:
        return None
    chosen = str(text.get_text_config()._experts_implementation)  # noqa: SLF001 there is no public way to ask
    if chosen != "grouped_mm":
        return chosen
    weight = torch.empty(1, 8, 8, device=parameter.device, dtype=torch.bfloat16)
    ends = torch.ones(1, device=parameter.device, dtype=torch.int32)
    return chosen if _can_use_grouped_mm(weight[0], weight, ends) else f"{chosen}_fallback"


def unquantised_experts(model: torch.nn.Module) -> list[str]:
    """The names of fused experts that are still in full precision. There must be none after loading."""
    return [
        name
        for name, parameter in model.named_parameters()
        if is_fused_expert(name, parameter) and parameter.dtype.is_floating_point
    ]
