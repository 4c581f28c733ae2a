"""Pods of the local RunPod, each call held against RunPod's description."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.runpod import LocalRunPod
from tests.integration.local_runpod.caller import HANDLER, RestCaller, faults_of
from tests.processes.waiting import awaited, until

POD = {
    "name": "trainer",
    "image": "trainer:1",
    "args": "python -u -m http.server 0",
    "gpu": {"id": "NVIDIA A40", "count": 2},
    "env": {"A": "1"},
}


@pytest.fixture(scope="module")
def caller() -> Iterator[RestCaller]:
    with LocalRunPod.start(handler_module=HANDLER, workers_max=0) as runpod:
        caller = RestCaller(runpod)
        yield caller
        caller.close()


def test_pod_lives_until_it_is_terminated(caller: RestCaller) -> None:
    made = caller.call("POST", "/pods", POD)
    assert (made["status"], made["cost"], made["runtime"]) == ("PROVISIONING", 1.46, None)
    path = f"/pods/{made['id']}"
    awaited(lambda: caller.call("GET", path)["status"], "a running pod", fits=lambda status: status == "RUNNING")
    life = caller.runpod.ledger.pods[-1]
    caller.runpod.kill_container(made["id"])
    until(lambda: life.starts == 2, "the container is started again")
    assert caller.call("POST", f"{path}/action", {"action": "stop"})["cost"] == 0
    assert caller.http.post(f"{path}/action", json={"action": "restart"}).status_code == 409
    assert [pod["status"] for pod in caller.call("GET", "/pods")["pods"]] == ["EXITED"]
    with caller.runpod.unlisted_pods(lambda pod: pod.pod_id == made["id"]):
        assert caller.call("GET", "/pods") == {"pods": []}
        assert caller.call("GET", path)["status"] == "EXITED"
    assert caller.call("DELETE", path) == {}
    assert caller.http.get(path).status_code == 404
    assert life.ended_at is not None
    assert caller.call("GET", "/pods") == {"pods": []}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"gpu": {"id": "NVIDIA L5"}}, 400),
        ({"gpu": {"id": "NVIDIA A40", "count": 9}}, 400),
        ({"gpu": {"pools": ["AMPERE_48"]}}, 422),
        ({"cloud": "COMMUNITY"}, 400),
        ({"registry": "gone"}, 400),
        ({"mounts": {"network": [{"volumeId": "gone", "path": "/v"}]}}, 404),
        ({"env": {f"A{number}": "" for number in range(51)}}, 400),
        ({"networkVolumes": []}, 422),
    ],
)
def test_pods_that_cannot_be_are_refused(caller: RestCaller, changes: dict[str, object], status: int) -> None:
    answer = caller.http.post("/pods", json={**POD, **changes})
    assert (answer.status_code, faults_of(answer)) == (status, [])


def test_key_of_a_pod_ends_its_own_alone(caller: RestCaller) -> None:
    first, second = (caller.call("POST", "/pods", POD)["id"] for _ in range(2))
    own = RestCaller(caller.runpod, caller.runpod.key_of_pod(first))
    assert own.http.get("/pods").status_code == own.http.delete(f"/pods/{second}").status_code == 403
    assert own.call("DELETE", f"/pods/{first}") == {}
    assert own.http.get(f"/pods/{first}").status_code == 401
    assert caller.call("DELETE", f"/pods/{second}") == {}
    own.close()
