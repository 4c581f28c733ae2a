"""The quick start's single steps, as they stand on the page: from an empty project to an adapter on the disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from sandbox.runpod import LocalRunPod
from sandbox.sample_text import write_sample_dataset
from tests.integration.newcomer.conftest import holds_secret, resources
from tests.integration.newcomer.newcomer import Newcomer
from tests.integration.newcomer.page import QUICKSTART, README

pytestmark = pytest.mark.gpu_stack

INSTALLING = ("git ", "python3 -m venv ", "pip install ", "docker ")
"""These prepare the machine and the image: they need the internet, and `make image-check` tries the last."""


@pytest.fixture(scope="module")
def newcomer(arrival: Callable[[list[str]], Newcomer], runpod: LocalRunPod) -> Iterator[Newcomer]:
    """Somebody who has followed the page to the point where everything is set up, and who takes it away again."""
    newcomer = arrival(QUICKSTART.variables())
    for command in QUICKSTART.commands("2. The GPUs", "3. The database"):
        newcomer.type(command)
    yield newcomer
    newcomer.stop_worker()
    for command in QUICKSTART.commands("Take it away again"):
        newcomer.type(command)
    assert resources(runpod) == []


def test_every_command_of_both_pages_is_typed_by_a_test() -> None:
    typed = QUICKSTART.commands("2. The GPUs", "3. The database", "5. The worker", "A file of your own")
    typed += [*QUICKSTART.commands("Take it away again"), *README.commands("For real")]
    rest = [command for command in (*QUICKSTART.commands(), *README.commands()) if command not in typed]
    assert [command for command in rest if not command.startswith(INSTALLING)] == []


def test_a_file_is_queued_watched_and_its_adapter_downloaded(
    newcomer: Newcomer, runpod: LocalRunPod, known: dict[str, str]
) -> None:
    assert resources(runpod) == ["lora-trainer", "lora-trainer-models"]
    (run,) = QUICKSTART.commands("5. The worker")
    newcomer.type(run)
    write_sample_dataset(newcomer.folder / "conversations.jsonl", conversations=4)
    enqueue, watch, download = QUICKSTART.commands("A file of your own")
    found = re.search(r"queued as (\S+)", newcomer.type(enqueue))
    assert found is not None
    assert "completed" in newcomer.type(watch, JOB=found[1])
    newcomer.type(download, JOB=found[1])
    files = newcomer.folder / "my-adapter"
    assert json.loads((files / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert (files / "adapter_model.safetensors").stat().st_size > 10_000
    assert newcomer.stop_worker() == 0
    holding = [path.name for path in newcomer.folder.rglob("*") if path.is_file() and holds_secret(path, known)]
    assert holding == [".env"]
    assert newcomer.env_file.stat().st_mode & 0o077 == 0
