"""`make bench-trainer`: compares our recipe with bare TRL and with the recipe of the application's present script.

1. Overhead: the same model, rows, settings and dtypes, with bare TRL and with our trainer's batches and callback. Time
   for a token and peak memory are measured, with the steps of both taking turns. TRL casts the LoRA of a 4-bit base to
   bf16, ours stays in float32; on a CPU that hides all other differences, so both have float32 here.
2. Gain: one pass over the data with the present recipe (one row per pair, the user's turn doubled, cut at 2,048 tokens,
   loss on every token, padded) and with ours (conversations merged, packed, loss on answers only). The result is how
   many tokens of answers are trained per second.

Without --dataset the conversations are made on the spot. Times are the processor's, with one thread. Exits with 1 if a
ratio of the first is above its limit, or that of the second below 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.conversations import Size, write_conversations
from benchmarks.turns import train_in_turns

MAX_LENGTH = 2048
BATCH = 4
MOST_OVERHEAD = 1.02
"""The most that our batches and callback may take beside bare TRL's, for the same tokens; in memory, too."""
LEAST_GAIN = 2.0
_VOCABULARY = 8192
_WARM_UP = 3


def main() -> int:
    """Measure overhead and gain and print them; returns 1 if a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer")
    parser.add_argument(
        "--dataset", type=Path, help="a JSONL file; conversations made on the spot where it is left out"
    )
    parser.add_argument("--steps", type=int, default=40, help="steps of each training of the first measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), options.dataset, steps=options.steps)
    print(json.dumps(result, indent=2) if options.json else format_result(result))
    for sentence in (missed := misses(result)):
        print(sentence, file=sys.stderr)
    return 1 if missed else 0


def measure(folder: Path, dataset: Path | None, *, steps: int, size: Size | None = None) -> dict[str, dict[str, float]]:
    """Carry out both measurements in an empty folder; `size` is that of the conversations that are made."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if dataset is None:
        write_conversations(folder / "dataset", size or Size())
    else:
        (folder / "dataset").write_bytes(dataset.read_bytes())
    base = _make_base(folder)
    return {"overhead": _overhead(base, folder, steps), "gain": _gain(base, folder)}


def misses(result: dict[str, dict[str, float]]) -> list[str]:
    """Return which limits a result misses, as sentences."""
    overhead, gain = result["overhead"], result["gain"]
    found = [
        f"{what}: {overhead[key]:.3f} of bare TRL's, and at most {MOST_OVERHEAD} was expected"
        for what, key in (("time for a token", "time_ratio"), ("peak memory", "memory_ratio"))
        if overhead[key] > MOST_OVERHEAD
    ]
    if gain["ratio"] < LEAST_GAIN:
        found.append(f"answer tokens a second: {gain['ratio']:.2f} of today's, and {LEAST_GAIN} was expected")
    return found


