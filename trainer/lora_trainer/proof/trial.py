"""The trial of one adapter: what base and published files answer, and what follows from that.

Read `try_files` from top to bottom. It loads the base, asks it, loads the published files onto it, counts what they
reached, asks again with the adapter and without, and measures the held-out loss.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_contract.application import Application, Precision
from lora_contract.evaluation import MAX_SAMPLES, Sample
from lora_contract.words import counted
from lora_trainer.data.chat import Chat
from lora_trainer.data.general import general_prompts
from lora_trainer.data.templates import prepare_tokenizer
from lora_trainer.errors import NotAppliedError, NothingLearnedError
from lora_trainer.models.attention import SDPA
from lora_trainer.models.bases import BaseModels
from lora_trainer.models.cuda_faults import context_is_broken
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import load_config, load_model, load_tokenizer
from lora_trainer.models.quantised_cache import QuantisedCache
from lora_trainer.models.quantization import NF4
from lora_trainer.proof.asking import BATCH_TOKENS, Fingerprint, fingerprint, greedy_answers, mean_loss
from lora_trainer.proof.coverage import check_coverage
from lora_trainer.proof.loading import choose_devices, choose_precision, load_adapter, precision_name, read_published
from lora_trainer.run.files import sha256_of
from lora_trainer.run.held_out import HeldOut, HeldOutPrompt
from lora_trainer.run.logs import describe
from lora_trainer.run.proof_task import WEIGHTS_NAME, ProofTask

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_REPORT = "It would not be served as it was trained; please report it to support."
_NOTABLE_PERCENT = 1.0
"""A larger difference between the losses as trained and as served is told to the user."""
_HELD: dict[Precision, str] = {
    "nf4": "in 4 bits",
    "bf16": "not quantised (bf16)",
    "fp16": "not quantised (fp16)",
    "fp32": "not quantised (fp32)",
}


@dataclass(frozen=True)
class Tried:
    """What a trial found: figures for the manifest, answers for the artifact, and sentences for the user."""

    application: Application
    samples: list[Sample]
    notes: list[str]


def try_files(task: ProofTask, hardware: Hardware, cache: QuantisedCache) -> Tried:
    """Try the published files of a finished training.

    Raises:
        NotAppliedError: the base's modules don't take them, or the base is not what it was.
        NothingLearnedError: no answer differs with the adapter.
        BaseModelError: the base can't be loaded any more.
    """
    models = BaseModels(task.volume, trusted=task.trust_remote_code)
    base = models.complete(models.find(str(task.hyperparameters.base_model), task.base_revision))
    published, sha256 = read_published(task.artifact, base), sha256_of(task.artifact / WEIGHTS_NAME)
    config, tokenizer = load_config(base), load_tokenizer(base)
    prepare_tokenizer(tokenizer)
    held_out = HeldOut.read(task.folder) or HeldOut()
    questions = Questions.of(held_out, tokenizer, task.artifact)
    held = choose_precision(task, config, hardware, tokens=_most_tokens(held_out))
    devices = choose_devices(task, config, hardware, held, tokens=_most_tokens(held_out))
    model: Any = load_model(
        base, config, hardware, attention=SDPA, quantize=held == NF4, cache=cache, devices=devices
    ).eval()

    weights = fingerprint(model)
    before = questions.ask(model)
    adapted = load_adapter(model, task, held)
    covered = check_coverage(published, adapted)
    log.info("%s took the published adapter", counted(covered.modules, "module"))
    tuned = questions.ask(adapted)
    with adapted.disable_adapter():
        after = questions.ask(adapted)
    served_loss = _served_loss(adapted, held_out) if held != NF4 else None
    asked, answers = (questions, Answers(before, tuned))
    if tuned == before:
        # The base may have known the dataset's answers before. Open questions show more.
        asked, answers = _ask_more(adapted, questions, answers)
    notes = _check_base(adapted, weights, questions, before, after)

    precision = precision_name(held, hardware)
    application = Application(
        adapter_sha256=sha256,
        modules=covered.modules,
        tensors=covered.tensors,
        prompts=len(asked.prompts),
        differing=answers.differing,
        precision=precision,
        base_unchanged=True,
        trained_loss=held_out.trained.loss if held_out.trained else None,
        served_loss=served_loss,
        served_precision=None if served_loss is None else precision,
    )
    _check_answers(application)
    return Tried(application, asked.samples(answers), [*notes, *gap_notes(application)])


@dataclass(frozen=True)
class Answers:
    """The greedy answers of the base and of the base with the adapter, as tokens, in the order of the prompts."""

    base: list[list[int]]
    tuned: list[list[int]]

    @property
    def differing(self) -> int:
        """How many prompts are answered otherwise with the adapter."""
        return sum(one != other for one, other in zip(self.base, self.tuned, strict=True))


@dataclass(frozen=True)
class Questions:
    """The prompts of a trial, and how they are asked."""

    prompts: list[HeldOutPrompt]
    held_out: int
    """How many of them, the first ones, are of the dataset's held-out conversations."""
    spare: list[HeldOutPrompt]
    """Those of the general set, which are asked where nothing differs on the others."""
    tokenizer: PreTrainedTokenizerBase
    ends: list[int]
    """The tokens that end an answer."""
    padding: int

    @classmethod
    def of(cls, held_out: HeldOut, tokenizer: PreTrainedTokenizerBase, artifact: Path) -> Questions:
        """The prompts that the training has left, or those of the general set where it left none."""
        general = general_prompts(Chat(tokenizer), MAX_SAMPLES)
        prompts, spare = (held_out.prompts, general) if held_out.prompts else (general, [])
        ends, padding = _ends(artifact, tokenizer)
        return cls(prompts[:MAX_SAMPLES], min(len(held_out.prompts), MAX_SAMPLES), spare, tokenizer, ends, padding)

    def ask(self, model: Any) -> list[list[int]]:
        """The model's greedy answers, as tokens."""
        return greedy_answers(model, [prompt.ids for prompt in self.prompts], ends=self.ends, padding=self.padding)

    def samples(self, answers: Answers) -> list[Sample]:
        """The first answers side by side, as text."""
        pairs = zip(self.prompts, answers.base, answers.tuned, strict=True)
        found = [
            Sample(
                prompt=prompt.messages,
                reference=prompt.reference,
                base=self._text(plain),
                tuned=self._text(tuned),
                held_out=index < self.held_out,
            )
            for index, (prompt, plain, tuned) in enumerate(pairs)
        ]
        return found[:MAX_SAMPLES]

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _ask_more(adapted: PeftModel, questions: Questions, answers: Answers) -> tuple[Questions, Answers]:
    """Ask the general set's questions, too."""
    more = replace(questions, prompts=questions.spare)
    if not more.prompts:
        return questions, answers
    tuned = more.ask(adapted)
    with adapted.disable_adapter():
        plain = more.ask(adapted)
    both = replace(questions, prompts=[*questions.prompts, *more.prompts])
    return both, Answers([*answers.base, *plain], [*answers.tuned, *tuned])


