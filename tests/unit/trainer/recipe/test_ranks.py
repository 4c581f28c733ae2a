"""How the processes of a training meet, and what the user is told where there are fewer than asked for."""

import os
from types import SimpleNamespace

import pytest

from lora_trainer.recipe import ranks
from lora_trainer.recipe.setup import gpu_notes

pytestmark = pytest.mark.gpu_stack


def test_processes_meet_on_the_loopback_interface(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "what was there before is put back after the test")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(
        ranks.dist, "init_process_group", lambda *_, **__: seen.append(os.environ.get("GLOO_SOCKET_IFNAME"))
    )
    monkeypatch.setattr(ranks.dist, "new_group", lambda **_: None)
    assert ranks.Ranks.join(0, 2, tmp_path / "store").leads
    assert seen == ["lo"]


def test_user_is_told_where_fewer_gpus_train_than_asked_for():
    shape = SimpleNamespace(steps_per_epoch=2)
    assert gpu_notes(1, 2, 8, shape, sharded=False) == [
        "The job asks for 2 GPUs, and the trainer could use 1 of its machine."
    ]
    assert gpu_notes(1, 1, 8, shape, sharded=False) == []
    assert gpu_notes(2, 2, 8, shape, sharded=False) == ["Trained on 2 GPUs, which shared the items of each step."]
