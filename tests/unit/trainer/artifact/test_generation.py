"""The artifact's configuration ends an answer where the template does."""

import json
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig

from lora_trainer.artifact.generation import runs_on_note, save_generation_config
from lora_trainer.data.chat import Chat, prepare_tokenizer
from tests.unit.trainer.tokenizers import tokenizer_with

pytestmark = pytest.mark.gpu_stack


def saved(folder, base, template="chatml", eos="</s>"):
    tokenizer = tokenizer_with(template)
    tokenizer.eos_token = eos
    prepare_tokenizer(tokenizer)
    save_generation_config(folder, SimpleNamespace(generation_config=base), tokenizer, Chat(tokenizer).rendering.stop)
    ends = json.loads((folder / "generation_config.json").read_text())
    return {**ends, "eos_token_id": tokenizer.convert_ids_to_tokens(ends["eos_token_id"])}


def test_generation_stops_at_the_templates_end_token(tmp_path):
    assert saved(tmp_path, GenerationConfig())["eos_token_id"] == ["<|im_end|>", "</s>"]


def test_stop_tokens_and_sampling_of_the_base_are_kept(tmp_path):
    other = tokenizer_with("chatml").convert_tokens_to_ids("<|endoftext|>")
    base = GenerationConfig(eos_token_id=[other], do_sample=True, temperature=0.6)
    ends = saved(tmp_path, base)
    assert ends["eos_token_id"] == ["<|im_end|>", "</s>", "<|endoftext|>"]
    assert (ends["do_sample"], ends["temperature"]) == (True, 0.6)
    assert base.eos_token_id == [other], "the model's own is left as it is"


def test_contradictory_base_configuration_does_not_fail_a_training(tmp_path):
    base = GenerationConfig()
    base.num_return_sequences, base.do_sample = 4, False
    assert saved(tmp_path, base)["eos_token_id"] == ["<|im_end|>", "</s>"]


def test_user_is_told_where_the_base_alone_would_run_on():
    tokenizer = tokenizer_with("chatml")
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    for known, told in ((None, True), (ends[0], True), ([ends[0]], True), (ends[1], False), (ends, False)):
        base = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=known))
        note = runs_on_note(base, tokenizer, "<|im_end|>")
        assert (note is not None) is told, known
        assert note is None or "<|im_end|>" in note
