"""What the pages show: everything escaped, with units, and with sentences where there is nothing or a fault."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from uuid import UUID, uuid4

import pytest
from starlette.testclient import TestClient

from lora_worker.dashboard.access import HEADERS
from tests.project import ROOT
from tests.unit.worker.dashboard.scripted import (
    SCRIPT,
    TOKEN,
    URL,
    Clock,
    Row,
    ScriptedDatabase,
    ago,
    completed,
    health,
    job,
    make_page,
    run,
    sample,
    worker,
)
from tests.unit.worker.runs.comparisons import compared, evaluated
from tests.unit.worker.versions.made import alias, figures
from tests.unit.worker.versions.made import row as version_row

PATHS = ("/", "/jobs", "/models", "/spend", "/workers")


class Page(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " " if tag in {"td", "th", "li", "dt", "dd", "p", "h1", "h2", "h3", "tr", "div"} else ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def shown(browser: TestClient, path: str, status: int = 200) -> Page:
    answer = browser.get(path)
    assert answer.status_code == status
    page = Page(answer.text)
    page.text = " ".join(page.text.split())
    return page


def spoiled(row: Row) -> Row:
    """The row with a script in each text of it."""
    kept = ("job_id", "run_id", "user_id", "status", "queue", "created_at", "ended_at", "begun_at", "completed_at")
    return {key: SCRIPT if (isinstance(value, str) or value is None) and key not in kept else value
            for key, value in row.items()}  # fmt: skip


def spoil(database: ScriptedDatabase) -> str:
    """Fill every text of every answer with a script; returns a job's id."""
    ids = [database.add(spoiled(job(status))) for status in ("queued", "running", "failed", "cancelled")]
    stages = [{"stage": SCRIPT, "begun_at": ago(minutes=1)}]
    bill = {"recorded_at": ago(), "cost_type": SCRIPT, "amount": 1, "gpu_seconds": 1}
    artifact = {"name": SCRIPT, "deleted_at": None}
    runs = [{**spoiled(run()), "stages": stages}]
    database.add(spoiled(job("failed")), runs=runs, artifact=artifact, costs=[bill])
    database.jobs[ids[1]]["job"]["hyperparameters"] = {SCRIPT: SCRIPT}
    ended = completed(measured={"evaluation": SCRIPT, "application": None, "serving_name": SCRIPT})
    database.add(spoiled(job("completed")), **ended)
    texts = {"name": SCRIPT, "version": SCRIPT, "base_model": SCRIPT, "method": SCRIPT, "aliases": [SCRIPT]}
    database.versions = [version_row(dataset_name=SCRIPT, measured={"serving_name": SCRIPT}, **texts)]
    database.aliases = [alias(name=SCRIPT, adapter=SCRIPT, problem=SCRIPT), alias(deleted=True, job_id=None)]
    database.answers[ended["runs"][0]["run_id"]] = [sample(SCRIPT, messages=5)]
    database.state = health(
        queued=1, no_worker=SCRIPT, workers=[worker(name=SCRIPT, version=SCRIPT, problem=SCRIPT)],
        endpoints=[{"launcher": SCRIPT, "endpoint": SCRIPT, "launches": 1}],
        waiting=[{"job_id": ids[0], "user_id": str(uuid4()), "retry_count": 2, "wait_seconds": 5, "waits_for": SCRIPT}],
        runs=[{"run_id": str(uuid4()), "job_id": ids[1], "attempt": 1, "status": SCRIPT, "stage": SCRIPT,
               "worker": SCRIPT, "problem": SCRIPT, "lease_seconds_left": -1, "seen_seconds_ago": None}],
        held={"operator_holds": [{"user_id": None, "reason": SCRIPT, "held_seconds": 1}],
              "breakers": [{"kind": "image", "name": SCRIPT, "endpoint": SCRIPT, "error_code": SCRIPT,
                            "error_message": SCRIPT, "users": 2, "probe_in_seconds": 5, "jobs": 1}],
              "endpoint_problems": [{"endpoint": SCRIPT, "problem": SCRIPT, "starting_seconds": 5}]},
    )  # fmt: skip
    database.costs = [{"key": SCRIPT, "jobs": 1, "runs": 1, "gpu_seconds": 1, "usd": 1.0}]
    database.failures = [{"error_code": SCRIPT, "jobs": 1, "users": 1, "last_at": ago(), "message": SCRIPT}]
    database.logs[runs[0]["run_id"]] = [SCRIPT]
    database.budgets["budgets"] = [{"user_id": SCRIPT, "usd_per_day": 5, "spent": 1, "live": 0.5, "set_at": None}]
    return ids[1]


