"""Calls the finished adapter by its name, as a user does: `lora-worker ask JOB "…" --compare` at the local endpoint."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from sandbox.demo.answers import MOST_NEW_TOKENS, Comparison, Conversation
from sandbox.demo.bases import Goal
from sandbox.errors import DemoError
from sandbox.processes import run_tool

_ASKING_SECONDS = 600
_SHOWN_CHARACTERS = 160


@dataclass(frozen=True)
class Served:
    """What the endpoint answered to one question: its base, and the adapter by its name."""

    name: str
    question: str
    base: str
    adapter: str


def call_by_name(settings: Mapping[str, str], job_id: str, conversations: Sequence[Conversation]) -> Served | None:
    """Ask base and adapter the question of the first conversation; None where there is none.

    `settings` is the environment of `lora-worker`. The job's id is all that the command is told of the adapter.

    Raises:
        DemoError: the endpoint did not answer, or the adapter answered as the base does.
    """
    if not conversations:
        return None
    *before, asked, _ = conversations[0]
    system = [f"--system={turn['content']}" for turn in before if turn["role"] == "system"]
    command = [Path(sysconfig.get_path("scripts")) / "lora-worker", "ask", job_id, "--compare", "--json"]
    try:
        done = run_tool(
            [*command, f"--max-tokens={MOST_NEW_TOKENS}", *system, "--", asked["content"]],
            env=settings,
            timeout_seconds=_ASKING_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise DemoError(f"the inference endpoint has not answered within {_ASKING_SECONDS} s") from None
    if done.returncode:
        raise DemoError(f"the adapter could not be called by its name: {done.stderr.strip()[-400:]}")
    answer = json.loads(done.stdout)
    served = Served(answer["model"], asked["content"], answer["base"]["answer"], answer["answer"])
    if served.adapter == served.base:
        raise DemoError(f"{served.name} answers at the endpoint exactly as its base does, so it is not applied there")
    return served


def check_manner(served: Served | None, goal: Goal | None, comparison: Comparison) -> None:
    """Hold what was answered by name against the goal; `comparison` begins with the same question.

    Raises:
        DemoError: the adapter answers in the taught manner, but not at the endpoint.
    """
    if served is None or goal is None or not goal.has_manner(comparison.adapter[0]):
        return
    if not goal.has_manner(served.adapter):
        raise DemoError(f"{served.name} shows the taught manner, but not where it is called by its name")


def show_served(served: Served | None, console: Console, *, why_not: str | None = None) -> None:
    """Print the name, and what was answered by it; or why it was not called."""
    if why_not is not None:
        console.print(escape(f"Not called by its name: {why_not}."))
    if served is None:
        return
    console.print(
        f"Called by its name at the inference endpoint, which was never restarted: [bold]{served.name}[/bold]"
    )
    for label, text in (("question", served.question), ("base", served.base), ("adapter", served.adapter)):
        shown = textwrap.shorten(text, _SHOWN_CHARACTERS, placeholder=" …")
        console.print(f"  [bold]{label:<9}[/bold]{escape(shown)}")
