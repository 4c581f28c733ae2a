"""No secret is logged."""

from __future__ import annotations

import json

import pytest
import structlog

from lora_contract.redaction import redact
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.observability.telemetry import configure_logging

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "secret",
    [JWT, "sb_secret_abc123", "sb_publishable_abc123", "rpa_ABC123", f"Bearer {JWT}", "https://x/y?token=abc.def&z=1"],
)
def test_keys_and_signatures_of_urls_are_redacted(secret: str) -> None:
    shown = redact(f"before {secret} after")
    for part in ("abc", "ABC", "c2lnbmF0dXJl"):
        assert part not in shown
    assert shown.startswith("before ")


@pytest.fixture
def _restored_logging() -> object:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_restored_logging")
@pytest.mark.fault(58)
def test_log_line_contains_no_configured_key(
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = RunPodSettings(
        supabase_url="http://x",
        supabase_service_role_key="plain-service-key",
        supabase_publishable_key="plain-pub-key",
        gpu_cluster_api_url="http://x",
        gpu_cluster_api_key="plain-gpu-key",
        token_secret="plain-token-secret-of-thirty-two-characters",
        previous_token_secrets=("plain-former-secret",),
        log_format="json",
        _env_file=None,
    )
    import sys

    configure_logging(settings)
    log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
    try:
        raise RuntimeError("refused plain-service-key")  # noqa: TRY301 (its traceback is what is logged)
    except RuntimeError:
        log.exception(
            "it broke with plain-gpu-key",
            url="http://x?token=abc",
            deep={"list": ["plain-pub-key", JWT]},
            more=["plain-token-secret-of-thirty-two-characters", "plain-former-secret"],
        )
    line = capfd.readouterr().err
    assert json.loads(line)["event"] == "it broke with [secret]"
    for secret in (
        "plain-service-key",
        "plain-pub-key",
        "plain-gpu-key",
        "plain-token",
        "plain-former",
        "token=abc",
        JWT,
    ):
        assert secret not in line
