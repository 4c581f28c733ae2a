"""A held run is changed in one place: `runs.applying`. Whoever else wants to change it returns an event."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest

import lora_worker
from lora_worker.runs import applying
from lora_worker.runs.state.events import Event
from lora_worker.runs.state.held_run import HeldRun

WORKER = Path(lora_worker.__file__).parent
WRITER = WORKER / "runs" / "applying.py"
FIELDS = {field.name for field in fields(HeldRun)}
MUTATING = {"add", "append", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault", "update"}
NAMES = {"held", "held_run", "holding", "run"}
"""What a variable that holds a held run is called, here and in most other code."""


def targets(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement assigns to or deletes, tuples taken apart."""
    match node:
        case ast.Assign() | ast.Delete():
            whole = node.targets
        case ast.AugAssign() | ast.AnnAssign() | ast.For() | ast.AsyncFor():
            whole = [node.target]
        case ast.withitem(optional_vars=ast.expr() as bound):
            whole = [bound]
        case _:
            return
    for target in whole:
        yield from target.elts if isinstance(target, ast.Tuple | ast.List) else [target]


def owner_of(node: ast.expr) -> tuple[str, str] | None:
    """The owner and the field of `owner.field` or `owner.field[…]`."""
    while isinstance(node, ast.Subscript | ast.Starred):
        node = node.value
    return (ast.unparse(node.value), node.attr) if isinstance(node, ast.Attribute) else None


def changes_by_a_call(call: ast.Call, *, in_state: bool) -> bool:
    """Whether it is `held.field.update(…)` or the like, or `setattr(held, …)`."""
    function = call.func
    owner = owner_of(function.value) if isinstance(function, ast.Attribute) and function.attr in MUTATING else None
    if owner and owner[1] in FIELDS and owner[0] != "self":
        return True
    is_setter = ast.unparse(function).rpartition(".")[2] in {"setattr", "__setattr__"}
    return is_setter and (in_state or any(ast.unparse(argument) in NAMES for argument in call.args))


def writes(code: str, *, in_state: bool = False) -> set[int]:
    """The lines of this code that change a field of a held run.

    A field's name alone tells enough: another object's field of the same name belongs to `self`. Only in the module of
    the state itself `self` is a held run, too.
    """
    lines = set()
    for node in ast.walk(ast.parse(code)):
        for target in targets(node):
            owner = owner_of(target)
            if owner and owner[1] in FIELDS and (in_state or owner[0] != "self"):
                lines.add(target.lineno)
        if isinstance(node, ast.Call) and changes_by_a_call(node, in_state=in_state):
            lines.add(node.lineno)
    return lines


@pytest.mark.parametrize("path", sorted(WORKER.rglob("*.py")), ids=lambda path: str(path.relative_to(WORKER)))
def test_only_the_applying_module_changes_a_held_run(path: Path) -> None:
    found = writes(path.read_text(), in_state=path.name == "held_run.py")
    assert bool(found) is (path == WRITER), (
        f"{path.name}, lines {sorted(found)}: return an event of runs/state/events.py instead"
    )


@pytest.mark.parametrize(
    "code",
    [
        "held.news = news",
        "held.put_off, held.is_settling = None, False",
        "held.launch_tries += 1",
        "held.handlings['settling'] = True",
        "held.handlings.update(settling=True)",
        "for held.problem in problems: pass",
        "with place as held.token: pass",
        "del held.report",
        "setattr(held, name, value)",
        "object.__setattr__(held, 'news', news)",
        "another_name.stopping = failure",
        "self._runs[run_id].report = None",
        "work.held.stopping = failure",
    ],
)
def test_every_way_to_change_a_held_run_is_detected(code: str) -> None:
    assert writes(code) == {1}


@pytest.mark.parametrize("code", ["self.token = token", "held.news.status", "news = held.news", "run(held.report)"])
def test_reading_a_held_run_does_not_count_as_a_change(code: str) -> None:
    assert writes(code) == set()


def test_the_state_does_not_change_itself() -> None:
    assert writes("self.news = news", in_state=True) == {1}


@pytest.mark.parametrize("event", get_args(Event), ids=lambda event: event.__name__)
def test_each_event_is_frozen_and_can_be_applied(event: type) -> None:
    assert is_dataclass(event)
    assert event.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert applying._write.dispatch(event) is not applying._write.dispatch(object)
