"""What `enqueue` makes of its options; the rest of it is tested with a real project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from lora_worker.services import Services
from lora_worker.submission import orders
from lora_worker.submission.orders import Order, Queued
from tests.commands import give_services, run_command
from tests.scripted import make_services

NOBODY = UUID(int=0)


@pytest.mark.usefixtures("environment")
def test_method_and_earlier_adapter_become_hyperparameters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    async def note(_: Services, order: Order, say: Any) -> Queued:
        seen.append(order.hyperparameters)
        return Queued(NOBODY, NOBODY, NOBODY, 1, 1, ())

    monkeypatch.setattr(orders, "enqueue", note)
    give_services(monkeypatch, make_services())
    file = str(tmp_path / "a.jsonl")
    done = run_command("enqueue", file, "--method", "dpo", "--beta", "0.2", "--init-adapter", str(NOBODY), "--json")
    assert json.loads(done.stdout)["job_id"] == str(NOBODY)
    run_command("enqueue", file, "--json")
    assert seen == [{"method": "dpo", "beta": 0.2, "init_adapter": str(NOBODY)}, {}]
