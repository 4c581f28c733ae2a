"""No request without the token succeeds, from wherever it comes."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from itsdangerous import TimestampSigner
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from lora_worker.dashboard.access import HEADERS, SESSION_SECONDS, Access, make_token
from lora_worker.dashboard.app import ROUTES
from lora_worker.dashboard.rendering import STATIC_FOLDER
from tests.unit.worker.dashboard.scripted import (
    TOKEN,
    Clock,
    ScriptedDatabase,
    job,
    make_page,
    signed_in,
    stranger,
)

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def every_path() -> list[str]:
    """A path of each route of the application, each static file, and some that no route has."""
    paths = ["/nothing", "/static/", "/static/../access.py", "/%2e%2e/"]
    for route in ROUTES:
        if isinstance(route, Mount):
            paths += [f"{route.path}/{file.relative_to(STATIC_FOLDER)}" for file in STATIC_FOLDER.rglob("*")]
        else:
            assert isinstance(route, Route)
            filled = route.path.replace("{job_id:uuid}", str(UUID(int=1))).replace("{run_id:uuid}", str(UUID(int=2)))
            paths += [filled.replace("{action}", action) for action in ("cancel", "retry", "hold", "release", "resume")]
    return sorted(set(paths))


@pytest.mark.parametrize("path", every_path())
def test_no_route_answers_without_the_token(app: Starlette, database: ScriptedDatabase, path: str) -> None:
    browser = stranger(app)
    for method in METHODS:
        for headers in ({}, {"Cookie": "lora_worker_dashboard_8642=x"}, {"Authorization": f"Bearer {TOKEN}"}):
            answer = browser.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert "set-cookie" not in answer.headers
    assert database.calls == []


def test_every_route_is_behind_the_guard(app: Starlette) -> None:
    assert [route.path for route in app.routes] == [route.path for route in ROUTES]
    assert len(every_path()) > len(ROUTES)


@pytest.mark.parametrize("given", ["", "wrong", TOKEN[:-1], TOKEN + "t", TOKEN.upper(), "\udcff"])
def test_wrong_token_opens_nothing(app: Starlette, given: str) -> None:
    browser = stranger(app)
    answer = browser.get("/", params={"token": given.encode(errors="surrogateescape")})
    assert answer.status_code == 401
    assert browser.get("/").status_code == 401


def test_token_in_the_url_becomes_a_strict_cookie(app: Starlette) -> None:
    browser = stranger(app)
    answer = browser.get(f"/?token={TOKEN}")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie + answer.text
    assert browser.get("/").status_code == 200


def test_token_is_only_taken_at_the_first_page(app: Starlette) -> None:
    assert stranger(app).get(f"/jobs?token={TOKEN}").status_code == 401
    assert stranger(app).post(f"/?token={TOKEN}").status_code == 401


def test_session_of_another_token_is_refused(database: ScriptedDatabase, clock: Clock) -> None:
    other = Access(make_token(), 8642)
    browser = stranger(make_page(database, clock))
    browser.cookies.set(other.cookie, other.new_session())
    assert browser.get("/").status_code == 401


def test_session_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(TOKEN, 1)
    session = access.new_session()
    assert access.holds(session)
    begun = TimestampSigner(TOKEN).get_timestamp()
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda _: begun + SESSION_SECONDS + 60)
    assert not access.holds(session)


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://127.0.0.1:8642", 200),
        ("http://localhost:8642", 200),
        ("http://[::1]:8642", 200),
        ("http://192.168.1.5:8642", 200),
        ("http://Box.Local:8642", 200),
        ("http://attacker.example:8642", 400),
        ("http://127.0.0.1.attacker.example:8642", 400),
        ("http://localhost.attacker.example", 400),
    ],
)
def test_names_that_dns_can_rebind_are_refused(database: ScriptedDatabase, clock: Clock, url: str, status: int) -> None:
    app = make_page(database, clock, "box.local")
    browser = stranger(app, url)
    assert browser.get(f"/?token={TOKEN}").status_code == status


@pytest.mark.parametrize("host", ["", ":8642", "[::1", "]", "a b", "127.0.0.1:8642, evil.example"])
def test_malformed_host_is_refused(app: Starlette, host: str) -> None:
    assert signed_in(app).get("/", headers={"Host": host}).status_code == 400


def test_every_answer_has_the_headers(browser: TestClient, app: Starlette) -> None:
    for answer in (browser.get("/"), browser.get("/static/style.css"), browser.get("/nothing"), stranger(app).get("/")):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value


def test_policy_allows_no_inline_script_and_pages_have_none(browser: TestClient, database: ScriptedDatabase) -> None:
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    job_id = database.add(job())
    for path in ("/", "/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/cancel", "/queue/hold", "/spend", "/workers", "/no"):
        page = browser.get(path).text
        assert not re.search(r"<script(?! src=\"/static/)|<style|\sstyle=|\son[a-z]+=|https?://(?!127)", page), path


def test_new_tokens_differ_and_are_long() -> None:
    assert make_token() != make_token()
    assert len(make_token()) >= 43
