"""The claim stays an index scan over the queued rows, however many rows have ended."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.rows import Database


def _claim_query(db: Database) -> str:
    """The cursor's query, out of the function as the database has it."""
    source = db.row("select pg_get_functiondef('public.claim_training_jobs'::regproc) as text")["text"]
    found = re.search(r"cursor for\s+(select.*?skip locked);", source, re.DOTALL | re.IGNORECASE)
    assert found is not None
    return found[1]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


@pytest.mark.parametrize("jobs", [3_000, 50_000])
@pytest.mark.parametrize("max_per_user", ["null::int", "3"])
def test_the_claim_uses_its_index_among_ended_rows(db: Database, jobs: int, max_per_user: str) -> None:
    for _ in range(5):
        db.jobs(jobs // 5)
    # Nine of ten have ended, spread over the whole time.
    db.rows(
        "with numbered as (select id, row_number() over (order by created_at, id) as n from training_jobs)"
        " update training_jobs j set status = 'completed' from numbered where j.id = numbered.id and n % 10 <> 0"
    )
    db.rows("vacuum analyze training_jobs")
    db.rows("analyze training_runs")
    query = _claim_query(db).replace("claim_training_jobs.max_per_user", max_per_user)
    (plan,) = db.row(f"explain (format json) declare candidates no scroll cursor for {query}")["QUERY PLAN"]
    nodes = [node for node in _nodes(plan["Plan"]) if node.get("Relation Name") == "training_jobs"]
    assert [(node["Node Type"], node.get("Index Name")) for node in nodes] == [
        ("Index Scan", "training_jobs_queued_idx")
    ]
    assert not any(node["Node Type"] == "Sort" for node in _nodes(plan["Plan"]))