def test_scripts_in_any_row_are_shown_as_text(browser: TestClient, database: ScriptedDatabase) -> None:
    spoil(database)
    (run_id,) = database.logs
    log = f"/jobs/{database.rows[-2]['job_id']}/runs/{run_id}/log"
    samples = f"/jobs/{database.rows[-1]['job_id']}/samples"
    for path in (
        *PATHS,
        *(f"/jobs/{row['job_id']}" for row in database.rows),
        log,
        samples,
        f"/queue/resume?name={SCRIPT}",
    ):
        page = shown(browser, path)
        assert [script.get("src") for script in page.all("script")] == ["/static/live.js"]
        assert SCRIPT in page.text
        assert "<script>document" not in browser.get(path).text


def test_nothing_in_the_database_is_said_in_words(browser: TestClient, database: ScriptedDatabase) -> None:
    database.state = health(workers=[], no_worker="none has run yet", had_worker=False)
    overview = shown(browser, "/").text
    for sentence in ("Nothing runs at the moment.", "No job waits.", "No job has ended yet."):
        assert sentence in overview
    assert "No job is like that." in shown(browser, "/jobs").text
    assert "Nothing was billed in this time." in shown(browser, "/spend").text
    assert "No job failed in this time." in shown(browser, "/spend").text
    assert "none has run yet. Start one with lora-worker run" in shown(browser, "/workers").text


@pytest.mark.parametrize("path", [*PATHS, f"/jobs/{UUID(int=1)}"])
def test_database_down_is_a_sentence_before_and_after_a_first_read(
    browser: TestClient, database: ScriptedDatabase, clock: Clock, path: str
) -> None:
    database.go_down()
    page = shown(browser, path)
    assert "The database can't be read: Supabase's database is not reachable: connection refused." in page.text
    assert "Traceback" not in page.text
    database.fault = None
    clock.seconds = 20
    assert "can't be read" not in shown(browser, path, 404 if path.startswith("/jobs/") else 200).text


def test_last_known_state_stays_while_the_database_is_down(
    browser: TestClient, database: ScriptedDatabase, clock: Clock
) -> None:
    job_id = database.add(job(name="Zebras"))
    assert "Zebras" in shown(browser, f"/jobs/{job_id}").text
    database.go_down()
    clock.seconds = 20
    page = shown(browser, f"/jobs/{job_id}")
    assert "Zebras" in page.text
    assert "What you see was read at 2026-11-26 14:00:00 UTC." in page.text


def test_waiting_jobs_stand_in_order_with_their_reasons(browser: TestClient, database: ScriptedDatabase) -> None:
    ids = [database.add(job("queued", name=name)) for name in ("Newer", "Older")]
    database.state = health(
        queued=3, oldest_wait_seconds=7300,
        waiting=[{"job_id": job_id, "user_id": None, "retry_count": 0, "wait_seconds": seconds, "waits_for": reason}
                 for job_id, seconds, reason in ((ids[1], 7300, "its turn"), (ids[0], 65, "a worker"),
                                                 (str(uuid4()), 5, "its dataset"))],
    )  # fmt: skip
    text = shown(browser, "/").text
    assert re.search(r"Older.* its turn 2 h 01 min .*Newer.* a worker 1 min 05 s .*its dataset 5 s", text)


