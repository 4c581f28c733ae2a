"""The checks of GPU and kernels: small matrices, compared with a reference in double precision on the CPU.

Where no GPU is needed (`LORA_TRAINER_NEEDS_GPU=false`, for tests and trials on a CPU), the same libraries are tried on
the CPU, and the findings say so.
"""

from __future__ import annotations

import importlib.util
import warnings

import torch
import torch.nn.functional as F  # noqa: N812 its usual name

from lora_trainer.errors import UnfitError
from lora_trainer.models.hardware import detect_hardware

_LEAST_FREE_SHARE = 0.8
"""Of the GPU's memory. Less is free where another container or an orphaned process holds some of it."""
_BLOCK = 64
_NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
"""The sixteen values of 4-bit NormalFloat: QLoRA (Dettmers et al. 2023), appendix E."""


def check_gpu(*, needs_gpu: bool) -> str:
    """Whether a GPU is visible, unused, and multiplies matrices correctly."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        if not needs_gpu:
            return "Not checked: this machine has no GPU, and needs none (LORA_TRAINER_NEEDS_GPU)."
        # torch warns where the driver is too old for its CUDA.
        words = f" {str(told[0].message)[:300]}" if told else ""
        raise UnfitError(
            f"torch {torch.__version__} sees no GPU.{words}", "Look at the endpoint's GPU types and its CUDA filter."
        )
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    if free < _LEAST_FREE_SHARE * total:
        raise UnfitError(f"Only {free / 1e9:.1f} of {total / 1e9:.1f} GB of the GPU's memory are free.")
    left, right = _random(256, 256), _random(256, 256, seed=2)
    product = (left.cuda() @ right.cuda()).cpu()
    _compare("The GPU's matrix product", product, left.double() @ right.double(), tolerance=0.1)
    major, minor = properties.major, properties.minor
    return f"{properties.name}, {total / 1e9:.0f} GB, sm_{major}{minor}, CUDA {torch.version.cuda}."


def check_quantisation(*, needs_gpu: bool) -> str:
    """Whether bitsandbytes quantises to 4 bits, restores, and multiplies as its definition says."""
    import bitsandbytes
    from bitsandbytes import functional

    device = _device(needs_gpu=needs_gpu)
    weights, inputs = _random(128, 256), _random(8, 256, seed=2)
    packed, state = functional.quantize_4bit(weights.to(device), blocksize=_BLOCK, quant_type="nf4")
    restored = functional.dequantize_4bit(packed, state).cpu()
    # A value in the middle between two of the sixteen may be rounded to either.
    near = (restored.double() - _as_nf4(weights)).abs() < 1e-3
    if near.double().mean() < 0.99:
        raise UnfitError(
            f"bitsandbytes {bitsandbytes.__version__} restores {1 - near.double().mean():.0%} of 4-bit values wrongly."
        )
    product = bitsandbytes.matmul_4bit(inputs.to(device), packed.t(), quant_state=state).cpu()
    _compare(
        f"bitsandbytes {bitsandbytes.__version__}, multiplying with 4-bit weights,",
        product,
        inputs.double() @ restored.double().T,
        tolerance=0.1,
    )
    return f"bitsandbytes {bitsandbytes.__version__} agrees with the reference on {_place(device)}."


def check_attention(*, needs_gpu: bool) -> str:
    """Whether the attention that trainings use agrees with its formula: padded rows, and packed ones on a GPU."""
    from lora_trainer.models.attention import has_varlen, varlen_attention

    device, hardware = _device(needs_gpu=needs_gpu), detect_hardware()
    query, key, value = (_random(1, 4, 48, 64, seed=seed).to(device, hardware.dtype) for seed in (1, 2, 3))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    _compare("torch's attention (SDPA)", mixed, _causal_attention(query, key, value), tolerance=5e-2)
    kinds = ["SDPA"]
    if hardware.is_gpu and hardware.dtype is torch.bfloat16 and has_varlen():
        starts = torch.tensor([0, 20, 48], dtype=torch.int32, device=device)
        packed, _ = varlen_attention(
            torch.nn.Module(), query, key, value, None, scaling=None, cu_seq_lens_q=starts, max_length_q=28
        )
        alone = [_causal_attention(*(t[:, :, a:b] for t in (query, key, value))) for a, b in ((0, 20), (20, 48))]
        _compare("torch's packed attention (varlen)", packed.transpose(1, 2), torch.cat(alone, dim=2), tolerance=5e-2)
        kinds.append("varlen")
    return f"Agrees with the formula on {_place(device)}, in {hardware.dtype}: {', '.join(kinds)}."


def check_linear_attention(*, needs_gpu: bool) -> str:
    """Whether the compiled kernels of linear attention (Qwen3-Next) load, and the convolution computes correctly."""
    missing = [name for name in ("causal_conv1d", "fla") if importlib.util.find_spec(name) is None]
    if missing:
        return f"Not checked: {' and '.join(missing)} not installed, so torch's own code does it, slowly."
    if _device(needs_gpu=needs_gpu) == "cpu":
        return "Not checked: these kernels run on a GPU only."
    import fla  # noqa: F401 whether its import succeeds is the check
    from causal_conv1d import causal_conv1d_fn

    inputs, weights = _random(2, 16, 32), _random(16, 4, seed=2)
    computed = causal_conv1d_fn(inputs.cuda(), weights.cuda()).cpu()
    padded = F.pad(inputs.double(), (3, 0))
    expected = F.conv1d(padded, weights.double()[:, None], groups=16)
    _compare("causal_conv1d", computed, expected, tolerance=1e-2)
    return "causal_conv1d agrees with the reference, and flash-linear-attention loads."


def _random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _device(*, needs_gpu: bool) -> str:
    if torch.cuda.is_available():
        return "cuda:0"
    if needs_gpu:
        raise UnfitError("There is no GPU to try it on.")
    return "cpu"


def _place(device: str) -> str:
    return "the CPU" if device == "cpu" else "the GPU"


def _as_nf4(weights: torch.Tensor) -> torch.Tensor:
    """The weights rounded to 4-bit NormalFloat in blocks of 64, in double precision."""
    blocks = weights.double().reshape(-1, _BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    values = torch.tensor(_NF4, dtype=torch.float64)
    nearest = ((blocks / largest)[..., None] - values).abs().argmin(dim=-1)
    return (values[nearest] * largest).reshape(weights.shape)


def _causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / √width) v, each token with those before it. Shapes (rows, heads, tokens, width)."""
    query, key, value = (tensor.detach().cpu().double() for tensor in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed: torch.Tensor = scores.masked_fill(later, float("-inf")).softmax(-1) @ value
    return mixed


def _compare(what: str, computed: torch.Tensor, expected: torch.Tensor, *, tolerance: float) -> None:
    """Make sure that the largest difference is within `tolerance`, which NaN never is.

    Raises:
        UnfitError: it is not.
    """
    difference = (computed.detach().cpu().double() - expected).abs().max().item()
    if not difference <= tolerance:
        raise UnfitError(f"{what} gives wrong numbers: they differ from the reference by up to {difference:.3g}.")
