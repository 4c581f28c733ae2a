"""Asks a model: its greedy answers to prompts, its loss over rows, and a fingerprint of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig

from lora_trainer.run.held_out import HeldOutRow

ANSWER_TOKENS = 48
"""An answer is cut after so many tokens. That an adapter is applied shows in the first few."""
PROMPT_TOKENS = 2048
"""Of a longer prompt the end is asked."""
BATCH_TOKENS = 4 * (PROMPT_TOKENS + ANSWER_TOKENS)
"""The most tokens of a batch of prompts, with their answers."""
_LOSS_POSITIONS = 1024
"""Over how many tokens logits are turned into fp32 at a time."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Prompt = Sequence[int]


@torch.inference_mode()
def greedy_answers(model: Any, prompts: Sequence[Prompt], *, ends: Sequence[int], padding: int) -> list[list[int]]:
    """The most probable answer to each prompt, as tokens, without the token that ends it.

    `ends` are the tokens that end an answer. The same prompts are batched in the same way each time: a batch of another
    shape rounds otherwise, and a near tie could then fall to the other side.
    """
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=ANSWER_TOKENS,
        eos_token_id=list(ends),
        pad_token_id=padding,
    )
    answers: list[list[int]] = []
    for batch in _batches([list(prompt)[-PROMPT_TOKENS:] for prompt in prompts]):
        ids, mask = _left_padded(batch, padding)
        device = next(model.parameters()).device
        generated = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config)
        answers += [_until_end(row, ends) for row in generated[:, ids.shape[1] :].tolist()]
    return answers


def _batches(prompts: Sequence[list[int]]) -> Iterable[Sequence[list[int]]]:
    longest = max(map(len, prompts), default=1) + ANSWER_TOKENS
    rows = max(BATCH_TOKENS // longest, 1)
    return (prompts[start : start + rows] for start in range(0, len(prompts), rows))


def _left_padded(prompts: Sequence[list[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask, both (prompts, longest prompt)."""
    longest = max(map(len, prompts))
    ids = [[padding] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    end = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]


@torch.inference_mode()
def mean_loss(model: Any, rows: Sequence[HeldOutRow]) -> float | None:
    """The mean loss of all tokens with a label, in nats per token; None where no token has one."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for row in rows:
        labels = torch.tensor(row.labels[1:], device=device)
        positions = (labels != -100).nonzero().flatten()
        if positions.numel() == 0:
            continue
        answer = model(input_ids=torch.tensor([row.ids], device=device), use_cache=False, logits_to_keep=positions)
        found, wanted = answer.logits[0], labels[positions]
        for start in range(0, len(found), _LOSS_POSITIONS):
            part = slice(start, start + _LOSS_POSITIONS)
            total += float(nn.functional.cross_entropy(found[part].float(), wanted[part], reduction="sum"))
        count += positions.numel()
    return total / count if count else None


class Fingerprint(NamedTuple):
    """Of one weight: its shape, and the sum of its values read as whole numbers."""

    shape: tuple[int, ...]
    total: int


def fingerprint(model: nn.Module) -> list[Fingerprint]:
    """One of each weight of the base, sorted; those of LoRA are left out.

    PEFT renames weights, so they have no names here. A changed weight changes its sum, unless its changes cancel out.
    """
    weights = [parameter for name, parameter in model.named_parameters() if ".lora_" not in name]
    return sorted(Fingerprint(tuple(weight.shape), _sum(weight.detach())) for weight in weights)


def _sum(weight: torch.Tensor) -> int:
    return int(weight.contiguous().view(_INTEGERS[weight.element_size()]).sum(dtype=torch.int64))
