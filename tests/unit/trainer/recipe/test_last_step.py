"""A checkpoint of the last whole step is as if the next one had not begun."""

from types import SimpleNamespace

import pytest
import torch

from lora_trainer.recipe.random_states import RandomStates
from lora_trainer.recipe.steps import save_last_step
from lora_trainer.recipe.train import run_training

pytestmark = pytest.mark.gpu_stack


class Trainer:
    """A trainer after its third step, within the fourth; its checkpoints hold the next random number."""

    def __init__(self, folder):
        self.state = SimpleNamespace(global_step=3)
        self.args = SimpleNamespace(output_dir=folder)
        self.model = torch.nn.Linear(1, 1)
        self.model(torch.ones(1, 1)).sum().backward()
        self.saved = []

    def _save_checkpoint(self, model, trial):
        self.saved.append(torch.rand(1).item())
        assert all(parameter.grad is None for parameter in model.parameters())


def callback_of(states, saved_step=None):
    completed = []
    return SimpleNamespace(
        last_states=states,
        saved_step=saved_step,
        completed=completed,
        complete_checkpoint=lambda folder, step: completed.append((folder.name, step)),
    )


def test_begun_step_is_discarded_with_its_gradients_and_random_numbers(tmp_path):
    trainer, callback = Trainer(tmp_path), callback_of(RandomStates.now())
    next_number = torch.rand(1).item()
    torch.rand(7)
    save_last_step(trainer, callback)
    assert trainer.saved == [next_number]
    assert callback.completed == [("checkpoint-3", 3)]


def test_nothing_is_saved_twice_or_before_a_step_has_ended(tmp_path):
    trainer = Trainer(tmp_path)
    for callback in (callback_of(None), callback_of(RandomStates.now(), saved_step=3)):
        save_last_step(trainer, callback)
        assert callback.completed == trainer.saved == []


def test_death_of_another_process_leaves_the_last_whole_step(tmp_path):
    def lose_peer(**_):
        raise RuntimeError("Connection closed by peer")

    trainer, callback = Trainer(tmp_path), callback_of(RandomStates.now())
    trainer.begin, trainer.train = lambda _: None, lose_peer
    trainer.ranks = SimpleNamespace(helpers=SimpleNamespace(failure=lambda: -9))
    nothing = SimpleNamespace(measure_base=lambda: None, training_begins=lambda: None)
    with pytest.raises(RuntimeError, match="closed by peer"):
        run_training(trainer, callback, nothing, nothing, None)
    assert callback.completed == [("checkpoint-3", 3)]
