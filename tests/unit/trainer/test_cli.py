"""What the trainer's command line prints."""

import subprocess
import sys

import pytest


@pytest.mark.gpu_stack
def test_plan_prints_the_table_and_no_warning_of_a_library():
    command = [sys.executable, "-m", "lora_trainer.cli", "plan", "--base-model", "Qwen/Qwen3-8B", "--gpu-gb", "80"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "fits on the GPU (80 GB)" in done.stdout
    assert done.stderr == ""
