"""A wrong setting is named in one sentence without its value."""

from __future__ import annotations

import re

import pytest

from lora_worker.commands.setup import setting_rows
from lora_worker.configuration.settings import variable_of
from lora_worker.errors import SettingsError
from lora_worker.launchers.registry import LAUNCHERS, load_settings
from lora_worker.launchers.runpod.settings import RunPodSettings
from tests.unit.worker.variables import SETTINGS


def test_the_five_variables_are_enough(environment: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    assert settings.supabase_url == "https://p.supabase.co"
    assert settings.supabase_service_role_key.get_secret_value() == "sb_secret_abcdef"


def test_runpods_own_variable_names_are_accepted(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("GPU_CLUSTER_API_URL")
    environment.delenv("GPU_CLUSTER_API_KEY")
    environment.setenv("RUNPOD_ENDPOINT_ID", "abc")
    environment.setenv("RUNPOD_API_KEY", "rpa_x")
    settings = load_settings()
    assert isinstance(settings, RunPodSettings)
    assert settings.gpu_cluster_api_url == "https://api.runpod.ai/v2/abc"


@pytest.mark.parametrize("name", ["fleet", "", None])
def test_every_process_has_a_unique_name(environment: pytest.MonkeyPatch, name: str | None) -> None:
    """Leases are released by the worker's name, so two processes must never share one."""
    environment.delenv("LORA_WORKER_NAME", raising=False)
    if name is not None:
        environment.setenv("LORA_WORKER_NAME", name)
    first, second = load_settings(), load_settings()
    assert first.name != second.name
    assert re.fullmatch(rf"{name or '.+'}-[0-9a-f]{{8}}", first.name)


@pytest.mark.parametrize("missing", SETTINGS)
@pytest.mark.fault(13)
def test_missing_variable_is_named(environment: pytest.MonkeyPatch, missing: str) -> None:
    environment.delenv(missing)
    with pytest.raises(SettingsError, match=missing):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SUPABASE_URL", "p.supabase.co"),
        ("SUPABASE_SERVICE_ROLE_KEY", "  sb_secret_hidden"),
        ("SUPABASE_PUBLISHABLE_KEY", "sb_secret_abcdef"),
        ("LORA_WORKER_POLL_SECONDS", "-1"),
        ("LORA_WORKER_SLOTS", "many"),
        ("LORA_WORKER_LEASE_SECONDS", "1"),
        ("LORA_WORKER_LOG_LEVEL", "loud"),
    ],
)
def test_wrong_variable_is_named_without_its_value(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        load_settings()
    assert "sb_secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["SUPABASE_URL", "GPU_CLUSTER_API_URL"])
@pytest.mark.parametrize(
    "url",
    [
        *("https://", "https://[abc", "https://x:port", "https://x:99999", "https://.supabase.co", "https://a b.co"),
        *("https://u:s3cr3t@p.supabase.co", "https://p.supabase.co?x=1", f"https://{'x' * 64}.co"),
    ],
)
def test_unusable_url_is_named_at_the_start(environment: pytest.MonkeyPatch, name: str, url: str) -> None:
    environment.setenv(name, url)
    with pytest.raises(SettingsError, match=rf"^{name}: is not a URL to call: .*\.$") as caught:
        load_settings()
    assert url not in str(caught.value)


def test_an_empty_supabase_url_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SUPABASE_URL", "")
    with pytest.raises(SettingsError, match=r"SUPABASE_URL: is empty"):
        load_settings()


@pytest.mark.parametrize("url", ["http://127.0.0.1:54321", "http://[::1]:54321", "https://x_y.co/", "http://host/sub"])
def test_local_url_and_url_with_a_path_are_accepted(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("SUPABASE_URL", url)
    assert load_settings().supabase_url == url.rstrip("/")


@pytest.mark.parametrize("name", ["SUPABASE_URL", "GPU_CLUSTER_API_URL", "LORA_WORKER_RUNPOD_API_URL"])
@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "134744072", "[2001:4860:4860::8888]", "svc.example"])
def test_no_key_goes_to_a_public_host_in_clear(environment: pytest.MonkeyPatch, name: str, host: str) -> None:
    environment.setenv(name, f"http://{host}/v2")
    with pytest.raises(SettingsError, match=rf"^{name}: must begin with https://: by http all"):
        load_settings()


@pytest.mark.parametrize(
    "host",
    [
        *(
            "kong:8000",
            "10.0.0.1",
            "192.168.1.5:8000",
            "100.64.0.1",
            "gpu.lan",
            "host.docker.internal",
            "localhost.:8000",
        ),
        *("kong.supabase.svc:8000", "supabase.test", "a.localdomain", "a.home", "a.intranet", "gpu.tail1234.ts.net"),
    ],
)
def test_http_is_allowed_in_a_private_network(environment: pytest.MonkeyPatch, host: str) -> None:
    environment.setenv("SUPABASE_URL", f"http://{host}")
    assert load_settings().supabase_url == f"http://{host}"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("ghcr.io/x/y:1", "is no image in ECR"),
        (
            "123456789012.dkr.ecr.us-east-1.amazonaws.com/t:1",
            "is in us-east-1, and SageMaker pulls from the ECR of its own",
        ),
    ],
)
def test_image_that_sagemaker_cannot_pull_is_refused(environment: pytest.MonkeyPatch, image: str, said: str) -> None:
    environment.setenv("LORA_WORKER_LAUNCHER", "sagemaker")
    environment.setenv("LORA_WORKER_SAGEMAKER_REGION", "eu-west-1")
    environment.setenv("LORA_WORKER_SAGEMAKER_ROLE", "arn:aws:iam::123456789012:role/trainer")
    environment.setenv("LORA_WORKER_SAGEMAKER_S3_PATH", "s3://bucket/prefix")
    environment.setenv("LORA_WORKER_SAGEMAKER_IMAGE", image)
    with pytest.raises(SettingsError, match=said):
        load_settings()


