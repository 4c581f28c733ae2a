"""DPO and KTO: the loss is TRL's, however memory splits a step, and nothing but the answers is learned."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_contract.batches import shape_batches
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.data.chat import IGNORED, Row
from lora_trainer.data.items import Item, Pair, RatedAnswer

pytestmark = pytest.mark.gpu_stack

PARAMETERS = Hyperparameters(batch_size=16, epochs=2, learning_rate=1e-3, rank=4, validation_share=0, beta=0.3)


def row(seed: int, prompt: int, answer: int, weights: list[float] | None = None) -> Row:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 400, (prompt + answer,), generator=generator).tolist()
    return Row(ids, [IGNORED] * prompt + ids[prompt:], 1, weights)


def answers_with_weights(count: int) -> list[Item]:
    rows = [row(n, 3 + n % 4, 4 + n % 5) for n in range(count)]
    return [
        r._replace(weights=[0.0 if label == IGNORED else 0.25 + n % 3 / 4 for label in r.labels])
        for n, r in enumerate(rows)
    ]


def with_prompt(prompt: list[int], answer: Row) -> Row:
    answered = answer.input_ids
    return Row([*prompt, *answered], [IGNORED] * len(prompt) + answered, 1)


def pairs(count: int) -> list[Item]:
    found: list[Item] = []
    for n in range(count):
        prompt = row(100 + n, 3 + n % 4, 1).input_ids
        found.append(
            Pair(with_prompt(prompt, row(200 + n, 0, 3 + n % 5)), with_prompt(prompt, row(300 + n, 0, 2 + n % 7)))
        )
    return found


def rated(count: int) -> list[Item]:
    prompts = [row(100 + n, 3 + n % 4, 1).input_ids for n in range(count)]
    answers = [row(200 + n, 0, 3 + n % 5) for n in range(count)]
    return [
        RatedAnswer(with_prompt(prompts[n], answers[n]), with_prompt(prompts[n], answers[n - 1]), good=n % 3 != 0)
        for n in range(count)
    ]


ITEMS = {"sft": answers_with_weights, "dpo": pairs, "kto": rated}


@dataclass
class Base:
    model: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return Base(model, AutoTokenizer.from_pretrained(tiny_model))


def built(
    base: Base, folder: Path, items: list[Item], *, method: str, packed: bool, micro_batch: int, **changes: Any
) -> Any:
    """The trainer of a method over these items, on a copy of the base with an adapter that already differs from it."""
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.models.loading import attach_lora
    from lora_trainer.recipe.methods import METHODS
    from lora_trainer.recipe.steps import TrainingBatches, build_trainer, training_arguments

    parameters = PARAMETERS.model_copy(update=changes)
    torch.manual_seed(0)
    lora = attach_lora(copy.deepcopy(base.model), parameters)
    kind = METHODS[method].trainer
    shape = shape_batches(
        [kind.tokens_of(item, packed=packed) for item in items],
        len(items),
        batch_size=parameters.batch_size,
        max_length=64,  # so that a packed step has several rows, too
        packing=packed,
    )
    arguments = training_arguments(parameters, shape, detect_hardware(), folder)
    return build_trainer(
        kind, lora, base.tokenizer, TrainingBatches(items, [], shape, micro_batch), arguments, parameters
    )


def weights_after(trainer: Any) -> dict[str, torch.Tensor]:
    trainer.begin(None)
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def moved(model: Any, seed: int) -> Any:
    """The model, whose adapter was moved to another place: always the same one for a seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_B.default" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def gradient_of(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for name, p in sorted(model.named_parameters()) if "lora_B.default" in name])


def ours_on_one_step(base: Base, folder: Path, items: list[Item], method: str, *, packed: bool) -> tuple[Any, ...]:
    """Loss, gradient and figures of all items as one step; the reference is an adapter that was there before."""
    trainer = built(base, folder, items, method=method, packed=packed, micro_batch=16)
    moved(trainer.model, 1)
    trainer.continues = True
    trainer.begin(None)
    moved(trainer.model, 2)
    return *one_step(trainer), trainer._metrics["train"]


