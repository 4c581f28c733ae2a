"""Where a job is launched: the routing table's choice, with what the database knows of the places now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_worker.database.answers import PlaceRow
from lora_worker.launchers.places import Place
from lora_worker.launchers.routing import Choice, Hurdle, PlaceState, Wanted, choose
from lora_worker.launchers.routing_table import RoutingTable
from lora_worker.money.places import unfit_places, wanted_of
from lora_worker.services import Services


@dataclass(frozen=True, slots=True)
class Candidates:
    """A job, and all places as they are now."""

    table: RoutingTable
    wanted: Wanted
    unfit: Mapping[str, str]
    """The places that can't hold the job, by name, each with the reason."""
    states: Mapping[str, PlaceState] = field(default_factory=dict)

    def without(self, declined: Set[str]) -> Candidates:
        """The same without the places whose launcher can't take the run's request, unless all that fit are such."""
        unfit = {**dict.fromkeys(declined, "its launcher can't take the job's request"), **self.unfit}
        rest = replace(self, unfit=unfit)
        return rest if any(option.hurdle is not Hurdle.UNFIT for option in rest.look(()).options) else self

    def look(self, refused: Iterable[str]) -> Choice:
        """Choose the job's place, and none of `refused`, whose launchers refused the run just now."""
        return choose(self.table, self.wanted, self.states, unfit=self.unfit, refused=frozenset(refused))

    def free_slots(self, place: str) -> int | None:
        """How many more runs can be launched at a place now; None where it has no limit of its own."""
        slots = self.table.endpoints[place].slots
        return None if slots is None else slots - self.states.get(place, PlaceState()).launches

    def choose(self, refused: Mapping[str, float] | None = None) -> Choice:
        """Choose the job's place. `refused` are the places whose launcher refused the run, each with the time of that.

        Where all others are taken, too, the one that refused it the longest ago is asked again.
        """
        left = sorted(refused or {}, key=(refused or {}).__getitem__)
        while True:
            choice = self.look(left)
            if choice.is_free or not left:
                return choice
            left = left[1:]


async def look_at_places(
    chosen: Hyperparameters,
    gpu: GpuConfig,
    services: Services,
    table: RoutingTable,
    *,
    user: UUID,
    gpu_config: Any,
    run_id: UUID | None = None,
    seen: Sequence[PlaceRow] | None = None,
) -> Candidates:
    """Look at all places for a job. `gpu_config` is its column, unchecked; `run_id` its live run, which takes no slot.

    `seen` is what the database has just said of the places for this run; without it, it is asked.

    Raises:
        ServiceError: the database did not answer.
    """
    places = services.places
    rows = seen
    if rows is None:
        rows = await services.queue.training_places(
            [place.endpoint for place in places.all], base_model=chosen.base_model or "", run_id=run_id
        )
    states = {
        place.name: PlaceState(
            row["launches"],
            row["without_gpu_seconds"],
            row["passed_over_seconds"],
            row["held_seconds"],
            row["problem"],
            row["was_left"],
        )
        for row in rows
        if (place := places.at(row["endpoint"])) is not None
    }
    wanted = wanted_of(chosen, gpu, user=user, gpu_config=gpu_config, prices=services.prices)
    return Candidates(table, wanted, unfit_places(places, chosen, gpu, services.prices), states)


def preferred_place(chosen: Hyperparameters, gpu: GpuConfig, services: Services) -> Place:
    """The place that a new job gets where nothing is against any: its GPU and price are what the job is checked by.

    Rules for single users and priorities are left out: the job has neither yet.
    """
    if services.routes is None:
        return services.places.default
    wanted = wanted_of(chosen, gpu, user="", gpu_config=None, prices=services.prices)
    unfit = unfit_places(services.places, chosen, gpu, services.prices)
    choice = Candidates(services.routes, wanted, unfit).choose()
    return services.places.named(choice.place) if choice.place else services.places.default
