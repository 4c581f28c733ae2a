"""Measures base and tuned model in the training process, where the base is in memory already.

Before the first step the base is measured with the adapter off, and its figures are kept in the job's folder: an
execution that resumes takes them from there. After the last step the tuned model is measured over the same rows. That
never fails a training: what can't be measured is told to the user, and the adapter is saved.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from lora_contract.evaluation import Evaluation
from lora_contract.words import counted
from lora_trainer.data.chat import IGNORED, Row
from lora_trainer.data.general import GENERAL_VERSION, general_rows
from lora_trainer.data.sample_prompts import sample_prompts
from lora_trainer.models.quantization import Quantization
from lora_trainer.recipe.comparison import (
    PairedFigures,
    RowFigures,
    choose_conversations,
    evaluation_notes,
    evaluation_of,
    joined,
    measure_of,
    tokens_to_measure,
)
from lora_trainer.recipe.setup import TrainingSetup
from lora_trainer.recipe.steps import StepTrainer
from lora_trainer.recipe.stopping import StepInterruptedError
from lora_trainer.run.files import write_atomically
from lora_trainer.run.held_out import HeldOut, HeldOutRow
from lora_trainer.run.logs import describe
from lora_trainer.run.task import Task

log = logging.getLogger(__name__)

BASE_FIGURES_NAME = "base_figures.json"
_MOST_HANDED_ON_TOKENS = 16_384
"""So many tokens of held-out rows are measured once more by the process that tries the published files."""


class BaseFigures(BaseModel):
    """What was measured of the base, and what it depends on. It stands in the job's folder."""

    fingerprint: str
    quantization: Quantization
    general_version: int = GENERAL_VERSION
    held_out: list[RowFigures]
    """One entry a conversation."""
    general: list[RowFigures]
    """One entry a text."""

    @classmethod
    def read(cls, job_folder: Path) -> BaseFigures | None:
        """What an earlier execution has left; None where there is nothing that can be read."""
        try:
            return cls.model_validate_json((job_folder / BASE_FIGURES_NAME).read_bytes())
        except (OSError, ValidationError):
            return None


