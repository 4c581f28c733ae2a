"""Modelfiles: the chat template in Go's language says what the base's says, or nothing."""

import json
import re

import pytest

from lora_contract.ollama import modelfile, stop_texts
from lora_trainer.export.ollama_template import as_go
from sandbox.tiny_model import CHAT_TEMPLATE

pytestmark = pytest.mark.gpu_stack

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
) + CHAT_TEMPLATE
FOLDED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    "{{ m['content'] }} [/INST]{% elif m['role'] == 'assistant' %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
RAISES = "{{ raise_exception('no') }}"
BRACES = "{% for m in messages %}{{ '{{' + m['role'] + m['content'] }}{% endfor %}"


class Tokenizer:
    """A tokenizer of nothing but a template."""

    bos_token = "<|begin|>"

    def __init__(self, template):
        from transformers.utils.chat_template_utils import render_jinja_template

        self._render, self._template = render_jinja_template, template

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert not tokenize
        rendered, _ = self._render(
            conversations=[messages],
            chat_template=self._template,
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token,
        )
        return rendered[0]


def run_go(template, messages):
    """What Go's text/template makes of the few actions that are written."""
    system = any(message["role"] == "system" for message in messages)
    template = re.sub(
        r"\{\{ if not \.System \}\}(.*?)\{\{ end \}\}",
        lambda found: "" if system else found[1],
        template,
        flags=re.DOTALL,
    )
    begin, loop, end = re.fullmatch(
        r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.DOTALL
    ).groups()
    branches = dict(re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', loop, re.DOTALL))
    turns = (branches[message["role"]].replace("{{ .Content }}", message["content"]) for message in messages)
    return begin + "".join(turns) + end


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "Good."},
]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA_3, DEFAULT_SYSTEM], ids=["ChatML", "Llama 3", "a default"])
@pytest.mark.parametrize("first", [0, 1])
def test_template_for_ollama_renders_what_the_base_renders(template, first):
    tokenizer, messages = Tokenizer(template), CONVERSATION[first:]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert run_go(as_go(tokenizer), messages) == rendered.removeprefix("<|begin|>")


@pytest.mark.parametrize("template", [FOLDED, RAISES, BRACES], ids=["folded", "raises", "braces"])
def test_template_that_go_cannot_say_is_left_out(template):
    assert as_go(Tokenizer(template)) is None


def test_stops_are_the_texts_of_the_tokens_that_end_an_answer(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 99]}))
    tokens = [{"id": 2, "content": "<|im_end|>"}, {"id": 7, "content": '"'}, {"id": "x"}, None]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    stops = stop_texts(tmp_path)
    assert stops == ["<|im_end|>", '"']
    assert modelfile("x", adapter=".", stops=stops) == 'FROM x\nADAPTER .\nPARAMETER stop "<|im_end|>"\n'


@pytest.mark.parametrize("content", ["", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": null}', "{"])
def test_unreadable_files_give_no_stops(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    (tmp_path / "tokenizer.json").write_text(content)
    assert stop_texts(tmp_path) == []
