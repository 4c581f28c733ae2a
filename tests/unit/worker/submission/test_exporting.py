"""An export ends with verified files and a record, or with the trainer's own sentence; its output is bounded."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lora_contract.exports import ExportRecord
from lora_worker.errors import ArgumentError, DeploymentError, ExportError
from lora_worker.launchers.gpu_server.launcher import GpuServerLauncher
from lora_worker.launchers.places import Place, Places
from lora_worker.services import Services
from lora_worker.submission import exporting
from lora_worker.submission.endpoint_export import export_on_endpoint, fetching
from lora_worker.submission.exporting import export_adapter, export_form
from tests.commands import check_keys, give_services, run_command
from tests.scripted import GUIDE
from tests.unit.worker.deployment.test_prefetching import Scripted, ended
from tests.unit.worker.submission.test_downloads import FILES, JOB, RUN, Bucket, services

TOKENS = {"added_tokens": [{"id": 2, "content": "<|eot_id|>"}]}
ADAPTER = {
    **FILES,
    "generation_config.json": json.dumps({"eos_token_id": 2}).encode(),
    "tokenizer.json": json.dumps(TOKENS).encode(),
}
RECORD = ExportRecord(
    form="merged",
    base_model="org/base",
    base_revision="c" * 40,
    adapter_sha256="a" * 64,
    inputs_sha256="b" * 64,
    modules=7,
    files=[{"name": "model.safetensors", "bytes": 4, "sha256": "d" * 64}],
    complete=True,
)


def silent(_: str) -> None:
    """Nobody listens."""


def adapter_of(architecture: str | None) -> Bucket:
    told = {"base_architecture": architecture} if architecture else {}
    return Bucket({**ADAPTER, "environment.json": json.dumps(told).encode()})


def trainer_that(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(exporting, "_COMMAND", ("-c", script))
    monkeypatch.setattr(exporting, "is_trainer_installed", lambda: True)


async def test_adapter_of_a_family_that_ollama_takes_gets_a_modelfile(tmp_path: Path) -> None:
    done = await export_adapter(services(adapter_of("llama")), JOB, tmp_path, silent)
    lines = (tmp_path / "Modelfile").read_text().splitlines()
    assert lines[-3:] == ["FROM ./base.gguf", "ADAPTER .", 'PARAMETER stop "<|eot_id|>"']
    assert done.note is None
    again = await export_adapter(services(adapter_of("llama")), JOB, tmp_path, silent)
    assert {file.status for file in again.adapter.files} == {"present"}


@pytest.mark.parametrize(("architecture", "words"), [("qwen3_next", "no adapters of qwen3_next"), (None, "not say")])
async def test_other_adapters_get_a_sentence_instead(tmp_path: Path, architecture: str | None, words: str) -> None:
    done = await export_adapter(services(adapter_of(architecture)), JOB, tmp_path, silent)
    assert done.note is not None
    assert words in done.note
    assert not (tmp_path / "Modelfile").exists()


async def test_trainer_gets_the_verified_files_and_none_of_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = ("SUPABASE_SERVICE_ROLE_KEY", "DATABASE_URL", "RUNPOD_API_KEY", "OTEL_EXPORTER_OTLP_HEADERS")
    for name in secret:
        monkeypatch.setenv(name, "secret-of-the-worker")
    trainer_that(
        monkeypatch,
        "import os, sys; print('begins', file=sys.stderr); "
        f"assert not [name for name in {secret!r} if name in os.environ]; "
        "assert os.path.isfile(sys.argv[1] + '/adapter_config.json'); "
        f"assert sys.argv[3:] == ['--as', 'merged', '--base', 'org/b'], sys.argv; print({RECORD.model_dump_json()!r})",
    )
    said: list[str] = []
    done = await export_form(services(adapter_of("llama")), JOB, tmp_path, "merged", said.append, base="org/b")
    assert done.record == RECORD
    assert done.folder == tmp_path / "merged"
    assert said[-1] == "begins"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.exit('The base model org/b is gated.')", r"^The base model org/b is gated\.$"),
        ("print('{}')", "another version"),
        ("print('x' * 9_000_000)", "another version"),
        ("import sys; sys.exit('y' * 9_000_000 + chr(10))", "^y{1,500}"),
        ("import os; os._exit(3)", "ended with 3"),
    ],
    ids=["refuses", "old", "talks much", "complains much", "dies"],
)
async def test_failed_trainer_is_one_bounded_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    trainer_that(monkeypatch, script)
    with pytest.raises(ExportError, match=words) as failed:
        await export_form(services(adapter_of("llama")), JOB, tmp_path, "merged", silent, base=None)
    assert len(str(failed.value)) < 1000


async def test_interrupted_export_leaves_no_trainer_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer_that(monkeypatch, "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(600)")
    pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def say(text: str) -> None:
        if text.isdigit():
            pid.set_result(int(text))

    work = asyncio.create_task(export_form(services(adapter_of("llama")), JOB, tmp_path, "gguf", say, base=None))
    process = await pid
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


async def test_missing_trainer_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "is_trainer_installed", lambda: False)
    bucket = adapter_of("llama")
    with pytest.raises(ArgumentError, match=r"pip install.*--on-endpoint"):
        await export_form(services(bucket), JOB, tmp_path, "merged", silent, base=None)
    with pytest.raises(ArgumentError, match="pip install") as refused:
        await export_form(services(bucket), JOB, tmp_path, "gguf", silent, base=None)
    assert "--on-endpoint" not in str(refused.value)  # It is refused for gguf.
    assert bucket.asked == []


class SigningBucket(Bucket):
    """A bucket that signs."""

    async def sign_download(self, bucket: str, path: str, *, seconds: float) -> str:
        return f"https://storage/{path}?token=signed"


def on_endpoint(*looks: Any) -> tuple[Scripted, Services]:
    endpoint, found = Scripted(*looks), services(SigningBucket(ADAPTER))
    machines: Any = SimpleNamespace(endpoint="machines:", takes_errands=False)
    places = Places(Place("machines", machines), Place("trainer", cast(Any, endpoint)))
    settings = SimpleNamespace(artifacts_bucket="lora-models", max_run_seconds=3600)
    found = cast(
        Services, SimpleNamespace(**{**vars(found), "launcher": machines, "places": places, "settings": settings})
    )
    return endpoint, found


PLACE = {"folder": f"lora-exports/{JOB}", "record": RECORD.model_dump(), "volume_id": "vol1", "data_center": "EU-RO-1"}


async def test_endpoint_gets_the_files_of_an_export_and_no_others() -> None:
    endpoint, found = on_endpoint(ended({"kind": "export", "export": PLACE}))
    place = await export_on_endpoint(found, JOB, base=None)
    ((request, policy),) = endpoint.launched
    assert request["kind"] == "export"
    names = [file["name"] for file in request["files"]]
    assert names == ["adapter_config.json", "adapter_model.safetensors", "generation_config.json", "tokenizer.json"]
    assert f"/{RUN}/" in request["files"][0]["url"]
    assert policy.execution_seconds == 3600
    assert place.record == RECORD
    assert "s3://vol1/lora-exports/" in fetching(place, GUIDE)
    assert "--endpoint-url https://s3api-eu-ro-1.runpod.io" in fetching(place, GUIDE)
    unnamed = place.model_copy(update={"volume_id": None, "data_center": None})
    where = f"The export is on the endpoint's volume, in lora-exports/{JOB}/."
    assert fetching(unnamed, GUIDE) == f"{where} The cloud shows its volume."
    assert "LORA_TRAINER_VOLUME" in fetching(unnamed, GpuServerLauncher.guide)


async def test_export_where_no_endpoint_takes_it_is_refused_in_a_sentence() -> None:
    machines: Any = SimpleNamespace(endpoint="machines:", takes_errands=False, guide=GUIDE)
    found = cast(Services, SimpleNamespace(places=Places(Place("machines", machines)), launcher=machines))
    with pytest.raises(DeploymentError, match=r"The cloud is asked for trainings only. Export on this machine"):
        await export_on_endpoint(found, JOB, base=None)


async def test_refusal_of_the_endpoint_is_its_sentence() -> None:
    error = {"code": "export_refused", "message": "The base model is quantised.", "remedy": "Name another."}
    _, found = on_endpoint(ended({"kind": "export", "failure": error}))
    with pytest.raises(ExportError, match=r"^The base model is quantised\. Name another\.$"):
        await export_on_endpoint(found, JOB, base=None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--on-endpoint",),
        ("--as", "gguf", "--on-endpoint"),
        ("DIR", "--as", "merged", "--on-endpoint"),
        ("--base", "x/y"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: tuple[str, ...]) -> None:
    done = run_command("export", str(JOB), *arguments)
    assert done.exit_code == 2


@pytest.mark.parametrize("base", ["./folder", "a/../b"])
def test_base_that_the_endpoint_can_not_have_is_one_sentence(base: str) -> None:
    done = run_command("export", str(JOB), "--as", "merged", "--on-endpoint", "--base", base)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"lora-worker: --base: {base!r} is no base model: write organisation/model")


@pytest.mark.usefixtures("environment")
def test_command_tells_files_and_place_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer_that(monkeypatch, f"print({RECORD.model_dump_json()!r})")
    give_services(monkeypatch, services(adapter_of("llama")))
    done = run_command("export", str(JOB), str(tmp_path), "--as", "merged", "--json")
    answer = json.loads(done.stdout)
    check_keys("export", answer)
    assert answer["directory"] == str(tmp_path / "merged")
    assert answer["modules"] == 7
    text = run_command("export", str(JOB), str(tmp_path), "--as", "merged").stdout
    assert "7 modules of org/base carry the adapter" in text
    assert sys.executable not in text
