"""A download from a hub on this machine: resumed where it broke off, and complete at the end."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.processes.waiting import PATIENCE_SECONDS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: mit\n---\n",
    "model.safetensors": os.urandom(1 << 20) * 32,  # the client writes pieces of 10 MB
    "pytorch_model.bin": b"not wanted",
    "consolidated.safetensors": b"the same weights in another layout",
    "original/consolidated.00.safetensors": b"and once more",
    "original/params.json": b"{}",
}
NOT_WANTED = {"pytorch_model.bin", "consolidated.safetensors", "original/consolidated.00.safetensors"}
NOT_WANTED |= {"original/params.json"}


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that a download needs."""

    served: list[tuple[str, str | None]]
    break_after: int | None

    def do_GET(self):
        if self.path.startswith(f"/api/models/org/model/tree/{COMMIT}"):
            return self._answer(self._tree(), "application/json")
        if self.path.startswith("/api/models/org/model"):
            return self._answer(self._description(), "application/json")
        if found := re.fullmatch(rf"/org/model/resolve/{COMMIT}/(.+)", self.path):
            return self._file(found[1])
        return self.send_error(404)

    do_HEAD = do_GET

    def _tree(self):
        return json.dumps(
            [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
        ).encode()

    def _description(self):
        files = [{"rfilename": name, "size": len(content)} for name, content in FILES.items()]
        return json.dumps({"id": "org/model", "sha": COMMIT, "siblings": files, "private": False}).encode()

    def _file(self, name):
        content, wanted = FILES[name], self.headers.get("Range")
        begin = int(re.search(r"\d+", wanted)[0]) if wanted else 0
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if wanted:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        body = content[begin:]
        if self.command == "GET":
            type(self).served.append((name, wanted))
            if name == "model.safetensors" and type(self).break_after is not None:
                cut, type(self).break_after = type(self).break_after, None
                self._answer(body, "application/octet-stream", 206 if wanted else 200, headers, cut)
                self.close_connection = True
                return
        self._answer(body, "application/octet-stream", 206 if wanted else 200, headers)

    def _answer(self, body, kind, status=200, headers=None, cut=None):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    Hub.served, Hub.break_after = [], None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def begin_prefetch(hub, volume, model="org/model"):
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.Popen(
        [sys.executable, "-m", "lora_trainer.cli", "prefetch", "--volume", str(volume), model],
        env={
            **environment,
            "HF_ENDPOINT": hub,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(volume / "home"),
        },
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
