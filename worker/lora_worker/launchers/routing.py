"""Which place a run goes to: the first rule that matches names candidates, and the first of them that is free gets it.

Pure functions: what the database says of the places comes in as `PlaceState`, and what a job does not fit as texts.

    each candidate            what follows
    ────────────────────────  ───────────────────────────────────────────────────────────────────────────────────
    nothing is against it     the first such one is chosen
    it can't hold the job     never chosen, unless no candidate can: then the preflight says why, at the first one
    it is full, or jobs are   if no candidate is free the job waits in the database's queue, where it blocks no slot
    held for it
    it has no GPU now         if that is so at all of the others, the run waits in the queue of the first such one
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from lora_worker.launchers.routing_table import RoutingTable, Rule


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a rule may ask of a job."""

    base_model: str
    parameters: float | None
    """Of the base model, in billions; None where the worker knows nothing of it."""
    method: str
    gpu_names: frozenset[str]
    """The GPU that the job asks for by all of its names, each in small letters and digits."""
    gpu_count: int
    user: str
    priority: str | None = None


@dataclass(frozen=True, slots=True)
class PlaceState:
    """What the database knows of a place now."""

    launches: int = 0
    """Of all workers' other runs, as far as they may be alive."""
    without_gpu_seconds: float = 0.0
    """For how long jobs have waited there without a GPU, or without an answer of its endpoint."""
    passed_over_seconds: float = 0.0
    """How much longer it is left out, since a run has waited there in vain."""
    held_seconds: float = 0.0
    """How much longer jobs are held for its image, or for this base model there."""
    problem: str | None = None
    """What is wrong there, for the operator."""
    was_left: bool = False
    """Whether the job has left it for want of a GPU in the last hours."""


class Hurdle(StrEnum):
    """What keeps a run from a place."""

    UNFIT = "unfit"
    FULL = "full"
    HELD = "held"
    NO_GPU = "no_gpu"
    REFUSED = "refused"
    """Its launcher has just refused this run, as when a cloud has no machine."""


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate: nothing is against it, or what is, in words for the operator."""

    place: str
    hurdle: Hurdle | None = None
    reason: str | None = None
    was_left: bool = False
    """Whether the job has left it for want of a GPU in the last hours."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a run goes, and why."""

    rule: int | None
    """The number of the rule, counted from 1; None: none matched."""
    conditions: str
    """The rule in words."""
    options: tuple[Option, ...]
    place: str | None
    """None: the run waits."""

    @property
    def is_free(self) -> bool:
        """Whether nothing is against the place that was chosen."""
        return any(option.place == self.place and option.hurdle is None for option in self.options)

    @property
    def held_place(self) -> str | None:
        """The first that fits, where jobs are held at all of those: what holds them there holds the job. Else None."""
        fit = [option for option in self.options if option.hurdle is not Hurdle.UNFIT]
        return fit[0].place if fit and all(option.hurdle is Hurdle.HELD for option in fit) else None

    def leads_on(self, here: str | None) -> bool:
        """Whether a run may leave `here` for the place that was chosen.

        Not if its job has left both in the last hours: without a GPU anywhere it would go to and fro for ever.
        """
        left = {option.place for option in self.options if option.was_left}
        return self.is_free and not {here, self.place} <= left

    @property
    def why_waiting(self) -> str:
        """What is against each candidate, in one sentence for the operator."""
        return "; ".join(f"{option.place}: {option.reason}" for option in self.options if option.reason)


def choose(
    table: RoutingTable,
    wanted: Wanted,
    states: Mapping[str, PlaceState],
    *,
    unfit: Mapping[str, str],
    refused: frozenset[str] = frozenset(),
) -> Choice:
    """Choose the place of a run.

    `states` are those of the places by name; one that is missing is free. `unfit` says of places that can't hold the
    job why not, and `refused` names those whose launcher has just refused the run.
    """
    number, rule = _first_match(table, wanted)
    names = rule.endpoints if rule else (next(iter(table.endpoints)),)
    conditions = describe(rule) if rule else "no rule matches, so it gets the first endpoint"
    known = {name: states.get(name, PlaceState()) for name in names}
    options = tuple(
        replace(_option(name, table, state, unfit, refused), was_left=state.was_left) for name, state in known.items()
    )
    return Choice(number, conditions, options, _chosen(options))


def _first_match(table: RoutingTable, wanted: Wanted) -> tuple[int | None, Rule | None]:
    found = ((number, rule) for number, rule in enumerate(table.rules, 1) if matches(rule, wanted))
    return next(found, (None, None))


def matches(rule: Rule, wanted: Wanted) -> bool:
    """Whether all conditions of a rule hold for a job. A base model of unknown size matches no size."""
    return all(_held_conditions(rule, wanted))


def _held_conditions(rule: Rule, wanted: Wanted) -> Iterator[bool]:
    if rule.base_model is not None:
        yield fnmatchcase(wanted.base_model.lower(), rule.base_model.lower())
    if rule.parameters_at_least is not None:
        yield wanted.parameters is not None and wanted.parameters >= rule.parameters_at_least
    if rule.parameters_at_most is not None:
        yield wanted.parameters is not None and wanted.parameters <= rule.parameters_at_most
    if rule.gpu_type is not None:
        yield re.sub(r"[^a-z0-9]", "", rule.gpu_type.lower()) in wanted.gpu_names
    for said, asked in (
        (rule.method, wanted.method),
        (rule.gpu_count, wanted.gpu_count),
        (rule.user and rule.user.lower(), wanted.user.lower()),
        (rule.priority, wanted.priority),
    ):
        if said is not None:
            yield said == asked


def describe(rule: Rule) -> str:
    """The conditions of a rule as a sentence goes on after "for"."""
    said = [f"{key} {value}" for key, value in rule.model_dump(exclude={"endpoints"}).items() if value is not None]
    return f"for {', '.join(said)}" if said else "for every job"


def _option(
    name: str,
    table: RoutingTable,
    state: PlaceState,
    unfit: Mapping[str, str],
    refused: frozenset[str],
) -> Option:
    slots = table.endpoints[name].slots
    if name in unfit:
        return Option(name, Hurdle.UNFIT, unfit[name])
    if state.held_seconds > 0:
        return Option(name, Hurdle.HELD, f"jobs are held for it ({_minutes(state.held_seconds)} more)")
    if slots is not None and state.launches >= slots:
        return Option(name, Hurdle.FULL, f"all of its {slots} slots are taken")
    if name in refused:
        return Option(name, Hurdle.REFUSED, "its launcher has just refused the run")
    if state.passed_over_seconds > 0:
        return Option(name, Hurdle.NO_GPU, f"a run waited there in vain ({_minutes(state.passed_over_seconds)} more)")
    if state.without_gpu_seconds >= table.fall_back_minutes * 60:
        since = f"it has had no GPU for {_minutes(state.without_gpu_seconds)}"
        return Option(name, Hurdle.NO_GPU, f"{since} ({state.problem})" if state.problem else since)
    return Option(name)


def _minutes(seconds: float) -> str:
    return f"{max(seconds / 60, 1):.0f} min"


def _chosen(options: tuple[Option, ...]) -> str | None:
    free = next((option.place for option in options if option.hurdle is None), None)
    if free is not None:
        return free
    fit = [option for option in options if option.hurdle is not Hurdle.UNFIT]
    if not fit:
        return options[0].place
    if any(option.hurdle in {Hurdle.FULL, Hurdle.HELD} for option in fit):
        return None
    return fit[0].place
