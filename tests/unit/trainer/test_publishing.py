import httpx
import pytest
import respx

from tests.unit.trainer.project import TOKEN, URL, FakeProject, request_input
from trainer.channel import ChannelClient
from trainer.download import download_dataset
from trainer.errors import ChannelUnreachableError, DatasetUnreachableError, DiskFullError, UploadFailedError
from trainer.protocol import Channel, DatasetRef, Request
from trainer.publishing import publish
from trainer.task import Outcome


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


async def test_an_upload_is_repeated_until_the_storage_takes_it_fault_32(project, artifact):
    project.upload_statuses = {"adapter_model.safetensors": [503, 429, 500], "manifest.json": [502]}
    await publish_with(artifact)
    assert project.upload_order == ["adapter_model.safetensors", "manifest.json"]
    assert len(project.uploads["adapter_model.safetensors"]) == 3_000_000


@pytest.mark.parametrize(("status", "words"), [(413, "more than the bucket takes"), (403, "403")])
async def test_a_refused_upload_is_not_repeated_and_leaves_no_manifest(project, artifact, status, words):
    project.upload_statuses = {"adapter_model.safetensors": [status]}
    with pytest.raises(UploadFailedError) as caught:
        await publish_with(artifact)
    assert words in caught.value.message
    assert "signed" not in str(caught.value)
    assert project.uploads == {}


async def test_publishing_waits_while_the_database_is_away(project, artifact):
    route = project.router.post(f"{URL}/rest/v1/rpc/request_upload")
    answers = iter([lambda request: httpx.Response(401), project._request_upload])
    route.side_effect = lambda request: next(answers)(request)
    await publish_with(artifact)
    assert "manifest.json" in project.uploads


async def test_a_legacy_key_is_also_the_bearer_and_a_new_one_is_not(project):
    async with client() as channel:
        await channel.check_in()
    legacy = Channel(url=URL, key="eyJhbGciOi", token=TOKEN)
    async with ChannelClient(legacy, external_job_id="j", execution_id="e", patience_seconds=1) as channel:
        await channel.check_in()
    first, second = (call.request.headers for call in project.router.calls)
    assert first["apikey"] == "sb_publishable_x"
    assert "authorization" not in first
    assert second["authorization"] == "Bearer eyJhbGciOi"


async def test_a_transient_fault_of_the_channel_is_retried_and_a_refusal_is_not(project):
    route = project.router.post(f"{URL}/rest/v1/rpc/check_in_run")
    route.side_effect = [
        httpx.Response(503),
        httpx.ConnectTimeout("slow"),
        httpx.Response(200, json={"may_train": True, "reason": "ok"}),
    ]
    async with client() as channel:
        await channel.check_in()
        assert route.call_count == 3
        route.side_effect = [httpx.Response(404)]
        with pytest.raises(ChannelUnreachableError, match="404"):
            await channel.check_in()
    assert route.call_count == 4


async def test_an_expired_dataset_url_is_named_without_showing_it(project, tmp_path):
    project.router.get(f"{URL}/dataset").mock(return_value=httpx.Response(400))
    reference = DatasetRef(url=f"{URL}/dataset?token=secret")
    with pytest.raises(DatasetUnreachableError) as caught:
        await download_dataset(reference, tmp_path / "dataset")
    assert "expired" in caught.value.message
    assert "secret" not in caught.value.message


async def test_a_download_that_breaks_off_starts_again_from_the_beginning(project, tmp_path):
    project.router.get(f"{URL}/dataset").mock(
        side_effect=[httpx.ReadError("broke"), httpx.Response(502), httpx.Response(200, content=b"whole")]
    )
    await download_dataset(DatasetRef(url=f"{URL}/dataset"), tmp_path / "dataset")
    assert (tmp_path / "dataset").read_bytes() == b"whole"


async def test_a_full_disk_is_named(project):
    from pathlib import Path

    with pytest.raises(DiskFullError, match="disk is full"):
        await download_dataset(DatasetRef(url=f"{URL}/dataset"), Path("/dev/full"))
