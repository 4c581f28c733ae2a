"""Grafana's queries, the alert rules, the documentation and a working worker's /metrics agree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lora_worker.duties.run_metrics import LIVE_STAGES
from sandbox.processes import free_ports
from sandbox.supabase import LocalSupabase
from tests.documented import table_under
from tests.processes.stage import Stage
from tests.processes.waiting import awaited, until
from tests.project import ROOT
from tests.promql import TARGET_LABELS, Needed, metrics_of

FOLDER = ROOT / "packaging" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]

_VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}
_OPEN_LABELS = {"status", "error_code", *TARGET_LABELS}
"""Labels of which a page shows only the values that have occurred."""

Page = dict[str, dict[str, set[str]]]
"""Of each sample's name: its labels, and their values."""


def plain(query: str) -> str:
    """A query of the dashboard with its variables filled in."""
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    return query


QUERIES = [(title, plain(target["expr"])) for title, target in TARGETS]
QUERIES += [(rule["alert"], rule["expr"]) for rule in RULES]


def add(page: Page, text: str) -> None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = page.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)


@pytest.fixture(scope="module")
def shown() -> Page:
    return {}


@pytest.fixture
def page(stage: Stage, shown: Page) -> Page:
    """What a worker shows while it trains a job, fails another and meets a database that is away for a moment."""
    if not shown:
        (port,) = free_ports(1)
        stage.worker(LORA_WORKER_HTTP_PORT=str(port))

        def metrics() -> str:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
            except httpx.TransportError:
                return ""

        bad = stage.user.queue(max_steps=-1)
        good = stage.user.queue(max_steps=100)
        stage.training(good, step=2)
        add(shown, awaited(metrics, "the live run has a loss", fits=lambda text: "run_training_loss{" in text))
        assert isinstance(stage.project, LocalSupabase)
        stage.project.answer_with_pages("/rest/v1/rpc/", status=502, times=20)
        assert stage.ended(bad)["status"] == "failed"
        assert stage.ended(good)["status"] == "completed"
        # Few of the failed calls put work off: most are repeated at once.
        counted = ("lora_worker_api_errors_total{", "lora_worker_service_faults_total{")
        until(lambda: all(name in metrics() for name in counted), "failed calls are counted", state=stage.log)
        add(shown, metrics())
    return shown


def faults_of(needed: Needed, page: Page) -> Iterator[str]:
    known = page.get(needed.name)
    if known is None:
        yield f"{needed.name} is no metric"
        return
    for label in needed.labels - TARGET_LABELS:
        if label not in known:
            yield f"{needed.name} has no label {label}"
    for label, values in needed.values.items():
        # A label has the same values wherever it stands: an error of each service need not have occurred.
        occurred = {value for labels in page.values() for value in labels.get(label, ())}
        if label not in _OPEN_LABELS and (unknown := values - occurred):
            yield f"{needed.name}: {label} is never {', '.join(sorted(unknown))}"


def test_queries_of_dashboard_and_alerts_fit_a_working_workers_page(page: Page) -> None:
    assert len(QUERIES) > 50
    faults = {
        f"{title}: {fault}" for title, query in QUERIES for one in metrics_of(query) for fault in faults_of(one, page)
    }
    assert faults == set()


def test_documented_metrics_and_labels_are_those_of_the_page(page: Page) -> None:
    table = table_under((ROOT / "docs" / "telemetry.md").read_text(), "Metrics")
    documented = {name.strip("`"): set(re.findall(r"`(\w+)`", cells["labels"])) for name, cells in table.items()}
    real: dict[str, set[str]] = {}
    for name, labels in page.items():
        if name.startswith("lora_worker_") and not name.endswith(("_created", "_sum", "_count")):
            real.setdefault(name.removesuffix("_bucket"), set()).update(labels.keys() - {"le"})
    assert documented == real


def test_page_shows_every_stage_and_no_text_of_a_user(page: Page) -> None:
    assert page["lora_worker_live_runs"]["stage"] == {str(stage) for stage in LIVE_STAGES}
    values = {value for labels in page.values() for each in labels.values() for value in each}
    assert all(re.fullmatch(r"[\w .+'/-]{0,60}", value) for value in values)


# ── the files themselves ────────────────────────────────────────────────────────────────────────────


def test_a_query_with_a_wrong_name_label_or_value_is_found() -> None:
    page: Page = {"lora_worker_rounds_total": {"duty": {"poll"}, "result": {"ok"}}}
    wrong = {
        "rate(lora_worker_round_total[5m])": "lora_worker_round_total is no metric",
        "sum by (kind) (lora_worker_rounds_total)": "lora_worker_rounds_total has no label kind",
        'lora_worker_rounds_total{duty="pol"}': "lora_worker_rounds_total: duty is never pol",
        'lora_worker_rounds_total{duty=~"poll|claim"} > 1': "lora_worker_rounds_total: duty is never claim",
        "lora_worker_rounds_total and on (kind) vector(1)": "lora_worker_rounds_total has no label kind",
    }
    for query, fault in wrong.items():
        assert [found for one in metrics_of(query) for found in faults_of(one, page)] == [fault]
    with pytest.raises(ValueError, match=r"\w"):
        metrics_of("sum by (kind (x)")


def test_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - variables == {"__rate_interval"}
    for _, target in TARGETS:
        # The legend names labels that the query's result has.
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert any(
                label in one.labels or one.name.startswith("lora_worker_run_")
                for one in metrics_of(plain(target["expr"]))
            )


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_alert_has_a_severity_and_a_section_of_the_on_call_page() -> None:
    sections = anchors(ROOT / "docs" / "oncall.md")
    named: set[str] = set()
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"].endswith(".")
        assert "for" not in rule or promql_parser.parse_duration(rule["for"])
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert file == "docs/oncall.md"
        named.add(anchor)
    assert named == sections
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_labels_in_an_alerts_text_are_labels_of_its_query() -> None:
    for rule in RULES:
        labels: set[Any] = {label for one in metrics_of(rule["expr"]) for label in one.labels}
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in labels | TARGET_LABELS or any(
                one.name == "lora_worker_last_round_timestamp_seconds" for one in metrics_of(rule["expr"])
            )
