import httpx
import pytest
import respx

from lora_contract.protocol import Channel, DatasetRef, Request
from lora_trainer.errors import (
    ChannelUnreachableError,
    DatasetUnreachableError,
    DiskFullError,
    PublishingError,
    StorageRefusedError,
    UploadFailedError,
)
from lora_trainer.run.channel import ChannelClient
from lora_trainer.run.download import download_dataset
from lora_trainer.run.publishing import publish
from lora_trainer.run.task import Outcome
from tests.unit.trainer.project import TOKEN, URL, FakeProject, refusal, request_input


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Retries follow each other at once."""

    async def sleep(seconds):
        return None

    monkeypatch.setattr("tenacity.asyncio._portable_async_sleep", sleep)


@pytest.fixture
def project():
    with respx.mock(assert_all_called=False) as router:
        project = FakeProject(router)
        project.router = router
        yield project


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"w" * 3_000_000)
    return folder


def client(patience_seconds: float = 5) -> ChannelClient:
    return ChannelClient(
        Channel(url=URL, key="sb_publishable_x", token=TOKEN),
        external_job_id="job",
        execution_id="execution",
        patience_seconds=patience_seconds,
    )


async def publish_with(artifact):
    request = Request.model_validate(request_input())
    outcome = Outcome(status="trained", fingerprint="f")
    async with client() as channel:
        return await publish(artifact, outcome, request, channel, grant_poll_seconds=0.01)


@pytest.mark.fault(32)
async def test_upload_is_repeated_until_the_storage_accepts_it(project, artifact):
    project.upload_statuses = {"adapter_model.safetensors": [503, 429, 500], "manifest.json": [502]}
    await publish_with(artifact)
    assert project.upload_order == ["adapter_model.safetensors", "manifest.json"]
    assert len(project.uploads["adapter_model.safetensors"]) == 3_000_000


EXPIRED = '"exp" claim timestamp check failed'
WEIGHTS = "adapter_model.safetensors"


async def test_transient_upload_error_inside_a_400_is_retried(project, artifact):
    project.upload_statuses = {
        WEIGHTS: [refusal("503", "LockTimeout"), refusal("429", "SlowDown"), refusal("423", "ResourceLocked"), 544]
    }
    await publish_with(artifact)
    assert project.upload_order == [WEIGHTS, "manifest.json"]


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            refusal("413", "EntityTooLarge"),
            StorageRefusedError,
            "3000000 bytes are more than the bucket or the project",
        ),
        (httpx.Response(413), StorageRefusedError, "more than the bucket"),
        (refusal("415", "InvalidMimeType"), StorageRefusedError, "does not take its type"),
        (refusal("404", "NoSuchBucket", "Bucket not found"), StorageRefusedError, "the bucket is not there"),
        (refusal("400", "InvalidSignature", "Invalid signature"), UploadFailedError, "(400)"),
        (refusal("400", "InvalidJWT", "signature verification failed"), UploadFailedError, "(400)"),
        (refusal("400", "InvalidKey", "Invalid key: expired"), UploadFailedError, "(400)"),
        (httpx.Response(403), UploadFailedError, "403"),
    ],
    ids=lambda value: str(getattr(value, "text", value))[:40],
)
async def test_a_refused_upload_is_not_repeated_and_leaves_no_manifest(project, artifact, answer, kind, words):
    project.upload_statuses = {WEIGHTS: [answer]}
    with pytest.raises(PublishingError) as caught:
        await publish_with(artifact)
    assert type(caught.value) is kind
    assert words in caught.value.message
    assert "signed" not in str(caught.value)
    assert project.uploads == {}


@pytest.mark.parametrize(
    "answer",
    [
        refusal("400", "InvalidJWT", EXPIRED),
        refusal("400", "InvalidJWT", "jwt expired"),
        refusal("400", "ExpiredToken"),
    ],
    ids=lambda answer: answer.json()["message"],
)
@pytest.mark.parametrize("path", [WEIGHTS, "manifest.json"])
async def test_expired_upload_urls_are_renewed_and_uploading_continues(project, artifact, path, answer):
    (artifact / "adapter_config.json").write_bytes(b"{}")
    project.upload_statuses = {path: [answer]}
    await publish_with(artifact)
    assert project.renewals == 1
    assert project.upload_order == ["adapter_config.json", WEIGHTS, "manifest.json"]


async def test_expired_upload_url_is_not_tried(project, artifact, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lora_trainer.run.publishing.time.monotonic", lambda: now[0])
    project.urls_live_seconds = 60
    answer = project._upload

    async def slow(request):
        now[0] += 71
        return await answer(request)

    project.router.put(url__startswith=f"{URL}/upload/").side_effect = slow
    await publish_with(artifact)
    assert project.renewals == 1
    assert project.upload_order == [WEIGHTS, "manifest.json"]


async def test_too_short_lived_upload_urls_fail_with_the_setting(project, artifact):
    project.upload_statuses = {WEIGHTS: [refusal("400", "InvalidJWT", EXPIRED)] * 20}
    with pytest.raises(UploadFailedError) as caught:
        await publish_with(artifact)
    assert "UPLOAD_SIGNED_URL_EXPIRATION_TIME" in caught.value.hint
    assert project.renewals <= 5


async def test_file_with_an_invalid_object_name_is_renamed(project, artifact):
    (artifact / "größe [1] 100%.json").write_bytes(b"{}")
    manifest = await publish_with(artifact)
    (file,) = (file for file in manifest.files if file.name == "größe [1] 100%.json")
    assert file.path == "gr=C3=B6=C3=9Fe =5B1=5D 100=25.json"
    assert project.uploads[file.path] == b"{}"


async def test_publishing_waits_while_the_database_is_down(project, artifact):
    route = project.router.post(f"{URL}/rest/v1/rpc/request_upload")
    answers = iter([lambda request: httpx.Response(401), project._request_upload])
    route.side_effect = lambda request: next(answers)(request)
    await publish_with(artifact)
    assert "manifest.json" in project.uploads


async def test_only_a_legacy_key_is_sent_as_bearer_token(project):
    async with client() as channel:
        await channel.check_in()
    legacy = Channel(url=URL, key="eyJhbGciOi", token=TOKEN)
    async with ChannelClient(legacy, external_job_id="j", execution_id="e", patience_seconds=1) as channel:
        await channel.check_in()
    first, second = (call.request.headers for call in project.router.calls)
    assert first["apikey"] == "sb_publishable_x"
    assert "authorization" not in first
    assert second["authorization"] == "Bearer eyJhbGciOi"


async def test_transient_channel_error_is_retried_and_a_refusal_is_not(project):
    route = project.router.post(f"{URL}/rest/v1/rpc/check_in_run")
    route.side_effect = [
        httpx.Response(503),
        httpx.ConnectTimeout("slow"),
        httpx.Response(200, json={"may_train": True, "reason": "ok"}),
    ]
    async with client() as channel:
        await channel.check_in()
        assert route.call_count == 3
        route.side_effect = [httpx.Response(401, json={"message": "Invalid API key"})]
        with pytest.raises(ChannelUnreachableError, match="401"):
            await channel.check_in()
    assert route.call_count == 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal("400", "InvalidJWT", EXPIRED), "has expired"),
        (refusal("400", "InvalidJWT", "signature verification failed"), "was refused"),
        (refusal("400", "InvalidSignature", "Invalid signature"), "was refused"),
        (refusal("404", "NoSuchKey", "Object not found"), "not in the storage any more"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.json()["message"],
)
async def test_dataset_download_error_does_not_contain_the_url(project, tmp_path, answer, words):
    project.router.get(f"{URL}/dataset").mock(return_value=answer)
    reference = DatasetRef(url=f"{URL}/dataset?token=secret")
    with pytest.raises(DatasetUnreachableError) as caught:
        await download_dataset(reference, tmp_path / "dataset")
    assert words in caught.value.message
    assert "secret" not in caught.value.message


async def test_transient_download_error_inside_a_400_is_retried(project, tmp_path):
    answers = [refusal("503", "DatabaseReadOnly"), refusal("429", "SlowDown"), httpx.Response(200, content=b"whole")]
    project.router.get(f"{URL}/dataset").mock(side_effect=answers)
    await download_dataset(DatasetRef(url=f"{URL}/dataset"), tmp_path / "dataset")
    assert (tmp_path / "dataset").read_bytes() == b"whole"


async def test_endless_refusal_is_read_up_to_a_limit(project, tmp_path):
    taken = 0

    async def endless():
        nonlocal taken
        while True:
            taken += 1 << 16
            yield b"x" * (1 << 16)

    project.router.get(f"{URL}/dataset").mock(return_value=httpx.Response(404, content=endless()))
    with pytest.raises(DatasetUnreachableError):
        await download_dataset(DatasetRef(url=f"{URL}/dataset"), tmp_path / "dataset")
    assert taken <= 1 << 20


async def test_interrupted_download_starts_again_from_the_beginning(project, tmp_path):
    project.router.get(f"{URL}/dataset").mock(
        side_effect=[httpx.ReadError("broke"), httpx.Response(502), httpx.Response(200, content=b"whole")]
    )
    await download_dataset(DatasetRef(url=f"{URL}/dataset"), tmp_path / "dataset")
    assert (tmp_path / "dataset").read_bytes() == b"whole"


async def test_full_disk_is_named(project):
    from pathlib import Path

    with pytest.raises(DiskFullError, match="disk is full"):
        await download_dataset(DatasetRef(url=f"{URL}/dataset"), Path("/dev/full"))
