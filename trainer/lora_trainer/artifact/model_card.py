"""The artifact's README: what the adapter is, what it was made from, its results, and how to use it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lora_contract.evaluation import Evaluation
from lora_contract.hyperparameters import Hyperparameters
from lora_contract.protocol import FinalMetrics
from lora_contract.serving_rules import DORA_NOTE, vllm_rank
from lora_trainer.artifact.evaluation import evaluation_page
from lora_trainer.models.quantization import NF4, Quantization


@dataclass
class ArtifactFacts:
    """Everything that the artifact's texts say about the training."""

    base_name: str
    base_revision: str | None
    base_licence: str | None
    dataset_sha256: str
    training_examples: int
    """How many answers, or pairs of answers, were trained on."""
    validation_examples: int
    """How many of them were held out."""
    learns: str
    """What the adapter was trained on, as the end of a sentence."""
    unit: str
    """What is counted as an example: a noun without article."""
    loss_unit: str
    parameters: Hyperparameters
    metrics: FinalMetrics
    steps: int
    trainable: int
    """How many weights were trained."""
    target_modules: tuple[str, ...]
    serving: str
    """A sentence on how vLLM serves adapters of this architecture."""
    split: dict[str, Any]
    """The content of split.json: the seed, and the conversations of both sides."""
    own_template: bool
    """Whether the base model had no chat template, so that the trainer's was put in."""
    stop: str
    """The token that ends an answer."""
    dtype: str
    """The type in which the training computed, such as `bfloat16`."""
    packed: bool
    """Whether a row held several examples."""
    attention: str
    """The implementation of attention that the training used, as transformers calls it."""
    quantization: Quantization
    """How the base model was held while training."""
    compiled: bool
    """Whether torch.compile compiled the layers."""
    warm_up_steps: int
    init_adapter: str | None = None
    """The id of the earlier adapter with which the training began."""
    experts: str | None = None
    """How the products of routed experts were computed; None: the base has none."""
    loss_before: float | None = None
    """Validation loss of the base model, measured before the first step."""
    gpu_type: str | None = None
    gpus: int = 1
    """How many of them trained together."""
    driver: str | None = None
    evaluation: Evaluation | None = None
    """Base against tuned model; None where they could not be compared."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the user."""


def model_card(facts: ArtifactFacts) -> str:
    """The README as Markdown, with the metadata block that the Hugging Face hub reads."""
    revision = f" at revision `{facts.base_revision}`" if facts.base_revision else ""
    sections = [
        _front_matter(facts),
        "# LoRA adapter\n",
        f"A LoRA adapter for `{facts.base_name}`{revision}, trained {_manner(facts)} {facts.learns}."
        f"{_lineage(facts)}\n",
        "## Results\n\n" + _table(_results(facts)),
        "## Better than its base?\n\n" + evaluation_page(facts.evaluation, total=len(facts.split["validation"])),
        "## Data\n\n"
        + _table(
            {
                f"{facts.unit}s trained on": facts.training_examples,
                f"{facts.unit}s held out": facts.validation_examples,
                "sha256 of the dataset": f"`{facts.dataset_sha256}`",
                "held-out conversations": "see `split.json`",
            }
        ),
        "## Hyperparameters\n\n" + _table(_hyperparameters(facts)),
        "## Use\n\n" + _usage(facts),
    ]
    if facts.notes:
        sections.append("## Notes\n\n" + "\n".join(f"- {note}" for note in facts.notes) + "\n")
    sections.append("## Licence\n\n" + _licence(facts))
    return "\n".join(sections)


def _manner(facts: ArtifactFacts) -> str:
    if facts.quantization == NF4:
        return "with QLoRA (the base in 4-bit NF4, double quantisation)"
    return "with LoRA (the base not quantised)"


def _lineage(facts: ArtifactFacts) -> str:
    if facts.init_adapter is None:
        return ""
    return f" The training began with the adapter `{facts.init_adapter}`: serve this one alone, not both."


def _front_matter(facts: ArtifactFacts) -> str:
    lines = [
        "---",
        "library_name: peft",
        "pipeline_tag: text-generation",
        f"tags: [lora, {'qlora, ' if facts.quantization == NF4 else ''}{facts.parameters.method}]",
        # A JSON string is also a YAML string, whatever characters the name contains.
        f"base_model: {json.dumps(facts.base_name)}",
    ]
    if facts.base_licence:
        lines.append(f"license: {json.dumps(facts.base_licence)}")
    return "\n".join([*lines, "---", ""])