@pytest.mark.parametrize("image", ["me/trainer", "me/trainer:latest", "registry:5000/trainer"])
def test_pods_image_has_a_tag_that_never_moves(environment: pytest.MonkeyPatch, image: str) -> None:
    environment.setenv("LORA_WORKER_LAUNCHER", "runpod-pods")
    environment.setenv("LORA_WORKER_RUNPOD_PODS_IMAGE", image)
    with pytest.raises(SettingsError, match="RUNPOD_PODS_IMAGE: has no tag, or the tag latest"):
        load_settings()


def test_each_setting_names_the_launchers_that_read_it() -> None:
    rows = {row["variable"]: row for row in setting_rows()}
    assert rows["LORA_WORKER_LAUNCHER"]["meaning"].endswith(", ".join(LAUNCHERS))
    assert rows["LORA_WORKER_VERTEX_BUCKET"]["meaning"].endswith("; for LORA_WORKER_LAUNCHER=vertex")
    assert rows["LORA_WORKER_VERTEX_REGION"]["default"] == "required with its launcher"
    assert rows["SUPABASE_URL"]["default"] == "required"


def test_keys_are_not_shown_by_repr(environment: pytest.MonkeyPatch) -> None:
    assert "abcdef" not in repr(load_settings())


def test_every_setting_has_a_description() -> None:
    for kind in LAUNCHERS.values():
        for name, field in kind.settings.model_fields.items():
            assert field.description, name
            assert variable_of(name, kind.settings)


def test_empty_limit_for_a_user_means_none(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORA_WORKER_MAX_PER_USER", "")
    assert load_settings().max_per_user is None


def test_token_secrets_are_optional_listed_and_long(environment: pytest.MonkeyPatch) -> None:
    assert load_settings().token_secret is None
    environment.setenv("LORA_WORKER_TOKEN_SECRET", "")
    environment.setenv("LORA_WORKER_PREVIOUS_TOKEN_SECRETS", "eyJold, sb_secret_older")
    settings = load_settings()
    assert settings.token_secret is None
    assert [secret.get_secret_value() for secret in settings.previous_token_secrets] == ["eyJold", "sb_secret_older"]
    assert "eyJold" not in repr(settings)
    environment.setenv("LORA_WORKER_TOKEN_SECRET", "hidden")
    with pytest.raises(SettingsError, match="LORA_WORKER_TOKEN_SECRET: is shorter") as wrong:
        load_settings()
    assert "hidden" not in str(wrong.value)


def test_run_and_its_wait_for_a_gpu_fit_into_runpods_seven_days(environment: pytest.MonkeyPatch) -> None:
    """RunPod deletes a running job whose ttl does not include its wait in the queue."""
    environment.setenv("LORA_WORKER_MAX_RUN_SECONDS", "604800")
    with pytest.raises(SettingsError, match="LORA_WORKER_QUEUE_ALLOWANCE_SECONDS") as wrong:
        load_settings()
    assert "LORA_WORKER_MAX_RUN_SECONDS" in str(wrong.value)
    assert str(wrong.value).count(". ") == 0
    environment.setenv("LORA_WORKER_MAX_RUN_SECONDS", "518400")
    assert load_settings().queue_allowance_seconds == 86400


@pytest.mark.parametrize(
    ("launcher", "name", "value", "example"),
    [
        ("sagemaker", "LORA_WORKER_SAGEMAKER_REGION", "mars-1", "eu-west-1"),
        ("sagemaker", "LORA_WORKER_SAGEMAKER_ROLE", "admin", "arn:aws:iam::123456789012:role/NAME"),
        ("sagemaker", "LORA_WORKER_SAGEMAKER_S3_PATH", "bucket", "s3://BUCKET/PREFIX"),
        ("vertex", "LORA_WORKER_VERTEX_BUCKET", "gs://bucket", "without gs://"),
        ("skypilot", "LORA_WORKER_SKYPILOT_IMAGE", "x", "ghcr.io/OWNER/lora-trainer:TAG"),
        ("runpod-pods", "LORA_WORKER_RUNPOD_PODS_MIN_CUDA", "twelve", "such as 12.6"),
    ],
)
def test_setting_of_a_wrong_form_is_told_with_an_example(
    environment: pytest.MonkeyPatch, launcher: str, name: str, value: str, example: str
) -> None:
    environment.setenv("LORA_WORKER_LAUNCHER", launcher)
    environment.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    sentence = str(caught.value).partition(f"{name}: ")[2].partition(". ")[0]
    assert example in sentence
    assert "^" not in sentence
    assert value not in sentence.split(":")[0]
