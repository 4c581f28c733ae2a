"""A pod whose run is over asks for its own end, by its own key."""

from __future__ import annotations

import httpx
import pytest

from lora_contract.machine_request import END_VARIABLE
from lora_trainer.run.machine_end import await_end

POD = {END_VARIABLE: "https://api.runpod.io/v2/pods", "RUNPOD_POD_ID": "pod1", "RUNPOD_API_KEY": "its-own"}


class Killed(BaseException):
    """The machine's end."""


def ask(environ: dict[str, str], statuses: list[int]) -> list[httpx.Request]:
    """The requests until the end comes, after these answers; 0 is none."""
    asked: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if not (status := statuses.pop(0)):
            raise httpx.ConnectError("gone")
        return httpx.Response(status)

    def pause(seconds: float) -> None:
        if not statuses:
            raise Killed

    with pytest.raises(Killed):
        await_end(environ, pause=pause, transport=httpx.MockTransport(serve))
    return asked


def test_pod_asks_for_its_own_end_until_it_comes() -> None:
    asked = ask(POD, [403, 0, 204])
    assert {(one.method, str(one.url)) for one in asked} == {("DELETE", "https://api.runpod.io/v2/pods/pod1")}
    assert {one.headers["authorization"] for one in asked} == {"Bearer its-own"}


def test_pod_without_a_key_waits_for_the_worker() -> None:
    assert ask({**POD, "RUNPOD_API_KEY": ""}, []) == []


@pytest.mark.parametrize(
    "changes", [{END_VARIABLE: ""}, {END_VARIABLE: "http://elsewhere.example/pods"}, {"RUNPOD_POD_ID": "../x"}]
)
def test_other_machines_end_by_themselves(changes: dict[str, str]) -> None:
    await_end({**POD, **changes}, pause=lambda _: pytest.fail("it waits"))
