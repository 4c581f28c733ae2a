"""Writes docs/cli.md and docs/settings.md from the code: `make reference`. A test fails while they are out of date."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined
from typer.main import get_command

from lora_trainer.cli import app as trainer
from lora_trainer.settings import Settings as TrainerSettings
from lora_worker.commands import terminal
from lora_worker.commands.cli import app as worker
from lora_worker.commands.setup import setting_rows

DOCS = Path(__file__).parent.parent / "docs"


def main() -> int:
    """Write both pages; returns 0."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
    return 0


def pages() -> dict[str, str]:
    """Return the text of each page, by its file's name."""
    return {"cli.md": "\n".join(_cli_page()), "settings.md": "\n".join(_settings_page())}


def _cli_page() -> Iterator[str]:
    yield from (
        "# Commands",
        "",
        "This page is made from the code (`make reference`). Every command of `lora-worker` that answers something",
        "takes `--json`: the keys are stable within a minor version. Text is for people: in a pipe it has no colours.",
        "`lora-worker --install-completion` teaches your shell the commands.",
        "",
        "| exit code | what it means |",
        "|---|---|",
    )
    yield from (f"| {code} | {meaning} |" for code, meaning in terminal.EXIT_CODES.items())
    for name, app in (("lora-worker", worker), ("lora-trainer", trainer)):
        yield from _commands(get_command(app), name)
    yield ""


def _commands(command: Any, name: str, level: int = 2) -> Iterator[str]:
    """Describe a command of typer, or each command of a group. Their classes are typer's own and not exported."""
    yield from ("", f"{'#' * level} `{name}`", "", *inspect.cleandoc(command.help or "").splitlines())
    children = getattr(command, "commands", None)
    if children:
        for child in sorted(children.values(), key=lambda child: str(child.name)):
            if not child.hidden:
                yield from _commands(child, f"{name} {child.name}", level + 1)
        return
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    usage = " ".join(_usage(parameter) for parameter in parameters if _is_argument(parameter))
    yield from ("", "```", f"{name} [OPTIONS] {usage}".rstrip(), "```")
    if parameters:
        yield from ("", "| option | default | what |", "|---|---|---|")
        yield from (f"| {_names(parameter)} | {_default(parameter)} | {_help(parameter)} |" for parameter in parameters)


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper()).strip("[]")
    return f"{name}…" if parameter.nargs == -1 else name


def _usage(parameter: Any) -> str:
    return _argument(parameter) if parameter.required else f"[{_argument(parameter)}]"


def _names(parameter: Any) -> str:
    if _is_argument(parameter):
        return f"`{_argument(parameter)}`"
    return ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    is_shown = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    return f"`{default}`" if is_shown else ""


def _help(parameter: Any) -> str:
    text = " ".join(str(getattr(parameter, "help", None) or "").split())
    variables = parameter.envvar or ()
    names = [variables] if isinstance(variables, str) else list(variables)
    if names:
        text = f"{text} From {' or '.join(f'`{name}`' for name in names)} where it is not given.".strip()
    return text.replace("|", "\\|")


def _settings_page() -> Iterator[str]:
    yield from (
        "# Settings",
        "",
        "This page is made from the code (`make reference`).",
        "",
        "## The worker's",
        "",
        "They are read from the environment and from a file `.env` in the working folder, which gives way to the",
        "environment. A misspelt or wrong one is refused at the start, in a sentence that names it and never shows its",
        "value. An address that gets a key must begin with `https://`; with `http://` it may be a host of your own",
        "machine or network: a private address, a name without a dot, or one that ends with `.local`, `.lan`,",
        "`.internal`, `.home.arpa`, `.localhost`, `.localdomain`, `.home`, `.intranet`, `.test`, `.ts.net` or `.svc`",
        "(in Kubernetes write `kong.supabase.svc`, not `kong.supabase`).",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    )
    yield from (f"| {_cells(row.values())} |" for row in setting_rows())
    yield from (
        "",
        "## The trainer's",
        "",
        "They belong into the endpoint's environment (`[env]` of deploy.toml), where no secret may stand. A misspelt",
        "name is a warning in the container's log, with the nearest known one; a wrong value fails each job, with a",
        "sentence.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    )
    for name, field in TrainerSettings.model_fields.items():
        default = "" if field.default in (None, PydanticUndefined) else str(field.default)
        yield f"| {_cells([f'LORA_TRAINER_{name.upper()}', default, ' '.join((field.description or '').split())])} |"
    yield ""


def _cells(values: Iterable[str]) -> str:
    first, default, meaning = (value.replace("|", "\\|") for value in values)
    meaning = meaning.replace("<", "&lt;")
    return f"`{first}` | {f'`{default}`' if default else ''} | {meaning}"


if __name__ == "__main__":
    sys.exit(main())
