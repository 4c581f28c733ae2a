"""Asks the base model and the trained adapter the same questions, and measures the loss of both on their answers.

The demo starts this as a separate process, because it imports torch and the demo itself does not:
`python -m sandbox.demo.answers BASE ADAPTER QUESTIONS` prints a `Comparison` as JSON in its last line. QUESTIONS is a
JSON file: a list of conversations, each a list of messages of which the last is the expected answer.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_conversations.errors import DatasetUnusableError
from lora_conversations.identity import conversation_key, conversation_names
from lora_conversations.reader import ASSISTANT, USER, Example, Message, read_examples

Conversation = list[dict[str, str]]
"""Messages with `role` and `content`; the last is the answer."""

MOST_NEW_TOKENS = 72
_MOST_CHARACTERS = 8000
"""Longer conversations are not asked: on a CPU each would take minutes."""
_BLANK = "(only blanks: one million weights learn a file's line breaks before its words)"


@dataclass(frozen=True)
class Comparison:
    """The answers of base and adapter to the same questions. Losses are in nats per token of the expected answers."""

    questions: list[str]
    base: list[str]
    adapter: list[str]
    loss_base: float | None = None
    """None where no loss was measured."""
    loss_adapter: float | None = None


def held_out_questions(dataset: Path, split: dict[str, Any], most: int) -> list[Conversation]:
    """At most `most` different questions that the training held out: each with its answer, and with what is before.

    `split` is the content of the artifact's split.json. Where nothing was held out, it is the first of the dataset.
    Conversations that are too long for a CPU are passed over.
    """
    with dataset.open("rb") as file:
        try:
            examples = [item for item in read_examples(file) if isinstance(item, Example)]
        except DatasetUnusableError:
            return []
    names, held_out = conversation_names(examples), set(split["validation"])
    chosen = [example for example in examples if names[conversation_key(example)] in held_out] or examples[:1]
    found = {talk[-2]["content"]: talk for talk in map(_first_answer, reversed(chosen))}
    short = [
        talk for talk in reversed(found.values()) if sum(len(turn["content"]) for turn in talk) <= _MOST_CHARACTERS
    ]
    return short[: most if held_out else 1]


def _first_answer(example: Example) -> Conversation:
    asked = next(index for index, message in enumerate(example.messages) if message.role == USER)
    end = next(index for index in range(asked, len(example.messages)) if example.messages[index].role == ASSISTANT)
    return [{"role": message.role, "content": message.content} for message in example.messages[: end + 1]]


def ask(model: Any, tokenizer: Any, conversations: list[Conversation]) -> list[str]:
    """The model's most likely answer to each conversation without its last message, all generated at once."""
    prompts = [conversation[:-1] for conversation in conversations]
    batch = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    # How an answer ends stands in the configuration of the folder, as it does where the adapter is served.
    tokens = model.generate(**batch, max_new_tokens=MOST_NEW_TOKENS, do_sample=False)
    answers = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() or _BLANK for answer in answers]


def loss(model: Any, tokenizer: Any, conversations: list[Conversation]) -> float | None:
    """The mean loss over the tokens of the last answers; None where the template can't render any."""
    import torch

    from lora_trainer.data.chat import Chat

    chat, total, count = Chat(tokenizer), 0.0, 0
    for conversation in conversations:
        messages = [Message(turn["role"], turn["content"]) for turn in conversation]
        if (row := chat.row(messages, [len(messages) - 1])) is None:
            continue
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        learned = sum(label >= 0 for label in row.labels)
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * learned
        count += learned
    return total / count if count else None


def compare(base: Path, adapter: Path, conversations: list[Conversation]) -> Comparison:
    """Load base and adapter as the model card says, and ask both."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(adapter, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_pretrained(adapter)
    before, loss_before = ask(model, tokenizer, conversations), loss(model, tokenizer, conversations)
    adapted = PeftModel.from_pretrained(model, adapter)
    return Comparison(
        questions=[conversation[-2]["content"] for conversation in conversations],
        base=before,
        adapter=ask(adapted, tokenizer, conversations),
        loss_base=loss_before,
        loss_adapter=loss(adapted, tokenizer, conversations),
    )


if __name__ == "__main__":
    compared = compare(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
    sys.stdout.write(f"\n{json.dumps(asdict(compared))}\n")
