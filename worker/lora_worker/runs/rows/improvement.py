"""What a training has brought, in sentences for its user: what got better, that it is applied, how it is called."""

from __future__ import annotations

from lora_contract.application import Application
from lora_contract.evaluation import Comparison, Evaluation
from lora_contract.words import counted
from lora_worker.database.measured import Measured
from lora_worker.runs.rows.quality import has_proven_gain
from lora_worker.words import measured as written

_NOTHING_HELD_OUT = "No conversation was held out, so it is not known whether its answers are better than the base's."


def brought_sentences(measured: Measured) -> list[str]:
    """Return all of it for the message that the training is complete: as many sentences as there are facts."""
    sentences = (
        improvement_sentence(measured.evaluation),
        application_sentence(measured.application),
        name_sentence(measured.serving_name),
    )
    return [sentence for sentence in sentences if sentence is not None]


def improvement_sentence(evaluation: Evaluation | None) -> str | None:
    """Say what got better on held-out conversations, and by how much; None where nothing was compared."""
    if evaluation is None:
        return None
    compared = evaluation.held_out
    if compared is None:
        return _NOTHING_HELD_OUT
    over = f"On {counted(compared.conversations, 'held-out conversation')}"
    if compared.gain_low is None or compared.gain_high is None:
        return f"{over} {_losses(compared)}; so few prove nothing."
    interval = f"95 % interval of the gain: {written(compared.gain_low, 3)} to {written(compared.gain_high, 3)}"
    if has_proven_gain(compared):
        return f"{over} {_losses(compared)} ({interval}), and {_accuracy(compared)}."
    certainly = "" if compared.gain <= 0 or compared.tuned.loss >= compared.base.loss else " for certain"
    return f"{over} nothing got better{certainly}: {_losses(compared)} ({interval})."


def guard_sentence(evaluation: Evaluation | None) -> str | None:
    """Say what became of general text, in which no dataset has a part; None where that was not measured."""
    change = evaluation.general_change_percent if evaluation is not None else None
    if evaluation is None or change is None:
        return None
    moved = f"{'rose' if change > 0 else 'fell'} by {abs(change):.1f} %"
    allowed = {True: ", which is allowed", False: ", which is more than is allowed", None: ""}[evaluation.guard_passed]
    return f"On general text the loss {moved}{allowed}."


def application_sentence(application: Application | None) -> str | None:
    """Say that the published adapter was seen to work; None where nobody has looked."""
    if application is None:
        return None
    return (
        f"A fresh base model took the published adapter in {counted(application.modules, 'module')}, and "
        f"{application.differing} of {counted(application.prompts, 'answer')} differ from the base's."
    )


def name_sentence(serving_name: str | None) -> str | None:
    """Say by which name the adapter is called; None where no endpoint serves it."""
    return f"It is called by the name {serving_name}." if serving_name else None


def _losses(compared: Comparison) -> str:
    base, tuned = compared.base.loss, compared.tuned.loss
    verb = "fell" if tuned < base else "rose" if tuned > base else "stayed"
    if verb == "stayed":
        return f"the loss stayed at {written(base, 3)}"
    return f"the loss {verb} from {written(base, 3)} to {written(tuned, 3)}"


def _accuracy(compared: Comparison) -> str:
    return (
        f"{100 * compared.tuned.token_accuracy:.0f} % of the tokens are predicted, "
        f"before {100 * compared.base.token_accuracy:.0f} %"
    )
