"""Machines that hold an adapter of before are replaced step by step, and the alias says why it is not served yet."""

from __future__ import annotations

from typing import Any

import pytest

from lora_worker.database.version_rows import EndpointRelease, ReleaseNote
from lora_worker.duties.alias_releases import AliasReleases
from lora_worker.errors import DeploymentError, ServiceUnavailableError
from tests.scripted import FakeQueue, make_services


class Queue(FakeQueue):
    def __init__(self, due: EndpointRelease | None) -> None:
        super().__init__()
        self.due = due
        self.notes: list[ReleaseNote] = []
        self.leases: list[int] = []

    async def claim_endpoint_release(self, lease_seconds: int, again_seconds: int) -> EndpointRelease | None:
        self.leases.append(lease_seconds)
        return self.due

    async def note_endpoint_release(self, note: ReleaseNote) -> bool:
        self.notes.append(note)
        return True


class Endpoint:
    """Workers before and after each call; each replacement is counted, or fails."""

    def __init__(self, *seen: set[str], fault: Exception | None = None) -> None:
        self._seen = list(seen)
        self._fault = fault
        self.replaced = 0

    async def workers(self) -> set[str]:
        return self._seen.pop(0)

    async def replace_workers(self, at: Any) -> None:
        if self._fault:
            raise self._fault
        self.replaced += 1


async def round_of(due: EndpointRelease | None, endpoint: Endpoint | None) -> tuple[list[ReleaseNote], tuple[str, ...]]:
    queue = Queue(due)
    result = await AliasReleases(make_services(queue=queue, answering=endpoint)).run_once()
    return queue.notes, result.put_off


async def test_nothing_due_asks_the_account_nothing() -> None:
    assert await round_of(None, Endpoint()) == ([], ())


async def test_machines_of_before_the_change_count_as_old_and_new_ones_never() -> None:
    """A new one with work does not leave: taken for an old one, it would have the machines replaced without end."""
    endpoint = Endpoint({"a", "b"}, {"b", "new"})
    notes, put_off = await round_of({"release": True, "old_workers": []}, endpoint)
    assert notes == [{"released": True, "old_workers": ["a", "b"], "done": False}]
    assert (endpoint.replaced, put_off) == (1, ())


async def test_endpoint_without_machines_is_done_at_once() -> None:
    notes, _ = await round_of({"release": True, "old_workers": []}, Endpoint(set()))
    assert notes == [{"released": True, "old_workers": [], "done": True}]


@pytest.mark.parametrize(("left", "done"), [({"b", "new"}, False), ({"new"}, True), (set(), True)])
async def test_it_is_done_when_no_old_machine_is_left(left: set[str], done: bool) -> None:
    endpoint = Endpoint(left)
    notes, _ = await round_of({"release": False, "old_workers": ["a", "b"]}, endpoint)
    assert notes == [{"done": done}]
    assert endpoint.replaced == 0


async def test_machine_that_does_not_go_is_told_with_the_alias() -> None:
    notes, put_off = await round_of({"release": True, "old_workers": ["a"]}, Endpoint({"a"}))
    assert notes[0]["released"]
    assert put_off == (notes[0]["problem"],)
    assert "not replaced in half an hour" in put_off[0]


@pytest.mark.parametrize("fault", [DeploymentError("changed by somebody else"), ServiceUnavailableError("r", "away")])
async def test_fault_of_the_account_is_told_and_tried_again(fault: Exception) -> None:
    notes, put_off = await round_of({"release": True, "old_workers": []}, Endpoint({"a"}, fault=fault))
    assert notes == [{"problem": str(fault)}]
    assert put_off == (str(fault),)


@pytest.mark.parametrize("has_endpoint", [True, False])
async def test_lasting_fault_is_tried_again_at_longer_intervals(has_endpoint: bool) -> None:
    """A change whose answer was lost has replaced the machines: once more each round, none would ever get ready."""
    now = 0.0
    queue = Queue({"release": True, "old_workers": []})
    endpoint = Endpoint(*({"a"} for _ in range(1000)), fault=DeploymentError("lost")) if has_endpoint else None
    duty = AliasReleases(make_services(queue=queue, answering=endpoint, clock=lambda: now))
    tried_at = []
    while now < 3600:
        before = len(queue.notes)
        await duty.run_once()
        if len(queue.notes) > before:
            tried_at.append(now)
        now += 15
    assert tried_at == [0, 30, 90, 210, 450, 930, 1830, 2730]


@pytest.mark.parametrize(("endpoint", "seconds"), [(None, 10), (Endpoint(set()), 300)])
async def test_worker_without_the_endpoint_holds_up_no_other(endpoint: Endpoint | None, seconds: int) -> None:
    queue = Queue({"release": True, "old_workers": []})
    await AliasReleases(make_services(queue=queue, answering=endpoint)).run_once()
    assert queue.leases == [seconds]


async def test_worker_without_the_endpoints_id_says_so() -> None:
    notes, _ = await round_of({"release": True, "old_workers": []}, None)
    assert "can't be replaced by this worker: only RunPod has an endpoint that answers" in str(notes[0]["problem"])
