"""The artifact's `evaluation.json`, and the pages about it in the model card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lora_contract.application import Application
from lora_contract.evaluation import EVALUATION_NAME, MAX_SAMPLES, Comparison, Evaluation, EvaluationFile, Sample
from lora_trainer.run.files import write_atomically

CARD_NAME = "README.md"
_ANSWERS = "## Answers side by side"
_MOST_SHOWN = 1_500
"""The model card shows so many characters of a message or an answer; `evaluation.json` has more."""


def write_evaluation(artifact: Path, evaluation: Evaluation) -> None:
    """Write `evaluation.json` with the figures; the samples are added by `complete_evaluation`."""
    write_atomically(artifact / EVALUATION_NAME, EvaluationFile(evaluation=evaluation).model_dump_json(indent=2))


def read_evaluation(artifact: Path) -> EvaluationFile | None:
    """The content of `evaluation.json`; None where there is none, or none that can be read."""
    try:
        return EvaluationFile.model_validate_json((artifact / EVALUATION_NAME).read_bytes())
    except (OSError, ValueError):
        return None


def complete_evaluation(artifact: Path, *, samples: Sequence[Sample], application: Application | None = None) -> None:
    """Put the answers of base and tuned model into `evaluation.json` and at the end of the model card.

    `application` is what the process found that tried the published files; it goes into `evaluation.json`.

    What an earlier call has put there is replaced. An artifact of a trainer that measured nothing gets the samples
    alone. Both files are replaced atomically.
    """
    found = read_evaluation(artifact) or EvaluationFile()
    kept = list(samples[:MAX_SAMPLES])
    complete = found.model_copy(update={"samples": kept, "application": application})
    write_atomically(artifact / EVALUATION_NAME, complete.model_dump_json(indent=2))
    card = artifact / CARD_NAME
    before = card.read_text(encoding="utf-8").partition(f"\n{_ANSWERS}\n")[0].rstrip("\n")
    write_atomically(card, f"{before}\n\n{answers_page(kept)}" if kept else f"{before}\n")


def evaluation_page(evaluation: Evaluation | None, *, total: int) -> str:
    """The figures as the text of a section of the model card. `total` is how many conversations are held out."""
    if evaluation is None:
        return "The adapter was not compared with its base; the notes say why.\n"
    held_out = evaluation.held_out
    parts = [
        "Base and tuned model have read the same text, which the training has not seen: the base with the adapter off, "
        "before the first step; the tuned model with the adapter as it is published.\n",
        _comparison_table(evaluation),
        _held_out_words(held_out, total) if held_out else "Nothing was held out of the dataset.\n",
    ]
    if evaluation.guard_passed is not None:
        parts.append(_guard_words(evaluation))
    return "\n".join(parts)


def _comparison_table(evaluation: Evaluation) -> str:
    sets = {"held-out conversations": evaluation.held_out, "general text and chat": evaluation.general}
    lines = ["| | base | tuned |", "|---|---|---|"]
    for name, found in sets.items():
        if found is not None:
            base, tuned = found.base, found.tuned
            lines += [
                f"| {name}: loss, nats per token | {base.loss:.4f} | {tuned.loss:.4f} |",
                f"| {name}: tokens predicted right | {base.token_accuracy:.1%} | {tuned.token_accuracy:.1%} |",
            ]
    return "\n".join([*lines, ""])


def _held_out_words(found: Comparison, total: int) -> str:
    measured = f"{found.conversations} of {total}" if found.conversations < total else f"{found.conversations}"
    over = f"the gain is {found.gain:.4f} nats per token (mean over {measured} held-out conversations)"
    if found.gain_low is None or found.gain_high is None:
        return f"Held out: {over}. One conversation is too few for an interval.\n"
    interval = f"95 % interval {found.gain_low:.4f} to {found.gain_high:.4f}, by Student's t"
    if found.gain_low > 0:
        verdict = "The interval is above 0: the adapter predicts such answers better than its base."
    elif found.gain_high < 0:
        verdict = "The interval is below 0: the adapter predicts such answers worse than its base."
    else:
        verdict = "The interval holds 0: these conversations show no sure difference."
    return f"Held out: {over}; {interval}. {verdict}\n"


def _guard_words(evaluation: Evaluation) -> str:
    change = evaluation.general_change_percent or 0
    moved = f"{'rose' if change > 0 else 'fell'} by {abs(change):.1f} %"
    verdict = "within what is usual" if evaluation.guard_passed else "more than is usual: see the notes"
    return f"General text and chat, which have nothing to do with the dataset: the loss {moved}, {verdict}.\n"


def answers_page(samples: Sequence[Sample]) -> str:
    """The answers as a section of the model card, in Markdown."""
    pages = [_sample_page(number, sample) for number, sample in enumerate(samples, start=1)]
    introduction = (
        "The most probable answers (greedy, cut where they are long) of the base and of the base with this adapter.\n"
    )
    return "\n".join([_ANSWERS, "", introduction, *pages])


def _sample_page(number: int, sample: Sample) -> str:
    origin = "held out of the dataset" if sample.held_out else "of the general set"
    asked = "\n\n".join(f"{message.role}: {message.content}" for message in sample.prompt)
    parts = {"Prompt": asked, "Base": sample.base, "With the adapter": sample.tuned}
    if sample.reference is not None:
        parts["The dataset's answer"] = sample.reference
    shown = [f"{name}:\n\n{_fenced(_shortened(content))}\n" for name, content in parts.items()]
    return "\n".join([f"### {number}, {origin}\n", *shown])


def _shortened(content: str) -> str:
    return content if len(content) <= _MOST_SHOWN else f"{content[:_MOST_SHOWN]} …"


def _fenced(content: str) -> str:
    """The text as a block of code, which no text in it can end: its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{content}\n{fence}"
