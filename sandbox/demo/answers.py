"""Asks the base model and the trained adapter the first question of a dataset.

The demo starts this as a separate process, because it imports torch and the demo itself does not:
`python -m sandbox.demo.answers BASE ADAPTER DATASET` prints `{"question", "base", "adapter"}` as its last line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lora_conversations.reader import USER, Example, Message, read_examples

_MOST_NEW_TOKENS = 80
_BLANK = "(only blanks: one million weights learn a file's line breaks before its words)"


def first_question(dataset: Path) -> list[Message]:
    """Return the messages before the first answer of the dataset."""
    with dataset.open("rb") as file:
        example = next(item for item in read_examples(file) if isinstance(item, Example))
    end = next(index for index, message in enumerate(example.messages) if message.role == USER)
    return list(example.messages[: end + 1])


def answer(model: Any, tokenizer: Any, question: list[Message]) -> str:
    """Generate the model's most likely answer."""
    messages = [{"role": message.role, "content": message.content} for message in question]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=_MOST_NEW_TOKENS, do_sample=False)
    return str(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)).strip() or _BLANK


def main(base: Path, adapter: Path, dataset: Path) -> None:
    """Print both answers as one line of JSON."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    question = first_question(dataset)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoModelForCausalLM.from_pretrained(base)
    answers = {"question": question[-1].content, "base": answer(model, tokenizer, question)}
    answers["adapter"] = answer(PeftModel.from_pretrained(model, adapter), tokenizer, question)
    sys.stdout.write(f"\n{json.dumps(answers)}\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
