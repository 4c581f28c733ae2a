"""Each key shows its role and project, and none is sent to a wrong address."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from lora_worker.configuration.keys import Role, read_key
from lora_worker.errors import SettingsError
from lora_worker.launchers.registry import load_settings


def jwt(**claims: Any) -> str:
    """A token with these claims. Its signature is invalid, since nothing here checks it."""
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    return f"{header}.{payload}.c2lnbmF0dXJl"


NOW = int(time.time())
SERVICE = jwt(role="service_role", iss="supabase", ref="abcdefghijkl", exp=NOW + 10**6)
ANON = jwt(role="anon", iss="supabase", ref="abcdefghijkl", exp=NOW + 10**6)
USER = jwt(role="authenticated", sub="someone", aud="authenticated", exp=NOW + 3600)


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("sb_secret_abc", Role.SECRET),
        (SERVICE, Role.SECRET),
        ("sb_publishable_abc", Role.PUBLISHABLE),
        (ANON, Role.PUBLISHABLE),
        (USER, Role.USER),
        (jwt(role="dashboard_user"), Role.OTHER_ROLE),
        (jwt(sub="nobody"), Role.OTHER_ROLE),
        (jwt(role=["anon"]), Role.OTHER_ROLE),
        ("rpa_ABC", Role.RUNPOD),
        ("sbp_abc", Role.COMMAND_LINE),
        ("hf_abc", Role.HUGGING_FACE),
        ("a.b.c", Role.UNKNOWN),
        ("eyJ.!!!.x", Role.UNKNOWN),
        ("eyJ." + base64.urlsafe_b64encode(b"[" * 9000).decode() + ".x", Role.UNKNOWN),
        ("plain", Role.UNKNOWN),
        ("", Role.UNKNOWN),
    ],
)
def test_key_shows_its_role_and_project(text: str, role: Role) -> None:
    assert read_key(text).role is role


@pytest.mark.parametrize("odd", ["soon", None, True, 10**400, -(10**13)])
def test_malformed_expiry_is_ignored(odd: Any) -> None:
    assert read_key(jwt(role="anon", exp=odd)).expires_at is None


_MISPLACED = {
    "the secret key as the public one": ("SUPABASE_PUBLISHABLE_KEY", "sb_secret_hidden", "secret key"),
    "the service_role JWT as the public one": ("SUPABASE_PUBLISHABLE_KEY", SERVICE, "secret key"),
    "a user's token as the public one": ("SUPABASE_PUBLISHABLE_KEY", USER, "user's access token"),
    "a JWT of another role as the public one": ("SUPABASE_PUBLISHABLE_KEY", jwt(role="x"), "another role"),
    "RunPod's as the public one": ("SUPABASE_PUBLISHABLE_KEY", "rpa_hidden", "a RunPod key"),
    "an expired public one": ("SUPABASE_PUBLISHABLE_KEY", jwt(role="anon", exp=NOW - 10), "has expired"),
    "the public key as the secret one": ("SUPABASE_SERVICE_ROLE_KEY", "sb_publishable_hidden", "publishable key"),
    "the anon JWT as the secret one": ("SUPABASE_SERVICE_ROLE_KEY", ANON, "publishable key"),
    "a user's token as the secret one": ("SUPABASE_SERVICE_ROLE_KEY", USER, "user's access token"),
    "RunPod's as the secret one": ("SUPABASE_SERVICE_ROLE_KEY", "rpa_hidden", "a RunPod key"),
    "a token of the CLI as the secret one": ("SUPABASE_SERVICE_ROLE_KEY", "sbp_hidden", "command line"),
    "an expired secret one": ("SUPABASE_SERVICE_ROLE_KEY", jwt(role="service_role", exp=NOW - 10), "has expired"),
    "the secret key as RunPod's": ("GPU_CLUSTER_API_KEY", "sb_secret_hidden", "secret key"),
    "the service_role JWT as RunPod's": ("GPU_CLUSTER_API_KEY", SERVICE, "secret key"),
    "the public key as RunPod's": ("GPU_CLUSTER_API_KEY", "sb_publishable_hidden", "publishable key"),
    "Hugging Face's as RunPod's": ("GPU_CLUSTER_API_KEY", "hf_hidden", "Hugging Face"),
    "the public key as the tokens' secret": ("LORA_WORKER_TOKEN_SECRET", "sb_publishable_" + "x" * 40, "publishable"),
    "the anon JWT as the tokens' secret": ("LORA_WORKER_TOKEN_SECRET", ANON, "publishable"),
}


@pytest.mark.parametrize("case", _MISPLACED)
def test_a_key_in_the_wrong_variable_is_refused_at_start_and_not_shown(
    environment: pytest.MonkeyPatch, case: str
) -> None:
    variable, value, words = _MISPLACED[case]
    environment.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"{variable}[^.]*{words}") as caught:
        load_settings()
    text = str(caught.value)
    assert not any(part in text for part in ("hidden", *value.split(".")))
    assert text.count("holds") + text.count("expired") == 1


def test_both_kinds_of_keys_are_accepted(environment: pytest.MonkeyPatch) -> None:
    assert load_settings()
    environment.setenv("SUPABASE_URL", "https://abcdefghijkl.supabase.co")
    environment.setenv("SUPABASE_SERVICE_ROLE_KEY", SERVICE)
    environment.setenv("SUPABASE_PUBLISHABLE_KEY", ANON)
    environment.setenv("GPU_CLUSTER_API_KEY", "AN0LDERKEYWITHOUTPREFIX")
    assert load_settings()


@pytest.mark.parametrize("variable", ["SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_PUBLISHABLE_KEY"])
def test_a_key_of_another_project_is_refused_at_start(environment: pytest.MonkeyPatch, variable: str) -> None:
    environment.setenv(variable, SERVICE if "SERVICE" in variable else ANON)
    environment.setenv("SUPABASE_URL", "https://abcdefghijkl.supabase.co")
    assert load_settings()
    environment.setenv("SUPABASE_URL", "https://mnopqrstuvwx.supabase.co")
    with pytest.raises(SettingsError, match=rf"{variable}[^.]* another project than SUPABASE_URL"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "url", "words"),
    [
        ("SUPABASE_URL", "https://api.runpod.ai/v2/abc", "RunPod's address"),
        ("SUPABASE_URL", "https://supabase.com/dashboard/project/abc", "dashboard's address"),
        ("SUPABASE_URL", "https://db.abc.supabase.co", "database's address"),
        ("GPU_CLUSTER_API_URL", "https://abc.supabase.co", "Supabase's address"),
        ("GPU_CLUSTER_API_URL", "https://console.runpod.io/serverless", "console's address"),
    ],
)
def test_no_key_is_sent_to_the_address_of_another_service(
    environment: pytest.MonkeyPatch, variable: str, url: str, words: str
) -> None:
    environment.setenv(variable, url)
    with pytest.raises(SettingsError, match=rf"^{variable}: is (the )?{words}"):
        load_settings()
