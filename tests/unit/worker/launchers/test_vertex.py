"""Vertex AI's jobs are what Google's messages hold, its answers are read within bounds, and no token goes astray."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from google.cloud.aiplatform_v1.services.job_service.transports.rest_base import _BaseJobServiceRestTransport
from google.cloud.aiplatform_v1.types import AcceleratorType, CustomJob, JobState
from google.protobuf import json_format

from lora_contract.machine_request import LAUNCH_ID_VARIABLE, unpack_request
from lora_worker.errors import (
    LaunchInDoubtError,
    LaunchRefusedError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
    SettingsError,
)
from lora_worker.launchers.base import EndCause, EndpointState, LaunchRef, LaunchState, OwnerOfLaunches, Policy
from lora_worker.launchers.machine_types import MachineUnknownError
from lora_worker.launchers.marks import new_launch_id
from lora_worker.launchers.registry import load_settings
from lora_worker.launchers.vertex.answers import read_job, read_observation
from lora_worker.launchers.vertex.api import VertexApi
from lora_worker.launchers.vertex.jobs import JobShape, custom_job
from lora_worker.launchers.vertex.launcher import VertexLauncher
from lora_worker.launchers.vertex.logs import LOGGING_URL, JobLogs
from lora_worker.launchers.vertex.machines import MACHINES
from lora_worker.launchers.vertex.settings import VertexSettings
from lora_worker.launchers.vertex.tokens import GoogleTokens
from tests.unit.worker.variables import SETTINGS
from tests.vertex_server import MACHINES as DOCUMENTED

URL = "https://us-central1-aiplatform.googleapis.com/v1/projects/my-project/locations/us-central1"
RUN = "0f8fad5b-d9cb-469f-a165-70867728950e"
LAUNCH = "lora-0f8fad5bd9cb469fa16570867728950e-0123abcd"
REF = LaunchRef(URL, LAUNCH)
NAME = "projects/1/locations/us-central1/customJobs/42"
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
MARK = "0123456789"
POLICY = Policy(execution_seconds=3600, ttl_seconds=90_000)
SHAPE = JobShape(
    mark=MARK,
    image="us-docker.pkg.dev/p/r/trainer:1",
    strategy="STANDARD",
    bucket="",
    boot_disk_gb=200,
    service_account="",
    network="",
)
PAYLOAD = {"run_id": RUN, "gpu_config": {"type": "A100-80GB", "count": 1}, "channel": {"token": "run-token"}}
VARIABLES = {"PROJECT": "my-project", "REGION": "us-central1", "IMAGE": "us-docker.pkg.dev/p/r/trainer:1"}


class Tokens:
    """Tokens that are numbered."""

    def __init__(self) -> None:
        self.made = 1

    async def token(self) -> str:
        return f"token-{self.made}"

    def forget(self, token: str) -> None:
        assert token == f"token-{self.made}"
        self.made += 1


@pytest.fixture
async def launcher() -> AsyncIterator[VertexLauncher]:
    async with httpx.AsyncClient() as http:
        tokens = Tokens()
        api = VertexApi(http, tokens, concurrency=20)
        yield VertexLauncher(URL, api, SHAPE, JobLogs(http, tokens), now=lambda: NOW)


@pytest.fixture
def api() -> Any:
    with respx.mock(base_url=URL, assert_all_called=False) as mock:
        mock.get("/customJobs").respond(json={})
        yield mock


def job(state: str, *, ran: float | None = None, waited: float = 60, **more: Any) -> dict[str, Any]:
    """A launch's job as the API answers, which Google's own message must be able to hold."""
    created = NOW - timedelta(seconds=waited + (ran or 0))
    made: dict[str, Any] = {
        "name": NAME,
        "displayName": LAUNCH,
        "state": f"JOB_STATE_{state}",
        "createTime": f"{created:%Y-%m-%dT%H:%M:%S.123456Z}",
        "labels": {"lora_project": MARK, "lora_launch": LAUNCH, "lora_ttl_seconds": "90000"},
        "jobSpec": {"scheduling": {"timeout": "3600s"}},
        **more,
    }
    if ran is not None:
        made["startTime"] = f"{created + timedelta(seconds=waited):%Y-%m-%dT%H:%M:%S.123456Z}"
    if state in {"SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}:
        made["endTime"] = f"{NOW:%Y-%m-%dT%H:%M:%S.123456Z}"
    json_format.ParseDict(made, CustomJob.pb()())
    return made


def failed(message: str, code: int = 3, ran: float | None = 100) -> dict[str, Any]:
    return job("FAILED", ran=ran, error={"code": code, "message": message})


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", ["STANDARD", "SPOT", "FLEX_START"])
def test_job_is_one_that_googles_own_message_holds(strategy: str) -> None:
    shape = JobShape(
        MARK, "image", strategy, "bucket", 200, "a@p.iam.gserviceaccount.com", "projects/1/global/networks/n"
    )
    sent = json.dumps(custom_job(shape, MACHINES.with_gpus("A100-80GB", 2), new_launch_id(RUN), PAYLOAD, POLICY))
    read = json_format.Parse(sent, CustomJob.pb()())
    spec = read.job_spec
    (pool,) = spec.worker_pool_specs
    environment = {variable.name: variable.value for variable in pool.container_spec.env}
    assert unpack_request(environment) == PAYLOAD
    assert environment[LAUNCH_ID_VARIABLE] == read.display_name == read.labels["lora_launch"]
    assert environment["LORA_TRAINER_VOLUME"] == "/gcs/bucket/lora-trainer"
    assert (pool.machine_spec.machine_type, pool.machine_spec.accelerator_count) == ("a2-ultragpu-2g", 2)
    assert spec.scheduling.timeout.ToSeconds() == 3600
    assert spec.scheduling.max_wait_duration.ToSeconds() == (86_400 if strategy == "FLEX_START" else 0)
    assert all(len(value) <= 64 for label in read.labels.items() for value in label)
    assert "run-token" not in sent


def test_machine_that_takes_hyperdisks_only_asks_for_one() -> None:
    shape = JobShape(MARK, "image", "SPOT", "", 200, "", "")
    asked = {}
    for machine in MACHINES.all:
        (pool,) = custom_job(shape, machine, new_launch_id(RUN), PAYLOAD, POLICY)["jobSpec"]["workerPoolSpecs"]
        asked[machine.name] = pool["diskSpec"].get("bootDiskType")
    only_hyperdisk = {name for name in asked if name.startswith(("a3-ultra", "a4-", "g4-"))}
    assert len(only_hyperdisk) == 6
    assert {name for name, disk in asked.items() if disk == "hyperdisk-balanced"} == only_hyperdisk
    assert set(asked.values()) == {None, "hyperdisk-balanced"}


def test_every_machine_is_in_googles_table() -> None:
    assert len(MACHINES.all) == len({machine.name for machine in MACHINES.all})
    for machine in MACHINES.all:
        assert DOCUMENTED[machine.accelerator_type][machine.name] == machine.gpu_count
        assert machine.accelerator_type in AcceleratorType.__members__


@pytest.mark.parametrize(
    ("gpu", "count", "machine"),
    [
        ("H100", 1, "a3-highgpu-1g"),
        ("NVIDIA H100 80GB HBM3", 8, "a3-highgpu-8g"),
        ("A100", 1, "a2-ultragpu-1g"),
        ("NVIDIA A100-SXM4-40GB", 4, "a2-highgpu-4g"),
        ("L4", 2, "g2-standard-24"),
        ("RTX PRO 6000", 1, "g4-standard-48"),
    ],
)
def test_machine_is_found_by_the_gpus_name(gpu: str, count: int, machine: str) -> None:
    assert MACHINES.with_gpus(gpu, count).name == machine


@pytest.mark.parametrize(
    ("gpu", "count", "said"),
    [
        ("RTX-4090", 1, "Vertex AI has no RTX-4090 for this worker; choose one of H100"),
        ("L40S", 1, "Vertex AI has no L40S"),
        ("NVIDIA GB200", 1, "Vertex AI has no NVIDIA GB200"),
        ("", 1, "Vertex AI has no "),
        ("H200", 1, "Vertex AI has no machine with 1 × H200; there may be 8"),
        ("A100", 3, "no machine with 3 × A100"),
    ],
)
def test_gpu_that_vertex_lacks_is_refused_in_a_sentence(gpu: str, count: int, said: str) -> None:
    with pytest.raises(MachineUnknownError) as caught:
        MACHINES.with_gpus(gpu, count)
    assert str(caught.value).startswith(said) or said in str(caught.value)


def test_calls_have_the_routes_of_googles_client() -> None:
    base = _BaseJobServiceRestTransport
    options = {
        "create": base._BaseCreateCustomJob, "get": base._BaseGetCustomJob,
        "list": base._BaseListCustomJobs, "cancel": base._BaseCancelCustomJob,
    }  # fmt: skip
    routes = {name: [(way["method"], way["uri"]) for way in how._get_http_options()] for name, how in options.items()}
    parent, name = "{parent=projects/*/locations/*}", "{name=projects/*/locations/*/customJobs/*}"
    assert ("post", f"/v1/{parent}/customJobs") in routes["create"]
    assert ("get", f"/v1/{parent}/customJobs") in routes["list"]
    assert ("get", f"/v1/{name}") in routes["get"]
    assert ("post", f"/v1/{name}:cancel") in routes["cancel"]


# ── what a job's state means ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (job("QUEUED"), LaunchState.QUEUED),
        (job("PENDING"), LaunchState.QUEUED),
        (job("PAUSED", ran=5), LaunchState.QUEUED),
        (job("RUNNING", ran=5), LaunchState.RUNNING),
        (job("UPDATING", ran=5), LaunchState.RUNNING),
        (job("CANCELLING", ran=5), LaunchState.RUNNING),
        (job("CANCELLING"), LaunchState.QUEUED),
        (job("SUCCEEDED", ran=5), LaunchState.COMPLETED),
        (job("PARTIALLY_SUCCEEDED", ran=5), LaunchState.COMPLETED),
        (job("CANCELLED", ran=5), LaunchState.CANCELLED),
        (job("CANCELLED"), LaunchState.CANCELLED),
        (job("CANCELLED", waited=90_001), LaunchState.TIMED_OUT),
        (job("EXPIRED"), LaunchState.TIMED_OUT),
        (failed("Resources are insufficient in region: us-central1.", 8, None), LaunchState.TIMED_OUT),
        (failed("The following quota metrics exceed quota limits", 8, None), LaunchState.TIMED_OUT),
        (job("UNSPECIFIED"), LaunchState.UNKNOWN),
        ({"name": NAME}, LaunchState.UNKNOWN),
        ({"name": NAME, "state": "JOB_STATE_OF_2030"}, LaunchState.UNKNOWN),
    ],
)
def test_each_state_has_its_meaning(answer: dict[str, Any], state: LaunchState) -> None:
    assert read_observation(read_job(answer), NOW).state is state


def test_every_state_of_googles_client_is_known() -> None:
    unknown = {
        name
        for name in JobState.__members__
        if read_observation(read_job({"name": NAME, "state": name}), NOW).state is LaunchState.UNKNOWN
    }
    assert unknown == {"JOB_STATE_UNSPECIFIED"}


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (failed("The replica workerpool0-0 exited with a non-zero status of 1."), EndCause.RAISED),
        (failed("exited with a non-zero status of 1. ModuleNotFoundError: x"), EndCause.IMPORT_FAILED),
        (failed("exited with a non-zero status of 137. Termination reason: Error."), EndCause.LOST),
        (failed("exited with a non-zero status of 139(SIGSEGV)."), EndCause.RAISED),
        (failed("The replica workerpool0-0 ran out of memory and exited with a non-zero status of 137."),
         EndCause.OUT_OF_MEMORY),
        (failed("Resources are insufficient in region: us-central1.", 8), EndCause.LOST),
        (failed("Internal error occurred for the current attempt", 13), EndCause.LOST),
        (failed("the service is unavailable", 14), EndCause.LOST),
        (failed("deadline", 4), EndCause.OVER_TIME),
        (failed("whatever", 3, 3600), EndCause.OVER_TIME),
        (job("CANCELLED", ran=3601), EndCause.OVER_TIME),
        (job("EXPIRED", ran=5), EndCause.OVER_TIME),
        (failed("something new", 2), EndCause.UNKNOWN),
        (job("FAILED", ran=5), EndCause.UNKNOWN),
    ],
)  # fmt: skip
def test_failed_job_tells_its_cause(answer: dict[str, Any], cause: EndCause) -> None:
    seen = read_observation(read_job(answer), NOW)
    assert (seen.state, seen.cause) == (LaunchState.FAILED, cause)


@pytest.mark.parametrize(
    ("answer", "ran", "waited"),
    [
        (job("RUNNING", ran=100, waited=50), 100, 50),
        (job("SUCCEEDED", ran=100, waited=50), 100, 50),
        (failed("Resources are insufficient", 8, None), 0, 60),
        (job("QUEUED", waited=30), None, 30),
        ({**job("SUCCEEDED", ran=5), "startTime": "2030-01-01T00:00:00Z"}, 0, None),
        ({**job("SUCCEEDED", ran=5), "startTime": "1970-01-01T00:00:00Z"}, None, 0),
    ],
)
def test_seconds_are_those_of_googles_clock(answer: dict[str, Any], ran: float | None, waited: float | None) -> None:
    seen = read_observation(read_job(answer), NOW)
    assert (ran if ran is None else pytest.approx(ran, abs=1)) == seen.execution_seconds
    assert (waited if waited is None else pytest.approx(waited, abs=1)) == seen.queue_seconds


@pytest.mark.parametrize(
    "body",
    [b"7", b"[]", b"{}", b'{"name": 7}', b'{"name": "n", "createTime": "yesterday"}', b"[" * 9999,
     b'{"name": "n", "labels": {"a": 7}}', b'{"name": "n", "error": "x"}'],
)  # fmt: skip
async def test_answer_that_can_not_be_read_ends_no_run(launcher: VertexLauncher, api: Any, body: bytes) -> None:
    api.get("/customJobs").respond(content=b'{"customJobs": [' + body + b"]}")
    seen = await launcher.observe(REF)
    assert (seen.state, bool(seen.reason)) == (LaunchState.UNKNOWN, True)
    assert not await launcher.cancel(REF)


# ── launching ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "error", "kind", "said"),
    [
        (429, {"message": "Quota exceeded for requests."}, ServiceUnavailableError, "takes no more requests"),
        (429, {"message": "quota metrics exceed: aiplatform.googleapis.com/custom_model_training_nvidia_l4_gpus"},
         ServiceUnavailableError, "custom_model_training_nvidia_l4_gpus is used up"),
        (401, {}, ServiceRefusedError, "check the worker's credentials"),
        (403, {}, ServiceRefusedError, "roles/aiplatform.user"),
        (403, {"details": [{"reason": "SERVICE_DISABLED"}]}, ServiceRefusedError, "gcloud services enable"),
        (403, {"details": [{"reason": "BILLING_DISABLED"}]}, ServiceRefusedError, "no billing account"),
        (404, {}, ServiceRefusedError, "LORA_WORKER_VERTEX_PROJECT"),
        (400, {"message": "Image URI does not exist."}, ServiceRefusedError, "Image URI does not exist."),
        (400, "not an error", ServiceRefusedError, "refused the job (400)"),
        (500, {}, LaunchInDoubtError, "(500)"),
        (503, {"status": "UNAVAILABLE"}, LaunchInDoubtError, "(503)"),
    ],
)  # fmt: skip
async def test_refusal_of_a_launch_is_one_sentence(
    launcher: VertexLauncher, api: Any, status: int, error: Any, kind: type[ServiceError], said: str
) -> None:
    api.post("/customJobs").respond(status, json={"error": error})
    with pytest.raises(kind) as caught:
        await launcher.launch(PAYLOAD, POLICY)
    assert said in str(caught.value)
    assert not isinstance(caught.value, LaunchRefusedError), "no job fails for what only the operator can mend"


@pytest.mark.parametrize(
    "payload",
    [{}, {**PAYLOAD, "run_id": "../1"}, {**PAYLOAD, "gpu_config": {"type": "RTX-4090"}}, {**PAYLOAD, "gpu_config": 7}],
)
async def test_request_that_vertex_can_not_take_is_not_sent(
    launcher: VertexLauncher, api: Any, payload: dict[str, Any]
) -> None:
    with pytest.raises(LaunchRefusedError):
        await launcher.launch(payload, POLICY)
    assert not api.calls


async def test_errand_is_refused_in_a_sentence(launcher: VertexLauncher) -> None:
    with pytest.raises(LaunchRefusedError, match="its machines are started for runs only, and the request names none"):
        await launcher.launch({"errand": "prefetch"}, POLICY)


async def test_answer_of_another_job_leaves_the_launch_in_doubt(launcher: VertexLauncher, api: Any) -> None:
    api.post("/customJobs").respond(json=job("QUEUED"))
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch(PAYLOAD, POLICY)


async def test_refused_token_is_fetched_again(launcher: VertexLauncher, api: Any) -> None:
    route = api.get("/customJobs").respond(401)
    assert (await launcher.observe(REF)).state is LaunchState.UNKNOWN
    route.respond(json={"customJobs": [job("RUNNING", ran=5)]})
    assert (await launcher.observe(REF)).state is LaunchState.RUNNING
    assert [call.request.headers["authorization"] for call in api.calls] == ["Bearer token-1", "Bearer token-2"]


# ── what is ours ────────────────────────────────────────────────────────────────────────────────────


async def test_launch_of_a_row_is_found_however_the_database_was_spelled(launcher: VertexLauncher, api: Any) -> None:
    former = {**job("RUNNING", ran=5), "labels": {"lora_project": "9876543210", "lora_launch": LAUNCH}}
    route = api.get("/customJobs").respond(json={"customJobs": [former]})
    api.get("/customJobs/42").respond(json=former)
    cancel = api.post("/customJobs/42:cancel").respond(json={})
    assert await launcher.owned() == []
    assert (await launcher.observe(REF)).state is LaunchState.RUNNING
    assert route.calls[-1].request.url.params["filter"] == f'display_name="{LAUNCH}"'
    assert await launcher.cancel(REF)
    assert cancel.call_count == 1


@pytest.mark.parametrize("labels", [{}, {"lora_project": MARK}])
async def test_job_without_the_launchs_label_is_neither_read_nor_ended(
    launcher: VertexLauncher, api: Any, labels: dict[str, str]
) -> None:
    api.get("/customJobs").respond(json={"customJobs": [{**job("RUNNING", ran=5), "labels": labels}]})
    assert (await launcher.observe(REF)).state is LaunchState.MISSING
    assert await launcher.cancel(REF)
    assert await launcher.owned() == []
    assert {call.request.method for call in api.calls} == {"GET"}


async def test_owned_launches_are_told_with_run_and_age(launcher: VertexLauncher, api: Any) -> None:
    pages = [
        {"customJobs": [job("RUNNING", ran=40)], "nextPageToken": "2"},
        {"customJobs": [job("QUEUED", waited=200)]},
    ]
    route = api.get("/customJobs").mock(side_effect=[httpx.Response(200, json=page) for page in pages])
    assert isinstance(launcher, OwnerOfLaunches)
    oldest, latest = await launcher.owned()
    assert (oldest.external_job_id, oldest.run_id, round(oldest.age_seconds or 0)) == (LAUNCH, RUN, 200)
    assert round(latest.age_seconds or 0) == 100
    assert [call.request.url.params.get("pageToken") for call in route.calls] == [None, "2"]
    assert route.calls[0].request.url.params["filter"].startswith(f'labels.lora_project="{MARK}" AND (state=')


async def test_job_that_waits_beyond_its_limit_is_cancelled(launcher: VertexLauncher, api: Any) -> None:
    api.get("/customJobs").respond(json={"customJobs": [job("QUEUED", waited=90_001)]})
    cancel = api.post("/customJobs/42:cancel").respond(json={})
    assert (await launcher.observe(REF)).state is LaunchState.QUEUED
    assert cancel.call_count == 1


async def test_region_without_machines_says_so(launcher: VertexLauncher, api: Any) -> None:
    stockout = failed("Resources are insufficient in region: us-central1.", 8, None)
    live = {"customJobs": [job("QUEUED")]}
    api.get("/customJobs").mock(
        side_effect=lambda request: httpx.Response(
            200, json={"customJobs": [stockout]} if "FAILED" in request.url.params["filter"] else live
        )
    )
    seen = await launcher.health()
    assert (seen.reachable, seen.jobs_queued, seen.state) == (True, 1, EndpointState.UNKNOWN)
    assert "no free machine" in (seen.problem or "")


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (httpx.Response(403), ServiceRefusedError, "roles/logging.viewer"),
        (httpx.Response(404), ServiceRefusedError, "(404)"),
        (httpx.Response(429), ServiceUnavailableError, "(429)"),
        (httpx.Response(200, content=b"["), ServiceUnavailableError, "can't be read"),
        (httpx.Response(200, json=[]), ServiceUnavailableError, "can't be read"),
        (httpx.Response(200, json={"entries": [7]}), ServiceUnavailableError, "an entry that can't be read"),
    ],
)
async def test_log_that_can_not_be_read_says_why(
    launcher: VertexLauncher, api: Any, answer: httpx.Response, kind: type[ServiceError], said: str
) -> None:
    api.get("/customJobs").respond(json={"customJobs": [job("RUNNING", ran=5)]})
    api.post(f"{LOGGING_URL}/v2/entries:list").mock(return_value=answer)
    with pytest.raises(kind) as caught:
        await launcher.read(REF, "42", most_lines=5)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "is_reached"),
    [
        (URL, True),
        (f"{URL}#a3-highgpu-8g", True),
        (URL.replace("us-central1", "europe-west4"), True),
        (URL.replace("my-project", "another"), False),
        (URL.replace("https", "http"), False),
        (URL.replace(".com/", ".com.evil.example/"), False),
        (URL.replace("https://", "https://evil.example/"), False),
        (URL.replace(".com/", ".com@evil.example/"), False),
        (URL.replace("locations/us-central1", "locations/europe-west4"), False),
        (f"{URL}/../../../..", False),
        ("", False),
    ],
)  # fmt: skip
async def test_token_goes_to_the_projects_own_regions(
    launcher: VertexLauncher, endpoint: str, is_reached: bool
) -> None:
    assert launcher.reaches(endpoint) is is_reached


# ── settings and credentials ────────────────────────────────────────────────────────────────────────


def choose_vertex(environment: pytest.MonkeyPatch, **more: str) -> None:
    for name in [name for name in SETTINGS if name.startswith("GPU_CLUSTER")]:
        environment.delenv(name)
    environment.setenv("LORA_WORKER_LAUNCHER", "vertex")
    for name, value in (VARIABLES | more).items():
        environment.setenv(f"LORA_WORKER_VERTEX_{name}", value)


async def test_settings_make_the_launcher_of_their_region(environment: pytest.MonkeyPatch) -> None:
    choose_vertex(environment, MACHINE_TYPE="g2-standard-8")
    environment.setenv("LORA_WORKER_ENDPOINT_GPU_TYPE", "L4")
    settings = load_settings()
    assert isinstance(settings, VertexSettings)
    async with httpx.AsyncClient() as http:
        assert VertexLauncher.open(settings, http).endpoint == f"{URL}#g2-standard-8"
        several = settings.model_copy(update={"endpoint_gpu_type": "H100", "endpoint_gpu_count": 8})
        assert VertexLauncher.open(several, http, f"{URL}#a3-megagpu-8g").endpoint == f"{URL}#a3-megagpu-8g"
        with pytest.raises(SettingsError, match="is none of my-project's at Vertex AI"):
            VertexLauncher.open(settings, http, URL.replace("my-project", "another"))


@pytest.mark.parametrize(
    ("machine_type", "gpu_type", "gpu_count", "said"),
    [
        ("", "RTX-4090", 1, "Vertex AI has no RTX-4090"),
        ("", "L4", 3, "no machine with 3 × L4"),
        ("#n1-standard-4", "L4", 1, "'n1-standard-4' is no machine type with GPUs"),
        ("#a3-highgpu-8g", "H100", 1, "a3-highgpu-8g has 8 × H100, and bills go by"),
        ("#a3-highgpu-8g", "A100-80GB", 8, "a3-highgpu-8g has 8 × H100, and bills go by"),
        ("#a3-highgpu-8g", None, 8, "a3-highgpu-8g has 8 × H100, and bills go by"),
    ],
)
async def test_endpoint_whose_gpu_is_not_billed_is_refused(
    environment: pytest.MonkeyPatch, machine_type: str, gpu_type: str | None, gpu_count: int, said: str
) -> None:
    choose_vertex(environment)
    settings = load_settings().model_copy(update={"endpoint_gpu_type": gpu_type, "endpoint_gpu_count": gpu_count})
    assert isinstance(settings, VertexSettings)
    async with httpx.AsyncClient() as http:
        with pytest.raises(MachineUnknownError, match=said):
            VertexLauncher.open(settings, http, URL + machine_type)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VERTEX_PROJECT", "My Project", "VERTEX_PROJECT"),
        ("VERTEX_REGION", "us-central1/../x", "VERTEX_REGION"),
        ("VERTEX_STRATEGY", "CHEAP", "VERTEX_STRATEGY"),
        ("VERTEX_MACHINE_TYPE", "a3/../x", "VERTEX_MACHINE_TYPE"),
        ("VERTEX_API_URL", "https://example.com/v1", "must end with the host"),
        ("VERTEX_FORMER_ENDPOINTS", "https://example.com", "must end with /v1/projects"),
    ],
)
def test_wrong_setting_is_named(environment: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    choose_vertex(environment)
    environment.setenv(f"LORA_WORKER_{name}", value)
    with pytest.raises(SettingsError, match=said):
        load_settings()


async def test_missing_credentials_are_one_sentence(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    tokens = GoogleTokens()
    with pytest.raises(ServiceRefusedError, match=r"CREDENTIALS names a file that can't be read \(FileNotFound"):
        await tokens.token()
    (tmp_path / "key.json").write_text("{}")
    environment.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(ServiceRefusedError, match="CREDENTIALS names what is no key file of Google Cloud: set"):
        await GoogleTokens().token()


async def test_failed_token_is_not_fetched_by_every_call(environment: pytest.MonkeyPatch) -> None:
    now, tried = [0.0], []

    class Failing(GoogleTokens):
        def _load(self, request: Any) -> Any:
            tried.append(now[0])
            raise OSError("no")

    tokens = Failing(clock=lambda: now[0])
    for now[0] in (0.0, 5.0, 14.9, 15.1):
        with pytest.raises(ServiceRefusedError, match="can't be read"):
            await tokens.token()
    assert tried == [0.0, 15.1]


async def test_token_refused_while_another_is_fetched_changes_nothing() -> None:
    class Credentials:
        token, valid, made = "token-1", False, 0

        def refresh(self, _request: Any) -> None:
            tokens.forget("token-1")  # a call that was sent with it before is refused now
            self.made += 1
            self.token, self.valid = f"token-{self.made + 1}", True

    class Numbered(GoogleTokens):
        def _load(self, request: Any) -> Any:
            return Credentials()

    tokens = Numbered()
    tokens._credentials = Credentials()
    assert await tokens.token() == "token-2"
    kept = tokens._credentials
    tokens.forget("token-1")
    assert tokens._credentials is kept, "that token has been replaced already"
    tokens.forget("token-2")
    assert tokens._credentials is None


async def test_job_that_waits_for_quota_is_told_after_minutes(launcher: VertexLauncher, api: Any) -> None:
    for waited, is_told in ((299, False), (301, True)):
        live = {"customJobs": [job("QUEUED", waited=waited)]}
        api.get("/customJobs").mock(side_effect=[httpx.Response(200, json=live), httpx.Response(200, json={})])
        assert ("quota" in str((await launcher.health()).problem)) is is_told


@pytest.mark.parametrize(
    ("waited", "strategy", "state"),
    [
        ([899], "SPOT", EndpointState.STARTING),
        ([901], "SPOT", EndpointState.UNKNOWN),
        ([901, 10], "SPOT", EndpointState.UNKNOWN),
        ([10], "FLEX_START", EndpointState.UNKNOWN),
    ],
)
async def test_job_that_finds_no_machine_is_no_slow_start(
    launcher: VertexLauncher, api: Any, waited: list[int], strategy: str, state: EndpointState
) -> None:
    spec = {"scheduling": {"timeout": "3600s", "strategy": strategy}}
    live = {"customJobs": [job("PENDING", waited=seconds, jobSpec=spec) for seconds in waited]}
    api.get("/customJobs").mock(side_effect=[httpx.Response(200, json=live), httpx.Response(200, json={})])
    seen = await launcher.health()
    assert (seen.state, seen.jobs_queued) == (state, len(waited))


def on(machine_type: str, **made: Any) -> dict[str, Any]:
    pool = {"machineSpec": {"machineType": machine_type}, "replicaCount": "1"}
    return job(**made, jobSpec={"scheduling": {"timeout": "3600s"}, "workerPoolSpecs": [pool]})


async def test_endpoints_of_one_region_count_their_own_machines(launcher: VertexLauncher, api: Any) -> None:
    live = [on("g2-standard-16", state="RUNNING", ran=5), on("a3-highgpu-1g", state="QUEUED")]
    stockout = {**on("a3-highgpu-1g", state="FAILED"), "error": {"code": 8}}
    api.get("/customJobs").mock(
        side_effect=lambda request: httpx.Response(
            200, json={"customJobs": [stockout] if "FAILED" in request.url.params["filter"] else live}
        )
    )
    l4, h100, both = [await launcher.health(URL + at) for at in ("#g2-standard-16", "#a3-highgpu-1g", "")]
    assert [(seen.jobs_running, seen.jobs_queued) for seen in (l4, h100, both)] == [(1, 0), (0, 1), (1, 1)]
    assert [seen.lacks_gpu for seen in (l4, h100)] == [False, True]
    assert [seen.problem is None for seen in (l4, h100)] == [True, False]


async def test_live_job_on_another_machine_is_not_taken_for_this_endpoints(launcher: VertexLauncher, api: Any) -> None:
    api.get("/customJobs").respond(json={"customJobs": [on("g2-standard-16", state="RUNNING", ran=5)]})
    with pytest.raises(LaunchInDoubtError, match="another type of machine"):
        await launcher.launch(PAYLOAD, POLICY)
    api.get("/customJobs").respond(json={"customJobs": [on("a2-ultragpu-1g", state="RUNNING", ran=5)]})
    assert await launcher.launch(PAYLOAD, POLICY) == LAUNCH


async def test_list_without_an_end_is_left(launcher: VertexLauncher, api: Any) -> None:
    route = api.get("/customJobs").respond(json={"nextPageToken": "again"})
    assert await launcher.owned() == []
    assert route.call_count == 10
