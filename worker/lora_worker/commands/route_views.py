"""Which endpoint a job gets and why, with what it would cost at each that it may get."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict
from uuid import UUID

from rich.table import Table

from lora_worker.commands.terminal import printable
from lora_worker.database.job_reports import JobDetails
from lora_worker.database.rows import Job, parse_gpu_config, parse_hyperparameters
from lora_worker.datasets.placing import look_at_places
from lora_worker.datasets.preflight import check_base_model, check_gpu, current_terms
from lora_worker.errors import ArgumentError, PreflightError
from lora_worker.launchers.base import EndpointHealth
from lora_worker.launchers.routing import Choice, Option, PlaceState
from lora_worker.money.estimate import Work, estimate
from lora_worker.services import Services
from lora_worker.words import duration, money

if TYPE_CHECKING:
    from rich.console import Console

    from lora_contract.hyperparameters import GpuConfig, Hyperparameters


_NO_COST = (
    "what it would cost is not known: no worker has run with this database yet, the tokens of its dataset are not "
    "counted, or nothing is known of its base model there"
)


class Candidate(TypedDict):
    """An endpoint that the job may get."""

    place: str
    launcher: str
    endpoint: str
    gpu_type: str | None
    """What the job gets there; None where that GPU is not in the price table."""
    gpu_count: int
    price_per_hour: float | None
    """USD of one GPU."""
    slots: int | None
    launches: int | None
    """Other runs that have a launch there now; None without a routing table."""
    hurdle: str | None
    """What is against it, in a word; null where nothing is."""
    reason: str | None
    notice: str | None
    """What may come to be against it, where nothing is yet: nobody answers, or no GPU is there."""
    estimate: dict[str, Any] | None
    """What the training would take and cost there; null where too little is known of it."""


class Route(TypedDict):
    """The answer of `lora-worker route`."""

    job_id: str
    table: str | None
    """The file of the routing table."""
    rule: int | None
    """The rule that matches, counted from 1."""
    conditions: str
    place: str | None
    """Where the job would be launched now; null where it would wait."""
    candidates: list[Candidate]
    launched_at: str | None
    """The endpoint at which its live run was launched."""


async def explain_route(services: Services, details: JobDetails) -> Route:
    """Choose the job's endpoint as its launch would now; nothing is changed.

    Raises:
        ArgumentError: the job can't be trained as it is, so it gets no endpoint.
        ServiceError: the database did not answer.
    """
    job = details["job"]
    row = Job(
        id=UUID(job["job_id"]),
        user_id=UUID(job["user_id"] or str(UUID(int=0))),
        hyperparameters=job["hyperparameters"],
        gpu_config=job["gpu_config"],
    )
    live = [run for run in details["runs"] if run["ended_at"] is None]
    try:
        chosen = parse_hyperparameters(row, default_base_model=services.settings.default_base_model)
        gpu = parse_gpu_config(row)
        if not live:  # a base that is offered no more ends no run
            check_base_model(chosen, services.settings.base_models)
    except PreflightError as error:
        raise ArgumentError(f"the job gets no endpoint: {error}") from None
    choice, states = await _choose(services, row, chosen, gpu, UUID(live[-1]["run_id"]) if live else None)
    found = (job["estimate"] or {}).get("tokens")
    return {
        "job_id": job["job_id"],
        "table": str(services.settings.routes) if services.routes else None,
        "rule": choice.rule,
        "conditions": choice.conditions,
        "place": choice.place,
        "candidates": await asyncio.gather(
            *(
                _candidate(services, option, states.get(option.place), chosen, gpu, tokens=found)
                for option in choice.options
            )
        ),
        "launched_at": live[-1]["endpoint"] if live and live[-1]["launched_at"] else None,
    }


async def _choose(
    services: Services, job: Job, chosen: Hyperparameters, gpu: GpuConfig, run_id: UUID | None
) -> tuple[Choice, Mapping[str, PlaceState]]:
    """The choice, and what the database knows of each place; nothing without a routing table."""
    if services.routes is None:
        only = services.places.default.name
        return Choice(None, "without a routing table, so it gets the only endpoint", (Option(only),), only), {}
    candidates = await look_at_places(
        chosen, gpu, services, services.routes, user=job.user_id, gpu_config=job.gpu_config, run_id=run_id
    )
    return candidates.choose(), candidates.states


def notice_of(seen: EndpointHealth, without_gpu_seconds: float, fall_back_minutes: float | None) -> str | None:
    """What may come to be against an endpoint, in words; None where a run would get its GPU now.

    `without_gpu_seconds`: for how long workers have seen that. `fall_back_minutes`: after how long the endpoint is
    passed over; None: never.
    """
    if not seen.lacks_gpu:
        return seen.problem
    said = seen.problem or ("jobs wait there without a GPU" if seen.reachable else "nobody answers")
    since = f"{said}, since {duration(without_gpu_seconds)}" if without_gpu_seconds else said
    return since if fall_back_minutes is None else f"{since}; passed over after {fall_back_minutes:g} min"


async def _candidate(
    services: Services,
    option: Option,
    state: PlaceState | None,
    chosen: Hyperparameters,
    gpu: GpuConfig,
    *,
    tokens: Any,
) -> Candidate:
    place, table = services.places.named(option.place), services.routes
    notice = None
    if option.hurdle is None:
        seen = await place.launcher.health()
        notice = notice_of(seen, state.without_gpu_seconds if state else 0, table.fall_back_minutes if table else None)
    made: Candidate = {
        "place": place.name,
        "launcher": place.launcher.name,
        "endpoint": place.endpoint,
        "gpu_type": None,
        "gpu_count": place.gpu_count,
        "price_per_hour": None,
        "slots": place.slots,
        "launches": state.launches if state else None,
        "hurdle": option.hurdle and str(option.hurdle),
        "reason": option.reason,
        "notice": notice,
        "estimate": None,
    }
    try:
        price = check_gpu(gpu, services.prices, place)
    except PreflightError:
        return made
    made["gpu_type"], made["price_per_hour"] = price.type, price.price_per_hour
    if isinstance(tokens, int) and tokens > 0:
        terms = await current_terms(services, chosen.base_model, price, place)
        expected = estimate(_work(chosen, tokens, price.type, min(gpu.count, place.gpu_count)), terms)
        if expected is not None:
            made["estimate"] = {
                "seconds": {"low": expected.seconds.low, "high": expected.seconds.high},
                "cost": {"low": expected.cost.low, "high": expected.cost.high},
            }
    return made


def _work(chosen: Hyperparameters, tokens: int, gpu_type: str, gpus: int) -> Work:
    return Work(
        tokens=tokens,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        max_steps=chosen.max_steps,
        base_model=chosen.base_model,
        gpu_type=gpu_type,
        gpus=gpus,
        method=chosen.method,
    )


def print_route(route: Route, console: Console) -> None:
    """Write the choice for a terminal: the rule, a row for each candidate, and what follows."""
    rule = f"rule {route['rule']} matches, {route['conditions']}" if route["rule"] else route["conditions"]
    console.print(f"job {route['job_id']}: {printable(rule)}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("endpoint", "GPU", "an hour", "launches", "costs about"):
        table.add_column(heading, no_wrap=True)
    table.add_column("now", overflow="fold", ratio=1)
    for each in route["candidates"]:
        table.add_row(*_row(each, is_chosen=each["place"] == route["place"]))
    console.print(table)
    if not any(each["estimate"] for each in route["candidates"]):
        console.print(_NO_COST, soft_wrap=True)
    if route["place"] is None:
        console.print("it would wait in the queue until one of them is free", soft_wrap=True)
    if route["launched_at"]:
        console.print(f"its live run was launched at {printable(route['launched_at'])}", soft_wrap=True)


def _row(each: Candidate, *, is_chosen: bool) -> list[str]:
    price, cost = each["price_per_hour"], (each["estimate"] or {}).get("cost")
    launches = "" if each["launches"] is None else str(each["launches"])
    now = each["reason"] or each["notice"] or "free"
    return [
        f"{'→ ' if is_chosen else '  '}{printable(each['place'])}",
        f"{each['gpu_count']} × {each['gpu_type'] or '?'}",
        "" if price is None else money(price * each["gpu_count"]),
        launches + (f" of {each['slots']}" if each["slots"] else ""),
        "" if cost is None else f"{money(cost['low'])} to {money(cost['high'])}",
        f"chosen; {printable(now)}" if is_chosen else printable(now),
    ]
