"""Actions ask first, are done only for a form of one's own page, and say what happened."""

from __future__ import annotations

import re
from uuid import UUID, uuid4

import pytest
from starlette.testclient import TestClient

from lora_worker.errors import ServiceUnavailableError
from tests.unit.worker.dashboard.scripted import TOKEN, ScriptedDatabase, job, signed_in

CHANGES = {"cancel_training_job", "retry_training_job", "hold_training", "release_training", "resume_training"}
# Constants, since they are part of test names, which must be equal in all processes of pytest-xdist.
JOB, USER = UUID(int=1), str(UUID(int=2))
EVERY_ACTION = [f"/jobs/{JOB}/cancel", f"/jobs/{JOB}/retry", "/queue/hold", f"/queue/hold?user={USER}",
                "/queue/release", f"/queue/release?user={USER}", "/queue/resume?name=a/b"]  # fmt: skip


def form_of(browser: TestClient, path: str) -> dict[str, str]:
    page = browser.get(path)
    assert page.status_code == 200
    found = re.search(r'name="form_token" value="([^"]+)"', page.text)
    assert found
    return {"form_token": found[1]}


def changes(database: ScriptedDatabase) -> list[tuple[object, ...]]:
    return [call for call in database.calls if call[0] in CHANGES]


@pytest.mark.parametrize("path", EVERY_ACTION)
def test_asking_changes_nothing(browser: TestClient, database: ScriptedDatabase, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert browser.request(method, path).status_code == 200
    for method in ("PUT", "DELETE", "PATCH"):
        assert browser.request(method, path).status_code == 405
    assert changes(database) == []


@pytest.mark.parametrize("path", EVERY_ACTION)
def test_only_a_form_of_the_session_changes_anything(
    browser: TestClient, database: ScriptedDatabase, path: str
) -> None:
    stolen = form_of(signed_in(browser.app), path)  # type: ignore[arg-type]
    reason = {"reason": "repairs"}
    for form in ({}, {"form_token": ""}, {"form_token": "x" * 43}, {"form_token": TOKEN}, stolen):
        assert browser.post(path, data={**form, **reason}).status_code == 403
    foreign = [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
               {"Sec-Fetch-Site": "same-site"}]  # fmt: skip
    own = {**form_of(browser, path), **reason}
    for headers in foreign:
        assert browser.post(path, data=own, headers=headers).status_code == 403
    assert changes(database) == []
    headers = {"Origin": "http://127.0.0.1:8642", "Sec-Fetch-Site": "same-origin"}
    assert browser.post(path, data=own, headers=headers).status_code == 303
    assert len(changes(database)) == 1


@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_job_is_changed_and_the_next_page_says_so(browser: TestClient, database: ScriptedDatabase, action: str) -> None:
    job_id = database.add(job("running" if action == "cancel" else "failed"))
    path = f"/jobs/{job_id}/{action}"
    answer = browser.post(path, data=form_of(browser, path))
    assert answer.headers["location"] == f"/jobs/{job_id}?done={action}"
    assert changes(database) == [(f"{action}_training_job", UUID(job_id))]
    said = {"cancel": "The job is cancelled.", "retry": "The job is queued again."}[action]
    assert said in browser.get(answer.headers["location"]).text


def test_what_was_done_is_read_at_once(browser: TestClient, database: ScriptedDatabase) -> None:
    job_id = database.add(job("running"))
    browser.get(f"/jobs/{job_id}")
    browser.post(f"/jobs/{job_id}/cancel", data=form_of(browser, f"/jobs/{job_id}/cancel"))
    browser.get(f"/jobs/{job_id}")
    assert [call[0] for call in database.calls].count("training_job_details") == 2


def test_hold_needs_a_reason_and_names_its_user(browser: TestClient, database: ScriptedDatabase) -> None:
    for path, user in (("/queue/hold", None), (f"/queue/hold?user={USER}", UUID(USER))):
        form = form_of(browser, path)
        for reason in ("", "  ", "x" * 201):
            refused = browser.post(path, data={**form, "reason": reason})
            assert refused.status_code == 409
            assert "a hold needs a reason" in refused.text
        # The user is the page's, whatever else the form says.
        assert browser.post(path, data={**form, "reason": "repairs", "user": str(uuid4())}).status_code == 303
        assert changes(database)[-1] == ("hold_training", user, "repairs")
    assert len(changes(database)) == 2


@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_refusal_is_shown_where_it_was_asked(browser: TestClient, database: ScriptedDatabase, action: str) -> None:
    database.refusal = "the job is completed"
    path = f"/jobs/{uuid4()}/{action}"
    answer = browser.post(path, data=form_of(browser, path))
    assert answer.status_code == 409
    assert "It was not done: " in answer.text


def test_database_down_is_a_sentence_on_the_same_page(browser: TestClient, database: ScriptedDatabase) -> None:
    path = f"/jobs/{uuid4()}/cancel"
    form = form_of(browser, path)
    database.fault = ServiceUnavailableError("db", "it is away")
    answer = browser.post(path, data=form)
    assert answer.status_code == 503
    assert "It was not done: it is away." in answer.text


@pytest.mark.parametrize("query", ["user=me", f"user={USER}x", f"name={'x' * 301}"])
def test_odd_targets_are_refused(browser: TestClient, database: ScriptedDatabase, query: str) -> None:
    for action in ("hold", "release", "resume"):
        assert browser.get(f"/queue/{action}?{query}").status_code == 400
        assert browser.post(f"/queue/{action}?{query}").status_code == 400
    assert database.calls == []


def test_large_and_odd_forms_are_refused(browser: TestClient, database: ScriptedDatabase) -> None:
    path = f"/jobs/{uuid4()}/cancel"
    token = form_of(browser, path)["form_token"]
    assert browser.post(path, content=f"form_token={token}&x=".encode() + b"y" * 5000).status_code == 413
    assert browser.post(path, content=f"form_token={token}".encode() + b"&a=b" * 20).status_code == 400
    assert browser.post(path, content=b"\xff\xfe").status_code == 400
    assert changes(database) == []


def test_only_our_own_words_are_said_after_an_action(browser: TestClient) -> None:
    page = browser.get("/?done=You+won").text
    assert "You won" not in page
