"""What the validator says of a file on this machine, how long its examples are, and what a training would cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lora_contract.hyperparameters import Hyperparameters
from lora_contract.lengths import Lengths
from lora_conversations.errors import DatasetUnusableError
from lora_conversations.survey import Survey
from lora_worker.configuration.settings import Settings
from lora_worker.datasets.preflight import expect_work, surveyor_for
from lora_worker.errors import ArgumentError
from lora_worker.money.estimate import Estimate, Work, estimate
from lora_worker.money.guide import check_model
from lora_worker.money.pricing import load_prices
from lora_worker.money.terms import make_terms
from lora_worker.submission.files import read_samples
from lora_worker.submission.lengths import LengthEstimator
from lora_worker.submission.tokenizing import TokenizerMissingError, count_lengths


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in a file."""

    survey: Survey
    refusal: str | None
    """Why it would be refused, in one sentence; None where it would be trained on."""
    lengths: Lengths
    without_tokenizer: str | None
    """Why the lengths are estimated, as a clause; None where they were counted."""
    estimate: Estimate | None


def check_file(path: Path, chosen: Hyperparameters, gpu: str | None, settings: Settings) -> Checked:
    """Read a file as the worker does before a launch; no key and no connection is needed.

    Raises:
        ArgumentError: the file can't be read; the base model or the GPU is unknown.
    """
    prices = load_prices(settings.price_table)
    terms = make_terms(settings, prices)
    if gpu:  # what is asked for, also where the worker's own endpoint has another
        terms = terms.of_any_gpu()
    if chosen.base_model:
        check_model(chosen.base_model, terms, settings.base_models)
    survey, refusal, counter = _survey(path, chosen)
    lengths, missing = counter.result(), "no base model was named (--base)"
    if chosen.base_model and refusal is None:
        try:
            lengths = count_lengths(
                path, base_model=chosen.base_model, method=chosen.method, max_length=chosen.max_length
            )
            missing = ""
        except TokenizerMissingError as error:
            missing = str(error)
    expected = (
        estimate(_work(chosen, survey, lengths, gpu or terms.default_gpu_type), terms) if survey.examples else None
    )
    if expected is None and survey.examples:
        raise ArgumentError(f"--gpu: {gpu!r} is not in the price table; `lora-worker plan` lists those that are")
    return Checked(survey, refusal, lengths, missing or None, expected)


def _work(chosen: Hyperparameters, survey: Survey, lengths: Lengths, gpu: str) -> Work:
    """What a training does, with the tokens that were counted where all were."""
    if lengths.counted_by == "tokenizer" and lengths.is_complete:
        survey = replace(survey, tokens=lengths.tokens)
    return expect_work(chosen, survey, gpu)


def _survey(path: Path, chosen: Hyperparameters) -> tuple[Survey, str | None, LengthEstimator]:
    surveyor, counter = surveyor_for(chosen), LengthEstimator(chosen.max_length)
    refusal = None
    try:
        for sample in read_samples(path, surveyor):
            counter.add(sample)
        surveyor.result().check(chosen.max_bad_line_share)
    except DatasetUnusableError as error:
        refusal = error.sentence()
    return surveyor.result(), refusal, counter


def as_answer(path: Path, chosen: Hyperparameters, checked: Checked) -> dict[str, Any]:
    """Return what was found as `--json` prints it."""
    survey, lengths = checked.survey, checked.lengths
    return {
        "file": str(path),
        "sha256": survey.sha256,
        "bytes": survey.bytes,
        "format": survey.format,
        "method": chosen.method,
        "base_model": chosen.base_model,
        "usable": checked.refusal is None,
        "refusal": checked.refusal,
        "examples": survey.examples,
        "answers": survey.answers,
        "conversations": survey.conversations,
        "bad": survey.bad,
        "unwanted": survey.unwanted,
        "skipped": survey.skipped,
        "errors": [error.as_row() for error in survey.errors],
        "notes": [note.text for note in survey.notes],
        "max_length": chosen.max_length,
        "lengths": lengths.model_dump(exclude={"rendered"}),
        "lengths_estimated_because": checked.without_tokenizer,
        "rendered": [rendered.model_dump() for rendered in lengths.rendered],
        "estimate": checked.estimate and asdict(checked.estimate),
    }
