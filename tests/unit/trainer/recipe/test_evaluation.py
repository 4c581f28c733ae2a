"""When base and tuned model are measured, what a resumed training takes over, and what ends a measurement."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from lora_contract.batches import BatchShape
from lora_contract.hyperparameters import Hyperparameters
from lora_conversations.examples import Example, Message
from lora_trainer.data.chat import Chat, Row
from lora_trainer.data.items import Pair, RatedAnswer
from lora_trainer.recipe.comparison import RowFigures
from lora_trainer.recipe.evaluation import BASE_FIGURES_NAME, Evaluator, learned_tokens
from lora_trainer.recipe.methods import METHODS
from lora_trainer.recipe.ranks import ALONE
from lora_trainer.recipe.stopping import StepInterruptedError
from lora_trainer.run.held_out import HeldOut
from tests.unit.trainer.tokenizers import tokenizer_with

pytestmark = pytest.mark.gpu_stack

TOKENIZER = tokenizer_with("chatml")
CHAT = Chat(TOKENIZER)
TALK = Example((Message("user", "Is it late?"), Message("assistant", "It is noon.")), (1,), None, 1)
FIGURES_OF_BASE, FIGURES_OF_TUNED = 3.0, 2.0
"""Nats per token that the fake model finds, with the adapter off and on."""


class FakeTrainer:
    """Measures without a model: a loss for each learned token, which depends on the adapter alone."""

    def __init__(self):
        self.model = self
        self.ranks = ALONE
        self.measured = []
        self.failure = None
        self.loss = FIGURES_OF_TUNED

    @contextmanager
    def disable_adapter(self):
        self.loss = FIGURES_OF_BASE
        yield
        self.loss = FIGURES_OF_TUNED

    def measure(self, rows):
        if self.failure is not None:
            raise self.failure
        self.measured.append(self.loss)
        return [RowFigures(self.loss * learned_tokens([row]), 0, learned_tokens([row])) for row in rows]


def evaluator(folder, *, method="sft", items=None, talks=(0, 0, 1), fingerprint="same", quantization="nf4"):
    row = CHAT.row(TALK.messages, TALK.trained)
    items = [row] * len(talks) if items is None else items
    data = SimpleNamespace(
        train=items * 3, validation=items, validation_talks=list(talks), held_out=[TALK] * len(talks)
    )
    setup = SimpleNamespace(
        data=data,
        chat=CHAT,
        tokenizer=TOKENIZER,
        quantization=quantization,
        method=METHODS["sft"] if method == "sft" else METHODS[method],
        shape=BatchShape(3, 3, 64, packed=False),
    )
    parameters = Hyperparameters(method=method)
    task = SimpleNamespace(job_folder=folder, fingerprint=fingerprint, hyperparameters=parameters)
    return Evaluator(task, setup, FakeTrainer())


def ended(found):
    found.measure_base()
    found.measure_tuned()
    return found


def test_base_is_measured_with_the_adapter_off_and_tuned_with_it_on(tmp_path):
    found = ended(evaluator(tmp_path))
    assert found._trainer.measured == [FIGURES_OF_BASE, FIGURES_OF_TUNED]
    held_out = found.evaluation.held_out
    assert (held_out.base.loss, held_out.tuned.loss, held_out.gain) == pytest.approx((3, 2, 1))
    assert held_out.conversations == 2, "the first two rows are of one conversation"
    assert found.evaluation.general.conversations == 40
    assert found.evaluation.guard_passed
    assert found.notes == []


def test_resumed_training_takes_the_base_of_the_same_job_from_its_folder(tmp_path):
    evaluator(tmp_path).measure_base()
    resumed = ended(evaluator(tmp_path))
    assert resumed._trainer.measured == [FIGURES_OF_TUNED]
    assert resumed.evaluation.held_out.gain == pytest.approx(1)


@pytest.mark.parametrize(
    "other", [{"fingerprint": "other"}, {"quantization": "bf16"}, {"talks": (0, 1, 1)}, {"talks": (0, 1)}]
)
def test_figures_of_another_base_or_other_conversations_are_measured_anew(tmp_path, other):
    evaluator(tmp_path).measure_base()
    found = evaluator(tmp_path, **other)
    found.measure_base()
    assert found._trainer.measured == [FIGURES_OF_BASE]


@pytest.mark.parametrize("content", ["", "{", json.dumps({"fingerprint": "same"}), "[" * 10_000])
def test_unreadable_figures_of_the_base_are_measured_anew(tmp_path, content):
    (tmp_path / BASE_FIGURES_NAME).write_text(content)
    found = ended(evaluator(tmp_path))
    assert found._trainer.measured == [FIGURES_OF_BASE, FIGURES_OF_TUNED]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (torch.OutOfMemoryError("no memory"), "could not be compared with its base (OutOfMemoryError)"),
        (StepInterruptedError(), "about to be taken away"),
        (ValueError("text of the dataset"), "could not be compared with its base (ValueError)"),
    ],
)
def test_adapter_survives_whatever_its_measurement_ends_with(tmp_path, failure, said):
    found = evaluator(tmp_path)
    found.measure_base()
    found._trainer.failure = failure
    found.measure_tuned()
    assert found.evaluation is None
    assert said in found.notes[0]
    assert "text of the dataset" not in found.notes[0]
    found.hand_on(tmp_path)
    assert HeldOut.read(tmp_path).trained is None


def test_stop_while_the_base_is_measured_ends_the_training_there(tmp_path):
    found = evaluator(tmp_path)
    found._trainer.failure = StepInterruptedError()
    with pytest.raises(StepInterruptedError):
        found.measure_base()
    assert not (tmp_path / BASE_FIGURES_NAME).exists()


def test_job_that_holds_nothing_out_is_guarded_and_told_so(tmp_path):
    found = ended(evaluator(tmp_path, talks=()))
    assert found.evaluation.held_out is None
    assert found.evaluation.guard_passed
    assert found.notes == ["Nothing is held out, so whether the adapter is better than its base was not measured."]
    found.hand_on(tmp_path)
    assert HeldOut.read(tmp_path) is None


def test_preference_methods_are_measured_on_their_good_answers(tmp_path):
    good = CHAT.row(TALK.messages, [1])
    bad = Row([*good.input_ids, 5], [*good.labels, 5], 1)
    pairs = evaluator(tmp_path, method="dpo", items=[Pair(good, bad)], talks=(0,))
    assert pairs.conversations == [[good]]
    rated = [RatedAnswer(good, other=bad, good=True), RatedAnswer(bad, other=good, good=False)]
    assert evaluator(tmp_path, method="kto", items=rated, talks=(0, 1)).conversations == [[good]]


def test_rows_and_prompts_are_handed_on_with_what_was_measured_of_them(tmp_path):
    ended(evaluator(tmp_path)).hand_on(tmp_path)
    handed = HeldOut.read(tmp_path)
    row = CHAT.row(TALK.messages, [1])
    assert [entry.ids for entry in handed.rows] == [row.input_ids] * 3
    assert (handed.trained.loss, handed.trained.tokens) == (2, 3 * learned_tokens([row]))
    (prompt,) = handed.prompts
    assert [message.content for message in prompt.messages] == ["Is it late?"]
    assert prompt.reference == "It is noon."
    assert prompt.ids == row.input_ids[: len(prompt.ids)]
    assert "It is noon" not in repr(handed), "text of the dataset must not get into a log"


def test_prompts_that_cannot_be_made_do_not_cost_the_adapter(tmp_path, monkeypatch):
    def refused(*_):
        raise ValueError("the template refuses this conversation")

    monkeypatch.setattr("lora_trainer.recipe.evaluation.sample_prompts", refused)
    ended(evaluator(tmp_path)).hand_on(tmp_path)
    assert HeldOut.read(tmp_path) is None
