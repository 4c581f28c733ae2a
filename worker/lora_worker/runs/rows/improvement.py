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


def result_facts(measured: Measured) -> list[tuple[str, str]]:
    """Return what is known of a result as pairs of name and value, for a page or a terminal; empty where nothing is."""
    evaluation, application = measured.evaluation, measured.application
    facts = _held_out_facts(evaluation.held_out) if evaluation is not None and evaluation.held_out is not None else []
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
        ("held-out loss", f"{written(base.loss, 3)} → {written(tuned.loss, 3)} {over}"),
        ("gain", gain),
        ("right tokens", f"{100 * base.token_accuracy:.0f} % → {100 * tuned.token_accuracy:.0f} %"),
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


def _accuracy(compared: Comparison) -> str:
    return (
        f"{100 * compared.tuned.token_accuracy:.0f} % of the tokens are predicted, "
        f"before {100 * compared.base.token_accuracy:.0f} %"
    )
