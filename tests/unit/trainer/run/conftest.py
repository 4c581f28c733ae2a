"""A Supabase project in memory, and the settings of an execution against it."""

import pytest
import respx

from lora_trainer.settings import Settings
from tests.unit.trainer.project import FakeProject


@pytest.fixture
def project():
    with respx.mock(assert_all_called=False) as router:
        yield FakeProject(router)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD_NOTE", str(tmp_path / "note.json"))
    monkeypatch.setenv("RUNPOD_AI_API_KEY", "secret-of-runpod")
    return Settings(
        child="tests.unit.trainer.fake_child",
        proof="sandbox.standin_proof",
        volume=tmp_path / "volume",
        heartbeat_seconds=0.05,
        progress_seconds=0.01,
        settle_seconds=0,
        grace_seconds=20,
        channel_patience_seconds=0.01,
        grant_poll_seconds=0.01,
    )