def one_step(trainer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of all items as one step."""
    trainer.model.train()
    passes = trainer._collate_step(list(range(len(trainer.items))))
    amount = sum(trainer.amount(batch) for batch in passes)
    loss = trainer.training_step(trainer.model, passes, amount)
    return loss, gradient_of(trainer.model)


def trls(base: Base, folder: Path, kind: Any, arguments: Any, columns: dict[str, Any]) -> Any:
    """TRL's own trainer, with the same adapter as reference and the same adapter in training."""
    from datasets import Dataset

    from lora_trainer.models.loading import attach_lora

    torch.manual_seed(0)
    model = moved(attach_lora(copy.deepcopy(base.model), PARAMETERS).model, 1)
    rows = Dataset.from_dict({name: [value] * 2 for name, value in columns.items()})  # only to build it
    trainer = kind(model=model, args=arguments, train_dataset=rows, processing_class=base.tokenizer)
    moved(trainer.model, 2)
    trainer.model.train()
    return trainer


def options(folder: Path) -> dict[str, Any]:
    return {"output_dir": str(folder), "use_cpu": True, "max_length": None, "beta": 0.3, "bf16": False, "report_to": []}


@pytest.mark.parametrize("packed", [False, True])
def test_dpo_has_the_loss_and_gradient_of_trl(base, tmp_path, packed):
    from trl import DPOConfig, DPOTrainer

    items = pairs(6)
    theirs = trls(
        base, tmp_path, DPOTrainer, DPOConfig(**options(tmp_path)), {"prompt": "a", "chosen": "b", "rejected": "c"}
    )
    batch = theirs.data_collator(
        [
            {
                "prompt_ids": [
                    i for i, label in zip(p.chosen.input_ids, p.chosen.labels, strict=True) if label == IGNORED
                ],
                "chosen_ids": [label for label in p.chosen.labels if label != IGNORED],
                "rejected_ids": [label for label in p.rejected.labels if label != IGNORED],
            }
            for p in items
        ]
    )
    wanted = theirs.compute_loss(theirs.model, batch)
    wanted.backward()
    loss, gradient, figures = ours_on_one_step(base, tmp_path, items, "dpo", packed=packed)
    print(f"loss {loss:.6f}, off by {abs(loss - wanted):.1e}")
    assert loss == pytest.approx(wanted.item(), abs=1e-5)
    assert abs(loss.item() - 0.6931) > 1e-2, "the model has moved from the reference"
    torch.testing.assert_close(gradient, gradient_of(theirs.model), atol=1e-5, rtol=1e-4)
    known = theirs._metrics["train"]
    assert figures["reward_margin"] == pytest.approx(known["rewards/margins"], abs=1e-5)
    assert figures["reward_accuracy"] == pytest.approx(known["rewards/accuracies"], abs=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_kto_has_the_loss_and_gradient_of_trl(base, tmp_path, packed):
    from trl import KTOConfig, KTOTrainer

    from lora_trainer.data.preferences import answer_weights

    items = rated(6)
    good, bad = answer_weights(4, 2, PARAMETERS)
    assert (good, bad) == (1, 2), "two bad answers count as much as four good ones"
    arguments = KTOConfig(
        **options(tmp_path), desirable_weight=good, undesirable_weight=bad, per_device_train_batch_size=2
    )
    theirs = trls(base, tmp_path, KTOTrainer, arguments, {"prompt": "a", "completion": "b", "label": True})
    batch = theirs.data_collator(
        [
            {
                "prompt_ids": [i for i, label in zip(r.row.input_ids, r.row.labels, strict=True) if label == IGNORED],
                "completion_ids": [label for label in r.row.labels if label != IGNORED],
                "KL_completion_ids": [label for label in r.other.labels if label != IGNORED],
                "label": r.good,
            }
            for r in items
        ]
    )
    wanted = theirs.compute_loss(theirs.model, batch)
    wanted.backward()
    loss, gradient, figures = ours_on_one_step(base, tmp_path, items, "kto", packed=packed)
    known = theirs._metrics["train"]
    print(f"loss {loss:.6f}, off by {abs(loss - wanted):.1e}; divergence {known['kl']}")
    assert loss == pytest.approx(wanted.item(), abs=1e-5)
    torch.testing.assert_close(gradient, gradient_of(theirs.model), atol=1e-5, rtol=1e-4)
    assert figures["reward_margin"] == pytest.approx(known["rewards/margins"], abs=1e-5)
    assert known["kl"][0] > 1e-3, "the divergence counts"


def test_weighted_loss_is_the_weighted_mean_of_the_tokens(base, tmp_path):
    items = answers_with_weights(6)
    zero = items[1]._replace(weights=[0.0] * len(items[1].labels))
    items[1] = zero
    trainer = built(base, tmp_path, items, method="sft", packed=True, micro_batch=16)
    loss, gradient = one_step(trainer)
    losses, counts = [], []
    for item in items:
        ids = torch.tensor([item.input_ids])
        with torch.no_grad():
            found = torch.log_softmax(trainer.model(ids).logits[0, :-1].float(), dim=-1)
        losses += (-found.gather(1, ids[0, 1:, None])[:, 0]).tolist()
        counts += item.weights[1:]
    wanted = sum(one * count for one, count in zip(losses, counts, strict=True)) / sum(counts)
    assert loss.item() == pytest.approx(wanted, abs=1e-5)
    # Of weight 0 is as not learned, and weights say how much one answer counts beside another, not the size of a step.
    ignored = [item._replace(labels=[IGNORED] * len(item.labels)) if item is zero else item for item in items]
    halved = [item._replace(weights=[weight / 2 for weight in item.weights]) for item in items]
    for same in (ignored, halved):
        other, slope = one_step(built(base, tmp_path, same, method="sft", packed=True, micro_batch=2))
        assert other.item() == pytest.approx(loss.item(), abs=1e-6)
        torch.testing.assert_close(slope, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_step_is_the_same_however_memory_splits_it(base, tmp_path, method, packed):
    items = ITEMS[method](16)
    found = {
        micro_batch: weights_after(
            built(base, tmp_path / str(micro_batch), items, method=method, packed=packed, micro_batch=micro_batch)
        )
        for micro_batch in ((16, 4) if packed else (16, 4, 1))
    }
    moved = max(float(w.abs().max()) for name, w in found[16].items() if "lora_B" in name)
    assert moved > 1e-4, "the training changed the weights"
    for micro_batch in found.keys() - {16}:
        off = max(float((found[16][name] - w).abs().max()) for name, w in found[micro_batch].items())
        print(f"{method}, packed {packed}: 16 rows a pass and {micro_batch} differ by {off:.1e}")
        assert off < 1e-5
