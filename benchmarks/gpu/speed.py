"""Measurements of speed and memory: `python -m benchmarks.gpu.speed <settings> <answers>`, one JSON line for each.

The trainer is the product's: its loading, its LoRA, its arguments, its steps. `trl` measures bare TRL with its own
defaults on the same model and rows instead.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
"""What makes a model of any shape small enough for a test on a CPU."""
_PROFILED_KERNELS = 30


@dataclass(frozen=True)
class Measurement:
    """What is measured: a model, who trains it, and how."""

    model: str
    trainer: str = "ours"
    """`ours`, or `trl` for bare TRL."""
    quantize: bool = True
    packed: bool = True
    row_tokens: int = 4096
    example_tokens: int = 1024
    rows_per_step: int = 2
    micro_batch: int | None = 1
    """None: what the plan says fits, as `recompute`."""
    warm_up: int = 5
    steps: int = 20
    seconds: float = 60
    """No step begins after so many seconds of steps."""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Hyperparameters that differ from the product's defaults."""
    layers: int | None = None
    attention: str | None = None
    """None: what the trainer chooses."""
    recompute: bool | None = True
    lean: bool = False
    compiled: bool = False
    fused: bool = True
    optimizer: str | None = None
    """`8bit`; None: what the trainer chooses."""
    tiny: bool = False
    profile: bool = False


