"""How well a training went, as the application shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from lora_contract.evaluation import Comparison, Evaluation
from lora_contract.hyperparameters import PREFERENCE_METHODS
from lora_contract.protocol import FinalMetrics, Point

_RISEN_LOSS = 0.1
"""A validation loss of a preference method that ends so far above its best has begun to overfit: at its start it is
0.69 (dpo, ln 2) or 0.5 (kto), so this is a seventh to a fifth of all that it can lose."""

_GAINS = ((0.2, 5), (0.1, 4), (0.03, 3))
"""The share of the base's held-out loss that a training has to take away for each score.

Of a base that finds 2.3 nats per token these are 0.46, 0.23 and 0.07: each token of the answer becomes 1.6 times, 1.26
times and 7 % more probable. A share and not an amount, because a base that does well already has less to lose."""
_UNPROVEN_SCORE = 2
"""The best score of a training whose gain may be chance: where the 95 % interval holds 0, or there is none."""
_LOST_ACCURACY = 0.005
"""A share of right tokens that falls by more is no rounding: the loss fell, and greedy answers got worse."""
_LEARNT_PERCENT = 15.0
"""A training whose own loss fell by more has learned its data: without a held-out gain, it learned them by heart."""
_WORDS = {5: "excellent", 4: "good", 3: "fair", 2: "poor", 1: "poor"}


@dataclass(frozen=True, slots=True)
class QualityReport:
    """How well a training went: from what base and adapter find of held-out text, else from its own curve."""

    overall_score: int
    convergence_quality: str
    loss_reduction_percent: float | None
    rewards: dict[str, float] = field(default_factory=dict)
    """`recent_rewards` of a preference method; empty for others, whose pages know no such keys."""


def perplexity_of(method: str | None, metrics: FinalMetrics) -> float | None:
    """The perplexity of the held-out answers; None where it is unknown, or the loss is no mean over tokens."""
    loss = metrics.final_validation_loss
    if method in PREFERENCE_METHODS or loss is None or loss >= 50:
        return None
    return math.exp(loss)


def rate_run(
    method: str | None, points: list[Point], metrics: FinalMetrics, evaluation: Evaluation | None = None
) -> QualityReport:
    """Score a training by what its method promises: better held-out answers, or that better answers are preferred.

    Where nothing was held out or compared, the application's rule over the training's own loss is all there is.
    A training that made the base worse at general text is one lower, whatever its method.
    """
    if method in PREFERENCE_METHODS:
        rated = rate_preferences(points, metrics)
    elif evaluation is not None and evaluation.held_out is not None:
        rated = rate_comparison(evaluation.held_out, points)
    else:
        rated = rate_training(points, final_validation_loss=metrics.final_validation_loss)
    return _lowered(rated) if evaluation is not None and evaluation.guard_passed is False else rated


def has_proven_gain(compared: Comparison) -> bool:
    """Tell whether the adapter is better on held-out conversations, and that is hardly chance.

    Both means have to say so: that over conversations, with its whole interval, and that over tokens.
    """
    return compared.gain_low is not None and compared.gain_low > 0 and compared.tuned.loss < compared.base.loss


def rate_comparison(compared: Comparison, points: list[Point]) -> QualityReport:
    """Score 1 to 5 and a word, by the share of the base's held-out loss that the training took away (`_GAINS`).

    Of the two means of the gain, over conversations and over tokens, the smaller one counts. More than 2 needs a proven
    gain, and a falling share of right tokens costs one point. Without any gain the score is 1.
    """
    reduction = _reduction_of(points)
    gain = min(compared.gain, compared.base.loss - compared.tuned.loss)
    if gain <= 0 or not has_proven_gain(compared):
        score = 1 if gain <= 0 else _UNPROVEN_SCORE
        return QualityReport(score, _word_without_gain(compared, score, reduction), reduction)
    score = next((score for share, score in _GAINS if gain >= share * compared.base.loss), _UNPROVEN_SCORE)
    if compared.tuned.token_accuracy < compared.base.token_accuracy - _LOST_ACCURACY:
        score = max(_UNPROVEN_SCORE, score - 1)
    return QualityReport(score, _WORDS[score], reduction)


def _word_without_gain(compared: Comparison, score: int, reduction: float | None) -> str:
    if compared.gain_low is None:
        return "unknown"
    return "overfit" if reduction is not None and reduction > _LEARNT_PERCENT else _WORDS[score]


def _lowered(rated: QualityReport) -> QualityReport:
    score = max(1, rated.overall_score - 1)
    has_own_word = rated.convergence_quality in {"overfit", "unknown"}
    word = rated.convergence_quality if has_own_word else _WORDS[score]
    return replace(rated, overall_score=score, convergence_quality=word)


def recent_rewards(points: list[Point], metrics: FinalMetrics) -> dict[str, float]:
    """Return `reward_margin` and `reward_accuracy` at the end of a training, as far as they are known.

    They are means over the last tenth of the points: a single step rates few answers, so that its share says little.
    """
    found = {}
    for name in ("reward_margin", "reward_accuracy"):
        values = [value for point in points if (value := getattr(point, name)) is not None]
        final = _mean(values[-_window(values) :]) if values else getattr(metrics, f"final_{name}")
        if final is not None:
            found[name] = round(final, 4)
    return found


def rate_preferences(points: list[Point], metrics: FinalMetrics) -> QualityReport:
    """Score 1 to 5 and a word for a preference method, from the share of answers that it rates rightly.

    The application's rule is for losses of tokens: the loss of a preference method falls by more than half also where
    answers are merely told apart more strongly. By chance half of the answers are rated rightly.
    """
    reduction = _reduction_of(points)
    rewards = recent_rewards(points, metrics)
    accuracy = rewards.get("reward_accuracy")
    if accuracy is None:
        return QualityReport(3, "unknown", reduction, rewards)
    word, score = _first_above(accuracy, ((0.9, "excellent", 5), (0.8, "good", 4), (0.7, "fair", 3), (0.6, "poor", 2)))
    final, best = metrics.final_validation_loss, metrics.best_validation_loss
    if final is not None and best is not None and final - best > _RISEN_LOSS:
        word, score = "overfit", max(2, score - 1)
    return QualityReport(score, word, reduction, rewards)


def rate_training(points: list[Point], *, final_validation_loss: float | None) -> QualityReport:
    """Score 1 to 5 and a word, by the application's rule (app contract 1.4).

    The reduction is measured between the means of the first and the last tenth of the points, since
    a single step's loss is mostly noise.
    """
    losses = _losses_of(points)
    if not losses:
        return QualityReport(3, "unknown", None)
    reduction, last = _reduction(losses), _mean(losses[-_window(losses) :])
    word, score = _first_above(reduction, ((50, "excellent", 5), (30, "good", 4), (15, "fair", 3), (5, "poor", 2)))
    if final_validation_loss is not None and final_validation_loss - last > 0.5:
        word, score = "overfit", max(2, score - 1)
    return QualityReport(score, word, reduction)


def _window(values: list[float]) -> int:
    return max(1, len(values) // 10)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _losses_of(points: list[Point]) -> list[float]:
    return [point.training_loss for point in points if point.training_loss is not None]


def _reduction_of(points: list[Point]) -> float | None:
    """By how many percent the training's own loss fell; None where it is unknown."""
    losses = _losses_of(points)
    return _reduction(losses) if losses else None


def _reduction(losses: list[float]) -> float:
    """By how many percent the loss fell, rounded as it is shown."""
    window = _window(losses)
    first, last = _mean(losses[:window]), _mean(losses[-window:])
    return round((first - last) / first * 100, 2) if first > 0 else 0.0


def _first_above(value: float, floors: tuple[tuple[float, str, int], ...]) -> tuple[str, int]:
    return next(((word, score) for floor, word, score in floors if value > floor), ("poor", 1))
