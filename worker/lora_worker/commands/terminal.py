"""What all commands share: exit codes, refusals as one sentence, settings, and output as text or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lora_worker.configuration.settings import Settings
    from lora_worker.services import Services

T = TypeVar("T")

EXIT_FAILED, EXIT_USAGE, EXIT_JOB_FAILED, EXIT_CHANGES_NEEDED, EXIT_INTERRUPTED = 1, 2, 3, 4, 130

EXIT_CODES = {
    0: "done",
    EXIT_FAILED: "the work could not be done, or a check found a fault",
    EXIT_USAGE: "an argument or a setting is wrong",
    EXIT_JOB_FAILED: "the job that was waited for failed or was cancelled",
    EXIT_CHANGES_NEEDED: "`deploy plan --fail-on-changes` found something to change",
    EXIT_INTERRUPTED: "interrupted with Ctrl-C",
}
"""As docs/cli.md documents them."""

PIPE_COLUMNS = 160
"""Width of text in a pipe, which has no width of its own: rich's default of 80 would cut names and ids."""

_JOINERS = "\u200c\u200d"
"""They join letters and emoji, and move nothing."""

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


def command_group() -> typer.Typer:
    """Return an application for the commands of one module; `cli.py` puts all of them at the top level."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def refuse(text: str, code: int = EXIT_FAILED) -> typer.Exit:
    """Print one sentence to standard error, and return what to raise."""
    typer.echo(f"lora-worker: {text}", err=True)
    return typer.Exit(code)


def checked_settings() -> Settings:
    """Read and check the settings, and configure the log.

    Raises:
        SettingsError: one or more are missing or wrong.
    """
    from lora_worker.launchers.registry import load_settings
    from lora_worker.money.pricing import check_prices, load_prices
    from lora_worker.observability.telemetry import configure_logging

    settings = load_settings()
    check_prices(settings, load_prices(settings.price_table))
    configure_logging(settings)
    return settings


def settings_or_exit() -> Settings:
    """Return the checked settings. Exits with 2 and a sentence where one is wrong."""
    from lora_worker.errors import SettingsError

    try:
        return checked_settings()
    except SettingsError as error:
        raise refuse(str(error), EXIT_USAGE) from None


def unconnected_settings_or_exit() -> Settings:
    """Return the settings of a command that calls no service. Exits with 2 and a sentence where one is wrong."""
    from lora_worker.errors import SettingsError
    from lora_worker.launchers.registry import load_unconnected_settings

    try:
        return load_unconnected_settings()
    except SettingsError as error:
        raise refuse(str(error), EXIT_USAGE) from None


def require_packages(whose: str, packages: Iterable[str], extra: str) -> None:
    """Exit with 2 and a sentence where a package is missing that the plain install has not.

    Called before anything is imported that needs one of them.
    """
    from lora_worker.configuration.extras import missing_packages

    if missing := missing_packages(packages):
        text = f"{whose} needs packages that are not installed ({', '.join(missing)}): "
        raise refuse(text + f"run `pip install '.[{extra}]'` in the project's folder", EXIT_USAGE)


def run_or_exit(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. Exits with a sentence on a `WorkerError`, with 130 on Ctrl-C.

    The status is 2 where a setting or an argument is wrong, and 1 for every other error.
    """
    import asyncio

    from lora_worker.errors import ArgumentError, SettingsError, WorkerError

    try:
        return asyncio.run(work)
    except (ArgumentError, SettingsError) as error:
        raise refuse(str(error), EXIT_USAGE) from None
    except WorkerError as error:
        raise refuse(str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def with_services(work: Callable[[Services], Awaitable[T]], settings: Settings | None = None) -> T:
    """Open the services and run `work` with them; exits as the two functions above do.

    `settings` are read here unless they are given.
    """
    chosen = settings or settings_or_exit()

    async def opened() -> T:
        from lora_worker.services import open_services

        async with open_services(chosen) as services:
            return await work(services)

    return run_or_exit(opened())


def may_ask() -> bool:
    """Tell whether somebody can answer a question: the input is a terminal."""
    return sys.stdin.isatty()


def refuse_unattended(text: str) -> None:
    """Exit with 2 and this sentence where nobody can answer a question."""
    if not may_ask():
        raise refuse(text, EXIT_USAGE)


def confirm_or_exit(question: str) -> None:
    """Ask a question on standard error; exits with 1 on a no."""
    if not typer.confirm(question, default=False, err=True):
        raise refuse("nothing is changed")


def make_console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or of `PIPE_COLUMNS` without colours where the output is a pipe.

    Square brackets are printed as they are: names come from users, and rich would read them as markup.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, markup=False, width=None if stream.isatty() else PIPE_COLUMNS)


def printable(text: str | None) -> str:
    """Return text that users wrote as it may be printed: one line, and without a character that moves the cursor.

    An escape sequence in a job's name would act on the operator's terminal, and a character that reverses the direction
    of writing would disguise what follows. Each such character becomes a replacement character.
    """
    words = " ".join((text or "").split())
    return words if words.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in words)


def harmless(text: str) -> str:
    """Return text with its line breaks, in which no other character acts on the terminal; as `printable` else.

    A tab becomes a space.
    """
    return "".join(c if c.isprintable() or c == "\n" or c in _JOINERS else " " if c == "\t" else "\ufffd" for c in text)


def printable_text(text: str, characters: int) -> str:
    """Return text of several lines as it may be printed, cut after so many characters; as `printable` for each line."""
    lines = [line.rstrip() for line in text[:characters].expandtabs(4).splitlines()]
    return harmless("\n".join(lines)).strip("\n") + (" …" if len(text) > characters else "")


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print each text on a line of its own, however long, and whatever users wrote in it."""
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def show(value: Any, *, as_json: bool, text: Callable[[Console], None]) -> None:
    """Print a command's answer: `value` as JSON (times as ISO 8601, ids as text), or what `text` prints."""
    if as_json:
        typer.echo(json.dumps(value, indent=2, default=str))
    else:
        text(make_console())