def _make_base(folder: Path) -> Path:
    """Make an untrained small model. Its tokenizer is trained on the data, so that a token has about 4 characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from sandbox.tiny_architectures import tiny_config
    from sandbox.tiny_model import CHAT_TEMPLATE

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(_texts(folder / "dataset"), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    config = tiny_config("llama", vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder / "base"


def _texts(dataset: Path) -> list[str]:
    from lora_trainer.data.rows import load_examples

    examples, _ = load_examples(dataset, 0.05)
    return [message.content for example in examples for message in example.messages]


def _load(path: Path) -> tuple[Any, Any]:
    """Load the base model in 4 bits with LoRA attached, and its tokenizer."""
    import torch

    from lora_contract.hyperparameters import Hyperparameters
    from lora_trainer.models.bases import BaseModels
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.models.loading import attach_lora, load_config, load_model, load_tokenizer

    torch.manual_seed(0)
    base = BaseModels(path.parent).find(str(path), None)
    config = load_config(base)
    lora = attach_lora(load_model(base, config, detect_hardware()), Hyperparameters())
    return lora, load_tokenizer(base)


def _parameters(**changes: Any) -> Any:
    from lora_contract.hyperparameters import Hyperparameters

    return Hyperparameters(**{"batch_size": BATCH, "epochs": 1, "max_length": MAX_LENGTH, **changes})


def _our_rows(path: Path, tokenizer: Any, parameters: Any) -> tuple[Any, Any]:
    from lora_contract.batches import shape_batches
    from lora_trainer.data.chat import Chat
    from lora_trainer.data.rows import prepare_data

    data = prepare_data(path.parent / "dataset", Chat(tokenizer), parameters)
    lengths = [len(row.input_ids) for row in data.train]
    shape = shape_batches(lengths, data.answers, batch_size=BATCH, max_length=parameters.max_length, packing=True)
    return data.train, shape


def _micro_batch(shape: Any) -> int:
    """Rows a forward pass, as the trainer has it here: packed ones go alone where a mask keeps examples apart."""
    return 1 if shape.packed else shape.rows_per_step


def _overhead(path: Path, folder: Path, steps: int) -> dict[str, float]:
    """Compare bare TRL with our trainer on the same rows, by their time for a token after the first steps."""
    parameters = _parameters(max_length=512, max_steps=steps, epochs=20)
    trainers = {name: _trainer(name, path, folder / name, parameters) for name in ("bare", "ours")}
    tokens = {name: _count_tokens(trainer) for name, trainer in trainers.items()}
    seconds = train_in_turns(trainers)
    warm = min(_WARM_UP, steps - 1)
    costs = {name: sum(seconds[name][warm:]) / sum(tokens[name].after(warm)) for name in trainers}
    peaks = {name: _peak_of_an_epoch(trainer) for name, trainer in trainers.items()}
    return {
        **{f"{name}_steps": len(seconds[name]) for name in trainers},
        **{f"{name}_tokens": sum(tokens[name].after(0)) for name in trainers},
        **{f"{name}_seconds_a_token": costs[name] for name in trainers},
        "time_ratio": costs["ours"] / costs["bare"],
        **{f"{name}_peak_bytes": peaks[name] for name in trainers},
        "memory_ratio": peaks["ours"] / peaks["bare"],
    }


def _count_tokens(trainer: Any) -> Any:
    """Make a callback that keeps the tokens of each step, as TRL counts them."""
    from transformers import TrainerCallback

    class Tokens(TrainerCallback):
        def __init__(self) -> None:
            self._so_far = [0]

        def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                self._so_far.append(int(logs["num_tokens"]))

        def after(self, step: int) -> list[int]:
            return [after - before for before, after in zip(self._so_far, self._so_far[1:], strict=False)][step:]

    counter = Tokens()
    trainer.add_callback(counter)
    return counter


def _peak_of_an_epoch(trainer: Any) -> int:
    from benchmarks.memory import LiveBytes

    # All steps of an epoch are run, because the longest row, which causes the peak, is in different steps of the two.
    loader, a_step = trainer.get_train_dataloader(), trainer.args.gradient_accumulation_steps
    passes = iter(loader)
    with LiveBytes() as tracker:
        for _ in range(len(loader) // a_step):
            batches, tokens = trainer.get_batch_samples(passes, a_step, trainer.args.device)
            for batch in batches:
                trainer.training_step(trainer.model, batch, tokens)
    return tracker.peak


def _trainer(name: str, path: Path, folder: Path, parameters: Any) -> Any:
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTTrainer

    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.recipe.steps import as_dataset, training_arguments

    folder.mkdir()
    lora, tokenizer = _load(path)
    rows, shape = _our_rows(path, tokenizer, parameters)
    if name == "ours":
        return _our_trainer(lora, tokenizer, rows, shape, path, folder, parameters)
    # TRL packs and batches the rows itself, with the same sizes.
    arguments = dataclasses.replace(
        training_arguments(parameters, shape, detect_hardware(), folder),
        packing=True,
        max_length=shape.row_tokens,
        per_device_train_batch_size=_micro_batch(shape),
        gradient_accumulation_steps=shape.rows_per_step // _micro_batch(shape),
    )
    trainer = SFTTrainer(model=lora.model, args=arguments, train_dataset=as_dataset(rows), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _our_trainer(lora: Any, tokenizer: Any, rows: Any, shape: Any, path: Path, folder: Path, parameters: Any) -> Any:
    from lora_contract.hyperparameters import GpuConfig
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.recipe.callbacks import RunCallback
    from lora_trainer.recipe.methods.sft import AnswerTrainer
    from lora_trainer.recipe.steps import TrainingBatches, build_trainer, training_arguments
    from lora_trainer.recipe.stopping import StopSwitch
    from lora_trainer.run.gpu import GpuMonitor
    from lora_trainer.run.progress_pipe import ProgressWriter
    from lora_trainer.run.task import Task

    task = Task(
        job_id="bench",
        run_id="bench",
        execution_id="bench",
        fingerprint="bench",
        dataset=path.parent / "dataset",
        dataset_sha256="0" * 64,
        hyperparameters=parameters,
        gpu_config=GpuConfig(),
        job_folder=folder,
        folder=folder / "bench",
        volume=folder,
        chart_points=100,
        checkpoint_minutes=10,
    )
    gpu = GpuMonitor(wanted=False)
    progress = ProgressWriter(io.StringIO(), task, gpu)
    callback = RunCallback(task, progress, StopSwitch(sys.exit), gpu, validates=False)
    arguments = training_arguments(parameters, shape, detect_hardware(), task.checkpoints)
    trainer = build_trainer(
        AnswerTrainer, lora, tokenizer, TrainingBatches(rows, [], shape, _micro_batch(shape)), arguments, parameters
    )
    callback.follow(trainer)
    return trainer


def _gain(path: Path, folder: Path) -> dict[str, float]:
    """Train one epoch with each recipe, and count the tokens of answers that contribute to the loss."""
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.recipe.methods.sft import AnswerTrainer
    from lora_trainer.recipe.steps import TrainingBatches, build_trainer, training_arguments

    trainers, answers, rows_of = {}, {}, {}
    for name, prepare in (("todays", _todays_rows), ("our", _our_epoch_rows)):
        lora, tokenizer = _load(path)
        rows, shape, answers[name] = prepare(path, tokenizer)
        rows_of[name] = len(rows)
        arguments = training_arguments(_parameters(), shape, detect_hardware(), folder / f"{name}-epoch")
        batches = TrainingBatches(rows, [], shape, _micro_batch(shape))
        trainers[name] = build_trainer(AnswerTrainer, lora, tokenizer, batches, arguments, _parameters())
    seconds = {name: sum(times) for name, times in train_in_turns(trainers).items()}
    return {
        **{f"{name}_rows": rows_of[name] for name in rows_of},
        **{f"{name}_answer_tokens": answers[name] for name in answers},
        **{f"{name}_seconds": seconds[name] for name in seconds},
        "ratio": (answers["our"] / seconds["our"]) / (answers["todays"] / seconds["todays"]),
    }


def _our_epoch_rows(path: Path, tokenizer: Any) -> tuple[Any, Any, int]:
    rows, shape = _our_rows(path, tokenizer, _parameters(validation_share=0))
    return rows, shape, sum(label >= 0 for row in rows for label in row.labels)


def _todays_rows(path: Path, tokenizer: Any) -> tuple[Any, Any, int]:
    """Make the rows of the present recipe: one per pair, with the user's turn doubled and every token a label."""
    from lora_contract.batches import BatchShape
    from lora_conversations.examples import Message
    from lora_trainer.data.chat import Chat, Row
    from lora_trainer.data.rows import load_examples

    chat = Chat(tokenizer)
    rows, answer_tokens = [], 0
    for example in load_examples(path.parent / "dataset", 0.05)[0]:
        *history, answer = example.messages[: example.trained[-1] + 1]
        doubled: list[Message] = [*history, history[-1], answer]
        row = chat.row(doubled, [len(doubled) - 1])
        assert row is not None
        ids = row.input_ids[:MAX_LENGTH]
        answer_tokens += sum(label >= 0 for label in row.labels[:MAX_LENGTH])
        rows.append(Row(ids, ids, 1))
    longest = max(len(row.input_ids) for row in rows)
    return rows, BatchShape(math.ceil(len(rows) / BATCH), BATCH, longest, packed=False), answer_tokens


