"""How many adapters fit beside a base model in a GPU's memory, when vLLM serves them.

All by bytes, in bf16 (2 bytes a number), of each GPU of a worker:

    adapters that fit = (memory × 0.9 − 3 GiB − weights / GPUs − tokens' memory) / slot

- *0.9*: `--gpu-memory-utilization`, which the endpoint is given. vLLM takes no more for itself.
- *3 GiB*: what a forward pass, CUDA graphs and the libraries need. vLLM measures it at its start
  (`determine_available_memory`) and has no formula of it; this is an allowance of ours, not a measurement.
- *weights*: all matrices, which tensor parallelism divides.
- *tokens' memory* (the KV cache): 2 × layers with full attention × KV heads × head size × 2 bytes, for each token of
  four requests of the full length, or of as many as leave room for an adapter: vLLM starts with room for one at least.
  Each GPU has its share of the KV heads, and one at the least. What adapters leave over vLLM gives to tokens, too.
- *slot*: vLLM keeps `--max-loras` slots in each GPU's memory, of the highest rank r, for every matrix that it can
  adapt, whichever an adapter uses (0.33.0: `lora/layers/base_linear.py` and `fused_moe.py`, `create_lora_weights`). A
  matrix from `in` to `out` takes r × (in + out) numbers. Where N GPUs share the base, one that is divided by its output
  takes r × (in + out / N), one that is divided by its input r × (in / N + out). The embedding and the output layer are
  counted, though an adapter of ours has none: Llama and Qwen3 have slots for them, too.

The catalog's gigabytes are taken for 10^9 bytes, so that the figures err on the side of what fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lora_contract.base_shapes import SHAPES

UTILIZATION = 0.9
_BYTES = 2
_OVERHEAD_BYTES = 3 * 2**30
FULL_REQUESTS = 4
"""For so many requests of the full length the memory of their tokens is reserved, where it is there."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Some equal matrices of a base model, and along which side GPUs divide them."""

    inputs: int
    outputs: int
    number: int
    divided: Literal["by output", "by input", "not at all"]

    def slot_numbers(self, gpus: int) -> float:
        """How many numbers an adapter's slot of rank 1 has on each GPU."""
        inputs = self.inputs / gpus if self.divided == "by input" else self.inputs
        outputs = self.outputs / gpus if self.divided == "by output" else self.outputs
        return self.number * (inputs + outputs)


@dataclass(frozen=True, slots=True)
class Room:
    """What a GPU's memory holds, in bytes. Where `fit` is 0 the base has no room, or no request of the full length."""

    memory_bytes: int
    weights_bytes: int
    """Of the whole base; each GPU has its part."""
    tokens_bytes: int
    slot_bytes: int
    adapter_bytes: int
    """Of one adapter in the machine's memory, which no GPU divides."""
    fit: int
    full_requests: int
    """For how many requests of the full length at the same time memory is left, `FULL_REQUESTS` at most."""
    longest_tokens: int
    """How long one request and its answer could be beside one adapter; 0: the base alone is too large."""


