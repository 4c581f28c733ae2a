"""What a training has brought, as its job's page shows it, and the answers of base and adapter side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_contract.evaluation import Sample
from lora_contract.words import counted
from lora_worker.dashboard.charts import LossBar, loss_bars
from lora_worker.database.job_reports import JobDetails
from lora_worker.database.measured import measured_of
from lora_worker.runs.rows.improvement import guard_sentence, improvement_sentence, result_facts

_SHOWN_MESSAGES = 3
_MESSAGE_CHARACTERS, _ANSWER_CHARACTERS = 2_000, 4_000
"""Of each text a page shows so much; `download` fetches the whole file."""
_ROLE_CHARACTERS = 30


@dataclass(frozen=True)
class Result:
    """What the page says of a finished training. `bars` are of base and adapter; empty where nothing was compared."""

    sentences: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    bars: tuple[LossBar, ...]


def read_result(details: JobDetails) -> Result | None:
    """Make it of a job's details; None where they say nothing of a result."""
    measured = measured_of(details)
    facts = result_facts(measured)
    if not facts:
        return None
    evaluation = measured.evaluation
    compared = evaluation.held_out if evaluation is not None else None
    sentences = (improvement_sentence(measured), guard_sentence(evaluation))
    return Result(
        sentences=tuple(sentence for sentence in sentences if sentence is not None),
        facts=tuple(facts),
        bars=loss_bars(compared.base.loss, compared.tuned.loss) if compared is not None else (),
    )


@dataclass(frozen=True)
class SideBySide:
    """One prompt with its answers. `messages` are its last ones, as role and text; `answers` as whose and text."""

    origin: str
    earlier: str | None
    messages: tuple[tuple[str, str], ...]
    answers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answers:
    """The answers that are kept with an adapter: None where there are none, with a `problem` if they can't be read."""

    samples: tuple[SideBySide, ...] | None
    problem: str | None = None


def side_by_side(samples: Sequence[Sample]) -> tuple[SideBySide, ...]:
    """Cut the samples to what a page shows; only that is kept in memory."""
    return tuple(_side(sample) for sample in samples)


def _side(sample: Sample) -> SideBySide:
    earlier = max(len(sample.prompt) - _SHOWN_MESSAGES, 0)
    answers = [("Base", sample.base), ("Adapter", sample.tuned)]
    if sample.reference is not None:
        answers.append(("Dataset", sample.reference))
    return SideBySide(
        origin="Held-out prompt" if sample.held_out else "General prompt",
        earlier=f"{counted(earlier, 'earlier message')} not shown" if earlier else None,
        messages=tuple(
            (message.role[:_ROLE_CHARACTERS], _cut(message.content, _MESSAGE_CHARACTERS))
            for message in sample.prompt[-_SHOWN_MESSAGES:]
        ),
        answers=tuple((whose, _cut(text, _ANSWER_CHARACTERS)) for whose, text in answers),
    )


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]} …"
