"""What TRL does with prepared rows: nothing that costs a learned token."""

import json

import pytest

from tests.integration.trainer.child import make_task
from trainer.chat import IGNORED

pytestmark = [pytest.mark.gpu_stack, pytest.mark.timeout(300)]

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
    from trainer.bases import BaseModels
    from trainer.gpu import GpuMonitor
    from trainer.models import detect_hardware
    from trainer.train import prepare

    models = BaseModels(task.volume)
    for seed in range(100):
        task.hyperparameters.seed = seed
        prepared = prepare(task, models, detect_hardware(), GpuMonitor(wanted=False))
        if prepared.data.validation_ids == ["c7"]:
            return prepared
    raise AssertionError("no seed holds the long conversation out")


@pytest.mark.parametrize("packing", [True, False])
def test_a_held_out_answer_is_judged_whole_though_it_is_longer_than_all_that_is_trained_on(
    tmp_path, tiny_model, packing
):
    from trainer.models import attach_lora, detect_hardware, load_model
    from trainer.sft import trainer_for, training_arguments

    dataset = dataset_with_one_long_conversation(tmp_path / "dataset")
    wanted = {"packing": packing, "max_length": 1024, "validation_share": 0.1, "batch_size": 1}
    task = make_task(tmp_path / "job", tiny_model, dataset=dataset, hyperparameters=wanted)
    prepared = prepared_with_the_long_one_held_out(task)
    hardware = detect_hardware()
    trainer = trainer_for(
        attach_lora(load_model(prepared.base, prepared.config, hardware), task.hyperparameters),
        prepared.tokenizer,
        prepared.data.train,
        prepared.data.validation,
        training_arguments(task.hyperparameters, prepared.shape, prepared.micro_batch, hardware, tmp_path),
    )
    longest_trained = max(len(row.input_ids) for row in prepared.data.train)
    assert len(prepared.data.validation[0].input_ids) > longest_trained
    judged = [label for row in trainer.eval_dataset for label in row["labels"] if label != IGNORED]
    assert judged == [label for row in prepared.data.validation for label in row.labels if label != IGNORED]


@pytest.mark.parametrize(("packing", "together"), [(True, 1), (False, 4)])
def test_packed_rows_go_through_one_by_one_where_a_mask_keeps_them_apart(tmp_path, tiny_model, packing, together):
    """TRL strings a micro-batch's packed rows together, and the mask grows with the square of their length."""
    from trainer.bases import BaseModels
    from trainer.gpu import GpuMonitor
    from trainer.models import detect_hardware
    from trainer.train import prepare

    wanted = {"packing": packing, "merge_conversations": False, "batch_size": 4, "max_length": 128}
    task = make_task(tmp_path, tiny_model, hyperparameters=wanted)
    prepared = prepare(task, BaseModels(task.volume), detect_hardware(), GpuMonitor(wanted=False))
    assert prepared.shape.rows_per_step > 1
    assert prepared.micro_batch == together
