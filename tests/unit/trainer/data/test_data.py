"""Training learns each answer once, and nothing else."""

import json

import pytest

from lora_contract.hyperparameters import Hyperparameters
from lora_conversations.reader import Example, Message
from lora_trainer.data.chat import IGNORED, Chat, prepare_tokenizer
from lora_trainer.data.rows import TruncationCounts, fit_examples, load_examples, prepare_data
from lora_trainer.errors import BaseModelUnknownError, DatasetInvalidError
from tests.unit.trainer.data.chats import ANSWERS, TURNS, chat_for, learned_spans, talk
from tests.unit.trainer.tokenizers import NO_STOP, TEMPLATES, tokenizer_with

pytestmark = pytest.mark.gpu_stack


def pairs(conversation: str = "c1") -> list[dict]:
    """The conversation as the application writes it: one pair per answer, each with its whole history."""
    messages, found = talk(None), []
    for index in range(1, len(messages), 2):
        history = [{"role": m.role, "content": m.content} for m in messages[:index]]
        found.append(
            {
                "id": f"p{index}",
                "conversation_id": conversation,
                "system_prompt": "Be brief.",
                "conversation_history": history,
                "current_user_input": messages[index - 1].content,
                "target_response": messages[index].content,
            }
        )
    return found


@pytest.fixture
def dataset(tmp_path):
    def write(lines: list) -> object:
        path = tmp_path / "dataset.jsonl"
        path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
        return path

    return write


def without_template_marks(chat, piece: str) -> str:
    assert piece.endswith(chat.rendering.stop), "the stop token is not learned"
    for mark in ("<think>\n\n</think>\n\n", "\n</think>\n\n", chat.rendering.stop):
        piece = piece.replace(mark, "")
    return piece.strip()


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_only_answers_and_their_stop_tokens_are_learned_once(dataset, name, merged):
    chat, tokenizer = chat_for(name)
    parameters = Hyperparameters(merge_conversations=merged, validation_share=0, max_length=4096)
    prepared = prepare_data(dataset([{"_meta": {"total_pairs": 99}}, *pairs()]), chat, parameters)
    pieces = [piece for row in prepared.train for piece in learned_spans(tokenizer, row)]
    assert [without_template_marks(chat, piece) for piece in pieces] == ANSWERS
    assert prepared.answers == TURNS
    assert len(prepared.train) <= TURNS


@pytest.mark.parametrize("name", ["chatml", "mistral_v0_2", "mistral_v0_3", "llama3", "qwen2_5"])
def test_merging_computes_the_history_once_and_learns_the_same_tokens(dataset, name):
    chat, _ = chat_for(name)
    path = dataset(pairs())
    merged, apart = (
        prepare_data(path, chat, Hyperparameters(merge_conversations=merge, validation_share=0)).train
        for merge in (True, False)
    )
    assert len(merged) == 1
    assert len(apart) == TURNS

    def learned(rows):
        return [label for row in rows for label in row.labels if label != IGNORED]

    assert learned(merged) == learned(apart)
    assert len(merged[0].input_ids) < sum(len(row.input_ids) for row in apart) / 2


def test_packing_keeps_every_learned_token_but_document_starts(dataset):
    from datasets import Dataset
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    chat, tokenizer = chat_for("chatml")
    lines = [pair for n in range(7) for pair in pairs(f"c{n}")]
    rows = prepare_data(dataset(lines), chat, Hyperparameters(validation_share=0)).train
    packed = pack_dataset(
        Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}),
        1024,
        "bfd",
    )
    assert len(packed) < len(rows)
    batch = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id, padding_free=True)(list(packed))
    labels = batch["labels"][0].tolist()
    expected = sorted(label for row in rows for label in row.labels if label != IGNORED)
    assert sorted(label for label in labels if label != IGNORED) == expected
    starts = [i for i, position in enumerate(batch["position_ids"][0].tolist()) if position == 0]
    assert len(starts) == len(rows)


@pytest.mark.parametrize("max_length", [90, 120, 160, 230])
def test_long_conversation_loses_oldest_history_but_no_answer(max_length):
    chat, tokenizer = chat_for("chatml")
    example = Example(tuple(talk()), (2, 4, 6, 8), "c", 1)
    counts = TruncationCounts()
    rows = list(fit_examples(chat, [example], max_length, counts))
    assert all(len(row.input_ids) <= max_length for row in rows)
    pieces = [piece for row in rows for piece in learned_spans(tokenizer, row)]
    assert [without_template_marks(chat, piece) for piece in pieces] == ANSWERS
    assert counts.shortened > 0
    assert counts.too_long == 0


def test_answer_that_does_not_fit_is_counted_and_not_cut():
    chat, _ = chat_for("chatml")
    example = Example((Message("user", "Why?"), Message("assistant", "word " * 500)), (1,), "c", 1)
    short = Example((Message("user", "Why?"), Message("assistant", "So.")), (1,), "d", 2)
    counts = TruncationCounts()
    rows = list(fit_examples(chat, [example, short], 100, counts))
    assert (len(rows), counts.too_long) == (1, 1)
    assert counts.notes(100)[0].startswith("Left out: 1 answer longer than max_length (100 tokens)")


def test_system_prompt_is_dropped_before_an_answer():
    chat, tokenizer = chat_for("chatml")
    messages = (Message("system", "Be kind. " * 60), Message("user", "Why?"), Message("assistant", "So."))
    rows = list(fit_examples(chat, [Example(messages, (2,), "c", 1)], 64, TruncationCounts()))
    assert learned_spans(tokenizer, rows[0]) == ["So.<|im_end|>"]


