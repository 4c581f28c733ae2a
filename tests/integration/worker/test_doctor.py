"""The doctor against a real project: it passes when migrated, and each fault made afterwards is reported."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from lora_worker.doctor.check import Check
from lora_worker.doctor.examine import examine
from lora_worker.launchers.base import EndpointHealth
from lora_worker.launchers.runpod_settings import RunPodSettings
from lora_worker.services import open_services
from sandbox.supabase import LocalSupabase
from tests.application.user import User
from tests.conftest import SANDBOX
from tests.scripted import GUIDE


class _Launcher:
    """A healthy endpoint; the doctor reads only its health."""

    name = "runpod"
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
    assert {check.subject for check in found} == {"database", "workers", "rights", "storage", "endpoint"}


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
        "the publishable key reads rows of datasets, training_jobs",
    ),
    "worker shut out": (
        "revoke execute on function settle_run, renew_dataset_claim from service_role",
        "grant execute on function settle_run, renew_dataset_claim to service_role",
        "service_role may not call settle_run (42501)",
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
async def test_doctor_finds_open_tables_and_small_buckets_with_a_remedy(
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
