"""A run that was killed resumes with exactly the losses of an uninterrupted one."""

import os
import random
import shutil
import signal

import pytest

from tests.integration.trainer.child import make_task, start, train

pytestmark = pytest.mark.gpu_stack

SABOTAGED = "tests.integration.trainer.sabotaged"
EVERY_STEP = 1e-9
PARAMETERS = {"epochs": 3, "dropout": 0.1, "batch_size": 4, "max_length": 256}


def resumable_task(folder, base, **changes):
    return make_task(folder, base, **{"hyperparameters": PARAMETERS, "checkpoint_minutes": EVERY_STEP, **changes})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_model):
    outcome, _ = train(resumable_task(tmp_path_factory.mktemp("whole"), tiny_model))
    return outcome


def curve(outcome):
    return [
        (p.step, p.epoch, p.training_loss, p.validation_loss, p.gradient_norm, p.learning_rate) for p in outcome.points
    ]


def killed_at(step, folder, base):
    task = resumable_task(folder, base)
    outcome, child = train(task, LORA_CRASH=f"trainer.train.step#{step}=kill")
    assert (outcome, child.process.returncode) == (None, -signal.SIGKILL)
    return task


@pytest.mark.fault(54)
def test_run_killed_at_a_random_step_resumes_to_the_same_curve(uninterrupted, tmp_path, tiny_model):
    step = random.randint(2, uninterrupted.summary.total_steps - 1)
    killed_at(step, tmp_path, tiny_model)
    outcome, _ = train(resumable_task(tmp_path, tiny_model))
    print(f"killed at step {step} of {uninterrupted.summary.total_steps}")
    assert outcome.summary.resumed_from_step == step - 1
    assert curve(outcome) == curve(uninterrupted)
    assert outcome.metrics.best_validation_loss == uninterrupted.metrics.best_validation_loss


@pytest.mark.parametrize("step", [2, 3])
def test_run_stopped_by_sigterm_resumes_to_the_same_curve(uninterrupted, tmp_path, tiny_model, step):
    validated = {point.step for point in uninterrupted.points if point.validation_loss is not None}
    assert (2 in validated, 3 in validated) == (False, True), "one of the steps is followed by an evaluation"
    task = resumable_task(tmp_path, tiny_model, checkpoint_minutes=60)
    child = start(task, LORA_CRASH=f"trainer.train.step#{step}=stop")
    os.waitpid(child.process.pid, os.WUNTRACED)
    child.process.send_signal(signal.SIGTERM)
    child.process.send_signal(signal.SIGCONT)
    assert child.finish().status == "stopped"
    outcome, _ = train(resumable_task(tmp_path, tiny_model))
    assert outcome.summary.resumed_from_step == step
    assert curve(outcome) == curve(uninterrupted)


@pytest.mark.parametrize("step", [4, 8])
def test_step_interrupted_between_its_passes_is_computed_anew(uninterrupted, tmp_path, tiny_model, step):
    epochs = [point.epoch for point in uninterrupted.points]
    assert (epochs[2], epochs[6]) == (pytest.approx(3 / 7, abs=1e-3), 1), "step 8 is the first of an epoch, 4 is not"
    task = resumable_task(tmp_path, tiny_model, checkpoint_minutes=60)
    stopped, _ = train(task, SABOTAGED, SABOTAGE=f"step:{step}")
    assert (stopped.status, f"after step {step - 1} of" in stopped.error.message) == ("stopped", True)
    outcome, _ = train(resumable_task(tmp_path, tiny_model))
    assert outcome.summary.resumed_from_step == step - 1
    assert curve(outcome) == curve(uninterrupted)


def test_stop_during_evaluation_resumes_to_the_same_curve(uninterrupted, tmp_path, tiny_model):
    first = next(point.step for point in uninterrupted.points if point.validation_loss is not None)
    task = resumable_task(tmp_path, tiny_model, checkpoint_minutes=60)
    stopped, _ = train(task, SABOTAGED, SABOTAGE="evaluation:SIGTERM")
    assert stopped.status == "stopped"
    assert f"after step {first} of" in stopped.error.message
    outcome, _ = train(resumable_task(tmp_path, tiny_model))
    assert outcome.summary.resumed_from_step == first
    assert curve(outcome) == curve(uninterrupted)


def test_kill_during_evaluation_loses_no_step_of_a_due_checkpoint(uninterrupted, tmp_path, tiny_model):
    first = next(point.step for point in uninterrupted.points if point.validation_loss is not None)
    outcome, _ = train(resumable_task(tmp_path, tiny_model), SABOTAGED, SABOTAGE="evaluation:SIGKILL")
    assert outcome is None
    outcome, _ = train(resumable_task(tmp_path, tiny_model))
    assert outcome.summary.resumed_from_step == first
    assert curve(outcome) == curve(uninterrupted)


def test_open_quantisation_goes_on_as_the_attempt_before_began(tmp_path, tiny_model):
    def task(**changes):
        asked = changes.pop("quantization", "auto")
        parameters = {**PARAMETERS, "max_steps": 3, "validation_share": 0, "quantization": asked}
        return resumable_task(tmp_path, tiny_model, hyperparameters=parameters, **changes)

    outcome, _ = train(task(quantization="bf16"), LORA_CRASH="trainer.train.step#3=kill")
    assert outcome is None
    again = task()
    outcome, _ = train(again)
    assert (outcome.summary.resumed_from_step, outcome.summary.quantization) == (2, "bf16")
    card = (again.artifact / "README.md").read_text()
    assert "the base not quantised" in card
    assert "`bf16`, asked for: `auto`" in card
    assert "qlora" not in card

    quantised, _ = train(again.model_copy(update={"quantization": "nf4"}))
    assert (quantised.summary.resumed_from_step, quantised.summary.quantization) == (None, "nf4")
    assert any("began anew with the base in 4 bits" in note for note in quantised.summary.notes)
    assert "with QLoRA" in (again.artifact / "README.md").read_text()
    losses = [[point.training_loss for point in tried.points] for tried in (outcome, quantised)]
    assert losses[0][0] != losses[1][0], "the base's weights differ by their rounding"
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_partial_and_foreign_checkpoints_are_not_resumed(uninterrupted, tmp_path, tiny_model):
    task = killed_at(4, tmp_path, tiny_model)
    newest = task.checkpoints / "checkpoint-3"
    shutil.copytree(newest, task.checkpoints / "checkpoint-99")
    (task.checkpoints / "checkpoint-99" / "lora-trainer.json").write_text('{"fingerprint": "same inp')
    foreign = newest / "lora-trainer.json"
    foreign.write_text(foreign.read_text().replace("same inputs", "other inputs"))
    outcome, _ = train(resumable_task(tmp_path, tiny_model))
    assert outcome.summary.resumed_from_step == 2
    assert curve(outcome) == curve(uninterrupted)
    assert not task.checkpoints.exists(), "the earlier execution's checkpoints are cleaned"