@pytest.mark.parametrize("name", ["strict", "mistral_v0_1", "mistral_v0_3"])
def test_system_prompt_moves_into_the_first_turn_if_needed(dataset, name):
    chat, tokenizer = chat_for(name)
    assert not chat.takes_system
    data = prepare_data(dataset(pairs()), chat, Hyperparameters(validation_share=0))
    assert any("prompt the adapter in the same way" in note for note in data.notes)
    text = tokenizer.decode(data.train[0].input_ids)
    assert "Be brief.\n\nQuestion 1?" in text
    assert text.count("Be brief.") == 1


@pytest.mark.parametrize(
    "name", [name for name in TEMPLATES if name not in {"strict", "mistral_v0_1", "mistral_v0_3", "gemma"}]
)
def test_template_that_leads_with_the_system_prompt_is_unchanged(name):
    assert chat_for(name)[0].takes_system


@pytest.mark.parametrize("name", TEMPLATES)
def test_shortened_conversation_keeps_its_system_prompt(name):
    chat, tokenizer = chat_for(name)
    whole = chat.row(talk(), [2, 4, 6, 8])
    longest = len(whole.input_ids) if whole else 10_000
    rows = list(
        fit_examples(chat, [Example(tuple(talk()), (2, 4, 6, 8), "c", 1)], min(longest - 1, 260), TruncationCounts())
    )
    assert len(rows) > 1
    assert all(tokenizer.decode(row.input_ids).count("Be brief.") == 1 for row in rows)


def test_only_marked_answers_are_learned():
    chat, tokenizer = chat_for("llama3")
    row = chat.row(talk(), [4])
    assert [p.removesuffix("<|eot_id|>") for p in learned_spans(tokenizer, row)] == [ANSWERS[1]]


@pytest.mark.fault(48)
def test_base_without_a_template_gets_one_with_a_stop_token():
    tokenizer = tokenizer_with("none")
    assert prepare_tokenizer(tokenizer) is True
    assert tokenizer.chat_template is not None
    assert prepare_tokenizer(tokenizer_with("chatml")) is False


def test_template_without_a_stop_after_answers_is_refused():
    with pytest.raises(BaseModelUnknownError, match="never learn to stop"):
        Chat(tokenizer_with("x", NO_STOP)).row(talk(), [2])


def test_held_out_conversations_are_not_trained_on(dataset):
    chat, _ = chat_for("chatml")
    path = dataset([pair for n in range(10) for pair in pairs(f"c{n}")])
    prepared = prepare_data(path, chat, Hyperparameters(validation_share=0.2))
    assert len(prepared.validation_ids) == 2
    assert not set(prepared.validation_ids) & set(prepared.training_ids)
    assert (prepared.answers, prepared.validation_answers) == (8 * TURNS, 2 * TURNS)


def test_conversations_with_shared_ids_are_held_out_by_the_share(dataset):
    chat, _ = chat_for("chatml")
    lines = [
        {**pair, "system_prompt": f"You advise client {n}.", "conversation_id": "alpha" if n % 2 else "beta"}
        for n in range(20)
        for pair in pairs()
    ]
    prepared = prepare_data(dataset(lines), chat, Hyperparameters(validation_share=0.1))
    assert (prepared.answers, prepared.validation_answers) == (18 * TURNS, 2 * TURNS)
    assert any("told apart by how they begin" in note for note in prepared.notes)


def test_left_out_examples_appear_on_neither_side_of_the_split(dataset):
    chat, _ = chat_for("chatml")
    lines = [
        {
            "conversation_id": f"c{n}",
            "messages": [
                {"role": "user", "content": f"Why {n}?"},
                {"role": "assistant", "content": "word " * (500 if n < 5 else 1)},
            ],
        }
        for n in range(10)
    ]
    prepared = prepare_data(dataset(lines), chat, Hyperparameters(validation_share=0.2, max_length=100))
    assert sorted(prepared.training_ids + prepared.validation_ids) == [f"c{n}" for n in range(5, 10)]
    assert (len(prepared.validation_ids), prepared.answers + prepared.validation_answers) == (1, 5)


def test_split_that_differs_from_the_requested_share_is_noted(dataset):
    chat, _ = chat_for("chatml")
    alone = prepare_data(dataset(pairs()), chat, Hyperparameters(validation_share=0.1))
    assert (alone.answers, alone.validation_answers) == (TURNS, 0)
    assert any(note.startswith("Nothing is held out for validation") for note in alone.notes)
    unasked = prepare_data(dataset(pairs()), chat, Hyperparameters(validation_share=0))
    assert not any("held out" in note for note in unasked.notes)


def test_few_bad_lines_are_skipped_and_too_many_are_refused(dataset):
    good = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": str(n)}]} for n in range(40)
    ]
    path = dataset([*good, {"messages": []}])
    examples, survey = load_examples(path, 0.05)
    assert (len(examples), survey.bad) == (40, 1)
    with pytest.raises(DatasetInvalidError, match="Line 41"):
        load_examples(path, 0.01)


def test_empty_dataset_is_reported_as_empty(dataset):
    with pytest.raises(DatasetInvalidError):
        load_examples(dataset([{"_meta": {"total_pairs": 5}}]), 0.05)
