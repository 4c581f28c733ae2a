"""The real training process with one fault, chosen by the variable `SABOTAGE`: `name:argument`."""

import errno
import os
import signal
import sys

import torch
from transformers import Trainer
from trl import SFTTrainer

from lora_trainer.recipe.passes import PassTrainer
from lora_trainer.recipe.steps import StepTrainer
from lora_trainer.recipe.train import main

VERB, _, ARGUMENT = os.environ["SABOTAGE"].partition(":")


def out_of_memory(limit: str) -> None:
    """From the third step on, a forward pass of more than so many tokens runs out of memory."""
    forward, calls = torch.nn.Embedding.forward, 0

    def limited(self, tokens):
        nonlocal calls
        calls += self.training
        if self.training and calls > 2 and tokens.numel() > int(limit):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (simulated)")
        return forward(self, tokens)

    torch.nn.Embedding.forward = limited


def no_number(step: str) -> None:
    """The loss of this step is NaN."""
    training_step = Trainer.training_step

    def broken(self, *arguments, **options):
        loss = training_step(self, *arguments, **options)
        return loss * float("nan") if self.state.global_step + 1 == int(step) else loss

    Trainer.training_step = broken


def full_disk(_: str) -> None:
    """Every save fails with a full disk."""

    def save(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    torch.save = save


def validation(losses: str) -> None:
    """Evaluations return these losses in turn; the first one is before training."""
    loop, given = StepTrainer.evaluation_loop, iter(map(float, losses.split(",")))

    def scripted(self, *arguments, **options):
        output = loop(self, *arguments, **options)
        output.metrics["eval_loss"] = next(given)
        return output

    StepTrainer.evaluation_loop = scripted


def evaluation(name: str) -> None:
    """The process gets this signal during its first evaluation after a step."""
    step, calls = SFTTrainer.prediction_step, 0

    def signalled(self, *arguments, **options):
        nonlocal calls
        calls += self.state.global_step > 0
        if calls == 1:
            os.kill(os.getpid(), signal.Signals[name])
        return step(self, *arguments, **options)

    SFTTrainer.prediction_step = signalled


def step(number: str) -> None:
    """The process gets SIGTERM within this optimizer step, after its first forward pass."""
    training_step, passes = Trainer.training_step, 0

    def signalled(self, *arguments, **options):
        nonlocal passes
        loss = training_step(self, *arguments, **options)
        passes += self.state.global_step + 1 == int(number)
        if passes == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert passes < 2, "a pass was computed after the stop"
        return loss

    Trainer.training_step = signalled


def measuring(number: str) -> None:
    """The process gets SIGTERM in its measurement of this number (1: the base), after the first forward pass."""
    measure, figures_of = PassTrainer.measure, PassTrainer._figures_of
    measurements = passes = 0

    def counted(self, rows):
        nonlocal measurements
        measurements += 1
        return measure(self, rows)

    def signalled(self, rows):
        nonlocal passes
        figures = figures_of(self, rows)
        passes += measurements == int(number)
        if passes == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert passes < 2, "a pass was computed after the stop"
        return figures

    PassTrainer.measure, PassTrainer._figures_of = counted, signalled


BREAK = {"out_of_memory": out_of_memory, "no_number": no_number, "full_disk": full_disk, "validation": validation}
BREAK |= {"evaluation": evaluation, "step": step, "measuring": measuring}
BREAK[VERB](ARGUMENT)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
