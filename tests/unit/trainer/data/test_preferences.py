"""Pairs and rated answers become rows of which the answers alone are learned; what is cut or left out is told."""

import json

import pytest

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.data.chat import IGNORED
from lora_trainer.data.preferences import answer_weights, read_pairs, read_ratings
from lora_trainer.errors import DatasetInvalidError
from tests.unit.trainer.data.chats import chat_for, learned_spans

pytestmark = pytest.mark.gpu_stack


@pytest.fixture
def dataset(tmp_path):
    def write(lines):
        path = tmp_path / "dataset.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in lines))
        return path

    return write


@pytest.fixture(scope="module")
def chatml():
    return chat_for("chatml")


def turns(*texts, system=None):
    roles = ("user", "assistant")
    said = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    return [*([{"role": "system", "content": system}] if system else []), *said]


def pair(prompt, chosen, rejected):
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def settings(method="dpo", **changes):
    return Hyperparameters(method=method, **{"validation_share": 0, "max_length": 512, **changes})


def learned(tokenizer, row):
    (span,) = learned_spans(tokenizer, row)
    return span.replace("<|im_end|>", "")


def prompt_of(row):
    return [token for token, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORED]


def test_both_answers_of_a_pair_are_learned_after_the_same_prompt(dataset, chatml):
    chat, tokenizer = chatml
    data = read_pairs(dataset([pair(turns("Hello", system="Be kind."), "Good day.", "What?")]), chat, settings())
    (item,) = data.train
    assert (learned(tokenizer, item.chosen), learned(tokenizer, item.rejected)) == ("Good day.", "What?")
    assert prompt_of(item.chosen) == prompt_of(item.rejected)
    assert "Be kind." in tokenizer.decode(prompt_of(item.chosen))
    assert data.answers == 1, "a pair fills one place of batch_size"


def test_long_prompt_loses_its_oldest_turns_and_no_answer(dataset, chatml):
    chat, tokenizer = chatml
    history = [text for number in range(8) for text in (f"Question {number}?", f"Answer {number}, at some length.")]
    line = pair(turns(*history, "And now?", system="Be kind."), "Yes. " * 10, "No.")
    data = read_pairs(dataset([line]), chat, settings(max_length=200))
    (item,) = data.train
    shown = tokenizer.decode(prompt_of(item.chosen))
    assert "Be kind." in shown
    assert "Question 7?" in shown
    assert "Question 0?" not in shown
    assert prompt_of(item.chosen) == prompt_of(item.rejected), "both answers follow what is left"
    assert learned(tokenizer, item.chosen) == "Yes. " * 10 or learned(tokenizer, item.chosen) == ("Yes. " * 10).strip()
    assert len(item.chosen.input_ids) <= 200
    assert any("1 prompt lost the oldest turns" in note for note in data.notes)


def test_pair_with_an_answer_that_does_not_fit_is_left_out_and_told(dataset, chatml):
    chat, _ = chatml
    lines = [pair(turns("Hello"), "Good day.", "What? " * 200), pair(turns("Hi"), "Good day.", "What?")]
    data = read_pairs(dataset(lines), chat, settings(max_length=128))
    assert len(data.train) == 1
    assert any("Left out: 1 pair longer than max_length (128 tokens)" in note for note in data.notes)


def test_pair_of_equal_answers_teaches_nothing_and_is_told(dataset, chatml):
    chat, _ = chatml
    lines = [pair(turns("Hello"), "Good day.", "What?"), pair(turns("Hi"), "Same.", "Same.")]
    data = read_pairs(dataset(lines), chat, settings(max_bad_line_share=0.6))
    assert len(data.train) == 1
    assert any("same" in note or "equal" in note for note in data.notes), data.notes


def thumb(prompt, answer, label):
    return {"prompt": prompt, "completion": answer, "label": label}


RATED = [thumb(f"Question {n}?", f"Answer {n}.", n % 3 > 0) for n in range(12)]


def test_each_rated_answer_is_compared_with_an_answer_to_another_prompt(dataset, chatml):
    chat, tokenizer = chatml
    data = read_ratings(dataset(RATED), chat, settings("kto", validation_share=0.25, seed=3))
    assert data.validation
    for item in (*data.train, *data.validation):
        assert prompt_of(item.other) == prompt_of(item.row)
        assert learned(tokenizer, item.other) != learned(tokenizer, item.row)
    used = [learned(tokenizer, item.other) for item in data.train]
    assert sorted(used) == sorted(learned(tokenizer, item.row) for item in data.train), "each is used once"
    assert data.train == read_ratings(dataset(RATED), chat, settings("kto", validation_share=0.25, seed=3)).train


def test_other_answer_is_cut_where_it_does_not_fit(dataset, chatml):
    chat, _ = chatml
    lines = [thumb("A " * 60, "Yes.", True), thumb("B", "No. " * 40, False)]
    data = read_ratings(dataset(lines), chat, settings("kto", max_length=200))
    assert all(len(item.other.input_ids) <= 200 for item in data.train)
    assert all(item.other.labels[-1] != IGNORED for item in data.train)


def test_answers_to_one_prompt_alone_are_refused_for_kto(dataset, chatml):
    chat, _ = chatml
    lines = [thumb("Hello", "Good day.", True), thumb("Hello", "What?", False)]
    with pytest.raises(DatasetInvalidError, match="to the same prompt"):
        read_ratings(dataset(lines), chat, settings("kto"))


def test_answers_of_one_kind_alone_are_refused_for_kto(dataset, chatml):
    chat, _ = chatml
    with pytest.raises(DatasetInvalidError, match="learns from the difference"):
        read_ratings(dataset([line for line in RATED if line["label"]]), chat, settings("kto"))


def test_rarer_kind_of_answer_counts_as_much_unless_chosen_otherwise():
    assert answer_weights(30, 10, settings("kto")) == (1, 3)
    assert answer_weights(5, 10, settings("kto")) == (2, 1)
    assert answer_weights(5, 10, settings("kto", desirable_weight=1.5, undesirable_weight=0.5)) == (1.5, 0.5)
    assert answer_weights(1, 10_000, settings("kto")) == (100, 1)
