"""The pages in a real browser: light and dark, on a phone, by keyboard, and while something is down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.integration.dashboard.conftest import ServedApp, served
from tests.unit.worker.dashboard.scripted import TOKEN, ScriptedDatabase, completed, job, make_page, sample
from tests.unit.worker.dashboard.test_pages import spoil
from tests.unit.worker.versions.made import alias
from tests.unit.worker.versions.made import row as version_row

LONG = "a_name_without_any_blank_at_which_a_line_could_be_broken_" * 3

CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let at = element; at !== null; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim() !== "");
    if (!own || element.closest("svg, progress") !== null || element.getClientRects().length === 0) continue;
    const [a, b] = [light(channels(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    const text = element.textContent.trim().slice(0, 30);
    if (contrast < 4.5) found.push(`${element.tagName}.${element.className} ${text} ${contrast.toFixed(2)}`);
  }
  return found;
}"""
"""Texts whose contrast with what is behind them is less than WCAG asks for (AA, 4.5 to 1)."""

WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Clock:
    """Each look is a second later, so that every request reads the database anew."""

    def __init__(self) -> None:
        self._seconds = itertools.count()

    def __call__(self) -> float:
        return float(next(self._seconds)) * 30


@pytest.fixture
def database() -> ScriptedDatabase:
    return ScriptedDatabase()


@pytest.fixture
def site(database: ScriptedDatabase) -> Iterator[ServedApp]:
    with served(make_page(database, Clock())) as running:  # type: ignore[arg-type]
        yield running


def opened(page_of: Callable[..., Page], site: ServedApp, **options: object) -> Page:
    return page_of(f"{site.url}/?token={TOKEN}", **options)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_readable_in_light_and_dark_and_fits_a_phone(
    page_of: Callable[..., Page], site: ServedApp, database: ScriptedDatabase, scheme: str
) -> None:
    job_id = spoil(database)
    (run_id,) = database.logs
    database.logs[run_id].append(LONG * 5)
    log = f"/jobs/{database.rows[-2]['job_id']}/runs/{run_id}/log"
    finished = completed()
    result = f"/jobs/{database.add(job('completed'), **finished)}"
    database.answers[finished["runs"][0]["run_id"]] = [sample(LONG, messages=4)]
    database.jobs[job_id]["job"]["name"] = LONG
    database.add(job(name=LONG, base_model=LONG, stage=LONG))
    database.versions = [
        version_row(
            dataset_name=LONG, version=LONG[:50], base_model=LONG, measured={"serving_name": LONG}, aliases=["z"]
        )
    ]
    database.aliases = [alias(database.versions[0], adapter=LONG, problem=LONG)]
    page = opened(page_of, site, color_scheme=scheme, viewport={"width": 360, "height": 740})
    backgrounds = set()
    for path in (
        "/",
        "/jobs",
        f"/jobs/{job_id}",
        f"/jobs/{job_id}/cancel",
        "/queue/hold",
        "/models",
        "/spend",
        "/workers",
        "/no",
        log,
        result,
        f"{result}/samples",
    ):
        page.goto(site.url + path)
        assert page.evaluate(WIDER) == 0, path
        assert page.evaluate(CONTRASTS) == [], path
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    page.goto(site.url + result)
    page.get_by_role("link", name="Answers of both, side by side").click()
    expect(page.locator(".sides h3")).to_have_text(["Base", "Adapter", "Dataset"])
    (background,) = backgrounds
    brightness = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness < 150) is (scheme == "dark")


def test_the_keyboard_reaches_everything_and_keeps_its_place(
    page_of: Callable[..., Page], site: ServedApp, database: ScriptedDatabase
) -> None:
    job_id = database.add(job())
    page = opened(page_of, site)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    link = page.locator(f"#job-{job_id}")
    expect(link).to_be_focused()
    database.rows[0]["progress"] = 77
    expect(page.locator("#live")).to_contain_text("77 %")
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/jobs/{job_id}")
    page.get_by_text("As a table").click()
    database.jobs[job_id]["job"]["progress"] = 78
    expect(page.locator("#progress")).to_contain_text("78 %")
    expect(page.get_by_role("cell", name="1.125")).to_be_visible()


def test_an_outage_of_the_database_is_told_and_is_over_by_itself(
    page_of: Callable[..., Page], site: ServedApp, database: ScriptedDatabase
) -> None:
    job_id = database.add(job())
    page = opened(page_of, site)
    database.go_down()
    expect(page.locator("#database")).to_contain_text("The database can't be read")
    expect(page.locator("#live")).to_contain_text("Zebras")
    # A page whose job was never read becomes the job's page when it can be read.
    page.goto(f"{site.url}/jobs/{database.add(job(name='Okapis'))}")
    expect(page.locator("#state")).to_contain_text("as soon as the database answers")
    database.fault = None
    expect(page.get_by_role("heading", level=1)).to_have_text("Okapis")
    expect(page.locator("#database")).to_be_hidden()
    assert job_id


def test_a_dashboard_that_is_gone_is_told_and_comes_back(
    page_of: Callable[..., Page], site: ServedApp, database: ScriptedDatabase
) -> None:
    page = opened(page_of, site)
    expect(page.locator("#connection")).to_be_hidden()
    site.stop()
    expect(page.locator("#connection")).to_contain_text("The dashboard does not answer.")
    database.add(job(name="Okapis"))
    site.start()
    expect(page.locator("#live")).to_contain_text("Okapis")
    expect(page.locator("#connection")).to_be_hidden()


def test_a_session_that_ends_is_told(page_of: Callable[..., Page], site: ServedApp) -> None:
    page = opened(page_of, site)
    page.context.clear_cookies()
    expect(page.locator("#connection")).to_contain_text("Your session has ended")
