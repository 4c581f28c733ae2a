"""What vLLM serves right of an adapter, what it refuses, and what it gets wrong without a word.

Read in the source of vLLM 0.33.0, in these places:

- `lora/peft_helper.py` (`validate_legal`): DoRA, and a rank above `--max-lora-rank`, are refused with an error.
- `config/lora.py` (`MaxLoRARanks`): the values that `--max-lora-rank` takes.
- `lora/lora_model.py` (`from_local_checkpoint`): only the last part of each tensor's module is compared with the parts
  that the model wraps. One that is not among them refuses the whole adapter. One that is, but whose module in full
  is not there or not wrapped, is loaded and never used; `model_manager.py` logs that at the level of debugging.
- `lora/utils.py` (`process_packed_modules_mapping`), `lora/model_manager.py` (`_validate_moe_lora_format`): of the
  mixtures of experts below, LoRA on routed experts is taken under each expert's own name, and refused where it is
  fused.
- `models/qwen3_next.py`, `layers/mamba/gdn/qwen_gdn_linear_attn.py` (`create_qkvz_proj`, `create_ba_proj`):
  `in_proj_qkvz` and `in_proj_ba` of Qwen3-Next are merged layers with a single output, in which heads of q, k, v and z
  alternate. `lora/layers/column_parallel_linear.py` (`slice_lora_b`) cuts such a layer as if it had two halves. One
  GPU gets both halves, which is right; two or more get rows of other heads, without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's `--max-lora-rank` takes."""

DORA_NOTE = (
    "vLLM refuses adapters with DoRA: merge it into the base before serving, and merge in bf16 (`lora-worker export "
    "JOB --as merged`; or load the base with dtype=torch.bfloat16 and without quantisation, then merge_and_unload). "
    "Merged into 4 bits the adapter is practically gone, without an error."
)

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_DENSE = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ServingRule:
    """What vLLM does with LoRA on the modules of one architecture (`model_type` of transformers)."""

    wrapped: tuple[str, ...]
    """The last parts of the modules that carry LoRA in vLLM. A tensor of any other makes it refuse the adapter."""
    single_gpu: tuple[str, ...] = ()
    """Those of them that it serves right on one GPU and wrongly where two or more share the model."""
    routed_experts: bool = False
    """Whether it takes LoRA on routed experts as the trainer publishes it: under each expert's own name."""


SERVING_RULES: dict[str, ServingRule] = {
    "llama": ServingRule(_DENSE),
    "mistral": ServingRule(_DENSE),
    "qwen2": ServingRule(_DENSE),
    "qwen3": ServingRule(_DENSE),
    # Experts go by the names w1, w2 and w3 there, under which nobody trains.
    "mixtral": ServingRule(_ATTENTION),
    "qwen3_moe": ServingRule(_ATTENTION, routed_experts=True),
    "qwen3_next": ServingRule(
        # gate_proj and the two after it are the shared expert's.
        (*_DENSE, "in_proj_qkvz", "in_proj_ba", "out_proj"),
        single_gpu=("in_proj_qkvz", "in_proj_ba"),
    ),
}


def vllm_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` of vLLM that has room for `rank`.

    Raises:
        ValueError: vLLM has room for no such rank.
    """
    found = next((known for known in VLLM_RANKS if known >= rank), None)
    if found is None:
        raise ValueError(f"vLLM serves ranks up to {VLLM_RANKS[-1]}, and this is {rank}")
    return found


def serving_faults(
    model_type: str,
    targets: Sequence[str],
    *,
    tensor_parallel: int = 1,
) -> list[str]:
    """What vLLM refuses or gets wrong of an adapter's modules: a sentence each; empty where nothing is known.

    Of an architecture that is not in `SERVING_RULES` nothing is known. Refusals for DoRA or for a rank are said where
    they are known: in the model card (`DORA_NOTE`), and by the plan of an endpoint that answers.

    Args:
        model_type: the base model's architecture, as transformers names it.
        targets: the modules that carry LoRA, by the last parts of their names.
        tensor_parallel: how many GPUs share the model.
    """
    rule = SERVING_RULES.get(model_type)
    if rule is None:
        return []
    faults = []
    if refused := [target for target in targets if not _is_taken(target, rule)]:
        faults.append(
            f"vLLM refuses the adapter: it wraps no {' and no '.join(refused)} of {model_type}. "
            "Serve the merged model, or train without LoRA there."
        )
    if tensor_parallel > 1 and (wrong := [target for target in targets if _last(target) in rule.single_gpu]):
        faults.append(
            f"vLLM cuts the LoRA weights of {' and '.join(wrong)} wrongly where {tensor_parallel} GPUs share the model "
            f"({model_type}, tensor parallel), without an error. Serve it on one GPU, or serve the merged model."
        )
    return faults


def serving_note(model_type: str, targets: Sequence[str] = ()) -> str:
    """A text for the user on how vLLM serves an adapter of this architecture on one GPU, and what goes wrong on two."""
    if model_type not in SERVING_RULES:
        return (
            f"Whether vLLM serves {model_type} with LoRA is not known: check that the adapter's answers differ from "
            "the base's."
        )
    if faults := serving_faults(model_type, targets):
        return " ".join(faults)
    return " ".join(["vLLM loads it as it is.", *serving_faults(model_type, targets, tensor_parallel=2)])


def _last(target: str) -> str:
    return target.rpartition(".")[2]


def _is_taken(target: str, rule: ServingRule) -> bool:
    if "experts" in target.split("."):
        return rule.routed_experts
    return _last(target) in rule.wrapped
