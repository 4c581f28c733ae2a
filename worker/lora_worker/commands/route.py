"""The command `route`: which endpoint a job gets, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_worker.commands.jobs import JobArgument
from lora_worker.commands.terminal import AsJson, command_group, show, with_services

if TYPE_CHECKING:
    from lora_worker.commands.route_views import Route
    from lora_worker.services import Services

commands = command_group()


@commands.command()
def route(job: JobArgument, as_json: AsJson = False) -> None:
    """Show which endpoint a job gets by the routing table, why others are passed over, and what it would cost there."""
    from lora_worker.commands.route_views import print_route

    async def work(services: Services) -> Route:
        from lora_worker.commands.references import job_details
        from lora_worker.commands.route_views import explain_route

        return await explain_route(services, await job_details(services.queue, job))

    found = with_services(work)
    show(found, as_json=as_json, text=lambda console: print_route(found, console))
