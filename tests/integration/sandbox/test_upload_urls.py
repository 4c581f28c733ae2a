"""Upload URLs stay valid for hours after a run has ended, so settled files are never stored at their paths."""

from __future__ import annotations

from uuid import UUID

import httpx

from lora_contract.grants import open_urls
from lora_worker.configuration.tokens import RunTokens
from tests.processes.stage import Stage


def _granted_urls(stage: Stage, job_id: str) -> dict[str, str]:
    """The upload URLs that the run's trainer holds, as the trainer opens them."""
    (run,) = stage.runs(job_id)
    token = RunTokens([stage.project.secret_key]).of(UUID(run["id"]), run["token_sha256"])
    assert token is not None
    return open_urls(token, run["upload_grant"])


def test_old_upload_urls_cannot_change_a_settled_model(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=5)
    worker = stage.worker(LORA_CRASH="worker.grant.after=kill")
    assert stage.dies(worker) != 0
    urls = _granted_urls(stage, job_id)
    stage.gpus_free(job_id)
    stage.expire_leases()
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    paths = stage.user.artifact(job_id)["artifacts"].values()
    kept = {path: stage.user.stored(path) for path in paths}
    assert len(urls) == len(kept) > 2
    for url in urls.values():
        put = httpx.put(url, content=b"{}", headers={"content-type": "application/json", "x-upsert": "true"})
        assert put.status_code == httpx.codes.OK, put.text
    assert {path: stage.user.stored(path) for path in paths} == kept
    assert None not in kept.values()
    assert b"{}" not in [kept[path] for path in paths if path.endswith("manifest.json")]


def test_next_worker_resumes_an_interrupted_copy_of_an_artifact(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=5)
    for point in ("worker.keep.after_file", "worker.keep.before_manifest", "worker.keep.after_manifest"):
        worker = stage.worker(LORA_CRASH=f"{point}=kill")
        assert stage.dies(worker) != 0
        stage.expire_leases()
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert len(stage.runs(job_id)) == 1
    artifact = stage.user.artifact(job_id)["artifacts"]
    assert all(stage.user.stored(path) for path in artifact.values())


def test_uploads_are_removed_once_no_run_and_no_url_can_use_them(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=5)
    stage.worker(LORA_WORKER_POLL_SECONDS="0.4")
    assert stage.ended(job_id)["status"] == "completed"
    (run,) = stage.runs(job_id)
    staged = f"uploads/{run['id']}/manifest.json"
    stage.one_pass()
    assert stage.user.stored(staged) is not None
    stage.database.rows("update training_runs set ended_at = now() - interval '4 hours' where id = %s", run["id"])
    stage.one_pass()
    assert stage.user.stored(staged) is not None
    stage.database.rows(
        "update storage.objects set updated_at = now() - interval '4 hours' where name like %s",
        f"uploads/{run['id']}/%",
    )
    stage.one_pass()
    assert stage.user.stored(staged) is None
    assert all(stage.user.stored(path) for path in stage.user.artifact(job_id)["artifacts"].values())
