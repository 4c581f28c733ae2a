"""A job's picture in a terminal, drawn anew at each look: stages, how far it is, its curve, what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.text import Text

from lora_worker.commands.curves import draw_curve
from lora_worker.commands.job_progress import Change, change_of
from lora_worker.commands.job_views import STYLES, borderless, job_reason
from lora_worker.commands.terminal import printable
from lora_worker.database.job_reports import JobDetails
from lora_worker.words import duration, measured, money, number_of, percent, plain, short_id, time_of

_CURVE_LINES = 8
_MOST_COLUMNS = 100
_SIDE_COLUMNS = 10
"""Beside the curve stand the values of its highest and lowest point."""


def draw_job(details: JobDetails, *, now: datetime, width: int) -> RenderableType:
    """Return the picture of a job at this moment, for a terminal of so many columns."""
    width = min(width, _MOST_COLUMNS)
    change = change_of(details)
    parts: list[RenderableType] = [
        _stages(details),
        _progress(change, width - 4),
        _figures(change, now),
        *_curve(details, width - 4 - _SIDE_COLUMNS),
    ]
    reason = job_reason(details["job"])
    if reason:
        parts.append(Text(reason, style="red" if change["status"] == "failed" else "yellow"))
    if change["improvement"]:
        parts.append(Text(printable(change["improvement"]), style="green"))
    if change["serving_name"]:
        parts.append(Text.assemble(("call it ", "dim"), (printable(change["serving_name"]), "bold")))
    status = printable(change["status"])
    style = STYLES.get(status, "")
    title = Text.assemble((short_id(change["job_id"]), "bold"), " ", printable(details["job"]["name"])[:40])
    attempt = f", run {change['attempt']}" if (change["attempt"] or 0) > 1 else ""
    return Panel(
        Group(*parts),
        title=title,
        subtitle=Text(f"{status}{attempt}", style=style),
        title_align="left",
        subtitle_align="left",
        border_style=style or "dim",
        width=width,
    )


def _stages(details: JobDetails) -> Text:
    """The stages of the latest run with their seconds, the present one last."""
    stages = details["runs"][-1]["stages"] if details["runs"] else []
    line = Text()
    for number, stage in enumerate(stages):
        is_now = number == len(stages) - 1
        line.append(" › " if number else "", style="dim")
        line.append(
            _together(f"{plain(printable(stage['stage']))} {duration(stage['seconds'])}"),
            style="bold" if is_now else "dim",
        )
    return line if stages else Text("not started yet", style="dim")


def _progress(change: Change, width: int) -> RenderableType:
    steps = f" step {change['current_step'] or 0}/{change['total_steps'] or '?'}"
    words = f" {percent(change['progress'] or 0)}{steps}"
    row = borderless()
    row.show_header = False
    bar = ProgressBar(total=100, completed=change["progress"] or 0, width=max(width - len(words) - 3, 10))
    row.add_row(bar, Text(words))
    return row


def _figures(change: Change, now: datetime) -> Text:
    figures = [("cost", money(change["cost"] or 0))]
    ends_at = time_of(change["estimated_completion_at"])
    if ends_at is not None and change["status"] == "running":
        figures.append(("ends in", duration((ends_at - now).total_seconds())))
    if change["tokens_per_second"] is not None:
        figures.append(("tokens/s", f"{change['tokens_per_second']:,.0f}"))
    if change["loss"] is not None:
        figures.append(("loss", measured(change["loss"])))
    if change["validation_loss"] is not None:
        figures.append(("validation", measured(change["validation_loss"])))
    line = Text()
    for name, value in figures:
        line.append(_together(f"{name} "), style="dim").append(_together(value), style="bold").append("   ")
    return line


def _together(words: str) -> str:
    """Return words that no end of a line parts."""
    return words.replace(" ", "\u00a0")


def _curve(details: JobDetails, width: int) -> Iterator[RenderableType]:
    """The training loss by step, over the scale of its values; nothing before there are two of them."""
    known = ((point["step"], number_of(point["loss"])) for point in details["points"])
    points = [(float(step), loss) for step, loss in known if loss is not None]
    if len(points) < 2 or width < 10:
        return
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    # The whole way, so that the curve grows towards its end.
    last = max(points[-1][0], float(details["job"]["total_steps"] or 0))
    lines = draw_curve(points, width=width, height=_CURVE_LINES, x_range=(points[0][0], last), y_range=(low, high))
    for number, line in enumerate(lines):
        side = {0: measured(high), len(lines) - 1: measured(low)}.get(number, "")
        yield Text.assemble((f"{side:>{_SIDE_COLUMNS - 1}} ", "dim"), (line, "cyan"))