def test_pictures_of_the_documentation_are_small_and_shown() -> None:
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    assert len(pictures) >= 3
    pages = "".join(page.read_text() for page in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md"))
    for picture in pictures:
        assert picture.stat().st_size < 150_000
        assert f"images/{picture.name}" in pages


def test_a_run_shows_its_stages_with_their_times(browser: TestClient, database: ScriptedDatabase) -> None:
    page = shown(browser, f"/jobs/{database.add(job())}")
    assert (
        "queue 1 min 00 s launch 6 s cold start 54 s loading model 1 min 00 s training 6 min 00 s so far" in page.text
    )
    widths = [float(part["width"] or 0) for part in page.all("rect")]
    assert len(widths) == 5
    assert sum(widths) == pytest.approx(100, abs=0.1)


def test_the_curve_has_words_and_a_table_beside_it(browser: TestClient, database: ScriptedDatabase) -> None:
    page = shown(browser, f"/jobs/{database.add(job())}")
    (label,) = [picture["aria-label"] for picture in page.all("svg") if picture.get("role") == "img"]
    assert label == (
        "training loss from 4 at step 1 to 1.125 at step 24; validation loss from 1.675 at step 8 to 1.425 at step 24"
    )
    assert [line["class"] for line in page.all("polyline")] == ["line training", "line validation"]
    assert "24 1.125 1.425 0.0001" in page.text


def test_finished_job_shows_what_got_better_and_the_name_to_call(
    browser: TestClient, database: ScriptedDatabase
) -> None:
    page = shown(browser, f"/jobs/{database.add(job('completed'), **completed())}")
    for part in (
        "On 34 held-out conversations the loss fell from 2.31 to 1.62 (95 % interval of the gain: 0.55 to 0.83)",
        "General text +1.2 % loss, within what is allowed", "base 2.31 adapter 1.62",
        "Proof 84 modules took 168 tensors (bf16); 9 of 10 answers differ", "Call it adapter-0f5f8e0a",
    ):  # fmt: skip
        assert part in page.text, part
    lengths = [bar["width"] for bar in page.all("rect") if (bar.get("class") or "").startswith("loss ")]
    assert lengths == ["100.0", "70.13"]
    worse = {"evaluation": evaluated(compared(), 40.0, passed=False).model_dump()}
    page = shown(browser, f"/jobs/{database.add(job('completed'), **completed(measured=worse))}")
    assert "On general text the loss rose by 40.0 %, which is more than is allowed." in page.text
    assert "Nothing was compared." in shown(browser, f"/jobs/{database.add(job('completed'))}").text


def test_answers_stand_side_by_side_as_far_as_a_page_shows_them(
    browser: TestClient, database: ScriptedDatabase
) -> None:
    ended = completed()
    (run_id,) = [one["run_id"] for one in ended["runs"]]
    job_id = database.add(job("completed", user_id=str(uuid4())), **ended)
    database.answers[run_id] = [sample("long " * 5_000, messages=9), sample("Zebra")]
    page = shown(browser, f"/jobs/{job_id}/samples")
    assert "Held-out prompt 1 of 2 6 earlier messages not shown" in page.text
    assert "BaseZebra AdapterZebra DatasetZebra" in page.text
    assert page.text.count("long") < 4_200
    shown(browser, f"/jobs/{job_id}/samples")
    assert [call[0] for call in database.calls].count("samples") == 1


def test_answers_that_are_not_there_or_broken_are_said_in_words(
    browser: TestClient, database: ScriptedDatabase
) -> None:
    broken = completed()
    database.answers[broken["runs"][0]["run_id"]] = "evaluation.json of run r can't be read"
    for status, parts, words in (
        ("running", {}, "Base and adapter answer when the training is complete."),
        ("completed", completed(), "No answers are kept with this adapter."),
        ("completed", broken, "evaluation.json of run r can't be read."),
    ):
        assert words in shown(browser, f"/jobs/{database.add(job(status), **parts)}/samples").text
    assert browser.get(f"/jobs/{uuid4()}/samples").status_code == 404


def test_kept_log_of_a_run_is_shown_and_only_of_the_jobs_own(browser: TestClient, database: ScriptedDatabase) -> None:
    ended, live = run(ended_at=ago(minutes=1)), run(attempt=2)
    user = str(uuid4())
    job_id = database.add(job("failed", user_id=user), runs=[ended, live])
    other = database.add(job("failed"), runs=[run(ended_at=ago(minutes=1))])
    log = f"/jobs/{job_id}/runs/{ended['run_id']}/log"
    assert log in browser.get(f"/jobs/{job_id}").text
    assert "No log of this run was kept." in shown(browser, log).text
    assert "The log is kept when the run has ended." in shown(browser, f"/jobs/{job_id}/runs/{live['run_id']}/log").text
    assert [call for call in database.calls if call[0] == "read"] == [("read", user, ended["run_id"])]
    assert browser.get(f"/jobs/{other}/runs/{ended['run_id']}/log").status_code == 404
    database.logs[ended["run_id"]] = ["# the container was killed", "step 3 of 60"]
    database.calls.clear()
    fresh = TestClient(make_page(database, Clock()), base_url=URL)
    fresh.get(f"/?token={TOKEN}")
    assert "# the container was killed step 3 of 60" in shown(fresh, log).text


def test_budgets_are_shown_with_what_is_used_of_them(browser: TestClient, database: ScriptedDatabase) -> None:
    database.budgets = {
        "day": {"usd_per_day": 50.0, "spent": 1.5, "live": 2}, "each_user": None,
        "budgets": [{"user_id": "u", "usd_per_day": None, "spent": 1.5, "live": 2, "set_at": None}],
    }  # fmt: skip
    text = shown(browser, "/spend").text
    assert "everybody together $1.50 $2.00 $50.00" in text
    assert "u $1.50 $2.00 no limit" in text


@pytest.mark.parametrize(
    ("status", "offered"),
    [("queued", {"cancel"}), ("initializing", {"cancel"}), ("running", {"cancel"}), ("completed", set()),
     ("failed", {"retry"}), ("cancelled", {"retry"})],
)  # fmt: skip
def test_only_what_can_be_done_is_offered(
    browser: TestClient, database: ScriptedDatabase, status: str, offered: set[str]
) -> None:
    page = shown(browser, f"/jobs/{database.add(job(status))}")
    assert {link["id"] for link in page.all("a") if link.get("id") in {"cancel", "retry"}} == offered


def test_filters_reach_the_database_and_odd_ones_do_not(browser: TestClient, database: ScriptedDatabase) -> None:
    user = str(uuid4())
    browser.get(f"/jobs?status=failed&user_id={user}&base_model=a/b&error_code=out_of_memory&cursor=c")
    assert database.calls == [
        ("list_training_jobs", {"statuses": ["failed"], "user_id": user, "base_model": "a/b",
                                "error_code": "out_of_memory", "cursor": "c", "limit": 50})
    ]  # fmt: skip
    for odd in ("status=gone", "user_id=me", f"base_model={'x' * 201}", f"cursor={'x' * 201}"):
        assert browser.get(f"/jobs?{odd}").status_code == 400
    for odd in ("0", "-1", "31", "many", "9" * 400, "1e3"):
        assert browser.get(f"/spend?days={odd}").status_code == 400
    assert len(database.calls) == 1


def test_older_jobs_are_a_link_with_the_same_filter(browser: TestClient, database: ScriptedDatabase) -> None:
    for _ in range(51):
        database.add(job("failed"))
    links = [link["href"] for link in shown(browser, "/jobs?status=failed").all("a") if link.get("rel") == "next"]
    assert links == ["/jobs?status=failed&user_id=&base_model=&error_code=&cursor=a%7Cb"]
    assert browser.get(links[0] or "").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [("/no", 404), (f"/jobs/{UUID(int=1)}", 404), ("/jobs/12", 404), ("/jobs/1/cancel", 404), ("/queue/burn", 404)],
)
def test_pages_that_are_not_there_say_so(browser: TestClient, path: str, status: int) -> None:
    assert "There is no such" in (text := shown(browser, path, status).text) or "There is no job of this id." in text


