"""Base against tuned model: what their figures over the same conversations say. Arithmetic without torch.

The gain is the mean over conversations of the base's loss less the tuned model's. Both models read the same
conversations, so the differences are paired, and a conversation counts once however many tokens it has: its tokens
depend on each other, and an interval over tokens would be far too narrow (arXiv:2411.00640 finds both in practice).

The interval is Student's (Biometrika 6:1, 1908). A percentile bootstrap would be too narrow here: it has no more spread
than the sample, and held-out samples are small. With n values its variance is (n-1)/n of the unbiased one, and it takes
the normal's quantiles: with 5 conversations it is 37 % narrower (1.75 against 2.78 standard errors).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

from lora_contract.evaluation import Comparison, Evaluation, Measure
from lora_contract.hyperparameters import PREFERENCE_METHODS, Method

GENERAL_RISE_PERCENT = 10.0
"""The most by which the loss on general text and chat may rise. By the fit of Hoffmann et al. (arXiv:2203.15556, eq.
10) a model with a tenth of the weights has a loss about 10 % higher: 2.25 nats per token with 700 million weights, 2.04
with 7 billion, after 1.4 trillion tokens. So an adapter beyond it has cost its base as much as a far smaller one does.
"""
MOST_CONVERSATIONS = 2000
"""With more, the interval hardly gets narrower."""
_SHARE_OF_TRAINING = 0.02
_LEAST_TOKENS, _MOST_TOKENS = 4096, 65_536
_EXACT_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182}
_TWO_SIDED_95 = 0.975


class RowFigures(NamedTuple):
    """How well the model predicts the learned tokens of one row, or of several together."""

    loss: float
    """Sum of their negative log-probabilities, in nats."""
    correct: int
    """How many of them the model finds the most probable of all."""
    tokens: int


class PairedFigures(NamedTuple):
    """What both models find of the same texts, one entry a text."""

    base: Sequence[RowFigures]
    tuned: Sequence[RowFigures]


def tokens_to_measure(training_tokens: int) -> int:
    """How many held-out tokens are measured, for a training of so many tokens in all its steps.

    Two percent of the training's, and 4,096 to 65,536. A forward pass costs a third to a half of what a token of
    training does (2 of 4 or 6 operations for each weight), and there are two: of the base and of the tuned model. So
    the measurement costs 1.3 to 2 % of the training where it is not at the lower bound.
    """
    return min(max(round(_SHARE_OF_TRAINING * training_tokens), _LEAST_TOKENS), _MOST_TOKENS)


def choose_conversations(tokens: Sequence[int], most_tokens: int, seed: int) -> list[int]:
    """Which conversations are measured: all, or as many as have `most_tokens` together; `tokens` are those of each.

    They are taken in a random order that depends on the seed alone, whatever their length: to pick the short ones that
    still fit would measure short conversations. Those without tokens are left out, and the first is always taken.
    """
    order = [number for number, count in enumerate(tokens) if count > 0]
    random.Random(f"{seed}:measured").shuffle(order)  # noqa: S311 it decides a sample and guards no secret
    chosen: list[int] = []
    total = 0
    for number in order[:MOST_CONVERSATIONS]:
        total += tokens[number]
        if chosen and total > most_tokens:
            break
        chosen.append(number)
    return sorted(chosen)


def compare(pair: PairedFigures) -> Comparison | None:
    """The figures of both models; None where nothing was measured."""
    if not pair.base:
        return None
    differences = [
        before.loss / before.tokens - after.loss / after.tokens
        for before, after in zip(pair.base, pair.tuned, strict=True)
    ]
    low, high = mean_interval(differences) or (None, None)
    return Comparison(
        base=measure_of(pair.base),
        tuned=measure_of(pair.tuned),
        conversations=len(differences),
        gain=fmean(differences),
        gain_low=low,
        gain_high=high,
    )


def evaluation_of(held_out: PairedFigures, general: PairedFigures) -> Evaluation:
    """All figures, and whether the guard has passed."""
    compared = compare(general)
    change = None
    if compared is not None and compared.base.loss > 0:
        change = 100 * (compared.tuned.loss / compared.base.loss - 1)
    return Evaluation(
        held_out=compare(held_out),
        general=compared,
        general_change_percent=change,
        guard_passed=None if change is None else change <= GENERAL_RISE_PERCENT,
    )


def measure_of(figures: Sequence[RowFigures]) -> Measure:
    """One model's means over all tokens of these figures, which are of one token at least."""
    tokens = sum(entry.tokens for entry in figures)
    return Measure(
        loss=sum(entry.loss for entry in figures) / tokens,
        token_accuracy=sum(entry.correct for entry in figures) / tokens,
        tokens=tokens,
    )


def joined(figures: Sequence[RowFigures]) -> RowFigures:
    """The figures of several rows together, such as those of one conversation."""
    return RowFigures(
        sum(entry.loss for entry in figures),
        sum(entry.correct for entry in figures),
        sum(entry.tokens for entry in figures),
    )


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    error = stdev(values) / math.sqrt(len(values)) * t_quantile(len(values) - 1)
    return fmean(values) - error, fmean(values) + error


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom, within 0.001 of the tables' value.

    Abramowitz and Stegun, 26.7.5; below four degrees of freedom, where that is off by more, from their table 26.10.
    """
    if freedom in _EXACT_QUANTILES:
        return _EXACT_QUANTILES[freedom]
    z = NormalDist().inv_cdf(_TWO_SIDED_95)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )


def evaluation_notes(evaluation: Evaluation, method: Method) -> list[str]:
    """Sentences for the user about what is not as it should be, and what may help."""
    notes = []
    if evaluation.held_out is not None and (note := _gain_note(evaluation.held_out, method)):
        notes.append(note)
    if evaluation.guard_passed is False and evaluation.general is not None:
        base, tuned = evaluation.general.base.loss, evaluation.general.tuned.loss
        notes.append(
            f"On general text and chat the loss rose by {evaluation.general_change_percent:.0f} % (from {base:.3f} to "
            f"{tuned:.3f} nats per token; up to {GENERAL_RISE_PERCENT:.0f} % is usual): the adapter may have unlearned "
            "what its data does not show. Try a lower learning_rate or fewer epochs."
        )
    return notes


def _gain_note(found: Comparison, method: Method) -> str | None:
    low, high = found.gain_low, found.gain_high
    if (found.gain if low is None else low) > 0:
        return None
    losses = f"the loss went from {found.base.loss:.3f} to {found.tuned.loss:.3f} nats per token"
    is_worse = (found.gain if high is None else high) < 0
    if method in PREFERENCE_METHODS:
        # They learn which of two answers is better, and that may make both of them less probable.
        told = "became less probable" if is_worse else "became no more probable"
        return f"Held-out better answers {told}: {losses}. With {method} the reward margin counts more than that."
    if is_worse:
        return f"Worse than the base on held-out conversations: {losses}. Try a lower learning_rate or fewer epochs."
    return f"No sure gain on held-out conversations: {losses}{_interval(found)}. More data may show one."


def _interval(found: Comparison) -> str:
    if found.gain_low is None or found.gain_high is None:
        return ""
    return f" (gain {found.gain:.3f}, 95 % interval {found.gain_low:.3f} to {found.gain_high:.3f})"
