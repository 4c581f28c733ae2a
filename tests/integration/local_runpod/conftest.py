"""One endpoint with warm workers for all tests, or one of a test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.runpod import LocalRunPod
from tests.integration.local_runpod.caller import HANDLER, Caller
from tests.processes.waiting import until


@pytest.fixture(scope="session")
def shared() -> Iterator[LocalRunPod]:
    with LocalRunPod.start(handler_module=HANDLER, workers_max=2, env={"SET_BY_TEMPLATE": "1"}) as runpod:
        yield runpod


@pytest.fixture
def caller(shared: LocalRunPod) -> Iterator[Caller]:
    caller = Caller(shared)
    with caller.http:
        yield caller
    shared.faults.clear()
    for execution in shared.orphans():
        shared.forget(execution.job_id)
    until(lambda: not shared.orphans(), "no worker has a job of the test's")


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """A caller of an endpoint of the test's own, set up by `endpoint`."""
    with LocalRunPod.start(handler_module=HANDLER, **request.param) as runpod:
        caller = Caller(runpod)
        with caller.http:
            yield caller
