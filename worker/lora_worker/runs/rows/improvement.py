"""What a training has brought, in sentences for its user: what got better, that it is applied, how it is called."""

from __future__ import annotations

from lora_contract.application import Application
from lora_contract.evaluation import Comparison, Evaluation
from lora_contract.hyperparameters import PREFERENCE_METHODS
from lora_contract.words import counted
from lora_worker.database.measured import Measured
from lora_worker.runs.rows.quality import has_proven_gain
from lora_worker.words import measured as written

_NOTHING_HELD_OUT = "No conversation was held out, so it is not known whether its answers are better than the base's."


def brought_sentences(measured: Measured) -> list[str]:
    """Return all of it for the message that the training is complete: as many sentences as there are facts."""
    sentences = (
        improvement_sentence(measured),
        application_sentence(measured.application),
        name_sentence(measured.serving_name),
    )
    return [sentence for sentence in sentences if sentence is not None]


def improvement_sentence(measured: Measured) -> str | None:
    """Say what got better, and by how much; None where nothing was compared.

    A preference method promises that better answers are told from worse. Both may become less probable by that, so
    that their loss says little.
    """
    compared = measured.evaluation.held_out if measured.evaluation is not None else None
    if measured.method in PREFERENCE_METHODS:
        return _preference_sentence(measured.reward_accuracy, compared)
    if measured.evaluation is None:
        return None
    if compared is None:
        return _NOTHING_HELD_OUT
    over = f"On {counted(compared.conversations, 'held-out conversation')}"
    interval = _interval(compared)
    if interval is None:
        return f"{over} {_losses(compared)}; so few prove nothing."
    if has_proven_gain(compared):
        return f"{over} {_losses(compared)} ({interval}), and {_accuracy(compared)}."
    certainly = "" if compared.gain <= 0 or compared.tuned.loss >= compared.base.loss else " for certain"
    return f"{over} nothing got better{certainly}: {_losses(compared)} ({interval})."


def _preference_sentence(reward_accuracy: float | None, compared: Comparison | None) -> str | None:
    parts = []
    if reward_accuracy is not None:
        parts.append(f"It rates {100 * reward_accuracy:.0f} % of the answers rightly (50 % by chance).")
    if compared is not None:
        over = f"On {counted(compared.conversations, 'held-out conversation')}"
        parts.append(f"{over} {_losses(compared).replace('the loss', 'the loss of good answers')}.")
    return " ".join(parts) or None


def guard_sentence(evaluation: Evaluation | None) -> str | None:
    """Say that general text got worse by more than is allowed; None where it did not, or nobody has measured it."""
    if evaluation is None or evaluation.guard_passed is not False or evaluation.general_change_percent is None:
        return None
    return f"On general text the loss rose by {evaluation.general_change_percent:.1f} %, which is more than is allowed."


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


def result_facts(measured: Measured) -> list[tuple[str, str]]:
    """Return what is known of a result as pairs of name and value, for a page or a terminal; empty where nothing is."""
    evaluation, application = measured.evaluation, measured.application
    facts = _held_out_facts(evaluation.held_out) if evaluation is not None and evaluation.held_out is not None else []
    if measured.reward_accuracy is not None:
        facts.append(("rated rightly", f"{100 * measured.reward_accuracy:.0f} % of the answers"))
    if evaluation is not None and evaluation.general_change_percent is not None:
        verdict = {True: ", within what is allowed", False: ", more than is allowed", None: ""}
        change = f"{evaluation.general_change_percent:+.1f} % loss{verdict[evaluation.guard_passed]}"
        facts.append(("general text", change))
    if application is not None:
        facts += _application_facts(application)
    if measured.serving_name:
        facts.append(("call it", measured.serving_name))
    return facts


def _held_out_facts(compared: Comparison) -> list[tuple[str, str]]:
    base, tuned = compared.base, compared.tuned
    over = f"on {counted(compared.conversations, 'conversation')}"
    gain = f"{written(compared.gain, 3)} nats per token, without an interval"
    if compared.gain_low is not None and compared.gain_high is not None:
        proven = "" if has_proven_gain(compared) else "; it may be chance"
        gain = (
            f"{written(compared.gain, 3)} nats per token (95 %: {written(compared.gain_low, 3)} to "
            f"{written(compared.gain_high, 3)}){proven}"
        )
    return [
        ("held-out loss", f"from {written(base.loss, 3)} to {written(tuned.loss, 3)} {over}"),
        ("gain", gain),
        ("right tokens", f"from {100 * base.token_accuracy:.0f} % to {100 * tuned.token_accuracy:.0f} %"),
    ]


def _application_facts(application: Application) -> list[tuple[str, str]]:
    answers = f"{application.differing} of {counted(application.prompts, 'answer')} differ from the base's"
    unchanged = "" if application.base_unchanged else "; the base alone did not answer as before"
    taken = f"{counted(application.modules, 'module')} took {counted(application.tensors, 'tensor')}"
    facts = [("proof", f"{taken} ({application.precision}); {answers}{unchanged}")]
    gap = application.gap_percent()
    if gap is not None and application.served_loss is not None:
        how = f" ({application.served_precision})" if application.served_precision else ""
        facts.append(("as served", f"loss {written(application.served_loss, 3)}{how}, {gap:+.1f} % against training"))
    return facts


def _losses(compared: Comparison) -> str:
    base, tuned = compared.base.loss, compared.tuned.loss
    verb = "fell" if tuned < base else "rose" if tuned > base else "stayed"
    if verb == "stayed":
        return f"the loss stayed at {written(base, 3)}"
    return f"the loss {verb} from {written(base, 3)} to {written(tuned, 3)}"


def _interval(compared: Comparison) -> str | None:
    if compared.gain_low is None or compared.gain_high is None:
        return None
    return f"95 % interval of the gain: {written(compared.gain_low, 3)} to {written(compared.gain_high, 3)}"


def _accuracy(compared: Comparison) -> str:
    return (
        f"the adapter predicts {100 * compared.tuned.token_accuracy:.0f} % of their tokens right, "
        f"the base {100 * compared.base.token_accuracy:.0f} %"
    )
