"""A job is queued, watched, cancelled and retried in a real browser, over the real worker, database and trainer."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Page, expect

from sandbox.standin import Mishap
from sandbox.standin_evaluation import ASKED_FOR
from tests.application.user import BASE_MODEL, DATASET_WORD, LINE, PAIRS
from tests.processes.stage import Stage

NAME = "<script>document.title = 'taken over'</script> & <b>Zebras</b>"

RUN_NOT = "<script>document.title = 'taken over'</script>"

SEVERAL_POINTS = re.compile(r"\S \S")


def mark(page: Page) -> None:
    """Mark the page as it is: the mark is gone when the page is loaded again."""
    page.evaluate("window.isMarked = true")


def is_marked(page: Page) -> bool:
    return bool(page.evaluate("window.isMarked === true"))


@pytest.mark.usefixtures("chromium")
def test_a_job_moves_without_reload_and_is_cancelled_and_retried(
    stage: Stage, dashboard_url: str, page_of: Callable[..., Page]
) -> None:
    page = page_of(dashboard_url)
    expect(page.locator("#waiting")).to_contain_text("No job waits.")
    mark(page)

    job_id = stage.user.queue(stage.user.upload(name=NAME), max_steps=400, seed=int(Mishap.ENDLESS))
    waiting = page.locator("#waiting").get_by_role("link", name=NAME, exact=True)
    expect(waiting).to_be_visible()
    stage.worker()
    live = page.locator("#live").get_by_role("link", name=NAME, exact=True)
    expect(live).to_be_visible()
    expect(waiting).to_have_count(0)
    assert is_marked(page)

    live.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(NAME)
    mark(page)
    expect(page.locator("#state")).to_contain_text("running training")
    # `page.wait_for_function` evaluates a string in the page, which the page's Content Security Policy refuses.
    line = page.locator(".line.training")
    expect(line).to_have_attribute("points", SEVERAL_POINTS)
    before = line.get_attribute("points") or ""
    expect(line).not_to_have_attribute("points", before)
    expect(page.locator("#runs .stages")).to_contain_text("training")
    assert is_marked(page)

    page.get_by_role("link", name="Cancel").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Cancel this job?")
    assert stage.user.job(job_id)["status"] == "running"
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("#state")).to_contain_text("cancelled")
    expect(page.get_by_text("The job is cancelled. A worker stops its GPU within seconds.")).to_be_visible()
    stage.settled(job_id)
    page.get_by_role("link", name="The last lines of its log").click()
    expect(page.locator("#log pre")).to_contain_text("# run ")
    page.get_by_role("link", name=NAME, exact=True).click()

    page.get_by_role("link", name="Retry").click()
    page.get_by_role("button", name="Retry the job").click()
    expect(page.get_by_text("The job is queued again.")).to_be_visible()
    mark(page)
    expect(page.locator("#state")).to_contain_text("running training")
    expect(page.locator("#runs")).to_contain_text("Attempt 2")
    assert is_marked(page)
    assert [run["status"] for run in stage.runs(job_id)] == ["cancelled", "running"]
    assert page.title().startswith(NAME)

    # Of a job that completes, base and adapter stand side by side; their texts are a user's.
    words = LINE.replace(DATASET_WORD.encode(), ASKED_FOR)
    finished = stage.user.queue(stage.user.upload(b"\n".join([words] * PAIRS), name="Okapis"), max_steps=5)
    page.goto(f"{page.url.partition('/jobs/')[0]}/jobs/{finished}")
    expect(page.locator("#state")).to_contain_text("completed")
    expect(page.locator("#result")).to_contain_text("On 34 held-out conversations the loss fell from 2.31 to 1.62")
    expect(page.locator("#result")).to_contain_text("28 modules took 56 tensors")
    page.get_by_role("link", name="Answers of both, side by side").click()
    expect(page.locator(".sides pre")).to_have_text(
        [f"A kind of tyre. {RUN_NOT}", f"A horse with stripes. {RUN_NOT}", "A horse with stripes."]
    )
    assert page.title().startswith("Answers side by side")

    page.get_by_role("link", name="Spend").click()
    expect(page.locator("#model").get_by_role("row", name=BASE_MODEL)).to_be_visible()
    expect(page.locator("#user")).to_contain_text(stage.user.user_id)
    page.get_by_role("link", name="Workers").click()
    expect(page.locator("#workers")).to_contain_text("working")
    expect(page.locator("#live-runs")).to_contain_text("attempt 2")


def test_the_served_page_opens_for_the_token_only(stage: Stage, dashboard_url: str) -> None:
    job_id = stage.user.queue(stage.user.upload(name=NAME))
    address = urlsplit(dashboard_url)
    root = f"{address.scheme}://{address.netloc}"
    with httpx.Client(base_url=root, trust_env=False) as stranger:
        for path in ("/", f"/jobs/{job_id}", "/static/style.css", "/?token=wrong", "/docs", "/openapi.json"):
            answer = stranger.get(path)
            assert answer.status_code == 401
            assert NAME not in answer.text
        assert stranger.post(f"/jobs/{job_id}/cancel").status_code == 401
        assert "server" not in answer.headers
    with httpx.Client(base_url=root, trust_env=False) as operator:
        operator.get(f"/?{address.query}")
        for path in ("/", f"/jobs/{job_id}", "/jobs", "/spend", "/workers"):
            answer = operator.get(path)
            assert answer.status_code == 200
            assert "can't be read" not in answer.text
            assert address.query.removeprefix("token=") not in answer.text
            for secret in (stage.project.secret_key, stage.runpod.api_key):
                assert secret not in answer.text
        assert "&lt;script&gt;" in operator.get(f"/jobs/{job_id}").text
    assert stage.user.job(job_id)["status"] == "queued"
