"""The local hub serves folders to the hub's own library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sandbox.hub import LocalHub

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4000, "onnx/model.onnx": b"x"}
DOWNLOAD = "import sys, huggingface_hub as hub; print(hub.snapshot_download(sys.argv[1], cache_dir=sys.argv[2]))"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    for name, content in FILES.items():
        file = tmp_path / "model" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with LocalHub.start({"org/model": tmp_path / "model"}) as hub:
        yield hub


def test_the_hubs_library_downloads_a_folder_as_a_model(hub: LocalHub, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, "org/model", str(tmp_path / "cache")],
        env={**os.environ, **hub.env, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    snapshot = Path(done.stdout.splitlines()[-1])
    assert snapshot.parent.parent.name == "models--org--model"
    assert {name: (snapshot / name).read_bytes() for name in FILES} == FILES


def test_part_of_a_file_can_be_read_and_unknown_models_are_refused(hub: LocalHub) -> None:
    with httpx.Client(base_url=hub.url, trust_env=False) as http:
        part = http.get("/org/model/resolve/main/model.safetensors", headers={"range": "bytes=256-511"})
        assert (part.status_code, part.content) == (206, bytes(range(256)))
        assert part.headers["content-range"] == f"bytes 256-511/{len(FILES['model.safetensors'])}"
        refused = http.get("/api/models/org/other")
        assert (refused.status_code, refused.headers["x-error-code"]) == (404, "RepoNotFound")
