"""The routing table: a TOML file that names endpoints, and rules by which a job gets one of them (docs/routing.md)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lora_contract.hyperparameters import Method
from lora_contract.names import nearest
from lora_contract.words import fault_words
from lora_worker.errors import SettingsError

MAX_BYTES = 200_000
MOST_ENDPOINTS, MOST_RULES = 50, 200
MOST_PRIORITY_CHARACTERS = 50
"""So much of a job's priority is compared."""
_MOST_SENTENCES = 10
VARIABLE = "LORA_WORKER_ROUTES"

_STRICT = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
_TWICE = re.compile(r"Cannot declare \('endpoints', '([^']{1,50})'\) twice \(at (line \d+)")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,50}")

Text = Annotated[str, Field(min_length=1, max_length=300)]
Billions = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
Minutes = Annotated[float, Field(gt=0, le=10_080, allow_inf_nan=False)]
Gpus = Annotated[int, Field(ge=1, le=64, strict=True)]


class EndpointEntry(BaseModel):
    """A table `[endpoints.<name>]`: one endpoint of one launcher, and the GPUs that it has."""

    model_config = _STRICT

    launcher: Text | None = None
    """Its name; None: that of LORA_WORKER_LAUNCHER."""
    endpoint: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """Its address; None: the one of the launcher's own settings."""
    gpu_type: Text | None = None
    """None: LORA_WORKER_ENDPOINT_GPU_TYPE, or what each job asks for."""
    gpu_count: Gpus | None = None
    """GPUs of one of its machines; None: LORA_WORKER_ENDPOINT_GPU_COUNT."""
    price_per_hour: Annotated[float, Field(ge=0, lt=1000, allow_inf_nan=False)] | None = None
    """USD of one GPU, 0 where nobody is to pay; None: as the price table says."""
    slots: Annotated[int, Field(ge=1, le=100_000, strict=True)] | None = None
    """The most launches that may be there at the same time, of all workers together."""
    serves: bool | None = None
    """Whether the endpoint that answers with adapters has its network volume; None: only that of the first endpoint."""


class Rule(BaseModel):
    """A table `[[rules]]`: which jobs it is for, and the endpoints that they may get, the best first.

    A condition that is left out holds for every job.
    """

    model_config = _STRICT

    base_model: Text | None = None
    """A pattern of shell globs, such as `*-70B*`, compared without regard to case."""
    parameters_at_least: Billions | None = None
    parameters_at_most: Billions | None = None
    method: Method | None = None
    gpu_type: Text | None = None
    """The GPU that the job asks for, in any spelling of the price table."""
    gpu_count: Annotated[int, Field(ge=1, le=8, strict=True)] | None = None
    """How many GPUs the job asks for; no job can ask for more."""
    user: Text | None = None
    """The id of the job's user."""
    priority: Annotated[str, Field(min_length=1, max_length=MOST_PRIORITY_CHARACTERS)] | None = None
    """The text at the key `priority` of the job's gpu_config."""
    endpoints: Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_ENDPOINTS)]

    @field_validator("user")
    @classmethod
    def _check_user(cls, user: str | None) -> str | None:
        try:
            return user and str(UUID(user))
        except ValueError:
            raise ValueError(f"{user!r:.60} is no user's id; write the UUID that Supabase shows under Users") from None


class RoutingTable(BaseModel):
    """The whole file. Without a rule that matches, a job gets the endpoint that the file names first."""

    model_config = _STRICT

    endpoints: Annotated[dict[str, EndpointEntry], Field(min_length=1, max_length=MOST_ENDPOINTS)]
    rules: Annotated[tuple[Rule, ...], Field(max_length=MOST_RULES)] = ()
    fall_back_minutes: Minutes = 15.0
    """How long a run waits where there is no GPU before it goes to the rule's next endpoint."""
    pass_over_minutes: Minutes = 30.0
    """How long the endpoint is then left out, where another can be had."""

    @field_validator("endpoints")
    @classmethod
    def _check_names(cls, endpoints: dict[str, EndpointEntry]) -> dict[str, EndpointEntry]:
        for name in endpoints:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name[:50]!r} is no name; take 1 to 50 letters, digits, - and _")
        return endpoints