def format_result(result: dict[str, dict[str, float]]) -> str:
    """Return both measurements as a table."""
    overhead, gain = result["overhead"], result["gain"]
    return "\n".join(
        [
            "The same rows and settings              bare TRL        ours       ratio",
            f"  tokens trained                     {overhead['bare_tokens']:11.0f} {overhead['ours_tokens']:11.0f}",
            f"  microseconds a token               {overhead['bare_seconds_a_token'] * 1e6:11.1f} "
            f"{overhead['ours_seconds_a_token'] * 1e6:11.1f} {overhead['time_ratio']:11.3f}",
            f"  peak of live tensors, MB           {overhead['bare_peak_bytes'] / 1e6:11.1f} "
            f"{overhead['ours_peak_bytes'] / 1e6:11.1f} {overhead['memory_ratio']:11.3f}",
            "",
            "One pass over the data                     today        ours       ratio",
            f"  rows                               {gain['todays_rows']:11.0f} {gain['our_rows']:11.0f}",
            f"  answer tokens trained              {gain['todays_answer_tokens']:11.0f} "
            f"{gain['our_answer_tokens']:11.0f}",
            f"  seconds                            {gain['todays_seconds']:11.1f} {gain['our_seconds']:11.1f}",
            f"  answer tokens a second             {gain['todays_answer_tokens'] / gain['todays_seconds']:11.1f} "
            f"{gain['our_answer_tokens'] / gain['our_seconds']:11.1f} {gain['ratio']:11.2f}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
