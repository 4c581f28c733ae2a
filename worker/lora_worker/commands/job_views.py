"""Jobs as text: a list of them, and everything about one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lora_worker.commands.curves import finite, sparkline
from lora_worker.commands.job_progress import cost_of
from lora_worker.commands.terminal import printable
from lora_worker.database.job_reports import Artifact, JobDetails, JobEntry, JobPage, RunReport
from lora_worker.database.measured import measured_of
from lora_worker.runs.rows.improvement import result_facts
from lora_worker.words import duration, measured, moment, money, number_of, percent, plain, short_id

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "initializing": "cyan"}
_SPARK_CHARACTERS = 40
_WIDE_COLUMNS = 120
"""From this width on each job is one line, which a program can search; below it the reason has lines of its own."""
_FIXED_COLUMNS = 72
"""What the first five columns and the spaces take at the most."""


def borderless() -> Table:
    """Return a table without lines: half of a terminal's width goes into them otherwise."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def job_state(job: JobEntry) -> Text:
    """Return how a job stands, in a word or two: its stage while it runs, else its status."""
    status = printable(job["status"])
    stage = plain(printable(job["stage"])) if job["stage"] and status in {"running", "initializing"} else ""
    return Text(stage or status, style=STYLES.get(status, ""))


def job_reason(job: JobEntry) -> str:
    """Return why a job waits or has failed; empty where there is nothing to say."""
    if job["waits_for"]:
        return f"waits for {printable(job['waits_for'])}"
    if job["status"] == "failed":
        return ": ".join(printable(text) for text in (job["error_code"], job["error_message"]) if text)
    return ""


def print_jobs(page: JobPage, console: Console) -> None:
    """Print a page of jobs, and how to see the next one."""
    if not page["jobs"]:
        console.print("no such jobs")
        return
    is_wide = console.width >= _WIDE_COLUMNS
    table = borderless()
    for heading in ("job", "state", "done", "cost", "queued"):
        table.add_column(heading, no_wrap=True)
    if is_wide:
        rest = console.width - _FIXED_COLUMNS
        for heading, width in (("name", rest // 4), ("base model", rest // 4), ("why", rest // 2)):
            table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=width)
    else:
        table.add_column("name, and why", overflow="fold", ratio=1)
    for job in page["jobs"]:
        name, reason = printable(job["name"]), job_reason(job)
        words = (
            [name, printable(job["base_model"]), reason]
            if is_wide
            else [Text.assemble(name, (f"\n{reason}" if reason else "", "dim"))]
        )
        table.add_row(
            short_id(job["job_id"]),
            job_state(job),
            percent(job["progress"]),
            money(cost_of(job)),
            moment(job["created_at"])[5:16],
            *words,
        )
    console.print(table)
    if page["next_cursor"]:
        console.print(f"more: --cursor '{page['next_cursor']}'", soft_wrap=True)


def print_job(details: JobDetails, console: Console, log: Sequence[str] = ()) -> None:
    """Print everything about a job. `log` are the last lines of its latest run's log."""
    job = details["job"]
    console.print(Text.assemble((printable(job["job_id"]), "bold"), "  ", job_state(job), "  ", printable(job["name"])))
    facts = borderless()
    facts.show_header = False
    for name, value in _facts(details):
        facts.add_row(Text(name, style="dim"), value)
    console.print(facts)
    costs = {record["run_id"]: record["amount"] for record in details["costs"]}
    for run in details["runs"]:
        _print_run(run, costs.get(run["run_id"]), console)
    for line in _curve_lines(details):
        console.print(line)
    if log:
        console.print(Text("\nlast lines of the log", style="bold"))
        for text in log:
            console.print(Text(f"  {printable(text)}", style="dim"), soft_wrap=True)


def _facts(details: JobDetails) -> Iterator[tuple[str, str]]:
    job = details["job"]
    yield "user", printable(job["user_id"])
    yield "base model", printable(job["base_model"])
    yield "dataset", printable(job["dataset_id"])
    yield "queued", moment(job["created_at"])
    if job["completed_at"]:
        yield "ended", moment(job["completed_at"])
    if job["retried_at"]:
        yield "started again", moment(job["retried_at"])
    yield "done", f"{percent(job['progress'])}, step {job['current_step'] or 0} of {job['total_steps'] or '?'}"
    yield "cost", _cost(details)
    reason = job_reason(job)
    if reason:
        yield "why", reason
    artifact = details["artifact"]
    if artifact is not None:
        yield "adapter", f"{printable(artifact['name'])}, version {printable(artifact['version'])}{_score(artifact)}"
    for name, value in result_facts(measured_of(details)):
        yield name, printable(value)


def _score(artifact: Artifact) -> str:
    quality = artifact["quality_metrics"]
    score = number_of(quality.get("overall_score")) if isinstance(quality, dict) else None
    return "" if score is None else f", score {score:g} of 5"


def _cost(details: JobDetails) -> str:
    job, estimate = details["job"], details["job"]["estimate"]
    so_far = money(cost_of(job))
    expected: dict[str, Any] = (estimate or {}).get("cost") or {}
    if number_of(expected.get("high")) is None:
        return so_far
    return f"{so_far} (estimated {money(expected.get('low'))} to {money(expected['high'])})"


def _print_run(run: RunReport, cost: float | None, console: Console) -> None:
    head = [f"\nrun {run['attempt']}", f"{printable(run['status'])}", short_id(run["run_id"])]
    if run["gpu_type"]:
        head.append(printable(run["gpu_type"]))
    if run["gpu_seconds"]:
        head.append(f"{duration(run['gpu_seconds'])} of GPU time")
    if cost is not None:
        head.append(money(cost))
    if run["worker"]:
        head.append(f"worker {printable(run['worker'])}")
    style = {"succeeded": "green", "failed": "red", "cancelled": "yellow"}.get(run["status"], "cyan")
    console.print(Text("  ".join(head), style=style), soft_wrap=True)
    stages = borderless()
    stages.show_header = False
    longest = max((stage["seconds"] for stage in run["stages"]), default=0) or 1
    for stage in run["stages"]:
        # Square roots, so that the seconds of a download can be seen beside the hours of a training.
        bar = "█" * round((stage["seconds"] / longest) ** 0.5 * 20)
        stages.add_row(f"  {plain(printable(stage['stage']))}", Text(duration(stage["seconds"]), justify="right"),
                       Text(bar, style="dim"))  # fmt: skip
    console.print(stages)
    for text in (run["problem"], run["error_message"]):
        if text:
            code = f"{printable(run['error_code'])}: " if text is run["error_message"] and run["error_code"] else ""
            console.print(Text(f"  {code}{printable(text)}", style="red"), soft_wrap=True)


def _curve_lines(details: JobDetails) -> Iterator[str]:
    for name, key in (("loss", "loss"), ("validation loss", "validation_loss")):
        values = finite(number_of(point[key]) for point in details["points"])  # type: ignore[literal-required]
        if values:
            if name == "loss":
                yield ""
            lowest = f", lowest {measured(min(values))}" if min(values) < values[-1] else ""
            ends = f"{measured(values[0])} → {measured(values[-1])}{lowest}"
            yield f"{name:<16}{sparkline(values, _SPARK_CHARACTERS)}  {ends}"
