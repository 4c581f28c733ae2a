"""An endpoint of webhooks that can't be used is refused with a sentence that shows no part of it."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from lora_worker.configuration.contradictions import contradictions
from lora_worker.configuration.texts import split_list
from lora_worker.configuration.webhooks import WebhookSettings, endpoints_fault, read_endpoint
from lora_worker.duties import webhooks
from lora_worker.observability.telemetry import secrets_of
from lora_worker.webhooks.sending import MOST_CONNECTIONS
from tests.scripted import make_services

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_no_delivery_waits_for_a_connection() -> None:
    most = MOST_CONNECTIONS // webhooks._MOST_AT_ONCE
    more = [SecretStr(f"https://hooks.example.com/{number} {SECRET}") for number in range(most + 1)]
    assert "holds more than" in (endpoints_fault(more) or ""), "each has as many connections as deliveries"


def test_endpoint_is_read_with_all_its_secrets_and_shows_none() -> None:
    endpoint = read_endpoint(f"https://hooks.example.com/in?token=geheim {SECRET} {SECRET}")
    assert endpoint.url == "https://hooks.example.com/in?token=geheim"
    assert [len(key) for key in endpoint.keys] == [24, 24]
    assert endpoint.name.startswith("hooks.example.com-")
    assert "geheim" not in repr(endpoint)
    assert "MfKQ" not in repr(endpoint)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"ftp://x/y {SECRET}", "endpoint number 1 begins with no URL"),
        ("https://x/geheim", "has 0 secrets"),
        (f"https://x/geheim {' '.join([SECRET] * 6)}", "has 6 secrets"),
        ("https://x/geheim whsec_short", "a secret that is not whsec_"),
        ("https://x/geheim whsec_%%%%", "a secret that is not whsec_"),
        (f"https://x/geheim {SECRET} https://y/geheim {SECRET}", "a comma is missing between two endpoints"),
        (f"https://x/geheim {SECRET[6:]}", "a secret that is not whsec_"),
        (f"https://{'x' * 500}/ {SECRET}", "up to 500 characters"),
        (f"https://x/a {SECRET}, https://x/a {SECRET}", "an endpoint twice"),
        (", ".join(f"https://x/{number} {SECRET}" for number in range(11)), "more than 10"),
    ],
)
def test_endpoint_that_is_none_is_refused_without_showing_it(text: str, fault: str) -> None:
    found = endpoints_fault(tuple(map(SecretStr, split_list(text))))
    assert found is not None
    assert fault in found
    assert "geheim" not in found
    assert "MfKQ" not in found


def test_public_address_is_https_and_leads_to_a_port() -> None:
    settings = make_services().settings
    for url in ("http://worker.example.com", "https://worker.example.com/?x=1", "https://", "worker.example.com"):
        with pytest.raises(ValidationError, match="must be https://"):
            WebhookSettings(public_url=url)
    assert WebhookSettings(public_url="https://worker.example.com/in/").public_url == "https://worker.example.com/in"
    without_port = {**dict(settings), "public_url": "https://worker.example.com", "http_port": 0}
    assert any("LORA_WORKER_HTTP_PORT" in sentence for sentence in contradictions(without_port))
    assert not any("PUBLIC_URL" in sentence for sentence in contradictions({**without_port, "http_port": 8080}))


def test_secrets_of_endpoints_are_kept_out_of_logs() -> None:
    text = SecretStr(f"https://hooks.example.com/in {SECRET}")
    settings = make_services().settings.model_copy(update={"webhooks": (text,)})
    assert SECRET in set(secrets_of(settings))