def _table(rows: dict[str, Any]) -> str:
    return "".join(["| | |\n|---|---|\n", *(f"| {name} | {value} |\n" for name, value in rows.items())])


def _results(facts: ArtifactFacts) -> dict[str, Any]:
    metrics = facts.metrics
    rewarded = "held out" if facts.validation_examples else "last step"
    rows = {
        "validation loss before training": facts.loss_before,
        "training loss, first step (before its update)": metrics.first_training_loss,
        "training loss, last step": metrics.final_training_loss,
        "validation loss, last": metrics.final_validation_loss,
        "validation loss, best": metrics.best_validation_loss,
        f"reward margin, {rewarded}": metrics.final_reward_margin,
        f"reward accuracy, {rewarded}": metrics.final_reward_accuracy,
    }
    shown: dict[str, Any] = {name: f"{value:.4f}" for name, value in rows.items() if value is not None}
    return {
        **shown,
        "unit of the losses": facts.loss_unit,
        "steps": facts.steps,
        "trained weights": f"{facts.trainable:,}",
    }


def _hyperparameters(facts: ArtifactFacts) -> dict[str, Any]:
    chosen = facts.parameters.model_dump(
        exclude_none=True, exclude={"base_model", "base_revision", "alpha", "packing", "warmup_steps", "init_adapter"}
    )
    return {
        **{name: f"`{value}`" for name, value in chosen.items()},
        "alpha": f"`{facts.parameters.lora_alpha}`",
        "packing": "several examples a row, kept apart by attention" if facts.packed else "no",
        "attention": f"`{facts.attention}`",
        **({"layers": "compiled with `torch.compile`"} if facts.compiled else {}),
        **({"routed experts": f"`{facts.experts}`"} if facts.experts else {}),
        "warm-up steps": facts.warm_up_steps,
        "quantization": f"`{facts.quantization}`, asked for: `{facts.parameters.quantization}`",
        "computed in": f"`{facts.dtype}`, over {'4-bit' if facts.quantization == NF4 else 'unquantised'} weights; "
        "LoRA in `float32`, published in `bfloat16`",
        "target modules": ", ".join(f"`{name}`" for name in facts.target_modules),
    }


def _usage(facts: ArtifactFacts) -> str:
    revision = f", revision={facts.base_revision!r}" if facts.base_revision else ""
    template = (
        "The base has no chat template of its own: use the tokenizer of this folder, which has one.\n\n"
        if facts.own_template
        else ""
    )
    return (
        f"{template}```python\n"
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n\n"
        'folder = "path/of/this/folder"\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"base = AutoModelForCausalLM.from_pretrained({facts.base_name!r}{revision}, dtype=torch.bfloat16)\n"
        "model = PeftModel.from_pretrained(base, folder)\n\n"
        'messages = [{"role": "user", "content": "Write your question here."}]\n'
        "prompt = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
        ").to(model.device)\n"
        "ends = GenerationConfig.from_pretrained(folder)\n"
        "answer = model.generate(**prompt, generation_config=ends, max_new_tokens=512)[0]\n"
        'print(tokenizer.decode(answer[prompt["input_ids"].shape[1] :], skip_special_tokens=True))\n'
        "```\n\n"
        f"An answer ends with `{facts.stop}`. `generation_config.json` names its id, but is read only where it is "
        "asked for, as above: an adapter is loaded with the settings of its base, which may run on after an answer. "
        "Where neither can be given, name that token as a stop.\n\n"
        f"{_vllm(facts)}\n\n"
        f"{_served_base(facts)}\n"
    )


def _vllm(facts: ArtifactFacts) -> str:
    if facts.parameters.use_dora:
        return DORA_NOTE
    rank = vllm_rank(facts.parameters.rank)
    return (
        f"vLLM: `--enable-lora --max-lora-rank {rank} --lora-modules name=path/of/this/folder "
        f"--generation-config path/of/this/folder`. {facts.serving}"
    )


def _served_base(facts: ArtifactFacts) -> str:
    if facts.quantization == NF4:
        return (
            "Serve the base in bf16, as above. The adapter learned on the base in 4 bits, so its losses there differ a "
            "little from those above; `quantization: bf16` trains without that difference, on a larger GPU."
        )
    return "Serve the base in bf16, as above: these are the weights on which the adapter learned."


def _licence(facts: ArtifactFacts) -> str:
    if facts.base_licence:
        return f"The base model's licence is `{facts.base_licence}`; it extends to what is made from it.\n"
    return "The base model's folder names no licence; look it up before you publish the adapter.\n"