def test_bug_in_a_page_shows_no_value_and_no_traceback(browser: TestClient, database: ScriptedDatabase) -> None:
    database.state = {"secret": "sb_secret_x"}
    headers = browser.get("/").headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    text = shown(browser, "/", 500).text
    assert "This page could not be made (" in text
    assert "sb_secret" not in text
    assert "Traceback" not in text


def test_pages_are_accessible_by_their_structure(browser: TestClient, database: ScriptedDatabase) -> None:
    job_id = spoil(database)
    for path in (*PATHS, f"/jobs/{job_id}", f"/jobs/{job_id}/cancel", "/queue/hold"):
        page = shown(browser, path)
        assert [element["lang"] for element in page.all("html")] == ["en"]
        assert len(page.all("h1")) == 1
        assert len(page.all("main")) == 1
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids)), path
        labelled = {label["for"] for label in page.all("label")}
        fields = [field for tag in ("input", "select") for field in page.all(tag) if field.get("type") != "hidden"]
        assert {field["id"] for field in fields} == labelled
        assert all(cell.get("scope") in {"row", "col"} for cell in page.all("th"))
        assert all(bar.get("aria-label") for bar in page.all("progress"))
        # Only what seldom changes is read aloud.
        aloud = {attributes["id"] for _, attributes in page.elements if attributes.get("role") == "status"}
        assert aloud <= {"connection", "database", "state"}


def test_models_show_their_versions_the_best_and_the_aliases(
    database: ScriptedDatabase, browser: TestClient, clock: Clock
) -> None:
    assert "No model has been trained yet" in shown(browser, "/models").text
    best = version_row(figures=figures(2.0, 1.25, held_out_gain_low=0.7, held_out_gain_high=0.8), aliases=["bot"])
    database.versions = [best, version_row(measured={"evaluation": {"guard_passed": False}})]
    database.aliases = [alias(best, name="bot", placed=True, served=True)]
    clock.seconds = 20
    page = shown(browser, "/models")
    for part in ("2 → 1.25", "0.75 0.7 to 0.8", "lowers the held-out loss from 2 to 1.25", "worse on general text",
                 "bot:live", "it is live"):  # fmt: skip
        assert part in page.text
    assert page.text.count(" best ") == 1
    assert {"href": f"/jobs/{best['job_id']}"} in page.all("a")