def room_for_adapters(base_model: str, *, memory_gb: int, gpus: int, rank: int, max_model_len: int) -> Room | None:
    """Return what fits on each GPU; None where nothing is known of the base model's size.

    Args:
        base_model: the name on the hub.
        memory_gb: the memory of the smallest GPU on which a worker may be placed, as the catalog has it.
        gpus: GPUs of one worker.
        rank: the highest rank that is served.
        max_model_len: the most tokens of a request and its answer.
    """
    if base_model not in SHAPES:
        return None
    _, shape = SHAPES[base_model]
    matrices = list(_matrices(shape))
    memory = memory_gb * 10**9
    weights = _BYTES * sum(matrix.inputs * matrix.outputs * matrix.number for matrix in matrices)
    if shape.get("tie_word_embeddings"):
        weights -= _BYTES * shape["vocab_size"] * shape["hidden_size"]
    slot = round(_BYTES * rank * sum(matrix.slot_numbers(gpus) for matrix in matrices))
    beside = memory * UTILIZATION - _OVERHEAD_BYTES - weights / gpus
    longest = max(0, int((beside - slot) // _token_bytes(shape, gpus)))
    requests = min(FULL_REQUESTS, longest // max_model_len)
    tokens = requests * max_model_len * _token_bytes(shape, gpus)
    return Room(
        memory_bytes=memory,
        weights_bytes=weights,
        tokens_bytes=tokens,
        slot_bytes=slot,
        adapter_bytes=round(_BYTES * rank * sum(matrix.slot_numbers(1) for matrix in matrices)),
        fit=int((beside - tokens) // slot) if requests else 0,
        full_requests=requests,
        longest_tokens=longest,
    )


def attention_heads(base_model: str) -> int | None:
    """Return how many attention heads a base model has; None where nothing is known of it.

    vLLM refuses to start where their number can't be divided by the GPUs (`verify_with_parallel_config`).
    """
    return int(SHAPES[base_model][1]["num_attention_heads"]) if base_model in SHAPES else None


def _head_size(shape: Mapping[str, Any]) -> int:
    return int(shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"])


def _full_layers(shape: Mapping[str, Any]) -> int:
    """How many layers have full attention. The others keep a state whose size does not grow with the tokens."""
    return int(shape["num_hidden_layers"]) // int(shape.get("full_attention_interval", 1))


def _token_bytes(shape: Mapping[str, Any], gpus: int) -> int:
    heads = max(1, -(-int(shape["num_key_value_heads"]) // gpus))
    return 2 * _full_layers(shape) * heads * _head_size(shape) * _BYTES


def _matrices(shape: Mapping[str, Any]) -> Iterator[Matrix]:
    hidden, layers, vocabulary = shape["hidden_size"], shape["num_hidden_layers"], shape["vocab_size"]
    yield Matrix(vocabulary, hidden, 1, "not at all")
    yield Matrix(hidden, vocabulary, 1, "not at all")
    yield from _attention(shape)
    if "num_experts" not in shape:
        yield from _block(hidden, shape["intermediate_size"], layers)
        return
    yield Matrix(hidden, shape["num_experts"], layers, "not at all")
    yield from _block(hidden, shape["moe_intermediate_size"], layers * shape["num_experts"])
    if "shared_expert_intermediate_size" in shape:
        yield from _block(hidden, shape["shared_expert_intermediate_size"], layers)
        yield Matrix(hidden, 1, layers, "not at all")


def _block(hidden: int, intermediate: int, number: int) -> Iterator[Matrix]:
    """The two matrices into a feed-forward block, and the one out of it."""
    yield Matrix(hidden, intermediate, 2 * number, "by output")
    yield Matrix(intermediate, hidden, number, "by input")


def _attention(shape: Mapping[str, Any]) -> Iterator[Matrix]:
    hidden, layers, size = shape["hidden_size"], _full_layers(shape), _head_size(shape)
    queries, keys = shape["num_attention_heads"] * size, shape["num_key_value_heads"] * size
    linear = shape["num_hidden_layers"] - layers
    # Qwen3-Next's queries carry a gate for each of their outputs.
    yield Matrix(hidden, queries * (2 if linear else 1), layers, "by output")
    yield Matrix(hidden, keys, 2 * layers, "by output")
    yield Matrix(queries, hidden, layers, "by input")
    if linear:
        values = shape["linear_num_value_heads"] * shape["linear_value_head_dim"]
        mixed = 2 * shape["linear_num_key_heads"] * shape["linear_key_head_dim"] + 2 * values
        yield Matrix(hidden, mixed, linear, "by output")
        yield Matrix(hidden, 2 * shape["linear_num_value_heads"], linear, "by output")
        yield Matrix(values, hidden, linear, "by input")
