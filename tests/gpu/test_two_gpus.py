"""Two GPUs train as one would, over NCCL. Skipped on a machine with a single one."""

import os
import subprocess
import sys

import pytest

from lora_trainer.run.gpu import visible_gpus
from tests.integration.trainer.child import make_task, train

pytestmark = pytest.mark.gpu

PARAMETERS = {"epochs": 2, "batch_size": 3, "max_length": 256}


@pytest.fixture
def gpus():
    found = visible_gpus({name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"})
    if len(found) < 2:
        pytest.skip("there is one GPU here")
    return found[:2]


def test_base_spread_over_two_gpus_answers_as_on_one(tiny_model, gpus):
    """The proof's way with a base that fits no GPU alone. Run in a process that sees both."""
    script = """
import sys, torch
from pathlib import Path
from lora_trainer.models.bases import Base
from lora_trainer.models.hardware import detect_hardware
from lora_trainer.models.loading import load_config, load_model
base, hardware = Base("tiny", None, Path(sys.argv[1])), detect_hardware()
tokens = torch.arange(32, device="cuda:0")[None]
answers = [load_model(base, load_config(base), hardware, devices=devices)(tokens).logits.float().cpu()
           for devices in ([], ["cuda:0", "cuda:1"])]
print("spread", float((answers[0] - answers[1]).abs().max()))
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    command = [sys.executable, "-c", script, str(tiny_model)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert float(ended.stdout.split()[-1]) < 1e-2


@pytest.mark.parametrize("sharded", [False, True])
def test_two_gpus_learn_what_one_does(tmp_path, tiny_model, gpus, sharded):
    one, _ = train(make_task(tmp_path / "one", tiny_model, hyperparameters=PARAMETERS))
    two, _ = train(make_task(tmp_path / "two", tiny_model, hyperparameters=PARAMETERS, gpus=gpus, shard_base=sharded))
    assert one.status == "trained", one.error
    assert two.status == "trained", two.error
    off = max(abs(a.training_loss - b.training_loss) for a, b in zip(one.points, two.points, strict=True))
    print(
        f"losses differ by at most {off:.1e}; {one.summary.train_seconds} s on one, {two.summary.train_seconds} on two"
    )
    assert off < 1e-2
    assert two.summary.gpus_used == 2
