"""docs/api.md: its Python, from the top to the bottom, does what the page says, with a user's own session."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from lora_worker.database.migrations import migrate
from tests.application.user import LINE
from tests.processes.stage import Stage
from tests.project import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text()
PASSWORD = "a long enough password"


def blocks(language: str) -> dict[str, list[str]]:
    """The code of each section in that language."""
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    found = {part.splitlines()[0]: re.findall(rf"```{language}\n(.*?)```", part, re.DOTALL) for part in sections}
    return {heading: code for heading, code in found.items() if code}


class Reader:
    """Somebody who copies the page's code, section by section."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}

    def run(self, heading: str) -> None:
        for code in blocks("python")[heading]:
            with warnings.catch_warnings():
                # The client's own, about options of its storage client.
                warnings.simplefilter("ignore", DeprecationWarning)
                exec(compile(code, "docs/api.md", "exec"), self.names)


@pytest.fixture
def reader(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader with an account of their own, in a folder with a dataset, in a project with open Storage."""
    migrate(stage.project.database_url, storage_policies=True)
    mail = f"{uuid4().hex}@example.com"
    httpx.post(
        f"{stage.project.url}/auth/v1/signup",
        headers={"apikey": stage.project.publishable_key},
        json={"email": mail, "password": PASSWORD},
    ).raise_for_status()
    for name, value in (
        ("SUPABASE_URL", stage.project.url),
        ("SUPABASE_PUBLISHABLE_KEY", stage.project.publishable_key),
        ("MAIL", mail),
        ("PASSWORD", PASSWORD),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    really_sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: really_sleep(min(seconds, 0.3)))
    (tmp_path / "zebras.jsonl").write_bytes(b"\n".join([LINE] * 4))
    made = Reader()
    yield made
    if user := made.names.get("user_id"):
        for table in ("cost_records", "notifications", "model_artifacts", "training_jobs", "datasets", "training_runs"):
            stage.database.rows(f"delete from {table} where user_id = %s", user)
    if client := made.names.get("supabase"):
        client.auth.close()
        client.postgrest.session.close()
        client.storage.session.close()
    migrate(stage.project.database_url, storage_policies=False)


def test_the_pages_python_takes_a_file_to_its_adapter(reader: Reader, stage: Stage, tmp_path: Path) -> None:
    stage.worker()
    for heading in ("Sign in", "Store a dataset", "Queue a job", "Follow it", "Fetch the adapter"):
        reader.run(heading)
    names = reader.names
    assert names["job"]["status"] == "completed", names["job"]["error_message"]
    assert [point["step"] for point in names["points"]] == sorted(point["step"] for point in names["points"])
    fetched = {path.name: path.stat().st_size for path in (tmp_path / "adapter").iterdir()}
    assert set(fetched) == {Path(name).name for name in names["model"]["artifacts"]}
    assert all(fetched.values())
    reader.run("Cancel, and start again")
    assert names["cancelled"] is False
    assert names["answer"]["retried"] is False


def test_a_waiting_job_is_cancelled_and_started_again(reader: Reader, stage: Stage) -> None:
    for heading in ("Sign in", "Store a dataset", "Queue a job", "Cancel, and start again"):
        reader.run(heading)
    assert reader.names["cancelled"] is True
    assert reader.names["answer"] == {"retried": True, "reason": None}
    (job,) = stage.database.rows("select status from training_jobs where id = %s", reader.names["job_id"])
    assert job["status"] == "queued"


def test_each_section_shows_both_languages() -> None:
    assert {name: len(code) for name, code in blocks("python").items()} == {
        name: len(code) for name, code in blocks("js").items()
    }
