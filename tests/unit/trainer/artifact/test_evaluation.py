"""`evaluation.json`, and what the model card says about it."""

from __future__ import annotations

import pytest

from lora_contract.application import Application
from lora_contract.evaluation import MAX_SAMPLES, Comparison, Evaluation, Measure, Sample
from lora_trainer.artifact.evaluation import (
    complete_evaluation,
    evaluation_page,
    read_evaluation,
    write_evaluation,
)
from sandbox.standin_proof import applied

BASE = Measure(loss=2.5, token_accuracy=0.4, tokens=100)
TUNED = Measure(loss=2.0, token_accuracy=0.5, tokens=100)
GAIN = Comparison(base=BASE, tuned=TUNED, conversations=4, gain=0.5, gain_low=0.2, gain_high=0.8)
EVALUATION = Evaluation(held_out=GAIN, general=GAIN, general_change_percent=-20, guard_passed=True)
APPLICATION = Application.model_validate(applied("0" * 64))


def sample(**changes):
    asked = [{"role": "user", "content": "Who are you?"}]
    return Sample(**{"prompt": asked, "base": "A model.", "tuned": "A captain.", "held_out": True, **changes})


@pytest.fixture
def artifact(tmp_path):
    write_evaluation(tmp_path, EVALUATION)
    (tmp_path / "README.md").write_text("# LoRA adapter\n\nIts card.\n")
    return tmp_path


def test_samples_and_proof_join_the_figures(artifact):
    complete_evaluation(artifact, samples=[sample()], application=APPLICATION)
    found = read_evaluation(artifact)
    assert found.evaluation == EVALUATION
    assert found.application == APPLICATION
    assert found.samples[0].tuned == "A captain."
    card = (artifact / "README.md").read_text()
    assert card.startswith("# LoRA adapter\n\nIts card.\n\n## Answers side by side")
    assert "A captain." in card


def test_completing_twice_gives_the_same_as_once(artifact):
    complete_evaluation(artifact, samples=[sample(tuned="Another.")], application=APPLICATION)
    complete_evaluation(artifact, samples=[sample()], application=APPLICATION)
    once = (artifact / "README.md").read_text()
    complete_evaluation(artifact, samples=[sample()], application=APPLICATION)
    assert (artifact / "README.md").read_text() == once
    assert "Another." not in once
    assert once.count("## Answers side by side") == 1


def test_card_loses_its_page_where_there_are_no_samples(artifact):
    complete_evaluation(artifact, samples=[sample()])
    complete_evaluation(artifact, samples=[])
    assert (artifact / "README.md").read_text() == "# LoRA adapter\n\nIts card.\n"


def test_answers_can_neither_end_their_block_nor_grow_without_bound(artifact):
    hostile = "```\n# Not a heading\n````\n" + "x" * 100_000
    complete_evaluation(artifact, samples=[sample(base=hostile)] * 30)
    card = (artifact / "README.md").read_text()
    assert card.count("`````text\n") == MAX_SAMPLES
    assert len(card) < 50_000
    assert len(read_evaluation(artifact).samples) == MAX_SAMPLES
    assert (artifact / "evaluation.json").stat().st_size < 200_000


def test_artifact_of_a_trainer_that_measured_nothing_gets_samples_alone(tmp_path):
    (tmp_path / "README.md").write_text("Card.\n")
    complete_evaluation(tmp_path, samples=[sample(held_out=False, reference="I am.")])
    assert read_evaluation(tmp_path).evaluation == Evaluation()
    assert "of the general set" in (tmp_path / "README.md").read_text()


def test_card_says_in_words_what_the_figures_mean():
    page = evaluation_page(EVALUATION, total=9)
    assert "gain is 0.5000 nats per token (mean over 4 of 9 held-out conversations)" in page
    assert "The interval is above 0" in page
    assert "fell by 20.0 %, within what is usual" in page
    worse = GAIN.model_copy(update={"gain": -0.5, "gain_low": -0.8, "gain_high": -0.2})
    page = evaluation_page(Evaluation(held_out=worse, general_change_percent=12, guard_passed=False), total=4)
    assert "The interval is below 0" in page
    assert "rose by 12.0 %, more than is usual" in page
    alone = GAIN.model_copy(update={"gain_low": None, "gain_high": None, "conversations": 1})
    assert "too few for an interval" in evaluation_page(Evaluation(held_out=alone), total=1)
    assert "Nothing was held out" in evaluation_page(Evaluation(), total=0)
    assert "was not compared" in evaluation_page(None, total=1)