def measure(asked: Measurement) -> dict[str, Any]:
    """Load, train some steps, and say how long they took and what they held."""
    import torch

    from benchmarks.gpu.weights import active_weights, load_random, real_config
    from lora_contract.hyperparameters import Hyperparameters
    from lora_trainer.models.attention import choose_attention, switch_off_cudnn
    from lora_trainer.models.compiling import compile_layers
    from lora_trainer.models.fused import fuse
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.models.loading import attach_lora, tensor_bytes

    torch.manual_seed(0)
    switch_off_cudnn()
    config = real_config(asked.model, **_changes(asked))
    hardware = detect_hardware()
    _reset_peak()
    others = _held_bytes() or 0
    parameters = Hyperparameters(max_length=asked.row_tokens, batch_size=64, **asked.parameters)
    begun = time.perf_counter()
    attention = asked.attention or choose_attention(config, hardware)
    asked, plan = _planned(asked, config, parameters, hardware, attention)
    model = load_random(config, hardware, attention=attention, quantize=asked.quantize)
    loaded = time.perf_counter()
    found: dict[str, Any] = {
        "attention": attention,
        "load_seconds": loaded - begun,
        "loading_peak_bytes": _peak_bytes(others),
        "weight_bytes": sum(tensor_bytes(model).values()),
        "active_weights": active_weights(config),
    }
    lora = attach_lora(model, parameters)
    found["fused_layers"] = fuse(lora.model, lean=asked.lean) if asked.fused else 0
    if asked.compiled:
        compile_layers(lora.model)
    found["trainable"] = lora.trainable
    found |= {"plan": plan, "micro_batch": asked.micro_batch, "recompute": asked.recompute, "lean": asked.lean}
    clock = _clock(asked)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(asked, lora, parameters, hardware, Path(folder))
        trainer.add_callback(clock)
        _reset_peak()
        trainer.train()
        found |= _figures(asked, clock, found["active_weights"], others)
        found["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        if asked.profile:
            found["kernels"] = _profile(trainer)
    return found


def _changes(asked: Measurement) -> dict[str, Any]:
    if asked.tiny:
        return TINY
    return {} if asked.layers is None else {"num_hidden_layers": asked.layers}


def _planned(
    asked: Measurement, config: Any, parameters: Any, hardware: Any, attention: str
) -> tuple[Measurement, dict[str, Any]]:
    """The measurement with what the plan decides where it is asked, and the plan."""
    import torch

    from lora_trainer.models.plan import Planner

    planner = Planner(
        config,
        parameters,
        row_tokens=asked.row_tokens,
        packed=asked.packed,
        attention=attention,
        dtype=hardware.dtype,
        quantize=asked.quantize,
    )
    if asked.micro_batch is None:
        free_bytes = torch.cuda.mem_get_info()[0] if hardware.is_gpu else 80 * 10**9
        plan = planner.fit(asked.rows_per_step, free_bytes, recompute=asked.recompute)
    else:
        plan = planner.plan(asked.micro_batch, recompute=bool(asked.recompute), lean=asked.lean)
    asked = dataclasses.replace(asked, micro_batch=plan.micro_batch, recompute=plan.recompute, lean=plan.lean)
    sizes = {"weights": plan.weights, "training": plan.training}
    return asked, {"total_bytes": plan.total, "allocated_bytes": plan.allocated, **sizes}


def make_trainer(asked: Measurement, lora: Any, parameters: Any, hardware: Any, folder: Path) -> Any:
    """The trainer with random rows, ready for its first step."""
    from benchmarks.gpu.rows import random_rows, small_tokenizer
    from lora_contract.batches import BatchShape
    from lora_trainer.models.optimizer import PAGED_8BIT, choose_optimizer
    from lora_trainer.recipe.methods.sft import AnswerTrainer
    from lora_trainer.recipe.steps import TrainingBatches, build_trainer, training_arguments

    total = asked.warm_up + asked.steps
    each = asked.row_tokens // asked.example_tokens if asked.packed else 1
    examples = asked.rows_per_step * each
    length = asked.example_tokens if asked.packed else asked.row_tokens
    vocabulary = lora.model.config.get_text_config().vocab_size
    rows = random_rows(examples * total, length, vocabulary)
    shape = BatchShape(total, asked.rows_per_step, asked.row_tokens, packed=asked.packed)
    parameters = parameters.model_copy(update={"epochs": 1})
    if asked.trainer == "trl":
        return _bare_trl(asked, lora, rows, folder)
    chosen = PAGED_8BIT if asked.optimizer == "8bit" else choose_optimizer(lora.trainable, is_gpu=hardware.is_gpu)
    arguments = training_arguments(parameters, shape, hardware, folder, optimizer=chosen, recompute=asked.recompute)
    batches = TrainingBatches(rows, [], shape, asked.micro_batch)
    return build_trainer(AnswerTrainer, lora, small_tokenizer(), batches, arguments, parameters)


def _bare_trl(asked: Measurement, lora: Any, rows: Any, folder: Path) -> Any:
    """TRL with its own defaults, packing by itself; its steps learn as many tokens as ours."""
    from trl import SFTConfig, SFTTrainer

    from benchmarks.gpu.rows import small_tokenizer
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.recipe.steps import as_dataset

    hardware = detect_hardware()
    arguments = SFTConfig(
        output_dir=str(folder),
        max_length=asked.row_tokens,
        packing=asked.packed,
        per_device_train_batch_size=asked.micro_batch,
        gradient_accumulation_steps=asked.rows_per_step // asked.micro_batch,
        num_train_epochs=1,
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=hardware.is_gpu,
        use_cpu=not hardware.is_gpu,
    )
    return SFTTrainer(
        model=lora.model, args=arguments, train_dataset=as_dataset(rows), processing_class=small_tokenizer()
    )


def _clock(asked: Measurement) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """The seconds of each step, the GPU's work included."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.held_bytes: int | None = None
            self._begun = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            _wait_for_gpu()
            self._begun = time.perf_counter()

        def on_step_end(self, _arguments: Any, _state: Any, control: Any, **_: Any) -> None:
            _wait_for_gpu()
            self.times.append(time.perf_counter() - self._begun)
            self.held_bytes = _held_bytes()
            if sum(self.times) > asked.seconds:
                control.should_training_stop = True

    return Clock()


def _figures(asked: Measurement, clock: Any, weights: int, others: int) -> dict[str, Any]:
    times = clock.times[asked.warm_up :] or clock.times[-1:]
    tokens = asked.rows_per_step * asked.row_tokens
    each = statistics.median(times)
    return {
        "steps_measured": len(times),
        "seconds_a_step": each,
        "slowest_step": max(times),
        "first_step": clock.times[0],
        "tokens_a_second": tokens / each,
        "model_tflops": 4 * weights * tokens / each / 1e12,
        "peak_bytes": _peak_bytes(others),
        "reserved_bytes": _reserved_bytes(),
        "held_bytes": clock.held_bytes,
        "utilization": _utilization(),
    }


def _profile(trainer: Any) -> list[dict[str, Any]]:
    """Where one more step spends its time: the kernels that take most of it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    steps, tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as seen:
        begun = time.perf_counter()
        for step in steps:
            trainer.training_step(trainer.model, step, tokens)
        _wait_for_gpu()
        wall = time.perf_counter() - begun
    trainer.model.zero_grad()
    rows = [
        {"name": e.key[:90], "calls": e.count, "gpu_ms": e.self_device_time_total / 1000}
        for e in seen.key_averages()
        if e.self_device_time_total > 0
    ]
    rows.sort(key=lambda row: -row["gpu_ms"])
    total = {"name": "wall", "calls": 1, "gpu_ms": wall * 1000}
    return [total, *rows[:_PROFILED_KERNELS]]


def _wait_for_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _held_bytes() -> int | None:
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else None


def _peak_bytes(others: int) -> int | None:
    """The most that was allocated, less what was there before: an earlier measurement may have left something."""
    import torch

    return torch.cuda.max_memory_allocated() - others if torch.cuda.is_available() else None


def _reserved_bytes() -> int | None:
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None


def _utilization() -> float | None:
    import torch

    from lora_trainer.models.hardware import gpu_identity
    from lora_trainer.run.gpu import GpuMonitor

    return GpuMonitor(wanted=torch.cuda.is_available(), **gpu_identity()).sample().utilization


def main(arguments: list[str]) -> int:
    """Measure one after the other, and write the figures of each when it is done."""
    import warnings

    import datasets
    import transformers

    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    settings, answers = arguments
    for _, asked in json.loads(settings):
        begun = time.perf_counter()
        found = _measure_or_fail(Measurement(**asked))
        found["part_seconds"] = round(time.perf_counter() - begun, 1)
        with Path(answers).open("a") as file:
            file.write(json.dumps(found) + "\n")
    return 0


def _measure_or_fail(asked: Measurement) -> dict[str, Any]:
    """The figures, or the error; either way the GPU's memory is free again for the next."""
    import gc
    import traceback

    import torch

    try:
        return measure(asked)
    except Exception as error:
        return {"failed": type(error).__name__, "output": traceback.format_exc()[-6000:]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    import lora_trainer.recipe.train  # noqa: F401 sets what the training process sets, before torch starts

    sys.exit(main(sys.argv[1:]))
