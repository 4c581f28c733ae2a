"""Which of several versions is the best, and why, in one sentence.

Losses can be compared only where they were measured over the same conversations with the same base: between versions
on the same content of a dataset and the same base model. There the lowest held-out loss wins. Between others the
highest gain wins, as a share of their base's loss: a dataset that is easy for the base leaves little to gain, and a
base that is worse leaves much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_contract.words import counted
from lora_worker.versions.version import Version
from lora_worker.words import measured

_TIE = 0.002
"""Losses that differ by less than this share are equal: the GPU's arithmetic alone changes as much."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The best version, or None where no version can be called so, and the sentence that says why."""

    best: Version | None
    sentence: str


def choose_best(versions: Sequence[Version]) -> Verdict:
    """Choose the best of some versions, newest first.

    Left out are versions that were deleted, whose figures are missing, that are not better than their base, that made
    the model worse on general text, or of which no proof says that they are applied. Of equal ones the newest wins.
    """
    live = [version for version in versions if not version.row["deleted"]]
    fit = [version for version in live if _objection(version) is None]
    if not fit:
        return Verdict(None, _why_none(live))
    is_by_loss = _are_comparable(fit)
    share_left = _loss_left if is_by_loss else _share_left
    lowest = min(map(share_left, fit))
    equals = [version for version in fit if share_left(version) < lowest + _TIE * (lowest if is_by_loss else 1)]
    best = equals[0]
    why = _by_loss(best, fit) if is_by_loss else _by_gain(best, fit)
    return Verdict(best, f"{best.label} {why}{_newest_of(equals)}{_doubt(best)}{_left_out(len(live) - len(fit))}.")


def _loss_left(version: Version) -> float:
    return version.figures.tuned_loss or 0


def _share_left(version: Version) -> float:
    """What is left of the base's held-out loss, as a share of it: less is better."""
    return 1 - (version.figures.relative_gain or 0)


def _objection(version: Version) -> str | None:
    """Why a version can't be the best, as a clause; None if it can."""
    figures = version.figures
    if figures.relative_gain is None or figures.tuned_loss is None:
        return "it was not compared with its base on held-out conversations"
    if not version.is_applied:
        return "no proof says that its adapter is applied"
    if version.guard_passed is False:
        return "it made the model worse on general text"
    if figures.relative_gain <= 0:
        return "it is not better than its base"
    return None


def _why_none(live: Sequence[Version]) -> str:
    if not live:
        return "There is no version."
    objections = dict.fromkeys(filter(None, map(_objection, live)))
    if len(live) == 1:
        return f"The only version can't be called the best: {next(iter(objections))}."
    return f"None of the {len(live)} versions can be called the best: {', or '.join(objections)}."


def _are_comparable(versions: Sequence[Version]) -> bool:
    found = {(version.dataset_sha256, version.row["base_model"]) for version in versions}
    return len(versions) == 1 or (len(found) == 1 and None not in next(iter(found)))


def _by_loss(best: Version, fit: Sequence[Version]) -> str:
    loss, base = measured(best.figures.tuned_loss), measured(best.figures.base_loss)
    if len(fit) == 1:
        return f"lowers the held-out loss from {base} to {loss}"
    return f"has the lowest held-out loss of {len(fit)} versions on the same data and base: {loss} (base: {base})"


def _by_gain(best: Version, fit: Sequence[Version]) -> str:
    return (
        f"gains most on its base, {100 * (best.figures.relative_gain or 0):.1f} % of the held-out loss, of {len(fit)} "
        "versions that differ in data or base, so that their losses can't be compared"
    )


def _newest_of(equals: Sequence[Version]) -> str:
    return f"; of {len(equals)} that are as good it is the newest" if len(equals) > 1 else ""


def _doubt(best: Version) -> str:
    low = best.figures.gain_low
    return "; its gain may be chance, for the interval reaches below 0" if low is not None and low <= 0 else ""


def _left_out(count: int) -> str:
    return f"; {counted(count, 'version')} can't be compared or did worse" if count else ""
