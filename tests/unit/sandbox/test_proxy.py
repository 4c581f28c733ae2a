"""The rewriting rules of the proxy in front of the local Supabase."""

import json
import time
from dataclasses import replace

import jwt
import pytest
from starlette.datastructures import MutableHeaders

from sandbox.supabase.proxy.keys import swap_keys
from sandbox.supabase.proxy.rest import iso_timestamps
from sandbox.supabase.proxy.settings import ProxySettings
from sandbox.supabase.proxy.storage import carries_object, sign_answer, sign_request, sign_upload_answer

SETTINGS = ProxySettings(
    port=1,
    upstream="http://127.0.0.1:2",
    jwt_secret="a" * 64,
    publishable_key="sb_publishable_public",
    secret_key="sb_secret_private",
)


def legacy_key(role: str, secret: str = SETTINGS.jwt_secret, lifetime_seconds: int = 60) -> str:
    claims = {"role": role, "exp": int(time.time()) + lifetime_seconds}
    return jwt.encode(claims, secret, algorithm="HS256")


def swapped(**headers: str) -> dict[str, str]:
    mutable = MutableHeaders(headers)
    swap_keys(mutable, SETTINGS)
    return dict(mutable)


@pytest.mark.parametrize(("role", "key"), [("anon", "publishable_key"), ("service_role", "secret_key")])
def test_a_legacy_key_becomes_the_new_key_of_its_role(role: str, key: str) -> None:
    legacy = legacy_key(role)
    assert swapped(apikey=legacy, authorization=f"Bearer {legacy}") == {"apikey": getattr(SETTINGS, key)}


def test_a_legacy_key_never_replaces_the_token_of_a_user() -> None:
    headers = swapped(apikey=legacy_key("anon"), authorization="Bearer eyJ.user")
    assert headers == {"apikey": SETTINGS.publishable_key, "authorization": "Bearer eyJ.user"}


@pytest.mark.parametrize(
    "forged",
    [
        legacy_key("service_role", secret="b" * 64),
        legacy_key("service_role", lifetime_seconds=-10),
        legacy_key("authenticated"),
        "eyJ.not.a-token",
    ],
)
def test_forged_expired_or_foreign_key_is_refused(forged: str) -> None:
    assert swapped(apikey=forged) == {"apikey": forged}


def test_a_new_key_repeated_as_bearer_token_is_dropped() -> None:
    assert swapped(apikey="sb_secret_x", authorization="Bearer sb_secret_x") == {"apikey": "sb_secret_x"}


@pytest.mark.parametrize(
    ("postgres", "iso"),
    [
        ("2026-11-23 17:46:14.2+00", "2026-11-23T17:46:14.2+00:00"),
        ("2026-11-23 17:46:14+05:30", "2026-11-23T17:46:14+05:30"),
        ("2026-11-23 17:46:14-03", "2026-11-23T17:46:14-03:00"),
    ],
)
def test_timestamps_become_iso_8601(postgres: str, iso: str) -> None:
    assert json.loads(iso_timestamps(json.dumps([{"at": postgres}]).encode())) == [{"at": iso}]


def test_a_timestamp_within_a_text_is_left_alone() -> None:
    body = json.dumps({"message": 'it said "2026-11-23 17:46:14+00" and 2026-11-23 17:46:14+00'}).encode()
    assert iso_timestamps(body) == body


def test_signed_urls_are_spelled_as_by_the_hosted_storage() -> None:
    assert json.loads(sign_request(b'{"expiresIn": "60"}')) == {"expiresIn": 60}
    assert json.loads(sign_answer(b'{"signedUrl": "/storage/v1/object/sign/b/p?token=t"}')) == {
        "signedURL": "/object/sign/b/p?token=t"
    }
    assert json.loads(sign_answer(b'[{"path": "p", "signedUrl": ""}]')) == [{"path": "p", "signedURL": None}]


def test_a_refusal_to_sign_passes_through() -> None:
    refusal = {"error": "not_found", "message": "Object not found"}
    assert json.loads(sign_answer(json.dumps(refusal).encode())) == refusal
    assert json.loads(sign_upload_answer(json.dumps(refusal).encode(), SETTINGS)) == refusal


def test_upload_url_expires_as_configured() -> None:
    claims = {"sub": "p", "iat": 1000, "exp": 2**40}
    token = jwt.encode(claims, SETTINGS.jwt_secret, algorithm="HS256")
    signed = json.dumps({"signedUrl": f"/storage/v1/object/upload/sign/b/p?token={token}"}).encode()
    answer = json.loads(sign_upload_answer(signed, replace(SETTINGS, upload_url_seconds=60)))
    assert answer["url"] == f"/object/upload/sign/b/p?token={answer['token']}"
    read = jwt.decode(answer["token"], SETTINGS.jwt_secret, algorithms=["HS256"], options={"verify_exp": False})
    assert read == {**claims, "exp": 1060}


@pytest.mark.parametrize(
    ("method", "path", "is_content"),
    [
        ("GET", "/storage/v1/object/lora-models/u/manifest.json", True),
        ("HEAD", "/storage/v1/object/sign/lora-models/u/manifest.json", True),
        ("GET", "/storage/v1/object/info/lora-models/u/manifest.json", False),
        ("POST", "/storage/v1/object/list/lora-models", False),
        ("GET", "/rest/v1/training_jobs", False),
    ],
)
def test_the_content_of_an_object_is_never_rewritten(method: str, path: str, is_content: bool) -> None:
    assert carries_object(method, path) is is_content