def read_table(path: Path) -> RoutingTable:
    """Read and check the routing table.

    Raises:
        SettingsError: the file can't be read, or something in it is wrong: a sentence with table and key for each of
            the first ten mistakes.
    """
    where = f"{VARIABLE}: {path}"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{where} can't be read ({error.strerror or type(error).__name__}).") from None
    if len(content) > MAX_BYTES:
        raise SettingsError(f"{where} is larger than {MAX_BYTES // 1000} KB: it can't be a routing table.")
    try:
        document = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{where}, line {line}: is not UTF-8; save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        if twice := _TWICE.search(str(error)):
            raise SettingsError(f"{where}, {twice[2]}: [endpoints.{twice[1]}] is there twice; rename one.") from None
        raise SettingsError(f"{where} is no TOML ({str(error)[:200]}).") from None
    try:
        table = RoutingTable.model_validate(document)
    except ValidationError as error:
        wrong = [_explain(problem) for problem in error.errors(include_url=False)]
        raise SettingsError(f"{where}, {in_sentences(wrong)}") from None
    if wrong := list(_contradictions(table)):
        raise SettingsError(f"{where}, {in_sentences(wrong)}")
    return table


def in_sentences(faults: Sequence[str]) -> str:
    """Join the mistakes of a table to sentences, the first ten of them."""
    more = len(faults) - _MOST_SENTENCES
    told = [f"{fault}." for fault in faults[:_MOST_SENTENCES]]
    return " ".join([*told, f"And {more} more."] if more > 0 else told)


def _explain(problem: Mapping[str, Any]) -> str:
    place, key = _place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _KEYS[place[0]]
        near = nearest(key, known, cutoff=0.6)
        hint = f"{near} may be meant" if near else f"known are {', '.join(known)}"
        return f"{place[1]}: {key[:50]!r} is no key there; {hint}"
    text = _shape_fault(place, key, problem) or fault_words(problem["type"], problem["msg"])
    return f"{place[1]}: {key + ': ' if key else ''}{text}"


def _shape_fault(place: tuple[str, str], key: str, problem: Mapping[str, Any]) -> str | None:
    """What to write where a table or a list of the file has another shape; None where the fault is another one."""
    match problem["type"], place[0], key:
        case "tuple_type", "table", "rules":
            return "write [[rules]], with two brackets, before each rule"
        case "dict_type", "table", "endpoints":
            return "write [endpoints.NAME], with one bracket and a name, before each endpoint"
        case "model_type", "endpoint", "":
            return f"is no table; write {place[1]} in a line of its own, and its keys below"
        case "model_type", "rule", "":
            return "is no table; write [[rules]] in a line of its own, and its keys below"
        case "tuple_type", "rule", "endpoints":
            named = problem["input"]
            example = named if isinstance(named, str) and _NAME.fullmatch(named) else "NAME"
            return f'write ["{example}"], a list'
    return None


def _place(loc: tuple[int | str, ...]) -> tuple[tuple[str, str], str]:
    """The kind and the name of the table in which a problem is, and the key there."""
    if len(loc) > 1 and loc[0] == "endpoints":
        return ("endpoint", f"[endpoints.{str(loc[1])[:50]}]"), str(loc[2]) if len(loc) > 2 else ""
    if len(loc) > 1 and loc[0] == "rules":
        number = int(loc[1]) + 1 if isinstance(loc[1], int) else loc[1]
        return ("rule", f"rule {number} of [[rules]]"), str(loc[2]) if len(loc) > 2 else ""
    return ("table", "at the top"), str(loc[0]) if loc else ""


_KEYS: Mapping[str, tuple[str, ...]] = {
    "endpoint": tuple(EndpointEntry.model_fields),
    "rule": tuple(Rule.model_fields),
    "table": tuple(RoutingTable.model_fields),
}


def _contradictions(table: RoutingTable) -> Iterator[str]:
    """What is valid for itself, and wrong together."""
    for number, rule in enumerate(table.rules, 1):
        for unknown in dict.fromkeys(name for name in rule.endpoints if name not in table.endpoints):
            named = unknown[:50]
            yield f"rule {number} of [[rules]]: endpoints names {named!r}, and there is no [endpoints.{named}]"
        if len(set(rule.endpoints)) < len(rule.endpoints):
            yield f"rule {number} of [[rules]]: endpoints names one twice"
        least, most = rule.parameters_at_least, rule.parameters_at_most
        if least is not None and most is not None and least > most:
            yield f"rule {number} of [[rules]]: parameters_at_least is more than parameters_at_most: it matches nothing"
    seen: dict[tuple[Any, Any], str] = {}
    for name, entry in table.endpoints.items():
        address = entry.launcher, entry.endpoint and entry.endpoint.rstrip("/")
        if address in seen:
            yield (
                f"[endpoints.{name}]: its endpoint is that of [endpoints.{seen[address]}] too; give each its own, or "
                "keep one"
            )
        seen[address] = name
