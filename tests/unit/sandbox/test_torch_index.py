"""`make` takes PyTorch's CPU build by itself, and never hangs or fails where that can't be had."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from sandbox import torch_index
from tests.processes.serving import serving
from tests.project import ROOT

SCRIPT = ROOT / "sandbox/torch_index.py"


def index_of(body: bytes, status: int = 200):
    class Index(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/cpu/torch/" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    return serving(Index)


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch_index, "has_nvidia_gpu", lambda: False)


def test_cpu_build_is_taken_on_linux_without_an_nvidia_gpu(without_gpu):
    with index_of(b"<a>torch-2.13.0+cpu.whl</a>") as url:
        index = f"{url}/cpu"
        assert torch_index.pip_option("linux", {"TORCH_CPU_INDEX": index}) == f"--extra-index-url {index}"
        assert torch_index.pip_option("darwin", {"TORCH_CPU_INDEX": index}) == "", "its default is the CPU's"


def test_default_build_is_kept_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch_index, "has_nvidia_gpu", lambda: True)
    assert torch_index.pip_option("linux", {"TORCH_CPU_INDEX": "http://127.0.0.1:1/cpu"}) == ""


def test_gpu_is_seen_by_its_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(torch_index, "_NVIDIA", (tmp_path / "version",))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert not torch_index.has_nvidia_gpu()
    (tmp_path / "version").touch()
    assert torch_index.has_nvidia_gpu()


@pytest.mark.parametrize(("body", "status"), [(b"Please log in", 200), (b"torch-2.13", 403), (b"", 502)])
def test_page_that_is_no_index_is_not_used(without_gpu, body, status):
    with index_of(body, status) as url:
        assert torch_index.pip_option("linux", {"TORCH_CPU_INDEX": f"{url}/cpu"}) == ""


@pytest.mark.parametrize("index", ["", "no address", "http://127.0.0.1:1/cpu", "ftp://127.0.0.1:1"])
def test_address_that_cannot_be_asked_is_not_used(without_gpu, index):
    assert torch_index.pip_option("linux", {"TORCH_CPU_INDEX": index}) == ""


def test_index_that_never_answers_does_not_hold_up_the_end():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/cpu"
        assert not torch_index.answers(index, seconds=0.2)
        stuck = [thread for thread in threading.enumerate() if thread.name.endswith("(ask)")]
        assert all(thread.daemon for thread in stuck)


def fake_python(folder):
    """A `python` that notes what pip is asked for; all that is not pip or venv is done by the real one."""
    path = folder / "python"
    path.write_text(
        f"""#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo "$@" >> {folder}/asked ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
    )
    path.chmod(0o755)
    return path


def make_install(tmp_path, *arguments, index):
    """Run the installing part of `make` in a copy of the project's Makefile."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "sandbox").mkdir()
    shutil.copy(SCRIPT, tmp_path / "sandbox")
    python = fake_python(tmp_path)
    done = subprocess.run(
        ["make", f"PYTHON={python}", *arguments, ".venv/.installed"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "TORCH_CPU_INDEX": index},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (tmp_path / "asked").read_text()


def test_make_installs_with_the_cpu_index_or_what_the_user_says(tmp_path):
    if torch_index.has_nvidia_gpu():
        pytest.skip("this machine has an NVIDIA GPU: make takes the default build")
    if sys.platform != "linux":
        pytest.skip("only Linux has a default build with CUDA")
    with index_of(b"torch-2.13.0+cpu.whl") as url:
        (tmp_path / "one").mkdir()
        asked = make_install(tmp_path / "one", index=f"{url}/cpu")
        assert f"--extra-index-url {url}/cpu torch==2.13.0" in asked
        (tmp_path / "two").mkdir()
        asked = make_install(tmp_path / "two", "PIP_ARGS=--index-url https://mirror.example", index=f"{url}/cpu")
        assert "--index-url https://mirror.example torch==2.13.0" in asked
        assert url not in asked
    (tmp_path / "three").mkdir()
    asked = make_install(tmp_path / "three", index="http://127.0.0.1:1/cpu")
    assert "index-url" not in asked
    assert "torch==2.13.0" in asked