class Evaluator:
    """Measures one training. `measure_base` comes before the first step, `measure_tuned` after the last."""

    def __init__(self, task: Task, setup: TrainingSetup, trainer: StepTrainer) -> None:
        self._task, self._setup, self._trainer = task, setup, trainer
        self.conversations = held_out_conversations(task, setup)
        """The rows of each conversation that is measured."""
        self._general = general_rows(setup.chat, setup.tokenizer)
        self._base: BaseFigures | None = None
        self._tuned_rows: list[RowFigures] = []
        self.evaluation: Evaluation | None = None
        """All figures; None before `measure_tuned`, and where the tuned model could not be measured."""
        self.notes: list[str] = []
        """Sentences for the user; complete after `measure_tuned`."""

    def measure_base(self) -> None:
        """Measure the base with the adapter off, whatever the adapter is; or take what an earlier execution measured.

        Raises:
            StepInterruptedError: a stop was requested.
        """
        known = self._trainer.ranks.of_leader(BaseFigures.read(self._task.job_folder))
        if known is not None and self._fits(known):
            self._base = known
            return
        with self._trainer.model.disable_adapter():
            rows, general = self._measure()
        self._base = BaseFigures(
            fingerprint=self._task.fingerprint,
            quantization=self._setup.quantization,
            held_out=self._by_conversation(rows),
            general=general,
        )
        if self._trainer.ranks.leads:
            write_atomically(self._task.job_folder / BASE_FIGURES_NAME, self._base.model_dump_json())

    def measure_tuned(self) -> None:
        """Measure the model as it is to be published. Raises nothing: `notes` says why where there are no figures."""
        try:
            self._compare()
        except StepInterruptedError:
            self.notes = ["The adapter was not compared with its base, since the machine was about to be taken away."]
        except Exception as error:
            # Memory may have run out, whose exceptions are of many types. The adapter is trained, and worth more.
            log.error("the tuned model could not be measured: %s", describe(error))
            self.notes = [f"The adapter could not be compared with its base ({type(error).__name__})."]

    def hand_on(self, folder: Path) -> None:
        """Leave in `folder` what the process needs that tries the published files; nothing where nothing is held out.

        It is text of the dataset, so `folder` must be the execution's, not the artifact. Raises nothing: without it,
        that process asks the questions of the general set.
        """
        if not self.conversations:
            return
        try:
            self._held_out().write(folder)
        except Exception as error:
            log.error("no held-out prompts are handed on: %s", describe(error))

    def _held_out(self) -> HeldOut:
        rows = [row for talk in self.conversations for row in talk]
        taken, total = 0, 0
        for row in rows:
            total += len(row.input_ids)
            if taken and total > _MOST_HANDED_ON_TOKENS:
                break
            taken += 1
        found = self._tuned_rows[:taken]
        return HeldOut(
            prompts=sample_prompts(self._setup.chat, self._setup.tokenizer, self._setup.data.held_out),
            rows=[HeldOutRow(ids=row.input_ids, labels=row.labels) for row in rows[:taken]],
            trained=measure_of(found) if found else None,
        )

    def _compare(self) -> None:
        assert self._base is not None, "the base is measured before the first step"
        self._tuned_rows, general = self._measure()
        held_out = PairedFigures(self._base.held_out, self._by_conversation(self._tuned_rows))
        self.evaluation = evaluation_of(held_out, PairedFigures(self._base.general, general))
        self.notes = evaluation_notes(self.evaluation, self._task.hyperparameters.method)
        if not self.conversations:
            self.notes.append("Nothing is held out, so whether the adapter is better than its base was not measured.")

    def _measure(self) -> tuple[list[RowFigures], list[RowFigures]]:
        """The figures of each held-out row, and of each general text."""
        rows = [row for talk in self.conversations for row in talk]
        figures = self._trainer.measure([*rows, *self._general])
        return figures[: len(rows)], figures[len(rows) :]

    def _by_conversation(self, rows: Sequence[RowFigures]) -> list[RowFigures]:
        found, at = [], 0
        for talk in self.conversations:
            found.append(joined(rows[at : at + len(talk)]))
            at += len(talk)
        return found

    def _fits(self, known: BaseFigures) -> bool:
        """Whether these figures are of the same base and the same texts as this execution would measure."""
        texts = [
            *([learned_tokens(talk) for talk in self.conversations]),
            *(learned_tokens([r]) for r in self._general),
        ]
        return (
            known.fingerprint == self._task.fingerprint
            and known.general_version == GENERAL_VERSION
            and known.quantization == self._setup.quantization
            and len(known.held_out) == len(self.conversations)
            and [entry.tokens for entry in (*known.held_out, *known.general)] == texts
        )


def learned_tokens(rows: Sequence[Row]) -> int:
    """On how many tokens rows are measured. A row's first is never predicted."""
    return sum(label != IGNORED for row in rows for label in row.labels[1:])


def held_out_conversations(task: Task, setup: TrainingSetup) -> list[list[Row]]:
    """The rows of those held-out conversations that are measured; of each, those whose answers are good."""
    data, trainer = setup.data, setup.method.trainer
    count = max(data.validation_talks, default=-1) + 1
    talks: list[list[Row]] = [[] for _ in range(count)]
    for number, item in zip(data.validation_talks, data.validation, strict=True):
        talks[number] += [row for row in trainer.measured_rows(item) if learned_tokens([row])]
    lengths = [sum(len(row.input_ids) for row in talk) for talk in talks]
    most = tokens_to_measure(training_tokens(task, setup))
    return [talks[number] for number in choose_conversations(lengths, most, task.hyperparameters.seed)]


def training_tokens(task: Task, setup: TrainingSetup) -> int:
    """About how many tokens all steps of the training compute."""
    parameters, shape = task.hyperparameters, setup.shape
    epoch = sum(setup.method.trainer.tokens_of(item, packed=shape.packed) for item in setup.data.train)
    steps = shape.total_steps(epochs=parameters.epochs, max_steps=parameters.max_steps)
    return round(epoch * steps / shape.steps_per_epoch)


def measured_sentence(evaluator: Evaluator) -> str:
    """What is being measured, for the log and the user."""
    count = len(evaluator.conversations)
    texts = counted(count, "held-out conversation") if count else "general text"
    return f"Comparing the adapter with its base, on {texts}."
