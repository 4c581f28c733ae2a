"""The answer of `training_project_report`: what the doctor can't see through the REST API."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

_open = with_config(ConfigDict(extra="ignore"))


@_open
class CallableFunction(TypedDict):
    """A function of the schema `public`, and which of the roles anon, authenticated and service_role may call it."""

    name: str
    callers: list[str]


@_open
class ReportedTable(TypedDict):
    """A table of the schema `public`."""

    name: str
    row_security: bool


@_open
class OpenPolicy(TypedDict):
    """A policy that asks neither for a user nor for a claim: everybody with one of its roles passes it."""

    schema: str
    table: str
    name: str
    command: str
    roles: list[str]


@_open
class DefaultRight(TypedDict):
    """A role that gets a right on each new table or function that `maker` makes in the schema `public`."""

    objects: Literal["tables", "functions"]
    maker: str
    role: str


@_open
class OtherDispatcher(TypedDict):
    """Something besides the worker that a queue's table starts, or that reads it by the clock."""

    kind: Literal["trigger", "schedule"]
    name: str
    table: str


@_open
class ProjectReport(TypedDict):
    """The whole answer. `now` is ISO 8601; `base_models` are those of queued jobs, with '' where one names none."""

    now: str
    functions: list[CallableFunction]
    tables: list[ReportedTable]
    open_policies: list[OpenPolicy]
    default_rights: list[DefaultRight]
    other_dispatchers: list[OtherDispatcher]
    foreign_jobs: int
    base_models: list[str]
