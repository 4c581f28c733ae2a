"""The worker's variables get into .env beside its other lines, readable by its owner alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_worker.deployment.resources import Endpoint
from lora_worker.deployment.variables import job_url, merge_variables, write_variables
from lora_worker.errors import DeploymentError, SettingsError

NEW = {"GPU_CLUSTER_API_URL": "https://api.runpod.ai/v2/ep", "LORA_WORKER_ENDPOINT_GPU_COUNT": "2"}


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("", "GPU_CLUSTER_API_URL=https://api.runpod.ai/v2/ep\nLORA_WORKER_ENDPOINT_GPU_COUNT=2\n"),
        ("A=1", "A=1\nGPU_CLUSTER_API_URL=https://api.runpod.ai/v2/ep\nLORA_WORKER_ENDPOINT_GPU_COUNT=2\n"),
        (
            "# a comment\nKEY='multi\nline'\n\nexport GPU_CLUSTER_API_URL='old' # why\n"
            "LORA_WORKER_ENDPOINT_GPU_COUNT=1\n# end",
            "# a comment\nKEY='multi\nline'\n\nexport GPU_CLUSTER_API_URL=https://api.runpod.ai/v2/ep\n"
            "LORA_WORKER_ENDPOINT_GPU_COUNT=2\n# end",
        ),
        (
            "GPU_CLUSTER_API_URL=a\nX=1\nGPU_CLUSTER_API_URL=b\nLORA_WORKER_ENDPOINT_GPU_COUNT=2",
            "GPU_CLUSTER_API_URL=https://api.runpod.ai/v2/ep\nX=1\nGPU_CLUSTER_API_URL=https://api.runpod.ai/v2/ep\n"
            "LORA_WORKER_ENDPOINT_GPU_COUNT=2",
        ),
    ],
)
def test_other_lines_of_the_env_file_stay_as_they_are(text: str, merged: str) -> None:
    assert merge_variables(text, NEW) == merged
    assert merge_variables(merged, NEW) == merged


def test_the_env_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("SUPABASE_SERVICE_ROLE_KEY=secret\n")
    path.chmod(0o644)
    assert write_variables(NEW, path)
    assert path.read_text().startswith("SUPABASE_SERVICE_ROLE_KEY=secret\n")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert not write_variables(NEW, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [".env"]


def test_a_linked_env_file_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "shared.env", tmp_path / ".env"
    target.write_text("A=1\n")
    link.symlink_to(target)
    write_variables(NEW, link)
    assert link.is_symlink()
    assert "GPU_CLUSTER_API_URL" in target.read_text()


def test_an_env_file_that_can_not_be_written_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"can't be written \(No such file or directory\)"):
        write_variables(NEW, tmp_path / "missing" / ".env")


def endpoint(url: str | None) -> Endpoint:
    return Endpoint.model_validate({"id": "ep1", "requestUrls": {"run": url}})


def test_the_address_of_jobs_is_that_of_the_answer() -> None:
    assert job_url(endpoint("https://api.runpod.ai/v2/ep1/run")) == "https://api.runpod.ai/v2/ep1"
    assert job_url(endpoint("http://127.0.0.1:81/v2/ep1/run")) == "http://127.0.0.1:81/v2/ep1"
    assert job_url(endpoint(None)) == "https://api.runpod.ai/v2/ep1"


@pytest.mark.parametrize(
    "url", ["http://api.runpod.ai/v2/ep/run", "ftp://x/run", "https://x/ep\nKEY=1/run", "https://u:p@x/ep/run", "x"]
)
def test_no_key_is_sent_to_an_unsafe_address(url: str) -> None:
    with pytest.raises(DeploymentError, match="no key can be sent safely"):
        job_url(endpoint(url))
