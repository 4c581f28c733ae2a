"""For each offered base model, training learns answers exactly as its chat template serves them."""

import pytest
from typer.testing import CliRunner

from lora_contract.hyperparameters import Hyperparameters
from lora_contract.renderings import REFUSALS, RENDERINGS
from lora_conversations.examples import Example, Message, ToolCall
from lora_trainer.cli import app
from lora_trainer.data.chat import IGNORED, Chat
from lora_trainer.data.rows import TruncationCounts, fit_examples
from lora_trainer.data.serving import serving_notes
from lora_trainer.errors import BaseModelUnknownError
from lora_worker.configuration.settings import Settings
from lora_worker.datasets import preflight
from lora_worker.errors import PreflightError
from tests.project import ROOT
from tests.unit.trainer.data.chats import ANSWERS, TURNS, chat_for, learned_spans, talk
from tests.unit.trainer.tokenizers import NO_STOP, tokenizer_with

pytestmark = pytest.mark.gpu_stack

OFFERED = Settings.model_fields["base_models"].default
TEMPLATE_OF = {
    "mistralai/Mistral-7B-Instruct-v0.2": "mistral_v0_2",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral_v0_3",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": "deepseek_r1_distill",
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2_5",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2_5",
    "Qwen/Qwen3-8B": "qwen3",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen3_instruct_2507",
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "qwen3_instruct_2507",
}


def rows_of(name, messages):
    chat, tokenizer = chat_for(name)
    trained = tuple(index for index, message in enumerate(messages) if message.role == "assistant")
    return (
        list(fit_examples(chat, [Example(tuple(messages), trained, "c", 1)], 4096, TruncationCounts())),
        chat,
        tokenizer,
    )


def as_prompted(tokenizer, messages):
    """The prompt that a server gives to the model."""
    return tokenizer.apply_chat_template(
        [message._asdict() for message in messages], tokenize=False, add_generation_prompt=True
    )


def test_every_offered_base_has_a_recorded_verdict_and_template():
    assert set(OFFERED) == set(RENDERINGS) == set(TEMPLATE_OF)
    assert not set(OFFERED) & set(REFUSALS)


@pytest.mark.parametrize("base", OFFERED)
def test_recorded_verdict_matches_the_tokenizer(base):
    assert chat_for(TEMPLATE_OF[base])[0].rendering == RENDERINGS[base]


@pytest.mark.parametrize("base", OFFERED)
def test_training_prompts_match_what_a_server_renders(base):
    messages = talk(None)
    rows, _, tokenizer = rows_of(TEMPLATE_OF[base], messages)
    prompts = []
    for row in rows:
        starts = [at for at, label in enumerate(row.labels) if label != IGNORED and row.labels[at - 1] == IGNORED]
        prompts += [tokenizer.decode(row.input_ids[:start]) for start in starts]
    assert prompts == [as_prompted(tokenizer, messages[: 2 * turn + 1]) for turn in range(TURNS)]


def test_r1_learns_to_close_the_thought_opened_by_its_prompt():
    rows, chat, tokenizer = rows_of("deepseek_r1_distill", talk())
    assert len(rows) == TURNS, "a server renders earlier answers without thoughts, so each answer is a row"
    assert [learned_spans(tokenizer, row) for row in rows] == [
        [f"\n</think>\n\n{answer}<｜end▁of▁sentence｜>"] for answer in ANSWERS
    ]
    last = tokenizer.decode(rows[-1].input_ids)
    assert last.count("<think>") == 1
    assert last.startswith("<s>Be brief.<｜User｜>Question 1?<｜Assistant｜>Answer 1")
    assert chat.takes_system


def test_r1_learns_thoughts_in_answers_but_drops_them_from_history():
    messages = talk()
    messages[2] = Message("assistant", "It is 7.", thought="First, count.")
    rows, _, tokenizer = rows_of("deepseek_r1_distill", messages)
    assert learned_spans(tokenizer, rows[0]) == ["First, count.\n</think>\n\nIt is 7.<｜end▁of▁sentence｜>"]
    assert "count" not in tokenizer.decode(rows[1].input_ids)


def test_empty_thought_of_the_template_is_not_learned_twice():
    rows, _, tokenizer = rows_of("empty_thought", talk(None))
    assert [learned_spans(tokenizer, row) for row in rows] == [
        [f"\n</think>\n\n{answer}<|im_end|>"] for answer in ANSWERS
    ]


def test_page_says_of_each_base_whether_it_takes_tools():
    page = (ROOT / "docs/training.md").read_text().partition("#### What each base takes")[2].partition("### ")[0]
    takes = {}
    for line in page.splitlines():
        names, *_, tools, _ = (
            (cell.strip() for cell in line.strip("|").split("|")) if line.startswith("| `") else ("", "", "")
        )
        takes |= {name.strip(" `"): tools.startswith("yes") for name in names.split(",") if name}
    assert takes == {base: found.takes_tools for base, found in RENDERINGS.items()}


SERVING = [
    ("qwen3", Message("assistant", "b"), ["enable_thinking is true or false"]),
    ("qwen3", Message("assistant", "b", thought="t"), ["since the last turn of the user"]),
    ("deepseek_r1_distill", Message("assistant", "b"), ["ends its thought at once"]),
    ("deepseek_r1_distill", Message("assistant", "b", thought="t"), ["leaves them out, as in training"]),
    ("llama3", Message("assistant", "b", thought="t"), ["take the thought off an answer"]),
    ("llama3", Message("assistant", "b"), []),
    ("qwen2_5", Message("assistant", "", calls=(ToolCall("look", "{}"),)), ["send the schemas of the tools"]),
]


@pytest.mark.parametrize(("name", "answer", "expected"), SERVING)
def test_notes_name_the_way_of_serving_that_was_trained(name, answer, expected):
    example = Example((Message("user", "a"), answer), (1,), None, 1)
    notes = serving_notes(chat_for(name)[0].rendering, [example])
    assert len(notes) == len(expected)
    for note, part in zip(notes, expected, strict=True):
        assert part in note


@pytest.mark.parametrize("base", REFUSALS)
def test_base_that_cannot_be_rendered_is_refused_before_a_launch(base):
    """GLM's template writes no end of an answer: the mark of the next user turn stops it."""
    with pytest.raises(BaseModelUnknownError, match="never learn to stop"):
        _ = Chat(tokenizer_with("glm", NO_STOP)).rendering
    with pytest.raises(PreflightError, match="can't be trained: its chat template ends"):
        preflight.check_base_model(Hyperparameters(base_model=base), (*OFFERED, base))


def test_command_judges_a_base_by_its_tokenizer(tmp_path):
    for name, template in (("good", "deepseek_r1_distill"), ("bad", "x")):
        tokenizer_with(template, NO_STOP if template == "x" else None).save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    runner = CliRunner()
    good = runner.invoke(app, ["judge", str(tmp_path / "good"), "--volume", str(tmp_path)])
    assert good.exit_code == 0
    assert "opens_thought=True" in good.stdout
    bad = runner.invoke(app, ["judge", str(tmp_path / "bad"), "--volume", str(tmp_path)])
    assert bad.exit_code == 1
    assert "stop token" in bad.stderr
