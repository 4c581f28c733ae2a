"""`make models`: trains a small model of every supported architecture with the trainer's own code on the CPU.

Each is loaded in 4 bits (fused experts, too) and its bytes are compared with the memory plan. Then it is trained and
saved, and loaded again in a new process with PEFT. The logits must be the same, and it must generate text. Exits with 1
if a check fails.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.tiny_architectures import ARCHITECTURES
from sandbox.tiny_model import build_tiny_model

MODELS = Path(__file__).parents[1] / ".sandbox" / "models"
QUESTION = "How do I make a budget that I can keep?"
_MB = 1e6


@dataclass
class Row:
    """The measurements of one architecture. Memory is in bytes, losses in nats per token."""

    architecture: str
    weights: int
    bytes_bf16: int
    bytes_loaded: int
    bytes_planned: int
    peak_loading: int
    peak_planned: int
    experts: int
    lora: str
    trainable: int
    trainable_planned: int
    training_state: int
    training_state_planned: int
    first_loss: float
    last_loss: float
    reload_difference: float | None = None
    answer: str = ""

    @property
    def plan_error(self) -> float:
        """The largest relative error of the planned bytes that can be compared with counted ones."""
        pairs = (
            (self.bytes_planned, self.bytes_loaded),
            (self.training_state_planned, self.training_state),
        )
        return max(abs(planned - real) / real for planned, real in pairs)

    def faults(self) -> list[str]:
        """Return the checks that failed."""
        return [
            text
            for text, wrong in (
                ("plan off by more than 5 %", self.plan_error > 0.05),
                ("loading took more than planned", self.peak_loading > self.peak_planned * 1.05),
                ("trainable weights differ from the plan", self.trainable != self.trainable_planned),
                ("loss did not fall by a tenth", self.last_loss > self.first_loss * 0.9),
                ("logits differ after reloading", self.reload_difference != 0),
                ("no answer", not self.answer.strip()),
            )
            if wrong
        ]


def measure(architecture: str, folder: Path) -> Row:
    """Load, train and save one model into `folder`, together with its logits."""
    import torch

    from benchmarks.memory import LiveBytes
    from lora_contract.hyperparameters import Hyperparameters
    from lora_trainer.models.bases import BaseModels
    from lora_trainer.models.experts import is_fused_expert
    from lora_trainer.models.hardware import Hardware, detect_hardware
    from lora_trainer.models.loading import load_config, load_model, tensor_bytes
    from lora_trainer.models.plan import plan_memory

    base = BaseModels(MODELS).find(str(build_tiny_model(MODELS, architecture)), None)
    parameters = Hyperparameters(learning_rate=5e-3, batch_size=8, epochs=20, max_length=256, max_steps=40)
    config = load_config(base)
    plan = plan_memory(config, parameters, row_tokens=256, micro_batch=2, optimizer_bytes=8)
    with LiveBytes() as tracker:
        model = load_model(base, config, Hardware("cpu", torch.bfloat16))
    loaded = sum(tensor_bytes(model).values())
    with torch.device("meta"):
        bare = type(model)(config)
    names = [name for name, parameter in bare.named_parameters() if is_fused_expert(name, parameter)]
    weights = sum(parameter.numel() for parameter in bare.parameters())
    del model
    trained = _train(base, config, detect_hardware(), parameters, folder)
    return Row(
        architecture=architecture,
        weights=weights,
        bytes_bf16=2 * weights,
        bytes_loaded=loaded,
        bytes_planned=plan.weight_bytes,
        peak_loading=tracker.peak,
        peak_planned=plan.loading_peak,
        experts=len(names),
        trainable_planned=plan.trainable,
        training_state_planned=sum(
            plan.training[name] for name in ("LoRA weights, fp32", "LoRA gradients, fp32", "optimizer")
        ),
        **trained,
    )


def _train(base: Any, config: Any, hardware: Any, parameters: Any, folder: Path) -> dict[str, Any]:
    import torch

    from lora_contract.batches import shape_batches
    from lora_trainer.artifact.folder import round_adapter
    from lora_trainer.data.chat import Chat, prepare_tokenizer
    from lora_trainer.data.rows import prepare_data
    from lora_trainer.models.loading import attach_lora, load_model, load_tokenizer
    from lora_trainer.models.targets import packing_decision
    from lora_trainer.recipe.methods.sft import AnswerTrainer
    from lora_trainer.recipe.steps import TrainingBatches, build_trainer, training_arguments
    from sandbox.sample_text import write_sample_dataset

    tokenizer = load_tokenizer(base)
    prepare_tokenizer(tokenizer)
    write_sample_dataset(folder / "dataset")
    data = prepare_data(folder / "dataset", Chat(tokenizer), parameters)
    packing, _ = packing_decision(config.model_type, None)
    lengths = [len(row.input_ids) for row in data.train]
    shape = shape_batches(lengths, data.answers, batch_size=8, max_length=256, packing=packing)
    lora = attach_lora(load_model(base, config, hardware), parameters)
    arguments = training_arguments(parameters, shape, hardware, folder)
    batches = TrainingBatches(data.train, [], shape, shape.rows_per_step)
    trainer = build_trainer(AnswerTrainer, lora, tokenizer, batches, arguments, parameters)
    trainer.train()
    states = trainer.optimizer.optimizer.state.values()
    state = sum(t.numel() * t.element_size() for s in states for t in s.values() if t.numel() > 1)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    round_adapter(lora.model)
    lora.model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    torch.save(_logits(lora.model, tokenizer), folder / "logits.pt")
    return {
        "lora": " ".join(f"{name}×{lora.coverage[name]}" for name in lora.targets.modules),
        "trainable": lora.trainable,
        "training_state": state + 2 * 4 * lora.trainable,
        "first_loss": losses[0],
        "last_loss": sum(losses[-3:]) / 3,
    }


def _prompt(tokenizer: Any) -> Any:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]


def _logits(model: Any, tokenizer: Any) -> Any:
    import torch

    model.eval()
    with torch.no_grad():
        return model(input_ids=_prompt(tokenizer), use_cache=False).logits


def reload(architecture: str, folder: Path) -> tuple[float, str]:
    """Load base and adapter in a new process; returns the largest difference of a logit, and a generated answer."""
    import torch
    from peft import PeftModel

    from lora_trainer.models.bases import BaseModels
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.models.loading import load_config, load_model, load_tokenizer

    base = BaseModels(MODELS).find(str(build_tiny_model(MODELS, architecture)), None)
    tokenizer = load_tokenizer(base)
    model = PeftModel.from_pretrained(load_model(base, load_config(base), detect_hardware()), folder / "adapter")
    difference = (_logits(model, tokenizer) - torch.load(folder / "logits.pt")).abs().max().item()
    prompt = _prompt(tokenizer)
    answer = model.generate(input_ids=prompt, max_new_tokens=40, do_sample=False)[0][prompt.shape[1] :]
    return difference, " ".join(tokenizer.decode(answer, skip_special_tokens=True).split())


def check(architecture: str) -> Row:
    """Measure one architecture. Training and reloading run in two separate processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = Row(**_in_process("measure", architecture, folder))
        row.reload_difference, row.answer = _in_process("reload", architecture, folder)
    return row


