"""What goes to the database is what Postgres can store."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
import respx

from lora_worker.database.caller import storable_json
from lora_worker.database.calls import DatabaseCalls

URL = "https://p.supabase.co"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a\x00b", "ab"),
        ("half \ud800 a character", "half ? a character"),
        ("“Größe” 🦓", "“Größe” 🦓"),
        ({"i\x00d": [{"conversation_id": "\x00"}, ("x\x00",)]}, {"id": [{"conversation_id": ""}, ["x"]]}),
        ([1, 2.5, None, True], [1, 2.5, None, True]),
    ],
    ids=ascii,
)
def test_values_postgres_cannot_store_are_removed_at_any_depth(value: Any, stored: Any) -> None:
    assert storable_json(value) == stored


async def test_any_dataset_or_trainer_text_can_be_stored() -> None:
    async with httpx.AsyncClient() as http, respx.mock(base_url=URL) as api:
        queue = DatabaseCalls(URL, "sb_secret_x", worker="w", lease_seconds=60, http=http)
        dataset = api.post("/rest/v1/rpc/settle_dataset").respond(json=True)
        run = api.post("/rest/v1/rpc/settle_run_2").respond(json="failed")
        await queue.settle_dataset(uuid4(), uuid4(), {"sample_data": [{"conversation_id": "a\x00"}]})
        await queue.settle(uuid4(), uuid4(), {"error_message": "odd \ud800\x00"})
        assert json.loads(dataset.calls.last.request.content)["outcome"]["sample_data"] == [{"conversation_id": "a"}]
        assert json.loads(run.calls.last.request.content)["outcome"]["error_message"] == "odd ?"
