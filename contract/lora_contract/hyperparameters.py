"""Hyperparameters and GPU configuration of a job, in both shapes that the application uses.

The application writes short keys (`epochs`, `rank`, `type`), but some of its pages read long ones (`num_epochs`,
`lora_rank`, `gpu_type`). The models here accept both. The database adds the missing keys to a job's row when it is
inserted and when it is launched (`training_both_shapes`, `training_priced_gpu`), so that every page finds the keys that
it reads.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

_SHAPES = ConfigDict(extra="ignore", populate_by_name=True, protected_namespaces=(), allow_inf_nan=False)

Method = Literal["sft", "dpo", "kto"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_BETA = 0.1
PREFERENCE_METHODS: tuple[Method, ...] = ("dpo", "kto")
_PREFERENCE_LEARNING_RATE = 1e-5


def _either(short: str, long: str) -> AliasChoices:
    return AliasChoices(short, long)


class Hyperparameters(BaseModel):
    """The hyperparameters that the user chose. The ranges, except `learning_rate`, are those of the application."""

    model_config = _SHAPES

    base_model: str | None = Field(default=None, max_length=200)
    base_revision: str | None = Field(default=None, max_length=200)
    method: Method = "sft"
    """How the adapter learns from the dataset.

    `sft` learns the answers of its conversations, `dpo` learns from pairs of a better and a worse answer to the same
    prompt, `kto` from answers of which each was rated good or bad.
    """
    beta: float | None = Field(default=None, ge=1e-3, le=10)
    """Of `dpo` and `kto`: how much the adapter is held to the model that it began as; None means 0.1."""
    desirable_weight: float | None = Field(default=None, gt=0, le=100)
    """Of `kto`: how much a good answer counts. None: so that all good answers together count as much as all bad ones,
    where these are more."""
    undesirable_weight: float | None = Field(default=None, gt=0, le=100)
    """Of `kto`: how much a bad answer counts. None: as `desirable_weight`, with good and bad exchanged."""
    init_adapter: str | None = Field(
        default=None, max_length=200, validation_alias=_either("init_adapter", "parent_model_id")
    )
    """An adapter of the same user from which this training goes on: the id of its artifact, or of its job.

    `sft` continues to train it. `dpo` and `kto` begin with it and take it as the reference, too.
    """
    # The application allows at most 1e-3. Small base models need more: the demo's has a million weights.
    learning_rate: float = Field(default=1e-4, ge=1e-6, le=1e-2)
    """Unless chosen, 1e-5 for `dpo` and `kto`: they push answers away, too, and break a model at higher rates."""
    batch_size: int = Field(default=4, ge=1, le=64)
    epochs: int = Field(default=3, ge=1, le=20, validation_alias=_either("epochs", "num_epochs"))
    rank: int = Field(default=16, ge=4, le=128, validation_alias=_either("rank", "lora_rank"))
    alpha: int | None = Field(default=None, ge=1, le=1024, validation_alias=_either("alpha", "lora_alpha"))
    dropout: float = Field(default=0.0, ge=0, le=0.5, validation_alias=_either("dropout", "lora_dropout"))
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises; None means 3 % of all steps."""
    max_length: int = Field(default=2048, ge=64, le=131072)
    """The most tokens of one training example. A longer one loses its oldest history first."""
    max_steps: int | None = Field(default=None, ge=1)
    packing: bool | None = None
    """Whether several examples share one row. None: yes, if the model's architecture can keep them separate."""
    merge_conversations: bool = True
    """Whether overlapping pairs of one conversation become one example with several trained answers."""
    validation_share: float = Field(default=0.1, ge=0, le=0.5)
    early_stopping_patience: int | None = Field(default=None, ge=1)
    seed: int = Field(default=42, ge=0, lt=2**31)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    use_rslora: bool = False
    use_dora: bool = False
    neftune_noise_alpha: float | None = Field(default=None, gt=0, le=50)
    loraplus_lr_ratio: float | None = Field(default=None, ge=1, le=64)
    target_experts: bool = False
    """Whether experts carry LoRA, too: every routed one of Qwen3-MoE, the shared one of Qwen3-Next."""
    quantization: Literal["auto", "nf4", "bf16"] = "auto"
    """How the base model is held while training: in 4 bits (`nf4`), or not quantised (`bf16`).

    `auto` takes bf16 where base and training fit the GPU in it, else nf4.
    """
    max_bad_line_share: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _choose_learning_rate(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("method") in PREFERENCE_METHODS and "learning_rate" not in data:
            return {**data, "learning_rate": _PREFERENCE_LEARNING_RATE}
        return data

    @property
    def lora_alpha(self) -> int:
        """Return LoRA's alpha: the user's choice, or twice the rank."""
        return self.alpha if self.alpha is not None else 2 * self.rank


class GpuConfig(BaseModel):
    """The GPU that a job asked for. The row's price is ignored: billing uses the worker's own price table."""

    model_config = _SHAPES

    type: str = Field(default="A100-80GB", max_length=100, validation_alias=_either("type", "gpu_type"))
    count: int = Field(default=1, ge=1, le=8, validation_alias=_either("count", "num_gpus"))
