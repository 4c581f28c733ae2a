"""An endpoint of webhooks that can't be used is refused with a sentence that shows no part of it."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from lora_worker.configuration.webhooks import endpoints_fault, read_endpoint, split_endpoints

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


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
        (f"https://x/geheim {SECRET[6:]}", "a secret that is not whsec_"),
        (f"https://{'x' * 500}/ {SECRET}", "up to 500 characters"),
        (f"https://x/a {SECRET}, https://x/a {SECRET}", "an endpoint twice"),
        (", ".join(f"https://x/{number} {SECRET}" for number in range(11)), "more than 10"),
    ],
)
def test_endpoint_that_is_none_is_refused_without_showing_it(text: str, fault: str) -> None:
    found = endpoints_fault(tuple(map(SecretStr, split_endpoints(text))))
    assert found is not None
    assert fault in found
    assert "geheim" not in found
    assert "MfKQ" not in found