def _in_process(step: str, architecture: str, folder: Path) -> Any:
    answer = folder / f"{step}.json"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.models", step, architecture, str(folder), str(answer)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads(answer.read_text())


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Scaled-down architectures, 4-bit on the CPU")
    for name in ("model", "weights", "bf16", "4-bit", "load peak", "plan off", "experts", "LoRA", "loss", "reload"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            row.architecture,
            f"{row.weights / _MB:.2f} M",
            f"{row.bytes_bf16 / _MB:.2f} MB",
            f"{row.bytes_loaded / _MB:.2f} MB",
            f"{row.peak_loading / _MB:.2f} MB",
            f"{row.plan_error:.1%}",
            str(row.experts),
            row.lora,
            f"{row.first_loss:.2f} → {row.last_loss:.2f}",
            f"{row.reload_difference:g}",
        )
    console = Console(width=160)
    console.print(table)
    for row in rows:
        console.print(f"{row.architecture}: {row.answer}", soft_wrap=True, markup=False)


def main(arguments: list[str]) -> int:
    """Check the named architectures, or all; returns 1 if a check failed."""
    if arguments and arguments[0] in {"measure", "reload"}:
        step, architecture, folder, answer = arguments
        import torch

        torch.set_num_threads(1)
        result = measure(architecture, Path(folder)) if step == "measure" else reload(architecture, Path(folder))
        Path(answer).write_text(json.dumps(dataclasses.asdict(result) if isinstance(result, Row) else result))
        return 0
    rows = [check(architecture) for architecture in arguments or ARCHITECTURES]
    _print_table(rows)
    faults = [f"{row.architecture}: {fault}" for row in rows for fault in row.faults()]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
