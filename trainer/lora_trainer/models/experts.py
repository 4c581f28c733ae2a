"""Quantise fused experts to 4 bits while the model is loaded.

Current transformers keep the experts of a layer in two 3-D parameters, which `load_in_4bit` skips
without a word: of Qwen3-Next-80B's 79.7 billion weights 77.3 billion would stay in bf16. Here they
are quantised one parameter at a time, before they reach the model, so that memory never holds more
than the finished model and one layer's experts. bitsandbytes' parametrisation gives them back in
full precision whenever a layer asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, _register_parametrization_hooks
from torch.nn.utils import parametrize
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from typing_extensions import override


def is_fused_expert(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter holds the same matrix of all experts of a layer."""
    return ".experts." in name and parameter.ndim == 3


class _QuantizeExperts(ConversionOps):
    """Quantises what the loader hands over, linear layers as ever and fused experts, too."""

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
        """`{name: weights}` in, `{name: [quantised parameter]}` out; frees each weight as it goes."""
        model, converted = kwargs["model"], dict[str, list[torch.Tensor]]()
        for name in list(input_dict):
            value = input_dict.pop(name)
            module, _ = get_module_from_name(model, name)
            if isinstance(module, bnb.nn.Linear4bit):
                converted[name] = [self._linear.convert({name: value}, model=model)[name]]
            else:
                weights = value[0] if isinstance(value, list) else value
                converted[name] = [self._quantizer.quantize_expert(name, weights)]
        return converted


class _ExpertQuantizer(Bnb4BitHfQuantizer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._states: dict[str, functional.QuantState] = {}

    def quantize_expert(self, name: str, value: torch.Tensor) -> torch.nn.Parameter:
        config = self.quantization_config
        packed, state = functional.quantize_4bit(
            value.contiguous(),
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
        )
        self._states[name] = state
        return torch.nn.Parameter(packed, requires_grad=False)

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        """Asked by the loader for each parameter; also sizes the memory that it reserves."""
        module, leaf = get_module_from_name(model, param_name)
        parameter = getattr(module, leaf, None)
        if isinstance(parameter, torch.Tensor) and is_fused_expert(param_name, parameter):
            return True
        return bool(super().param_needs_quantization(model, param_name, **options))

    def get_quantize_ops(self) -> ConversionOps:
        """What the loader runs on each parameter that needs it, after merging a layer's experts."""
        return _QuantizeExperts(self)

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        for name, state in self._states.items():
            module, leaf = get_module_from_name(model, name)
            parametrize.register_parametrization(module, leaf, Bnb4bitParametrization(state), unsafe=True)
            _register_parametrization_hooks(module, leaf)
        self._states = {}
        return super()._process_model_after_weight_loading(model, **options)


@contextmanager
def quantising_experts() -> Iterator[None]:
    """While this holds, `from_pretrained` with a 4-bit bitsandbytes configuration quantises experts, too."""
    before = AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"]
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = _ExpertQuantizer
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = before


def unquantised_experts(model: torch.nn.Module) -> list[str]:
    """Names of fused experts that are still in full precision: empty after a load that did its work."""
    return [
        name
        for name, parameter in model.named_parameters()
        if is_fused_expert(name, parameter) and parameter.dtype.is_floating_point
    ]
