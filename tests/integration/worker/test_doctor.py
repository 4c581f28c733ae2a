"""The doctor against a real project: it passes when migrated, and each fault made afterwards is reported."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from lora_worker.doctor.check import Check
from lora_worker.doctor.examine import examine
from lora_worker.doctor.project import GUARDED_TABLES
from lora_worker.launchers.base import EndpointHealth
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.services import open_services
from sandbox.supabase import LocalSupabase
from tests.application.user import User
from tests.conftest import SANDBOX
from tests.scripted import GUIDE


class _Launcher:
    """A healthy endpoint that serves what is trained there."""

    name = "runpod"
    takes_errands = True
    guide = GUIDE
    endpoint = "http://127.0.0.1:1/v2/none"

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        return EndpointHealth(reachable=True, workers=1, jobs_queued=0)


@pytest.fixture(scope="module")
def project() -> Iterator[LocalSupabase]:
    """A project with a worker that these tests may break; each test repairs what it broke."""
    with LocalSupabase.start(SANDBOX) as started:
        with psycopg.connect(started.database_url, autocommit=True) as connection:
            connection.execute("select public.report_worker('w', '{\"slots\": 20, \"held\": 0}')")
        yield started


async def findings(project: LocalSupabase) -> list[Check]:
    settings = RunPodSettings(
        supabase_url=project.url,
        supabase_service_role_key=project.secret_key,
        supabase_publishable_key=project.publishable_key,
        gpu_cluster_api_url="http://127.0.0.1:1/v2/none",
        gpu_cluster_api_key="none",
    )
    async with open_services(settings, launcher=_Launcher()) as services:
        return await examine(services)


async def failures(project: LocalSupabase) -> dict[str, str]:
    """The faults that the doctor reports, each with its remedy."""
    return {check.finding: check.remedy for check in await findings(project) if not check.ok}


async def test_doctor_finds_nothing_wrong_with_a_migrated_project(
    project: LocalSupabase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # With rows and files that a missing restriction would expose.
    user = User(project, tmp_path_factory.mktemp("user"))
    user.queue()
    user.close()
    found = await findings(project)
    assert all(check.ok for check in found), found
    assert {check.subject for check in found} == {"database", "workers", "clock", "rights", "storage", "endpoint"}


# How it is broken, how it is repaired, and what the doctor reports.
_FAULTS = {
    "public bucket": (
        "update storage.buckets set public = true where id = 'lora-models'",
        "update storage.buckets set public = false where id = 'lora-models'",
        "the bucket lora-models is public",
    ),
    "small bucket": (
        "update storage.buckets set file_size_limit = 52428800 where id = 'lora-models'",
        "update storage.buckets set file_size_limit = 5368709120 where id = 'lora-models'",
        "the bucket lora-models takes files up to 50 MB",
    ),
    "bucket gone": (
        "update storage.buckets set id = 'away', name = 'away' where id = 'training-files'",
        "update storage.buckets set id = 'training-files', name = 'training-files' where id = 'away'",
        "the bucket training-files is missing",
    ),
    "bucket open": (
        "create policy everybody on storage.objects for select to anon using (bucket_id = 'lora-datasets')",
        "drop policy everybody on storage.objects",
        "the publishable key lists the files of lora-datasets",
    ),
    "tables open": (
        "alter table datasets disable row level security; alter table training_jobs disable row level security;"
        " grant select on datasets, training_jobs to anon",
        "alter table datasets enable row level security; alter table training_jobs enable row level security;"
        " revoke select on datasets, training_jobs from anon",
        "row level security is off on datasets, training_jobs",
    ),
    "policy for everybody": (
        "create policy everybody on datasets for select using (true); grant select on datasets to anon",
        "drop policy everybody on datasets; revoke select on datasets from anon",
        "the policy “everybody” opens public.datasets to every public (select)",
    ),
    "policy for every user": (
        "create policy members on training_jobs for select to authenticated using (true)",
        "drop policy members on training_jobs",
        "the policy “members” opens public.training_jobs to every authenticated (select)",
    ),
    "files for every user": (
        "create policy members on storage.objects for select to authenticated using (bucket_id = 'lora-models')",
        "drop policy members on storage.objects",
        "the policy “members” opens storage.objects to every authenticated (select)",
    ),
    "bucket without json": (
        "update storage.buckets set allowed_mime_types = '{application/octet-stream}' where id = 'lora-models'",
        "update storage.buckets set allowed_mime_types = null where id = 'lora-models'",
        "the bucket lora-models does not take application/json",
    ),
    "worker's function open to anon": (
        "grant execute on function settle_run_2 to anon",
        "revoke execute on function settle_run_2 from anon",
        "anon may call settle_run_2",
    ),
    "worker's function open to users": (
        "grant execute on function queue_health to authenticated",
        "revoke execute on function queue_health from authenticated",
        "authenticated may call queue_health",
    ),
    "inner function open to everybody": (
        "grant execute on function training_bill_run to public",
        "revoke execute on function training_bill_run from public",
        "anon may call training_bill_run",
        "authenticated may call training_bill_run",
    ),
    "new functions open by default": (
        "alter default privileges in schema public grant execute on functions to anon",
        "alter default privileges in schema public revoke execute on functions from anon",
        "each new function that postgres makes in public is open to anon (the default until 2026-10-30)",
    ),
    "webhook on the queue": (
        "create function call_dispatcher() returns trigger language plpgsql as"
        " $$ begin perform net.http_post(url := 'https://elsewhere'); return new; end $$;"
        " create trigger dispatch after insert on training_jobs for each row when (false)"
        " execute function call_dispatcher()",
        "drop trigger dispatch on training_jobs; drop function call_dispatcher()",
        "the trigger “dispatch” works on training_jobs, too",
    ),
    "schedule over the queue": (
        "create schema cron; create table cron.job (jobid bigint, jobname text, command text, active boolean);"
        " insert into cron.job values (1, 'process-training-jobs', 'select * from training_jobs', true)",
        "drop schema cron cascade",
        "the schedule “process-training-jobs” works on training_jobs, too",
    ),
    "job taken by somebody else": (
        "alter table training_jobs disable trigger user;"
        " update training_jobs set status = 'running' where id = (select id from training_jobs limit 1)",
        "update training_jobs set status = 'queued'; alter table training_jobs enable trigger user",
        "1 job began that no worker has taken: another program dispatches this queue",
    ),
    "runs without a worker": (
        "select claim_training_jobs('gone', 1, 60, 5);"
        " update training_runs set lease_expires_at = now() - interval '1 hour'",
        "delete from training_runs; update training_jobs set status = 'queued'",
        "live runs without a worker: 1",
    ),
    "launch without a run": (
        "select claim_training_jobs('gone', 1, 60, 5);"
        " insert into training_launches (run_id, launcher, endpoint, external_job_id, posted_at)"
        " select id, 'runpod', 'http://127.0.0.1:1/v2/none', 'stray', now() from training_runs;"
        " update training_runs set status = 'lost', ended_at = now()",
        "delete from training_runs; update training_jobs set status = 'queued'",
        "launches that cost money without a run: 1",
    ),
    "worker with a problem": (
        'select report_worker(\'ill\', \'{"slots": 20, "held": 0, "problem": "no bucket"}\')',
        "delete from training_workers where name = 'ill'",
        "ill: no bucket",
    ),
    "no worker": (
        "update training_workers set seen_at = now() - interval '2 hours', started_at = now() - interval '3 hours'",
        "update training_workers set seen_at = now()",
        "none has been seen for 2 h",
    ),
    "worker shut out": (
        "revoke execute on function settle_run_2, renew_dataset_claim from service_role",
        "grant execute on function settle_run_2, renew_dataset_claim to service_role",
        "service_role may not call settle_run_2 (42501)",
        "service_role may not call renew_dataset_claim (42501)",
    ),
    "trainer shut out": (
        "revoke execute on function check_in_run from anon",
        "grant execute on function check_in_run to anon",
        "anon may not call check_in_run (42501)",
    ),
}


@pytest.mark.parametrize("fault", _FAULTS)
@pytest.mark.fault(56)
async def test_doctor_names_each_fault_with_a_remedy_and_nothing_else(
    project: LocalSupabase,
    tmp_path_factory: pytest.TempPathFactory,
    fault: str,
) -> None:
    broken, mended, *findings = _FAULTS[fault]
    user = User(project, tmp_path_factory.mktemp("user"))
    user.queue()
    user.close()
    with psycopg.connect(project.database_url, autocommit=True) as connection:
        connection.execute(broken.encode())
        try:
            found = await failures(project)
        finally:
            connection.execute(mended.encode())
    assert set(found) == set(findings)
    assert all(found.values())


def test_doctor_guards_every_table_of_ours(project: LocalSupabase) -> None:
    with psycopg.connect(project.database_url) as connection:
        tables = {name for (name,) in connection.execute("select tablename from pg_tables where schemaname = 'public'")}
    assert tables - set(GUARDED_TABLES) == set()
