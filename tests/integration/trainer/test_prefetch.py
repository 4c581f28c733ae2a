"""A download from a hub on this machine: resumed where it broke off, and complete at the end."""

import os
import re
import subprocess
import sys

import pytest

from tests.integration.trainer.hub import COMMIT, FILES, NOT_WANTED, Hub, hub_environment, serve_hub
from tests.processes.waiting import PATIENCE_SECONDS


@pytest.fixture
def hub():
    with serve_hub() as address:
        yield address


def begin_prefetch(hub, volume, model="org/model"):
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.Popen(
        [sys.executable, "-m", "lora_trainer.cli", "prefetch", "--volume", str(volume), model],
        env={**environment, **hub_environment(hub, volume / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def prefetch(hub, volume, model="org/model"):
    return finish(begin_prefetch(hub, volume, model))


def test_prefetch_downloads_exactly_what_training_needs(hub, tmp_path):
    done = prefetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "huggingface-cache/hub/models--org--model/snapshots" / COMMIT
    assert {path.name for path in folder.iterdir()} == set(FILES) - NOT_WANTED
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    Hub.served.clear()
    assert prefetch(hub, tmp_path).returncode == 0
    assert Hub.served == [], "a second run downloads nothing"


def test_interrupted_download_resumes_where_it_stopped(hub, tmp_path):
    Hub.break_after = 25 << 20
    done = prefetch(hub, tmp_path)
    done = done if done.returncode == 0 else prefetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "huggingface-cache/hub/models--org--model/snapshots" / COMMIT
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    begins = [wanted for name, wanted in Hub.served if name == "model.safetensors"]
    assert begins[0] is None
    assert int(re.search(r"\d+", begins[1])[0]) >= 10 << 20, "it began anew"


def test_unknown_model_is_reported_in_one_sentence(hub, tmp_path):
    done = prefetch(hub, tmp_path, "org/other")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_processes_download_the_same_model_once(hub, tmp_path):
    for done in map(finish, [begin_prefetch(hub, tmp_path) for _ in range(2)]):
        assert done.returncode == 0, done.stderr
    served = [name for name, _ in Hub.served]
    assert len(served) == len(set(served)), "something was downloaded twice"
    assert "model.safetensors" in served
