"""What base and adapter find of held-out and general text, as figures of the rows that the application reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typing_extensions import TypedDict

from lora_contract.evaluation import Comparison, Evaluation, Measure
from lora_worker.runs.rows.quality import QualityReport

_PLACES = 6
_CONFIDENCE = 0.95


class Figure(TypedDict):
    """One figure: a key of a model's `quality_metrics`, and a row of `pipeline_training_metrics`."""

    id: str
    name: str
    value: float
    unit: str | None
    raw: dict[str, Any]
    """Over how much it was measured, and how certain it is."""


def figures_of(evaluation: Evaluation | None) -> list[Figure]:
    """Return what was measured, in the order in which a page shows it; empty where nothing was."""
    if evaluation is None:
        return []
    figures = list(_held_out(evaluation.held_out)) if evaluation.held_out is not None else []
    change, general = evaluation.general_change_percent, evaluation.general
    if change is not None:
        raw: dict[str, Any] = {"guard_passed": evaluation.guard_passed}
        if general is not None:
            raw |= {**_over(general, general.tuned), "base_loss": general.base.loss, "tuned_loss": general.tuned.loss}
        figures.append(_figure("general_loss_change_percent", "Change of the loss on general text", change, "%", raw))
    return figures


def score_figure(quality: QualityReport) -> Figure:
    """Return the score as a figure: the newer queue has no model's row that could hold it."""
    raw = {"convergence_quality": quality.convergence_quality}
    return _figure("overall_score", "Score of the training, 1 to 5", quality.overall_score, None, raw)


def quality_keys(evaluation: Evaluation | None) -> dict[str, float]:
    """Return the same figures as keys of `quality_metrics`; what was not measured has none."""
    return {figure["id"]: figure["value"] for figure in figures_of(evaluation)}


def _held_out(compared: Comparison) -> Iterator[Figure]:
    base, tuned = compared.base, compared.tuned
    loss, share = "nats/token", None
    interval = {
        "conversations": compared.conversations,
        "low": compared.gain_low,
        "high": compared.gain_high,
        "confidence": _CONFIDENCE,
    }
    yield _figure("base_validation_loss", "Held-out loss of the base model", base.loss, loss, _over(compared, base))
    yield _figure("tuned_validation_loss", "Held-out loss of the adapter", tuned.loss, loss, _over(compared, tuned))
    yield _figure("held_out_gain", "Held-out gain", compared.gain, loss, interval)
    for key, name, value in (("low", "lower", compared.gain_low), ("high", "upper", compared.gain_high)):
        if value is not None:
            yield _figure(f"held_out_gain_{key}", f"Held-out gain, {name} end of its 95 % interval", value, loss,
                          interval)  # fmt: skip
    yield _figure("base_token_accuracy", "Held-out tokens that the base model predicts", base.token_accuracy, share,
                  _over(compared, base))  # fmt: skip
    yield _figure("tuned_token_accuracy", "Held-out tokens that the adapter predicts", tuned.token_accuracy, share,
                  _over(compared, tuned))  # fmt: skip


def _over(compared: Comparison, measure: Measure) -> dict[str, Any]:
    return {"conversations": compared.conversations, "tokens": measure.tokens}


def _figure(key: str, name: str, value: float, unit: str | None, raw: dict[str, Any]) -> Figure:
    return {"id": key, "name": name, "value": round(value, _PLACES), "unit": unit, "raw": raw}
