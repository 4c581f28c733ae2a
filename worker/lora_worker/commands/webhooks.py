"""Commands about the endpoints that are told of jobs' events: `webhooks list`, `replay`, `test`, `enable`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_contract.words import counted
from lora_worker.commands.terminal import (
    EXIT_FAILED,
    EXIT_USAGE,
    AsJson,
    command_group,
    print_lines,
    refuse,
    run_or_exit,
    show,
    unconnected_settings_or_exit,
    with_services,
)

if TYPE_CHECKING:
    from rich.console import Console

    from lora_worker.configuration.settings import Settings
    from lora_worker.database.webhook_rows import WebhookFilter, WebhookState
    from lora_worker.services import Services

commands = command_group()
webhooks = typer.Typer(
    help="Look at the endpoints that are told of jobs' events, and send events again.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
commands.add_typer(webhooks, name="webhooks")

EndpointOption = Annotated[str, typer.Option("--endpoint", help="An endpoint's name, as `list` shows it; empty: all.")]


@webhooks.command("list")
def list_endpoints(as_json: AsJson = False) -> None:
    """Show the endpoints: what waits for each, what was given up, and its last failures with their events' ids."""
    found = with_services(lambda services: services.queue.webhook_state())
    show(found, as_json=as_json, text=lambda console: _print_endpoints(found, console))


@webhooks.command()
def replay(
    event: Annotated[str, typer.Argument(help="An event's id, msg_…")] = "",
    failed: Annotated[bool, typer.Option("--failed", help="All events that were given up.")] = False,
    since: Annotated[str, typer.Option(help="All events since then, delivered ones too: 24h, 7d, 2026-11-26.")] = "",
    endpoint: EndpointOption = "",
    as_json: AsJson = False,
) -> None:
    """Send events again, each with the id that it had; the workers deliver them. Events are kept for 30 days."""
    if bool(event) + failed + bool(since) != 1:
        raise refuse("give exactly one of these: an event's id, --failed, --since", EXIT_USAGE)

    async def work(services: Services) -> int:
        from lora_worker.commands.references import moment

        wanted: WebhookFilter = {"endpoint": endpoint} if endpoint else {}
        if event:
            wanted["event"] = event
        elif since:
            wanted["since"] = moment(since, services.now()).isoformat()
        else:
            wanted["failed"] = True
        return await services.queue.replay_webhook_events(wanted)

    count = with_services(work)
    waiting = counted(count, "delivery waits", "deliveries wait")
    line = f"{waiting} to be sent again" if count else "there is no such event to send again"
    show({"replayed": count}, as_json=as_json, text=lambda console: print_lines(console, [line]))
    if event and not count:
        raise typer.Exit(EXIT_FAILED)


@webhooks.command()
def enable(
    endpoint: Annotated[str, typer.Argument(help="An endpoint's name, as `list` shows it.")], as_json: AsJson = False
) -> None:
    """Let an endpoint that has answered 410 get events again; `replay --failed` sends what it missed."""
    is_enabled = with_services(lambda services: services.queue.enable_webhook_endpoint(endpoint))
    line = f"{endpoint} gets events again" if is_enabled else f"no endpoint {endpoint} was switched off"
    show(
        {"endpoint": endpoint, "enabled": is_enabled},
        as_json=as_json,
        text=lambda console: print_lines(console, [line]),
    )
    if not is_enabled:
        raise typer.Exit(EXIT_FAILED)


@webhooks.command("test")
def send_test(endpoint: EndpointOption = "", as_json: AsJson = False) -> None:
    """Send a signed event of the type webhook.test to the endpoints, once, and show what they answer."""
    settings = unconnected_settings_or_exit()
    chosen = [one.name for one in settings.webhook_endpoints if endpoint in {"", one.name}]
    if not chosen:
        if not settings.webhook_endpoints:
            raise refuse("LORA_WORKER_WEBHOOKS names no endpoint: set it (docs/webhooks.md)", EXIT_USAGE)
        known = ", ".join(one.name for one in settings.webhook_endpoints)
        raise refuse(f"LORA_WORKER_WEBHOOKS has no such endpoint; it has: {known}", EXIT_USAGE)
    results = run_or_exit(_send_test(settings, chosen))
    lines = [f"{one['endpoint']}: {'delivered' if one['delivered'] else one['problem']}" for one in results]
    show(results, as_json=as_json, text=lambda console: print_lines(console, lines))
    if not all(one["delivered"] for one in results):
        raise typer.Exit(EXIT_FAILED)


async def _send_test(settings: Settings, names: list[str]) -> list[dict[str, Any]]:
    import json
    from datetime import UTC, datetime
    from uuid import uuid4

    from lora_worker.webhooks.sending import open_sender, send

    now = datetime.now(UTC)
    body = json.dumps({"type": "webhook.test", "timestamp": now.isoformat(), "data": {}})
    results = []
    async with open_sender(settings) as http:
        for endpoint in settings.webhook_endpoints:
            if endpoint.name in names:
                sent = await send(http, endpoint, f"msg_{uuid4().hex}", body, now=now.timestamp())
                results.append(
                    {
                        "endpoint": endpoint.name,
                        "delivered": sent.is_delivered,
                        "status": sent.status,
                        "problem": sent.problem,
                    }
                )
    return results


def _print_endpoints(found: list[WebhookState], console: Console) -> None:
    from rich.table import Table

    from lora_worker.words import moment

    if not found:
        console.print("no worker has an endpoint: set LORA_WORKER_WEBHOOKS (docs/webhooks.md)")
        return
    table = Table("endpoint", "", "waiting", "given up", "last delivered", "events since", box=None)
    for one in found:
        state = "failing" if one["failing_since"] else "well"
        table.add_row(
            one["name"],
            state if one["is_enabled"] else "off (410)",
            str(one["waiting"]),
            str(one["given_up"]),
            moment(one["last_delivered_at"]),
            moment(one["added_at"]),
        )
    console.print(table)
    lines = []
    for one in found:
        for failure in one["failures"]:
            again = f"again {moment(failure['next_at'])}" if failure["next_at"] else "given up"
            if failure["settled_at"]:
                again += f" {moment(failure['settled_at'])}"
            lines.append(
                f"{one['name']}: {failure['event']} ({failure['type']}, job {failure['job_id']}): "
                f"{failure['problem']}; {counted(failure['attempts'], 'try', 'tries')}, {again}"
            )
    print_lines(console, lines)
