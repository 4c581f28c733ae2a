"""What a pod is to the worker: by its name whose it is, by its status what it does, and when it must end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from lora_contract.machine_request import unpack_request
from lora_worker.doctor.pods import examine_pod_prices
from lora_worker.errors import LaunchInDoubtError, ServiceRefusedError, SettingsError
from lora_worker.launchers.base import EndCause, LaunchRef, LaunchState, Policy
from lora_worker.launchers.places import Place
from lora_worker.launchers.registry import load_settings
from lora_worker.launchers.runpod_pods.answers import judge_end, limits_of, own_pod, read_observation
from lora_worker.launchers.runpod_pods.api import Pod
from lora_worker.launchers.runpod_pods.gpus import PodShape, gpu_ids, shape_fault
from lora_worker.launchers.runpod_pods.launcher import RunPodPodsLauncher
from lora_worker.launchers.runpod_pods.plan import PodPlan
from lora_worker.money.pricing import load_prices
from tests.runpod_rest import faults_of_request

MARK, LAUNCH = "0123456789", f"lora-{'a' * 32}-01234567"
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
URL = "https://api.runpod.io/v2/pods"
POLICY = Policy(execution_seconds=600, ttl_seconds=6000)


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def shown(**changes: Any) -> dict[str, Any]:
    return {
        "id": "7h9k2m4n6p", "name": f"{LAUNCH}-{MARK}", "status": "RUNNING", "env": limits_of(POLICY),
        "dataCenterId": "EU-RO-1", "createdAt": ago(300), "startedAt": ago(200), "runtime": {"uptime": 200},
        **changes,
    }  # fmt: skip


def read(**changes: Any) -> Any:
    own = own_pod(Pod.model_validate(shown(**changes)), MARK)
    assert own is not None
    return own


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "trainer"},
        {"name": LAUNCH},
        {"name": f"{LAUNCH}-9876543210"},
        {"name": f"lora-{'a' * 32}-{MARK}"},
        {"name": f"x{LAUNCH}-{MARK}"},
        {"name": None},
        {"id": "../../serverless/x"},
        {"status": "TERMINATED"},
    ],
)
def test_pod_without_run_launch_and_mark_is_nobodys(changes: dict[str, Any]) -> None:
    assert own_pod(Pod.model_validate(shown(**changes)), MARK) is None


@pytest.mark.parametrize(
    ("changes", "state", "seconds"),
    [
        ({"status": "PROVISIONING", "dataCenterId": None}, LaunchState.QUEUED, None),
        ({"status": "STARTING", "startedAt": None}, LaunchState.QUEUED, 300),
        ({}, LaunchState.RUNNING, 300),
        ({"createdAt": None}, LaunchState.RUNNING, None),
        ({"status": "MIGRATING"}, LaunchState.UNKNOWN, None),
    ],
)
def test_status_of_a_pod_that_may_go_on(changes: dict[str, Any], state: LaunchState, seconds: float | None) -> None:
    own = read(**changes)
    seen = read_observation(own, NOW)
    assert judge_end(own, NOW, restarts=2) is None
    assert (seen.state, seen.execution_seconds) == (state, seconds)


@pytest.mark.parametrize(
    ("changes", "restarts", "state", "cause"),
    [
        ({"status": "EXITED"}, 0, LaunchState.FAILED, EndCause.LOST),
        ({"status": "ERROR"}, 0, LaunchState.FAILED, EndCause.LOST),
        ({}, 3, LaunchState.FAILED, EndCause.LOST),
        ({"startedAt": ago(601), "createdAt": ago(700)}, 0, LaunchState.FAILED, EndCause.OVER_TIME),
        ({"startedAt": None, "createdAt": ago(601)}, 0, LaunchState.FAILED, EndCause.OVER_TIME),
        ({"createdAt": ago(6001)}, 0, LaunchState.FAILED, EndCause.OVER_TIME),
        ({"status": "STARTING", "createdAt": ago(6001)}, 0, LaunchState.TIMED_OUT, EndCause.OVER_TIME),
        ({"env": {}, "createdAt": ago(31 * 86_400)}, 0, LaunchState.FAILED, EndCause.OVER_TIME),
        ({"env": {"LORA_LAUNCH_TTL_SECONDS": "9" * 40}, "createdAt": ago(31 * 86_400)}, 0, LaunchState.FAILED,
         EndCause.OVER_TIME),
    ],
)  # fmt: skip
def test_pod_that_must_end(changes: dict[str, Any], restarts: int, state: LaunchState, cause: EndCause) -> None:
    end = judge_end(read(**changes), NOW, restarts=restarts)
    assert end is not None
    assert (end.state, end.cause) == (state, cause)


@pytest.mark.parametrize(
    ("shape", "gpu", "is_on"),
    [
        (PodShape("H100", 2), {"id": "NVIDIA H100 NVL", "count": 2}, True),
        (PodShape("H100", 2), {"id": "NVIDIA H100 NVL"}, True),
        (PodShape("H100", 2), None, True),
        (PodShape("H100", 2), {"id": "NVIDIA H100 NVL", "count": 1}, False),
        (PodShape("H100", 2), {"id": "NVIDIA L4", "count": 2}, False),
        (PodShape(None, 2), {"id": "NVIDIA L4", "count": 2}, True),
        (PodShape(None, 2), {"id": "NVIDIA L4", "count": 1}, False),
    ],
)
async def test_endpoint_counts_pods_with_its_own_gpus_and_takes_no_others(
    shape: PodShape, gpu: Any, is_on: bool
) -> None:
    run = "b" * 32
    pods = {"pods": [{**shown(), "name": f"lora-{run}-01234567-{MARK}", "gpu": gpu}]}
    launcher, requests = launcher_of(lambda _: httpx.Response(200, json=pods))
    launcher._shape = shape
    assert (await launcher.health()).running == int(is_on)
    launching = launcher.launch({"run_id": run, "gpu_config": {"type": "H100"}}, POLICY)
    if is_on:
        assert await launching == f"lora-{run}-01234567"
    else:
        with pytest.raises(LaunchInDoubtError, match="other GPUs"):
            await launching
    assert {request.method for request in requests} == {"GET"}


async def test_pod_counts_at_the_endpoint_for_which_it_was_made() -> None:
    """Its GPUs alone may be those of several endpoints."""
    pods = {"pods": [shown(env={**limits_of(POLICY), "LORA_LAUNCH_ENDPOINT": f"{URL}#H100x2"})]}
    launcher, _ = launcher_of(lambda _: httpx.Response(200, json=pods))
    assert (await launcher.health()).running == 0
    pods["pods"][0]["env"]["LORA_LAUNCH_ENDPOINT"] = URL
    launcher._watch.expire()
    assert (await launcher.health()).running == 1


def test_every_gpu_that_is_offered_has_pods() -> None:
    assert [price.type for price in load_prices() if not gpu_ids(price.type)] == []
    names = [name for price in load_prices() if price.offered for name in (price.type, *price.names)]
    assert [name for name in names if not gpu_ids(name)] == []
    assert gpu_ids("H200")[0] == "NVIDIA H200"
    assert gpu_ids("NVIDIA L40S")[0] == "NVIDIA L40S"
    assert gpu_ids(None) == gpu_ids("TPU") == ()


@pytest.mark.parametrize(
    ("named", "billed", "fault"),
    [
        ("", PodShape(None, 1), None),
        ("H100x2", PodShape("H100", 2), None),
        ("A100-80GB", PodShape("A100-80GB", 1), None),
        ("H100x2", PodShape("H100", 1), "names other GPUs than are billed there, 1 × H100"),
        ("H100", PodShape(None, 1), "names other GPUs than are billed there, 1 × what a job asks for"),
        ("TPUx2", PodShape("H100", 2), "names no GPU that pods have, such as H100x2 behind its #"),
        ("", PodShape("TPU", 1), "is to have the GPU TPU, which RunPod has no pods with"),
    ],
)
def test_endpoint_names_the_gpus_that_are_billed(named: str, billed: PodShape, fault: str | None) -> None:
    assert shape_fault(named, billed) == fault


def launcher_of(
    answer: Any, *, look_seconds: float = 3.0, **plan: Any
) -> tuple[RunPodPodsLauncher, list[httpx.Request]]:
    requests: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return answer(request)

    http = httpx.AsyncClient(transport=httpx.MockTransport(serve))
    given = PodPlan(**{"mark": MARK, "image": "trainer:1", **plan})
    return RunPodPodsLauncher(
        URL, "rpa_key", given, shape=PodShape(None, 2), http=http, now=lambda: NOW, look_seconds=look_seconds
    ), requests


async def test_request_for_a_pod_is_as_runpod_describes_it() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"pods": []})
        return httpx.Response(201, json={**shown(), "name": httpx_json(request)["name"]})

    launcher, requests = launcher_of(
        answer, volume_id="vol1", data_centers=("EU-RO-1",), min_cuda="12.6", registry_id="reg1", hf_secret="hf"
    )
    payload = {"run_id": "a" * 32, "gpu_config": {"type": "H100"}}
    launch_id = await launcher.launch(payload, POLICY)
    body = httpx_json(requests[-1])
    assert faults_of_request("POST", URL, body) == []
    assert body["name"] == f"{launch_id}-{MARK}"
    assert unpack_request(body["env"]) == payload
    assert body["env"]["LORA_LAUNCH_ENDPOINT"] == URL
    assert body["gpu"] == {"id": "NVIDIA H100 80GB HBM3", "count": 2, "minCudaVersion": "12.6"}
    assert body["mounts"] == {"network": [{"volumeId": "vol1", "path": "/runpod-volume"}]}
    assert body["env"]["HF_TOKEN"] == "{{ RUNPOD_SECRET_hf }}"
    assert body["args"] == "python -u -m lora_trainer.machine"


def httpx_json(request: httpx.Request) -> Any:
    return httpx.Response(200, content=request.content).json()


async def test_without_balance_no_other_gpu_is_tried() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"pods": []})
        return httpx.Response(402, json={"title": "Payment Required", "status": 402, "detail": "Insufficient balance."})

    launcher, requests = launcher_of(answer)
    with pytest.raises(ServiceRefusedError, match="Insufficient balance"):
        await launcher.launch({"run_id": "a" * 32, "gpu_config": {"type": "H100"}}, POLICY)
    assert [request.method for request in requests] == ["GET", "POST"]


async def test_answer_of_another_pod_is_in_doubt() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(*((200,) if request.method == "GET" else (201,)), json={"pods": [], **shown()})

    launcher, _ = launcher_of(answer)
    with pytest.raises(LaunchInDoubtError, match="another pod"):
        await launcher.launch({"run_id": "b" * 32, "gpu_config": {"type": "H100"}}, POLICY)


@pytest.mark.parametrize("answer", [{}, {"pods": {}}, {"pods": "x"}, []])
async def test_list_that_cannot_be_read_ends_nothing(answer: Any) -> None:
    launcher, requests = launcher_of(lambda _: httpx.Response(200, json=answer))
    seen = await launcher.observe(LaunchRef(URL, LAUNCH))
    assert seen.state is LaunchState.UNKNOWN
    assert not await launcher.cancel(LaunchRef(URL, LAUNCH))
    assert {request.method for request in requests} == {"GET"}


@pytest.mark.parametrize(
    ("uptimes", "state"),
    [
        ([0, 5, 5, 5, 9, 8, 14, 13, 12, 70], LaunchState.RUNNING),
        ([0, 50, 2, 50, 3, 50, 55], LaunchState.RUNNING),
        ([0, 50, 2, 50, 3, 50, 1], LaunchState.UNKNOWN),
    ],
)
async def test_pod_whose_container_starts_for_the_third_time_again_is_ended(
    uptimes: list[int], state: LaunchState
) -> None:
    """A figure that lags or is corrected is no start. The pod is still listed here, so its end is not confirmed."""
    looks = iter(uptimes)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(204)
        return httpx.Response(200, json={"pods": [shown(runtime={"uptime": next(looks)})]})

    launcher, requests = launcher_of(answer, look_seconds=0.0)
    seen = [await launcher.observe(LaunchRef(URL, LAUNCH)) for _ in uptimes]
    assert seen[-1].state is state
    assert [request.method for request in requests].count("DELETE") == (state is LaunchState.UNKNOWN)


@pytest.mark.parametrize(
    ("uptimes", "state"),
    [
        ([0, 1, 0, 1, 0, 1], LaunchState.UNKNOWN),
        ([0, None, 0, None, 0, None, 0], LaunchState.UNKNOWN),
        ([100, None, 120, None, 140, None, 160], LaunchState.RUNNING),
        ([2, 2, 2, 2, 2, 2, 60], LaunchState.RUNNING),
        ([100, 108, 116, 124, 132, 140], LaunchState.RUNNING),
        ([0, 0, 0, 8, 18, 28, 38], LaunchState.RUNNING),
    ],
)
async def test_container_that_dies_at_each_start_is_ended(uptimes: list[int | None], state: LaunchState) -> None:
    """Looks are ten seconds apart, so its uptime never has the time to fall."""
    looks, moment = iter(uptimes), NOW - timedelta(seconds=100)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(204)
        uptime = next(looks)
        return httpx.Response(200, json={"pods": [shown(runtime=None if uptime is None else {"uptime": uptime})]})

    launcher, _ = launcher_of(answer, look_seconds=0.0)
    launcher._watch._local_now = lambda: moment
    for _ in uptimes:
        moment += timedelta(seconds=10)
        seen = await launcher.observe(LaunchRef(URL, LAUNCH))
    assert seen.state is state


async def test_looks_of_the_same_seconds_share_one_list() -> None:
    launcher, requests = launcher_of(lambda _: httpx.Response(200, json={"pods": [shown()]}))
    for _ in range(5):
        assert (await launcher.observe(LaunchRef(URL, LAUNCH))).state is LaunchState.RUNNING
    assert len(requests) == 1


async def test_launch_of_a_row_is_found_however_the_project_was_spelled() -> None:
    pod = shown(name=f"{LAUNCH}-9876543210")
    gone: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            gone.append(request.url.path)
            return httpx.Response(204)
        return httpx.Response(200, json={"pods": [] if gone else [pod]})

    launcher, _ = launcher_of(answer)
    assert await launcher.owned() == []
    assert (await launcher.observe(LaunchRef(URL, LAUNCH))).state is LaunchState.RUNNING
    assert await launcher.owned() == [], "the mark is still another project's"
    pod["createdAt"] = ago(6001)
    launcher._watch.expire()
    assert await launcher.owned() == []
    assert gone == ["/v2/pods/7h9k2m4n6p"], "it is this worker's to end now"
    gone.clear()
    pod["createdAt"] = ago(300)
    other, _ = launcher_of(answer)
    assert await other.cancel(LaunchRef(URL, LAUNCH))
    assert gone == ["/v2/pods/7h9k2m4n6p"]


async def test_runs_that_are_stopped_side_by_side_ask_for_few_lists() -> None:
    moment, deleted = 100.0, set[str]()
    launches = [f"lora-{'a' * 32}-{number:08x}" for number in range(20)]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            deleted.add(request.url.path.rpartition("/")[2])
            return httpx.Response(204)
        pods = [shown(id=f"pod{n}", name=f"{launch}-{MARK}") for n, launch in enumerate(launches)]
        return httpx.Response(200, json={"pods": [pod for pod in pods if pod["id"] not in deleted]})

    launcher, requests = launcher_of(answer)
    launcher._watch._clock = lambda: moment
    assert (await launcher.health()).running == 20
    for launch in launches:
        assert await launcher.cancel(LaunchRef(URL, launch))
        assert (await launcher.observe(LaunchRef(URL, launch))).state is not LaunchState.CANCELLED
    moment += 1
    states = {(await launcher.observe(LaunchRef(URL, launch))).state for launch in launches}
    assert states == {LaunchState.CANCELLED}, "a list of later says so"
    methods = [request.method for request in requests if "catalog" not in str(request.url)]
    assert (methods.count("DELETE"), methods.count("GET")) == (20, 2)


@pytest.mark.parametrize(
    ("date", "is_ended", "told"),
    [
        (NOW, False, "differs by 86400 s"),
        (None, True, "tells no time"),
        ("the day before", True, "tells no time"),
        (NOW + timedelta(days=1), True, None),
    ],
)
async def test_wrong_clock_of_this_machine_ends_no_pod(
    date: datetime | str | None, is_ended: bool, told: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = format_datetime(date, usegmt=True) if isinstance(date, datetime) else date

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"pods": [shown()]}, headers={"date": text} if text else {})

    launcher, requests = launcher_of(answer)
    launcher._watch._local_now = lambda: NOW + timedelta(days=1)
    seen = await launcher.observe(LaunchRef(URL, LAUNCH))
    assert (seen.state is LaunchState.UNKNOWN, "DELETE" in {request.method for request in requests}) == (is_ended,) * 2
    assert is_ended or seen.execution_seconds == 300
    printed = capsys.readouterr().out
    assert (told in printed) if told else "clock" not in printed


async def test_refused_end_of_a_pod_stands_in_the_health() -> None:
    refuses = True

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            body = {"title": "Conflict", "status": 409, "detail": "The pod is locked."}
            return httpx.Response(409, json=body) if refuses else httpx.Response(204)
        return httpx.Response(200, json={"pods": [shown(createdAt=ago(6001))]})

    launcher, _ = launcher_of(answer)
    problem = (await launcher.health()).problem
    assert "1 of its pods could not be ended" in str(problem)
    assert "The pod is locked" in str(problem)
    refuses = False
    launcher._watch.expire()
    assert (await launcher.health()).problem is None


async def test_endpoints_of_an_account_share_one_list(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORA_WORKER_LAUNCHER", "runpod-pods")
    environment.setenv("LORA_WORKER_RUNPOD_PODS_IMAGE", "docker.io/me/lora-trainer:1")
    settings, requests = load_settings(), list[httpx.Request]()

    def serve(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={"pods": []})

    def opened(http: httpx.AsyncClient, gpu_type: str) -> RunPodPodsLauncher:
        own = settings.model_copy(update={"endpoint_gpu_type": gpu_type})
        return RunPodPodsLauncher.open(own, http, f"{URL}#{gpu_type}")  # type: ignore[arg-type]

    async with httpx.AsyncClient(transport=httpx.MockTransport(serve)) as http:
        for launcher in [opened(http, gpu_type) for gpu_type in ("H100", "H200", "A100-80GB")]:
            assert (await launcher.observe(LaunchRef(launcher.endpoint, LAUNCH))).state is LaunchState.MISSING
        assert len(requests) == 1
        async with httpx.AsyncClient(transport=httpx.MockTransport(serve)) as another:
            await opened(another, "H100").observe(LaunchRef(URL, LAUNCH))
        assert len(requests) == 2


async def test_price_of_pods_is_compared_with_what_is_billed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if "H100%20PCIe" in str(request.url):
            return httpx.Response(404, json={"title": "Not Found", "status": 404, "detail": "no such GPU"})
        asked = 2.69 if "HBM3" in str(request.url) else 4.19
        return httpx.Response(200, json={"id": "x", "price": {"secure": asked, "community": 9}})

    launcher, _ = launcher_of(answer)
    launcher._shape = PodShape("H100", 2)
    asked = await launcher.read_prices()
    assert asked == {"NVIDIA H100 80GB HBM3": 2.69, "NVIDIA H100 NVL": 4.19}
    (check,) = examine_pod_prices(Place("pods", launcher, "H100", 2), asked, load_prices())
    assert check.finding == ("RunPod asks $2.69 an hour for a pod with NVIDIA H100 80GB HBM3, and $4.18 are billed")
    assert examine_pod_prices(Place("pods", launcher, "H100", 2, price_per_hour=2.69), {"a": 2.7}, load_prices()) == []
    assert examine_pod_prices(Place("pods", launcher), asked, load_prices()) == []


def test_settings_of_pods_are_checked(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORA_WORKER_LAUNCHER", "runpod-pods")
    environment.setenv("LORA_WORKER_RUNPOD_PODS_IMAGE", "docker.io/me/lora-trainer:1")
    settings = load_settings()
    opened = RunPodPodsLauncher.open(settings, httpx.AsyncClient())  # type: ignore[arg-type]
    assert opened.endpoint == URL
    with pytest.raises(SettingsError, match="another API"):
        RunPodPodsLauncher.open(settings, httpx.AsyncClient(), "https://elsewhere.example/v2/pods")  # type: ignore[arg-type]
    environment.setenv("LORA_WORKER_RUNPOD_PODS_VOLUME_ID", "vol1")
    with pytest.raises(SettingsError, match="one data centre where the volume is"):
        load_settings()
    environment.setenv("LORA_WORKER_RUNPOD_PODS_DATA_CENTERS", "EU-RO-1,eu")
    with pytest.raises(SettingsError, match="ids of data centres"):
        load_settings()
