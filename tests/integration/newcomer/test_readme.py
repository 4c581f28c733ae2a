"""The README's lines for real: one command sets everything up, the next ones train."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lora_worker.commands.guided import NEEDED
from sandbox.runpod import LocalRunPod
from sandbox.sample_text import write_sample_dataset
from tests.integration.newcomer.conftest import holds_secret, resources
from tests.integration.newcomer.newcomer import Newcomer
from tests.integration.newcomer.page import README

pytestmark = pytest.mark.gpu_stack


def test_a_newcomer_gets_from_nothing_to_the_first_adapters(
    arrival: Callable[[list[str]], Newcomer], runpod: LocalRunPod, known: dict[str, str]
) -> None:
    install, setup, smoke, run, check, enqueue = README.commands("For real")
    assert install == "pip install ."
    newcomer = arrival([])
    answers = {needed.names[0]: known[needed.names[0]] for needed in NEEDED}
    answers |= {"Image of the trainer": "ghcr.io/you/lora-trainer:0.2.0", "Data centres": "EU-RO-1", "changes": "y"}
    screen = newcomer.type_and_answer(setup, answers)
    assert known["SUPABASE_SERVICE_ROLE_KEY"] not in screen
    assert "FAIL" not in screen
    assert resources(runpod) == ["lora-trainer", "lora-trainer-models"]

    shown = newcomer.type(smoke)
    assert "the adapter is what its manifest says" in shown
    assert "cost: $" in shown

    newcomer.type(run)
    write_sample_dataset(newcomer.folder / "my.jsonl", conversations=4)
    checked = newcomer.type(check)
    assert "what is learned is in ⟦⟧" in checked
    assert "A training: " in checked
    assert "completed" in newcomer.type(enqueue)
    assert newcomer.stop_worker() == 0
    holding = [path.name for path in newcomer.folder.rglob("*") if path.is_file() and holds_secret(path, known)]
    assert holding == [".env"]
