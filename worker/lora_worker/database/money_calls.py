"""The calls about money: what trainings have cost, how fast they were, why they failed, and budgets."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from lora_worker.database import functions
from lora_worker.database.caller import Caller
from lora_worker.database.money_rows import BudgetState, CostKey, Costs, Failures
from lora_worker.money.speeds import RunSpeed


class MoneyCalls(Caller):
    """The methods of `DatabaseCalls` about money. They raise only `ServiceError`s."""

    async def training_run_speed(self, base_model: str, gpu_type: str) -> RunSpeed | None:
        """Return the median speed of finished runs of a base model on a GPU; None while too few of them count."""
        return await self._call(functions.TRAINING_RUN_SPEED, base_model=base_model, gpu_type=gpu_type)

    async def training_costs(self, since: datetime, until: datetime, by: CostKey) -> list[Costs]:
        """Return what trainings billed in this time have cost: by day in order, else the most expensive first."""
        return await self._call(functions.TRAINING_COSTS, since=since.isoformat(), until=until.isoformat(), by=by)

    async def training_failures(self, since: datetime) -> list[Failures]:
        """Return why jobs have failed since then, the most frequent reason first."""
        return await self._call(functions.TRAINING_FAILURES, since=since.isoformat())

    async def training_budget_state(self) -> BudgetState:
        """Return the budgets, and what is used of them today."""
        return await self._call(functions.TRAINING_BUDGET_STATE)

    async def set_training_budget(self, user_id: UUID | None, usd_per_day: float | None) -> bool:
        """Set the budget of a UTC day in USD (None: no limit) of a user, or of everybody; returns whether it changed.

        It takes the place of the setting.
        """
        return await self._call(functions.SET_TRAINING_BUDGET, user_id=user_id, usd_per_day=usd_per_day)

    async def remove_training_budget(self, user_id: UUID | None) -> bool:
        """Remove a budget that was set, so that the setting counts again; returns whether there was one."""
        return await self._call(functions.REMOVE_TRAINING_BUDGET, user_id=user_id)
