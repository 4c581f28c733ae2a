"""`lora-worker gpu-server` starts, or says in one sentence why not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from lora_worker.commands.cli import app
from lora_worker.errors import ArgumentError
from lora_worker.gpu_server.gpus import choose_gpus
from sandbox.gpu_server import LocalGpuServer
from tests.commands import check_keys


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_WORKER_GPU_SERVER_KEY", "k" * 32)
    return monkeypatch


def refused(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["gpu-server", *arguments])
    return done.exit_code, done.output


def test_address_is_printed_and_a_second_server_is_refused(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with LocalGpuServer(tmp_path, {}, trainer="tests.handlers.scripted_trainer") as server:
        told = json.loads(server.log().splitlines()[0])
        assert told["url"] == server.url
        check_keys("gpu-server", told)
        code, said = refused("--gpus", "cpu", "--data", str(tmp_path / "data"), "--port", "0")
        assert (code, "another gpu-server uses it" in said) == (1, True)
        code, said = refused("--gpus", "cpu", "--data", str(tmp_path / "other"), "--port", str(server.port))
        assert (code, "can't be opened" in said) == (1, True)


LISTED = "".join(f"GPU {index}: NVIDIA L4 (UUID: GPU-0f4c2d9e-1111-2222-3333-44445555666{index})\n" for index in (0, 1))


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ("0", "Serving 1 GPU at http"),
        ("0, 1", "Serving 2 GPUs at http"),
        ("", "Serving 2 GPUs at http"),
        ("cpu", "Serving the CPU at http"),
    ],
)
def test_gpus_are_counted_in_words(environment: pytest.MonkeyPatch, gpus: str, said: str) -> None:
    environment.setattr("lora_worker.gpu_server.gpus.list_gpus", lambda: LISTED)

    async def serve(*_: Any, ready: Callable[[str], None], **__: Any) -> None:
        ready("http://127.0.0.1:1")

    environment.setattr("lora_worker.gpu_server.serve.serve_gpus", serve)
    code, text = refused("--gpus", gpus)
    assert (code, said in text) == (0, True)


@pytest.mark.parametrize(("gpus", "status"), [("", 1), ("x", 1), ("cpu,0", 1)])
def test_a_machine_without_a_driver_does_not_serve_its_cpu_unasked(
    environment: pytest.MonkeyPatch, tmp_path: Path, gpus: str, status: int
) -> None:
    environment.setenv("PATH", str(tmp_path))
    code, text = refused("--gpus", gpus)
    assert (code, text.startswith("lora-worker: there is no NVIDIA driver here")) == (status, True)
    assert "give --gpus cpu to train on the CPU" in text


def test_a_broken_driver_is_told_in_its_own_words(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed.'\nexit 9\n")
    tool.chmod(0o755)
    environment.setenv("PATH", str(tmp_path))
    code, text = refused()
    assert (code, "nvidia-smi -L ended with status 9 (NVIDIA-SMI has failed)" in text) == (1, True)


def test_one_broken_card_keeps_the_others_in_use(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{LISTED}'\necho 'Unable to determine the device handle' >&2\nexit 15\n")
    tool.chmod(0o755)
    environment.setenv("PATH", str(tmp_path))
    with capture_logs() as logs:
        assert len(choose_gpus("")) == 2
    assert (logs[0]["status"], logs[0]["said"]) == (15, "Unable to determine the device handle")


def test_full_names_are_taken_where_nothing_lists_the_gpus(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("PATH", str(tmp_path))
    named = ["1", "GPU-0f4c2d9e-1111-2222-3333-444455556661", "MIG-0f4c2d9e-1111-2222-3333-444455556661"]
    with capture_logs() as logs:
        assert choose_gpus(",".join(named)) == named
    assert logs[0]["problem"].startswith("there is no NVIDIA driver here")
    with pytest.raises(ArgumentError, match="named twice"):
        choose_gpus("1,1")


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ("0,0", "--gpus: 0 is a GPU that is named twice"),
        ("1,GPU-0f4c2d9e-1111-2222-3333-444455556661", "is a GPU that is named twice"),
        ("7", "--gpus: '7' is no GPU of this machine; choose of 0, GPU-"),
        ("x y", "--gpus: 'x y' is no GPU of this machine"),
        (",,", "--gpus: '' is no GPU of this machine"),
        ("0,cpu", "--gpus: 'cpu' is no GPU of this machine"),
    ],
)
def test_gpus_that_are_unknown_or_named_twice_are_refused(
    environment: pytest.MonkeyPatch, gpus: str, said: str
) -> None:
    environment.setattr("lora_worker.gpu_server.gpus.list_gpus", lambda: LISTED)
    code, text = refused("--gpus", gpus)
    assert (code, said in text) == (2, True)


def test_missing_packages_are_one_sentence(environment: pytest.MonkeyPatch) -> None:
    """As in the plain install, where importing one of them fails."""
    environment.setitem(sys.modules, "uvicorn", None)
    environment.delitem(sys.modules, "lora_worker.listening", raising=False)
    assert refused() == (
        2,
        "lora-worker: the GPU server needs packages that are not installed (uvicorn): "
        "run `pip install '.[gpu-server]'` in the project's folder\n",
    )


@pytest.mark.parametrize(("key", "said"), [("", "is missing"), ("short", "is shorter than 32 characters")])
def test_key_that_is_none_is_refused(environment: pytest.MonkeyPatch, key: str, said: str) -> None:
    environment.setenv("LORA_WORKER_GPU_SERVER_KEY", key)
    code, text = refused()
    assert (code, f"LORA_WORKER_GPU_SERVER_KEY {said}" in text) == (2, True)


def test_misspelt_setting_is_one_sentence(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORA_WORKER_SLOTZ", "3")
    code, text = refused()
    assert (code, "LORA_WORKER_SLOTZ" in text) == (2, True)


def test_disk_that_fills_up_is_one_sentence(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "logs").write_text("a file where the folder of the logs belongs")
    code, text = refused("--gpus", "cpu", "--data", str(data), "--port", "0")
    assert code == 1
    assert "can't be written" in text
    assert "Traceback" not in text


def test_python_without_the_trainer_is_refused(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    assert refused("--python", str(bare))[0] == 2
    assert "can't be run" in refused("--python", str(tmp_path / "nothing"))[1]


def test_folder_that_can_not_be_made_is_named(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, said = refused("--gpus", "cpu", "--data", str(tmp_path / "file" / "data"), "--port", "0")
    assert (code, "choose another with --data" in said) == (1, True)