def _most_tokens(held_out: HeldOut) -> int:
    """The tokens of the largest forward pass: of one row, or of a batch of prompts."""
    rows = max((len(row.ids) for row in held_out.rows), default=0)
    return max(rows, BATCH_TOKENS)


def _ends(artifact: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """The tokens that end an answer, as the artifact's generation_config.json has them, and the token that pads."""
    try:
        named = json.loads((artifact / "generation_config.json").read_bytes())["eos_token_id"]
    except (OSError, ValueError, KeyError):
        named = tokenizer.eos_token_id
    return named if isinstance(named, list) else [named], tokenizer.pad_token_id


def _served_loss(adapted: PeftModel, held_out: HeldOut) -> float | None:
    """The held-out loss as most servers would have it; None where nothing is held out, or it can't be measured.

    No adapter is given up for this figure: memory may be too small, and a base of its own code may not know
    `logits_to_keep`.
    """
    try:
        return mean_loss(adapted, held_out.rows)
    except Exception as error:
        if context_is_broken(error):
            raise
        log.warning("the loss as served was not measured: %s", describe(error))
        return None


def _check_base(
    adapted: PeftModel,
    weights: list[Fingerprint],
    questions: Questions,
    before: list[list[int]],
    after: list[list[int]],
) -> list[str]:
    """Make sure that the base alone is what it was. Takes the adapter off if it has to. Returns a note for the user.

    Raises:
        NotAppliedError: its weights or its answers have changed.
    """
    if fingerprint(adapted) != weights:
        raise NotAppliedError("Loading the published adapter changed the base's own weights.", _REPORT)
    if after == before:
        return []
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    # Some kernels add in another order now and then. An adapter that leaks changes the answers each time it is off, and
    # none once its modules are gone.
    with adapted.disable_adapter():
        again = questions.ask(adapted)
    if again != before and questions.ask(adapted.unload()) == before:
        raise NotAppliedError(
            f"With the adapter switched off the base answers {changed} of {counted(len(before), 'prompt')} otherwise "
            "than before it was loaded.",
            _REPORT,
        )
    return [f"The GPU does not compute the same twice: the base alone answered {counted(changed, 'prompt')} anew."]


def _check_answers(application: Application) -> None:
    """Make sure that some answer differs.

    Raises:
        NothingLearnedError: none does.
    """
    if application.differing == 0:
        raise NothingLearnedError(
            f"{counted(application.modules, 'module')} took the published adapter, but all "
            f"{counted(application.prompts, 'prompt')} are answered as by the base alone.",
            "Train for more steps (epochs, max_steps), or at a higher learning_rate.",
        )


def gap_notes(application: Application) -> list[str]:
    """A sentence with both losses, where the one as served differs from that as trained by more than a percent."""
    gap = application.gap_percent()
    if gap is None or application.served_precision is None or abs(gap) <= _NOTABLE_PERCENT:
        return []
    return [
        f"On the base as most servers load it, {_HELD[application.served_precision]}, the adapter's held-out loss is "
        f"{application.served_loss:.4f}; as it was trained it is {application.trained_loss:.4f} ({gap:+.1f} %)."
    ]
