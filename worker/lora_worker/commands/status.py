"""The command `lora-worker status`: prints the queue, the workers and the live runs."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lora_worker.database.queue_health import LiveRun, LivingWorker, QueueHealth, WaitingJob


def print_status(health: QueueHealth, console: Console) -> None:
    """Print the state of the queue: a summary, tables, and lines about endpoints and held jobs."""
    oldest = health["oldest_wait_seconds"]
    console.print(
        f"{health['queued']} queued (oldest {oldest:.0f} s)" if oldest else f"{health['queued']} queued",
        f"· {health['live_runs']} live · {health['expired_leases']} without a worker"
        f" · {health['stray_launches']} stray launches",
    )
    if health["no_worker"]:
        console.print(f"no worker runs: {health['no_worker']}; start one with `lora-worker run`")
    for table in (_workers(health["workers"]), _runs(health["runs"]), _waiting(health["waiting"])):
        if table.row_count:
            console.print(table)
    for line in status_lines(health):
        console.print(line)


def _workers(workers: list[LivingWorker]) -> Table:
    table = Table("worker", "version", "runs since", "seen", "runs", "problem")
    for row in workers:
        table.add_row(
            row["name"],
            row["version"],
            "a single pass" if row["single_pass"] else f"{row['running_seconds']:.0f} s",
            f"{row['seen_seconds_ago']:.0f} s ago",
            f"{row['held']}/{row['slots']}",
            row["problem"] or "",
        )
    return table


def _runs(runs: list[LiveRun]) -> Table:
    table = Table("run", "attempt", "status", "stage", "progress", "step", "cost", "worker", "lease", "seen")
    for row in runs:
        table.add_row(
            row["run_id"][:8],
            str(row["attempt"]),
            row["status"],
            row["stage"] or "",
            f"{float(row['progress'] or 0):.0f} %",
            f"{row['current_step'] or 0}/{row['total_steps'] or '?'}",
            f"${float(row['current_cost'] or 0):.2f}",
            row["worker"] or "none",
            f"{row['lease_seconds_left']:.0f} s",
            "" if row["seen_seconds_ago"] is None else f"{row['seen_seconds_ago']:.0f} s ago",
        )
    return table


def _waiting(jobs: list[WaitingJob]) -> Table:
    table = Table("job", "waits", "retries", "waits for")
    for row in jobs:
        table.add_row(row["job_id"][:8], f"{row['wait_seconds']:.0f} s", str(row["retry_count"]), row["waits_for"])
    return table


def status_lines(health: QueueHealth) -> list[str]:
    """Return the lines below the tables: runs that can't go on, problems of endpoints, and held jobs."""
    held = health["held"]
    lines = [f"run {run['run_id'][:8]}: {run['problem']}" for run in health["runs"] if run["problem"]]
    lines += [
        f"endpoint {row['endpoint']}: {row['problem']}"
        + (f" (starting for {row['starting_seconds']:.0f} s)" if row["starting_seconds"] else "")
        for row in held["endpoint_problems"]
    ]
    lines += [
        f"held: {row['jobs']} jobs, for {row['name'] or 'the image'} at {row['endpoint']} ({row['error_code']}, "
        f"{row['users']} users); next try in {row['probe_in_seconds']:.0f} s, or `lora-worker resume`"
        for row in held["breakers"]
    ]
    if len({(row["launcher"], row["endpoint"]) for row in health["endpoints"]}) > 1:
        lines += [f"{row['launches']} launches at {row['endpoint']} ({row['launcher']})" for row in health["endpoints"]]
    return lines
