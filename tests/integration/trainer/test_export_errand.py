"""The endpoint merges an adapter onto its volume: fetched by signed URLs, by the real handler and child process."""

import functools
import hashlib
import http.server
import json
import os
import threading
import time

import pytest

from lora_contract.errands import ErrandResult, ExportRequest
from lora_contract.exports import is_export_source
from lora_trainer.handler import handler
from lora_trainer.settings import load_settings
from tests.unit.trainer.export.making import make_adapter, make_base

pytestmark = pytest.mark.gpu_stack


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """A network volume that has the base model `org/base`."""
    make_base(tmp_path / "volume/models/org/base", "llama")
    monkeypatch.setenv("LORA_TRAINER_VOLUME", str(tmp_path / "volume"))
    monkeypatch.setenv("LORA_TRAINER_SETTLE_SECONDS", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("RUNPOD_VOLUME_ID", "vol1")
    monkeypatch.setenv("RUNPOD_DC_ID", "EU-RO-1")
    return tmp_path / "volume"


@pytest.fixture
def files(tmp_path, volume):
    """The files of an adapter in a storage, as a request names them."""
    from lora_trainer.models.bases import Base

    folder = tmp_path / "bucket"
    make_adapter(folder, Base("org/base", None, volume / "models/org/base"))
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield [
        {
            "name": path.name,
            "url": f"http://127.0.0.1:{server.server_port}/{path.name}?token=signed-secret",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.iterdir())
        if is_export_source(path.name)
    ]
    server.shutdown()
    thread.join()
    server.server_close()


async def ask(files, **changes):
    request = {"protocol": 1, "kind": "export", "job_id": "job-1", "files": files, **changes}
    output = await handler({"id": "errand", "input": request})
    assert "signed-secret" not in json.dumps(output)
    return ErrandResult.model_validate(output)


async def test_merged_model_stays_on_the_volume_and_its_place_is_told(files, volume):
    result = await ask(files)
    assert result.error is None
    place = result.export
    assert (place.folder, place.volume_id, place.data_center) == ("lora-exports/job-1", "vol1", "EU-RO-1")
    assert place.record.complete
    found = {path.name for path in (volume / place.folder).iterdir()}
    assert found == {file.name for file in place.record.files} | {"export.json", ".export.lock"}
    assert "model.safetensors.index.json" in found
    assert not list((volume / "lora-exports/.sources").iterdir()), "the adapter's copy is no longer needed"


def test_second_errand_of_a_job_leaves_the_first_ones_adapter(files, volume, monkeypatch):
    from lora_trainer.errands.exporting import export
    from lora_trainer.errors import ExportRefusedError
    from lora_trainer.export.layout import Shard

    request, settings, write, refused = ExportRequest(job_id="job-1", files=files), load_settings(), Shard.write, []

    def write_after_another_errand(shard, target):
        if not refused:
            with pytest.raises(ExportRefusedError, match="Another export") as error:
                export(request, settings)
            refused.append(error)
        write(shard, target)

    monkeypatch.setattr(Shard, "write", write_after_another_errand)
    assert export(request, settings).record.complete
    assert refused


def test_adapters_of_killed_errands_go_after_days(files, volume):
    from lora_trainer.errands.exporting import export

    old, running = volume / "lora-exports/.sources/job-1.old", volume / "lora-exports/.sources/job-1.running"
    for folder in (old, running):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").touch()
    nine_days_ago = time.time() - 9 * 86_400
    os.utime(old, (nine_days_ago, nine_days_ago))
    assert export(ExportRequest(job_id="job-1", files=files), load_settings()).record.complete
    assert list(running.parent.iterdir()) == [running]


async def test_file_that_was_replaced_meanwhile_ends_in_a_sentence(files, volume):
    result = await ask([{**files[0], "sha256": "0" * 64}, *files[1:]])
    assert "its sha256 differs" in result.error.message
    assert not (volume / "lora-exports/job-1").exists()


@pytest.mark.parametrize(
    "changes", [{"job_id": "../x"}, {"base": "../../etc"}, {"files": []}, {"files": [{"name": "../x.json"}]}]
)
async def test_request_that_reaches_elsewhere_is_refused(files, changes):
    result = await ask(**{"files": files, **changes})
    assert result.error.code == "request_invalid"
