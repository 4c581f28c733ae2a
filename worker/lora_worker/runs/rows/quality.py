"""How well a training went, as the application shows it."""

from __future__ import annotations

from dataclasses import dataclass

from lora_contract.protocol import Point


@dataclass(frozen=True, slots=True)
class QualityReport:
    """How well a training went, from its own curve."""

    overall_score: int
    convergence_quality: str
    loss_reduction_percent: float | None


def rate_training(points: list[Point], *, final_validation_loss: float | None) -> QualityReport:
    """Score 1 to 5 and a word, by the application's rule (app contract 1.4).

    The reduction is measured between the means of the first and the last tenth of the points, since
    a single step's loss is mostly noise.
    """
    losses = [point.training_loss for point in points if point.training_loss is not None]
    if not losses:
        return QualityReport(3, "unknown", None)
    window = max(1, len(losses) // 10)
    first, last = sum(losses[:window]) / window, sum(losses[-window:]) / window
    reduction = (first - last) / first * 100 if first > 0 else 0.0
    word, score = (
        next(
            (word, score)
            for floor, word, score in ((50, "excellent", 5), (30, "good", 4), (15, "fair", 3), (5, "poor", 2))
            if reduction > floor
        )
        if reduction > 5
        else ("poor", 1)
    )
    if final_validation_loss is not None and final_validation_loss - last > 0.5:
        word, score = "overfit", max(2, score - 1)
    return QualityReport(score, word, round(reduction, 2))
