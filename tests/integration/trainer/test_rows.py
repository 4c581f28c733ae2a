"""TRL trains on every learned token of the prepared rows."""

import json

import pytest

from lora_trainer.data.chat import IGNORED
from tests.integration.trainer.child import make_task

pytestmark = pytest.mark.gpu_stack

LONG_ANSWER = "and then we go on saving, month after month. " * 12


def dataset_with_one_long_conversation(path):
    answers = ["Begin small."] * 7 + [LONG_ANSWER]
    lines = [
        {
            "conversation_id": f"c{number}",
            "messages": [{"role": "user", "content": "How do I save?"}, {"role": "assistant", "content": answer}],
        }
        for number, answer in enumerate(answers)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def prepared_with_the_long_one_held_out(task):
    from lora_trainer.models.bases import BaseModels
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.recipe.setup import prepare
    from lora_trainer.run.gpu import GpuMonitor

    models = BaseModels(task.volume)
    for seed in range(100):
        task.hyperparameters.seed = seed
        prepared = prepare(task, models, detect_hardware(), GpuMonitor(wanted=False))
        if "c7" in prepared.data.validation_ids:
            return prepared
    raise AssertionError("no seed holds the long conversation out")


def built(prepared, task, folder, *, micro_batch=None):
    """TRL's trainer for prepared rows, on the real model; deterministic, since it has no dropout."""
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.models.loading import attach_lora, load_model
    from lora_trainer.recipe.methods.sft import AnswerTrainer
    from lora_trainer.recipe.steps import TrainingBatches, build_trainer, training_arguments

    hardware = detect_hardware()
    data = prepared.data
    return build_trainer(
        AnswerTrainer,
        attach_lora(load_model(prepared.base, prepared.config, hardware), task.hyperparameters),
        prepared.tokenizer,
        TrainingBatches(data.train, data.validation, prepared.shape, micro_batch or prepared.micro_batch),
        training_arguments(task.hyperparameters, prepared.shape, hardware, folder),
        task.hyperparameters,
    )


def prepared_for(task):
    from lora_trainer.models.bases import BaseModels
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.recipe.setup import prepare
    from lora_trainer.run.gpu import GpuMonitor

    return prepare(task, BaseModels(task.volume), detect_hardware(), GpuMonitor(wanted=False))


@pytest.mark.parametrize("packing", [True, False])
def test_long_held_out_answer_is_evaluated_whole(tmp_path, tiny_model, packing):
    dataset = dataset_with_one_long_conversation(tmp_path / "dataset")
    wanted = {"packing": packing, "max_length": 1024, "validation_share": 0.1, "batch_size": 1}
    task = make_task(tmp_path / "job", tiny_model, dataset=dataset, hyperparameters=wanted)
    prepared = prepared_with_the_long_one_held_out(task)
    trainer = built(prepared, task, tmp_path)
    longest_trained = max(len(row.input_ids) for row in prepared.data.train)
    assert len(prepared.data.validation[0].input_ids) > longest_trained
    judged = [
        label
        for batch in trainer.get_eval_dataloader()
        for row in batch["labels"].tolist()
        for label in row
        if label != IGNORED
    ]
    assert judged == [label for row in prepared.data.validation for label in row.labels if label != IGNORED]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("conversations", "batch_size", "epochs", "steps"),
    [(9, 8, 1, 2), (5, 2, 3, 9), (7, 3, 1, 3), (3, 64, 2, 2)],
)
def test_training_takes_the_documented_steps_without_a_remainder(
    tmp_path, tiny_model, packing, conversations, batch_size, epochs, steps
):
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"How do I save, {n}?"},
                {"role": "assistant", "content": LONG_ANSWER},
            ]
        }
        for n in range(conversations)
    ]
    (tmp_path / "dataset").write_text("\n".join(map(json.dumps, lines)))
    wanted = {"packing": packing, "max_length": 1024, "validation_share": 0, "batch_size": batch_size, "epochs": epochs}
    task = make_task(tmp_path / "job", tiny_model, dataset=tmp_path / "dataset", hyperparameters=wanted)
    trainer = built(prepared_for(task), task, tmp_path)
    assert len(trainer.get_train_dataloader()) * epochs == trainer.args.max_steps == steps
    sizes = [len(share) for share in trainer.get_train_dataloader().batch_sampler]
    assert sum(sizes) == conversations
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("packing", [True, False])
def test_step_loss_is_the_token_mean_however_the_batch_is_split(tmp_path, tiny_model, packing):
    """A forward pass with a short answer must not weigh as much as one with a long answer."""
    import torch

    dataset = dataset_with_one_long_conversation(tmp_path / "dataset")
    wanted = {"packing": packing, "max_length": 256, "validation_share": 0, "batch_size": 8, "dropout": 0}
    task = make_task(tmp_path / "job", tiny_model, dataset=dataset, hyperparameters=wanted)
    prepared = prepared_for(task)
    taken = {}
    for micro_batch in (1, 8):
        torch.manual_seed(0)
        trainer = built(prepared, task, tmp_path, micro_batch=micro_batch)
        weights = [p for name, p in trainer.model.named_parameters() if ".lora_B." in name]
        steps, tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
        loss = trainer.training_step(trainer.model, steps[0], tokens)
        taken[len(steps[0])] = (loss.item(), torch.cat([weight.grad.flatten() for weight in weights]), int(tokens))
    (few, (loss, gradient, tokens)), (many, (other_loss, other_gradient, other_tokens)) = sorted(taken.items())
    assert few < many
    learned = sum(label != IGNORED for row in prepared.data.train for label in row.labels)
    assert tokens == other_tokens == learned
    assert loss == pytest.approx(other_loss, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(gradient, other_gradient, dim=0) > 0.999
    assert gradient.norm().item() == pytest.approx(other_gradient.norm().item(), rel=1e-2)


@pytest.mark.parametrize("packing", [True, False])
def test_validation_loss_is_the_token_mean_however_it_is_split(tmp_path, tiny_model, packing):
    dataset = dataset_with_one_long_conversation(tmp_path / "dataset")
    wanted = {"packing": packing, "max_length": 1024, "validation_share": 0.5, "batch_size": 8}
    task = make_task(tmp_path / "job", tiny_model, dataset=dataset, hyperparameters=wanted)
    task.hyperparameters.validation_share = 0.5
    prepared = prepared_with_the_long_one_held_out(task)
    losses = [
        built(prepared, task, tmp_path, micro_batch=micro_batch).evaluate()["eval_loss"] for micro_batch in (1, 8)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(("packing", "together"), [(True, 1), (False, 4)])
def test_packed_rows_with_a_mask_are_computed_one_by_one(tmp_path, tiny_model, packing, together):
    """TRL concatenates a micro-batch's packed rows, and the mask grows with the square of their length."""
    from lora_trainer.models.bases import BaseModels
    from lora_trainer.models.hardware import detect_hardware
    from lora_trainer.recipe.setup import prepare
    from lora_trainer.run.gpu import GpuMonitor

    wanted = {"packing": packing, "merge_conversations": False, "batch_size": 4, "max_length": 128}
    task = make_task(tmp_path, tiny_model, hyperparameters=wanted)
    prepared = prepare(task, BaseModels(task.volume), detect_hardware(), GpuMonitor(wanted=False))
    assert prepared.shape.rows_per_step > 1
    assert prepared.micro_batch == together
