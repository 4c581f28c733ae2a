"""The command `ask`: a question to a finished adapter by its name, and to its base model beside it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.terminal import (
    EXIT_USAGE,
    AsJson,
    command_group,
    harmless,
    may_ask,
    refuse,
    settings_or_exit,
    show,
    with_services,
)

if TYPE_CHECKING:
    from lora_worker.inference.endpoint import Said
    from lora_worker.services import Services

commands = command_group()

_MOST_CHARACTERS = 1_000_000
_NOT_UTF8 = "{}: it is not written in UTF-8; convert it, for instance with iconv"


@commands.command()
def ask(
    model: Annotated[
        str, typer.Argument(help="A job's id, an artifact's id, or a name at the endpoint, such as bot:live.")
    ],
    question: Annotated[str, typer.Argument(help="Empty or -: read from standard input.")] = "",
    compare: Annotated[bool, typer.Option("--compare", help="Ask the base model first, then the adapter.")] = False,
    system: Annotated[str, typer.Option(help="A system message before the question.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, max=32_768, help="After so many the answer is cut off.")] = 512,
    wait: Annotated[
        int, typer.Option(min=0, max=3600, help="Seconds to wait for a machine where the endpoint is asleep.")
    ] = 600,
    as_json: AsJson = False,
) -> None:
    """Ask a finished adapter at the inference endpoint; the answer is shown as it comes.

    The most likely words are taken, so the same question has the same answer. Exits with 1 if there is no whole answer.
    """
    from lora_worker.errors import SettingsError
    from lora_worker.inference.address import inference_access
    from lora_worker.inference.endpoint import InferenceEndpoint, Question, Waiting
    from lora_worker.inference.names import check_name, id_of, served_name

    messages = [{"role": "system", "content": _in_utf8(system, "--system")}] if system else []
    messages.append({"role": "user", "content": _question(question)})

    settings = settings_or_exit()
    try:
        address, key = inference_access(settings)
    except SettingsError as error:
        raise refuse(str(error), EXIT_USAGE) from None

    async def work(services: Services) -> list[Said]:
        asked = id_of(model)
        name = check_name(model) if asked is None else await served_name(services, asked)
        waiting = Waiting(wait, lambda text: typer.echo(text, err=True))
        endpoint = InferenceEndpoint(address, key, http=services.http, waiting=waiting)
        await endpoint.wake(await services.launcher.health(address))
        said = []
        for one in [await endpoint.base_model(), name] if compare else [name]:
            if compare and not as_json:
                typer.echo(f"── {safe_text(one)}")
            asking = Question(one, messages, max_tokens)
            said.append(await endpoint.ask(asking, _nothing if as_json else _print_piece))
            _end_answer(said[-1], max_tokens, as_json=as_json)
        return said

    said = with_services(work, settings)
    if as_json:
        answer = {**_as_json(said[-1]), "base": _as_json(said[0]) if compare else None}
        show(answer, as_json=True, text=_nothing)


def _question(text: str) -> str:
    if text in {"", "-"}:
        if may_ask():
            raise refuse("QUESTION: write it behind MODEL, or pipe it in", EXIT_USAGE)
        try:
            text = sys.stdin.read(_MOST_CHARACTERS + 1)
        except UnicodeDecodeError:
            raise refuse(_NOT_UTF8.format("QUESTION"), EXIT_USAGE) from None
    if not text.strip():
        raise refuse("QUESTION: there is none", EXIT_USAGE)
    if len(text) > _MOST_CHARACTERS:
        raise refuse(f"QUESTION: it has more than {_MOST_CHARACTERS:,} characters", EXIT_USAGE)
    return _in_utf8(text, "QUESTION")


def _in_utf8(text: str, argument: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python reads each byte that is no UTF-8 in an argument as half of a character.
        raise refuse(_NOT_UTF8.format(argument), EXIT_USAGE) from None
    return text


def safe_text(text: str) -> str:
    """A piece of a model's text as it may be printed: its lines, and no character that would act on the terminal."""
    # A line break of two characters may be cut between two pieces: its second half is enough.
    return harmless(text.replace("\r\n", "\n").removesuffix("\r"))


def _print_piece(text: str) -> None:
    sys.stdout.write(safe_text(text))
    sys.stdout.flush()


def _end_answer(said: Said, max_tokens: int, *, as_json: bool) -> None:
    if not as_json:
        typer.echo()
    if said.finish_reason == "length":
        typer.echo(f"cut off after {max_tokens} tokens (--max-tokens)", err=True)


def _as_json(said: Said) -> dict[str, Any]:
    return {
        "model": said.model,
        "answer": said.text,
        "finish_reason": said.finish_reason,
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.completion_tokens,
    }


def _nothing(_: Any) -> None:
    pass
