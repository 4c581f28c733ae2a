"""Commands about money: `estimate`, `plan`, `costs`, `budget`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.terminal import (
    EXIT_USAGE,
    AsJson,
    command_group,
    refuse,
    show,
    unconnected_settings_or_exit,
    with_services,
)

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method

commands = command_group()
budget = typer.Typer(
    help="What a UTC day may cost: of all trainings, and of each user. Jobs over it wait; live runs go on.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
commands.add_typer(budget, name="budget")


@commands.command()
def estimate(
    dataset_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the dataset; 0: 200 for each pair.")] = 0,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of the dataset.")] = 0,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    base_model: Annotated[str, typer.Option(help="Empty: the worker's default.")] = "",
    gpu: Annotated[str, typer.Option(help="A GPU of the price table; empty: the endpoint's, or A100-80GB.")] = "",
    gpus: Annotated[
        int, typer.Option(min=0, max=8, help="How many train together; 0: as many as the endpoint has.")
    ] = 0,
    method: Annotated[str, typer.Option(help="sft, dpo (a pair has two answers) or kto.")] = "sft",
    job: Annotated[str, typer.Option(help="A job's id, instead of all the others.")] = "",
    as_json: AsJson = False,
) -> None:
    """Estimate time and cost of a training, as a range. Without --job no key and no setting is needed."""
    from lora_worker.commands.estimate import estimate_job, estimate_work, format_estimate
    from lora_worker.errors import ArgumentError, SettingsError
    from lora_worker.money.estimate import Work

    if job:
        found = with_services(lambda services: estimate_job(services, job))
        if found is None:
            raise refuse(
                f"nothing can be said of job {job}: it does not exist, its dataset was not counted, its GPU is "
                "unknown, or no worker has started yet"
            )
    else:
        work = Work(
            tokens=dataset_tokens,
            pairs=pairs,
            epochs=epochs,
            batch_size=batch_size,
            base_model=base_model or None,
            gpu_type=gpu or None,
            method=_method(method),
        )
        try:
            found = estimate_work(unconnected_settings_or_exit(), work, gpu_count=gpus)
        except (ArgumentError, SettingsError) as error:
            raise refuse(str(error), EXIT_USAGE) from None
    show(found, as_json=as_json, text=lambda console: console.print(format_estimate(found)))


def _method(name: str) -> Method:
    from lora_contract.hyperparameters import METHODS

    for method in METHODS:
        if method == name:
            return method
    raise refuse(f"--method: {name[:100]!r} is none; choose one of {', '.join(METHODS)}", EXIT_USAGE)


@commands.command()
def plan(
    base_model: Annotated[str, typer.Argument(help="A base model; empty: all that are known.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show which cards a base model needs, and what they cost. No key and no setting is needed."""
    from dataclasses import asdict

    from lora_worker.commands.costs import print_guide
    from lora_worker.errors import ArgumentError, SettingsError
    from lora_worker.money.guide import needs_of
    from lora_worker.money.pricing import load_prices
    from lora_worker.money.speeds import load_throughput
    from lora_worker.money.terms import make_terms

    settings = unconnected_settings_or_exit()
    try:
        prices = load_prices(settings.price_table)
        terms = make_terms(settings, prices).of_any_gpu()
        found = [
            needs_of(name, terms, prices) for name in ([base_model] if base_model else load_throughput()["memory_gb"])
        ]
    except (ArgumentError, SettingsError) as error:
        raise refuse(str(error), EXIT_USAGE) from None
    show([asdict(needs) for needs in found], as_json=as_json, text=lambda console: print_guide(found, console))


@commands.command()
def costs(
    since: Annotated[str, typer.Option(help="An age such as 24h or 30d, or a date.")] = "30d",
    until: Annotated[str, typer.Option(help="The same; empty: now.")] = "",
    by: Annotated[str, typer.Option(help="day, user or model.")] = "day",
    as_json: AsJson = False,
) -> None:
    """Show what trainings have cost, by their bills: by day, by user or by base model."""
    from lora_worker.commands.costs import print_costs, read_costs

    found = with_services(lambda services: read_costs(services, since=since, until=until, by=by))
    show(found, as_json=as_json, text=lambda console: print_costs(found, console))


UserArgument = Annotated[str, typer.Argument(help="Id or mail address of a user; empty: all trainings together.")]


@budget.command(name="list")
def list_budgets(as_json: AsJson = False) -> None:
    """Show the budgets, and what is used of them today."""
    from lora_worker.commands.costs import print_budgets

    state = with_services(lambda services: services.queue.training_budget_state())
    show(state, as_json=as_json, text=lambda console: print_budgets(state, console))


@budget.command(name="set")
def set_budget(
    user: UserArgument = "",
    usd_per_day: Annotated[float | None, typer.Option("--usd", min=0, max=1e9, help="USD of a UTC day.")] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="No limit, whatever the setting says.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set what a day may cost, in place of the setting. Jobs that wait for a budget are looked at again at once."""
    from lora_worker.commands.costs import change_budget

    if (usd_per_day is None) == (not unlimited):
        raise refuse("how much? Give --usd or --unlimited", EXIT_USAGE)
    done = with_services(lambda services: change_budget(services, user, usd_per_day))
    _show_change(done, "set" if done["changed"] else "was so already", as_json=as_json)


@budget.command(name="remove")
def remove_budget(user: UserArgument = "", as_json: AsJson = False) -> None:
    """Remove a budget that was set, so that the setting counts again."""
    from lora_worker.commands.costs import drop_budget

    done = with_services(lambda services: drop_budget(services, user))
    _show_change(done, "removed" if done["changed"] else "there was none", as_json=as_json)


def _show_change(done: dict[str, Any], words: str, *, as_json: bool) -> None:
    whose = done["user_id"] or "all trainings together"
    show(done, as_json=as_json, text=lambda console: console.print(f"budget of {whose}: {words}"))
