"""A base's chat template in the language of Ollama's Modelfiles (Go's text/template), where it can be said there.

The template itself is Jinja and may do anything. So it is asked: what stands before and after the text of each role is
taken from renderings, and the result must give the same text as the template for conversations of several shapes.
Templates that treat turns otherwise by their place, or that move the system prompt, have no such form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"
_TURNS = tuple(
    (role, f"Probe{number}") for number, role in enumerate((_SYSTEM, _USER, _ASSISTANT, _USER, _ASSISTANT, _USER))
)
_SHAPES = (_TURNS[1:2], _TURNS[:2], _TURNS[1:4], _TURNS[:4], _TURNS)

Turns = Sequence[tuple[str, str]]


class _OddTemplateError(Exception):
    """The template can't be written as one text before and one after each turn."""


def ollama_template(folder: Path) -> str | None:
    """The chat template of the tokenizer in `folder` for a Modelfile; None where there is none, or it can't be said."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # tokenizers raises no narrower type for files that it can't read
        return None
    return as_go(tokenizer)


def as_go(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template of `tokenizer` in Go's language; None where it can't be said there."""
    try:
        pieces = _ask(tokenizer)
        right = all(pieces.render(turns) == _rendered(tokenizer, turns) for turns in _SHAPES)
    except _OddTemplateError:
        return None
    text = pieces.as_go()
    return text if right and "{{" not in "".join(pieces.literals) else None


@dataclass(frozen=True)
class _Pieces:
    """What stands before and after the text of each role, instead of a system prompt, and before an answer."""

    around: dict[str, tuple[str, str]]
    without_system: str
    generation: str

    @property
    def literals(self) -> list[str]:
        return [self.without_system, self.generation, *(piece for pair in self.around.values() for piece in pair)]

    def render(self, turns: Turns) -> str:
        """What Ollama makes of a conversation."""
        begin = "" if turns[0][0] == _SYSTEM else self.without_system
        return begin + "".join(text.join(self.around[role]) for role, text in turns) + self.generation

    def as_go(self) -> str:
        roles = [
            f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for number, (role, (before, after)) in enumerate(self.around.items())
        ]
        begin = f"{{{{ if not .System }}}}{self.without_system}{{{{ end }}}}" if self.without_system else ""
        return f"{begin}{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}{self.generation}"


def _ask(tokenizer: PreTrainedTokenizerBase) -> _Pieces:
    _, user, answer, again, *_ = (text for _, text in _TURNS)
    asked = _rendered(tokenizer, _TURNS[1:2], generation=False)
    answered = _rendered(tokenizer, _TURNS[1:3], generation=False)
    whole = _rendered(tokenizer, _TURNS[1:4])
    first = _rendered(tokenizer, _TURNS[:2])
    after_user, after_answer = _after(asked, user), _after(answered, answer)
    before_user = _without_start(_between(whole, answer, again), after_answer)
    before_answer = _without_start(_between(whole, user, answer), after_user)
    after_system = _without_end(_between(first, _TURNS[0][1], user), before_user)
    return _Pieces(
        {
            _SYSTEM: (first.split(_TURNS[0][1])[0], after_system),
            _USER: (before_user, after_user),
            _ASSISTANT: (before_answer, after_answer),
        },
        _without_end(asked.split(user)[0], before_user),
        _without_start(_after(whole, again), after_user),
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Turns, *, generation: bool = True) -> str:
    """The template's text of a conversation, without the token that begins a text: llama.cpp puts that in front."""
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    except Exception as error:  # a template is code that came with the base
        raise _OddTemplateError from error
    if any(text.count(probe) != 1 for _, probe in turns):
        raise _OddTemplateError
    return str(text).removeprefix(tokenizer.bos_token or "")


def _after(text: str, mark: str) -> str:
    return text.split(mark, 1)[1]


def _between(text: str, left: str, right: str) -> str:
    return _after(text, left).split(right, 1)[0]


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise _OddTemplateError
    return text[len(start) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise _OddTemplateError
    return text[: len(text) - len(end)]
