"""SageMaker's launcher without a server: settings, requests, statuses, errors; and moto's SageMaker in the process."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import sys
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import boto3
import httpx
import pytest
from botocore import exceptions as faults
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError
from moto import mock_aws

from lora_contract.machine_request import find_launch_id, unpack_request
from lora_worker.errors import (
    LaunchInDoubtError,
    LaunchRefusedError,
    ServiceRefusedError,
    ServiceUnavailableError,
    SettingsError,
)
from lora_worker.launchers.base import EndCause, LaunchRef, LaunchState, Policy
from lora_worker.launchers.machine_types import MachineUnknownError
from lora_worker.launchers.registry import load_settings
from lora_worker.launchers.sagemaker import api as sagemaker_api
from lora_worker.launchers.sagemaker.addresses import Address, read_endpoint
from lora_worker.launchers.sagemaker.answers import Job, read_health, read_observation
from lora_worker.launchers.sagemaker.api import AwsApi, explain_failure, explain_refusal
from lora_worker.launchers.sagemaker.instances import INSTANCES
from lora_worker.launchers.sagemaker.jobs import JobShape, job_name, mark_of, training_job
from lora_worker.launchers.sagemaker.launcher import SageMakerLauncher
from lora_worker.launchers.sagemaker.settings import SageMakerSettings
from lora_worker.launchers.threads import in_thread
from lora_worker.money.billing import Measured
from lora_worker.money.pricing import find_gpu, load_prices
from tests.sagemaker_shapes import check_shape, model_of

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/lora-trainer"
IMAGE = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/lora-trainer:1"
SHAPE = JobShape(mark="0123456789", role=ROLE, image=IMAGE, s3_path="s3://bucket/lora")
POLICY = Policy(execution_seconds=3600, ttl_seconds=90_000)
VARIABLES = {
    "LORA_WORKER_LAUNCHER": "sagemaker",
    "LORA_WORKER_SAGEMAKER_REGION": "eu-west-1",
    "LORA_WORKER_SAGEMAKER_ROLE": ROLE,
    "LORA_WORKER_SAGEMAKER_IMAGE": IMAGE,
    "LORA_WORKER_SAGEMAKER_S3_PATH": "s3://bucket/lora",
}


@pytest.fixture
def variables(environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in VARIABLES.items():
        environment.setenv(name, value)
    return environment


def payload(**more: Any) -> dict[str, Any]:
    return {"run_id": str(uuid4()), "job_id": str(uuid4()), "gpu_config": {"type": "L4", "count": 1}, **more}


def request_of(given: dict[str, Any], shape: JobShape = SHAPE, policy: Policy = POLICY) -> dict[str, Any]:
    return training_job(shape, "ml.g6.4xlarge", job_name(given["run_id"], shape.mark), given, policy)


# Settings


def test_settings_make_a_launcher_of_region_and_account(variables: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    assert isinstance(settings, SageMakerSettings)
    launcher = SageMakerLauncher.open(settings, httpx.AsyncClient())
    assert launcher.endpoint == f"sagemaker:eu-west-1:{ACCOUNT}"
    four = settings.model_copy(update={"endpoint_gpu_type": "L4", "endpoint_gpu_count": 4})
    other = SageMakerLauncher.open(four, httpx.AsyncClient(), "sagemaker:us-east-1#ml.g6.12xlarge")
    assert other.endpoint == f"sagemaker:us-east-1:{ACCOUNT}#ml.g6.12xlarge"
    assert launcher.reaches(other.endpoint)
    assert not launcher.reaches("sagemaker:us-east-1:999999999999")
    assert not launcher.reaches("https://api.runpod.ai/v2/endpoint")


@pytest.mark.parametrize("endpoint", ["sagemaker:us-east-1:999999999999", "us-east-1", "sagemaker:evil.example.com"])
def test_endpoint_that_is_none_of_the_account_is_refused(variables: pytest.MonkeyPatch, endpoint: str) -> None:
    settings = load_settings()
    assert isinstance(settings, SageMakerSettings)
    with pytest.raises(SettingsError, match=r"the endpoint .* is none of account"):
        SageMakerLauncher.open(settings, httpx.AsyncClient(), endpoint)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"SAGEMAKER_INSTANCE_TYPE": "ml.t3.large"}, "is no instance type with GPUs"),
        ({"ENDPOINT_GPU_TYPE": "RTX-4090"}, "SageMaker has no RTX-4090"),
        ({"ENDPOINT_GPU_TYPE": "A100-80GB"}, "SageMaker has no instance with 1 × A100-80GB; there may be 8"),
        ({"SAGEMAKER_INSTANCE_TYPE": "ml.g6.12xlarge"}, "has 4 × L4, and bills go by"),
        ({"SAGEMAKER_INSTANCE_TYPE": "ml.g6.12xlarge", "ENDPOINT_GPU_TYPE": "L4"}, "has 4 × L4, and bills go by"),
    ],
)
def test_gpus_that_aws_lacks_or_bills_miss_are_refused(
    variables: pytest.MonkeyPatch, more: dict[str, str], said: str
) -> None:
    for name, value in more.items():
        variables.setenv(f"LORA_WORKER_{name}", value)
    settings = load_settings()
    assert isinstance(settings, SageMakerSettings)
    with pytest.raises(MachineUnknownError, match=said):
        SageMakerLauncher.open(settings, httpx.AsyncClient())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SAGEMAKER_REGION", "europe", "LORA_WORKER_SAGEMAKER_REGION"),
        ("SAGEMAKER_ROLE", "lora-trainer", "LORA_WORKER_SAGEMAKER_ROLE"),
        ("SAGEMAKER_S3_PATH", "bucket", "LORA_WORKER_SAGEMAKER_S3_PATH"),
        ("SAGEMAKER_SUBNETS", "subnet-1", "are set together"),
    ],
)
def test_wrong_setting_is_one_sentence(variables: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    variables.setenv(f"LORA_WORKER_{name}", value)
    with pytest.raises(SettingsError, match=said):
        load_settings()


def test_missing_extra_is_one_sentence(variables: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    assert isinstance(settings, SageMakerSettings)
    variables.setitem(sys.modules, "boto3", None)
    with pytest.raises(SettingsError, match=r"pip install '\.\[sagemaker\]' in the clone"):
        SageMakerLauncher.open(settings, httpx.AsyncClient())


# Instances


def test_table_has_only_what_sagemaker_trains_on_and_prices_know() -> None:
    known = model_of("sagemaker").shape_for("TrainingInstanceType").enum
    prices = load_prices(None)
    for instance in INSTANCES.all:
        assert instance.name in known
        price = find_gpu(prices, instance.gpu_type)
        if instance.gpu_type != "A10G":  # not at RunPod, whose prices the table has
            assert price is not None, instance
            assert (price.type, price.memory_gb) == (instance.gpu_type, instance.memory_gb)


@pytest.mark.parametrize(
    ("gpu_type", "count", "instance_type"),
    [
        ("H100", 1, "ml.p5.4xlarge"),
        ("NVIDIA H100 80GB HBM3", 8, "ml.p5.48xlarge"),
        ("A100", 8, "ml.p4de.24xlarge"),
        ("A100-SXM4-40GB", 8, "ml.p4d.24xlarge"),
        ("L40S", 4, "ml.g6e.12xlarge"),
        ("NVIDIA A10G", 1, "ml.g5.4xlarge"),
    ],
)
def test_gpu_has_its_instance(gpu_type: str, count: int, instance_type: str) -> None:
    assert INSTANCES.with_gpus(gpu_type, count).name == instance_type


@pytest.mark.parametrize(("gpu_type", "count"), [("L40", 1), ("A40", 1), ("None", 1), ("GB200", 8), ("H100", 2)])
def test_gpu_that_aws_lacks_is_refused_before_a_call(gpu_type: str, count: int) -> None:
    with pytest.raises(MachineUnknownError, match="SageMaker has no"):
        INSTANCES.with_gpus(gpu_type, count)


# The request


@pytest.mark.parametrize("is_spot", [False, True])
def test_request_is_what_the_service_model_takes(is_spot: bool) -> None:
    given = payload(text="".join(chr(32 + n * n * 7 % 90) for n in range(30_000)))
    shape = JobShape(
        mark="0123456789", role=ROLE, image=IMAGE, s3_path="s3://bucket", is_spot=is_spot, kms_key="alias/lora",
        subnets=("subnet-1",), security_groups=("sg-1",),
    )  # fmt: skip
    request = request_of(given, shape)
    check_shape(model_of("sagemaker").operation_model("CreateTrainingJob").input_shape, request, "request")
    environment = request["Environment"]
    assert unpack_request(environment) == given
    assert find_launch_id(environment) == request["TrainingJobName"]
    assert ("LORA_TRAINER_CLOUD_RESTARTS" in environment) == is_spot
    assert environment["LORA_TRAINER_VOLUME"] == request["CheckpointConfig"]["LocalPath"]
    assert request["CheckpointConfig"]["S3Uri"] == f"s3://bucket/checkpoints/{given['job_id']}"
    told = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    assert told == {"lora-project": "0123456789", "lora-run": given["run_id"]}


def test_environment_holds_what_sagemaker_takes_and_no_more() -> None:
    noise = random.Random(3).randbytes(40_000).hex()
    shape = dataclasses.replace(SHAPE, is_spot=True)
    environment = request_of(payload(text=noise[:62_000]), shape)["Environment"]
    assert 95 <= len(environment) <= 100
    assert max(map(len, environment.values())) == 512
    with pytest.raises(ValueError, match="the cloud takes 95 of them"):
        request_of(payload(text=noise[:66_000]))


@pytest.mark.parametrize(
    ("is_spot", "policy", "condition"),
    [
        (False, Policy(3600, 90_000), {"MaxRuntimeInSeconds": 3600, "MaxPendingTimeInSeconds": 86_400}),
        (False, Policy(3600, 3600), {"MaxRuntimeInSeconds": 3600, "MaxPendingTimeInSeconds": 1800}),
        (True, Policy(3600, 90_000), {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 90_000}),
        (True, Policy(3600, 60), {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 3600}),
        (True, Policy(9e9, 9e9), {"MaxRuntimeInSeconds": 2_419_200, "MaxWaitTimeInSeconds": 2_419_200}),
    ],
)
def test_times_are_within_sagemakers_bounds(is_spot: bool, policy: Policy, condition: dict[str, int]) -> None:
    shape = JobShape(mark="0123456789", role=ROLE, image=IMAGE, s3_path="s3://bucket", is_spot=is_spot)
    assert request_of(payload(), shape, policy)["StoppingCondition"] == condition


@pytest.mark.parametrize(
    "given",
    [{}, {"run_id": "no uuid"}, {"run_id": str(uuid4()), "gpu_config": {"type": "A40"}}, payload(job_id="../x")],
)
async def test_request_that_can_not_run_there_is_refused(given: dict[str, Any]) -> None:
    def make(*_: Any, **__: Any) -> Any:
        raise AssertionError("a call was made")

    launcher = SageMakerLauncher(Address("eu-west-1", ACCOUNT), AwsApi(make=make), SHAPE)
    with pytest.raises(LaunchRefusedError):
        await launcher.launch(given, POLICY)


def test_endpoint_and_names_are_read_strictly() -> None:
    address = Address("us-gov-west-1", ACCOUNT, "ml.g5.xlarge")
    assert read_endpoint(str(address), "0" * 12) == address
    assert read_endpoint("sagemaker:eu-west-1", ACCOUNT) == Address("eu-west-1", ACCOUNT)
    assert read_endpoint("sagemaker:eu-west-1.evil.example", ACCOUNT) is None
    name = job_name(str(uuid4()), "0123456789")
    assert mark_of(name) == "0123456789"
    assert [mark_of(other) for other in (f"{name}0", f"x{name}", "training-job", f"{name}\n")] == [None] * 4


# Statuses


def answer(status: str, secondary: str = "", **more: Any) -> dict[str, Any]:
    return {"TrainingJobStatus": status, "SecondaryStatus": secondary or status, **more}


RAN = {"TrainingStartTime": NOW, "TrainingEndTime": NOW + timedelta(seconds=90), "TrainingTimeInSeconds": 90}


@pytest.mark.parametrize(
    ("found", "state", "cause"),
    [
        (answer("InProgress", "Starting"), LaunchState.QUEUED, EndCause.UNKNOWN),
        (answer("InProgress", "Pending"), LaunchState.QUEUED, EndCause.UNKNOWN),
        (answer("InProgress", "Interrupted"), LaunchState.QUEUED, EndCause.UNKNOWN),
        (answer("InProgress", "Downloading"), LaunchState.RUNNING, EndCause.UNKNOWN),
        (answer("InProgress", "Training"), LaunchState.RUNNING, EndCause.UNKNOWN),
        (answer("InProgress", "Uploading"), LaunchState.RUNNING, EndCause.UNKNOWN),
        (answer("InProgress", "OfTheFuture"), LaunchState.RUNNING, EndCause.UNKNOWN),
        (answer("Stopping", TrainingStartTime=NOW), LaunchState.RUNNING, EndCause.UNKNOWN),
        (answer("Stopping"), LaunchState.QUEUED, EndCause.UNKNOWN),
        (answer("Completed"), LaunchState.COMPLETED, EndCause.UNKNOWN),
        (answer("Stopped", "Stopped"), LaunchState.CANCELLED, EndCause.UNKNOWN),
        (answer("Stopped", "MaxRuntimeExceeded", **RAN), LaunchState.FAILED, EndCause.OVER_TIME),
        (answer("Stopped", "MaxWaitTimeExceeded"), LaunchState.TIMED_OUT, EndCause.UNKNOWN),
        (answer("Stopped", "MaxWaitTimeExceeded", **RAN), LaunchState.FAILED, EndCause.LOST),
        (answer("Stopped", "MaxPendingTimeExceeded"), LaunchState.TIMED_OUT, EndCause.UNKNOWN),
        (answer("Deleting"), LaunchState.UNKNOWN, EndCause.UNKNOWN),
        (answer("OfTheFuture"), LaunchState.UNKNOWN, EndCause.UNKNOWN),
        ({}, LaunchState.UNKNOWN, EndCause.UNKNOWN),
        ({"TrainingJobStatus": 7}, LaunchState.UNKNOWN, EndCause.UNKNOWN),
    ],
)
def test_each_status_has_its_meaning(found: dict[str, Any], state: LaunchState, cause: EndCause) -> None:
    seen = read_observation(found)
    assert (seen.state, seen.cause) == (state, cause)


@pytest.mark.parametrize(
    ("reason", "ran", "state", "cause"),
    [
        ("CapacityError: Unable to provision capacity.", {}, LaunchState.TIMED_OUT, EndCause.UNKNOWN),
        ("CapacityError: Unable to provision …", RAN, LaunchState.FAILED, EndCause.LOST),
        ("InternalServerError: Please try again.", RAN, LaunchState.FAILED, EndCause.LOST),
        ("AlgorithmError: The dataset is empty., exit code: 1", RAN, LaunchState.FAILED, EndCause.RAISED),
        ("AlgorithmError: Exit Code: 1", RAN, LaunchState.FAILED, EndCause.RAISED),
        ("AlgorithmError: , exit code: 137", RAN, LaunchState.FAILED, EndCause.LOST),
        ("AlgorithmError: torch.OutOfMemoryError, exit code: 1", RAN, LaunchState.FAILED, EndCause.OUT_OF_MEMORY),
        ("AlgorithmError: ModuleNotFoundError: …, exit code: 1", RAN, LaunchState.FAILED, EndCause.IMPORT_FAILED),
        ("ClientError: Please use an instance type with more memory", RAN, LaunchState.FAILED, EndCause.OUT_OF_MEMORY),
        ("ClientError: Cannot pull the training image", {}, LaunchState.FAILED, EndCause.IMPORT_FAILED),
        ("ClientError: Artifact upload failed: Access denied", RAN, LaunchState.FAILED, EndCause.UNKNOWN),
        ("", {}, LaunchState.FAILED, EndCause.UNKNOWN),
    ],
)  # fmt: skip
def test_each_reason_has_its_cause(reason: str, ran: dict[str, Any], state: LaunchState, cause: EndCause) -> None:
    seen = read_observation(answer("Failed", FailureReason=reason, **ran))
    assert (seen.state, seen.cause) == (state, cause)


def test_spot_run_is_billed_as_aws_bills_it() -> None:
    seen = read_observation(answer("Completed", **RAN, BillableTimeInSeconds=27, CreationTime=NOW - timedelta(60)))
    assert (seen.execution_seconds, seen.billed_seconds) == (90, 27)
    assert Measured(launcher=90, heartbeats=85, wall=400, billed=27).seconds(10_000) == 27
    assert Measured(heartbeats=85, wall=20, billed=27).seconds() == 20, "never more than the time since the launch"
    assert read_observation(answer("InProgress", "Training", **RAN, BillableTimeInSeconds=1)).billed_seconds is None
    absurd = read_observation(answer("Completed", TrainingTimeInSeconds=-1, BillableTimeInSeconds=1e300))
    assert (absurd.execution_seconds, absurd.billed_seconds) == (0.0, None)


def test_region_is_without_instances_for_some_minutes_only() -> None:
    live = [answer("InProgress", "Pending"), answer("InProgress", "Training"), {"SecondaryStatus": None}]
    failed = Job(TrainingJobStatus="Failed", FailureReason="CapacityError: none", CreationTime=NOW)
    health = read_health(live, failed, NOW + timedelta(minutes=10))
    assert (health.jobs_queued, health.jobs_running) == (1, 2)
    assert health.problem is not None
    assert read_health(live, failed, NOW + timedelta(minutes=20)).problem is None
    raised = Job(TrainingJobStatus="Failed", FailureReason="AlgorithmError: x", CreationTime=NOW)
    assert read_health(live, raised, NOW).problem is None


# Errors


def refusal(code: str, text: str = "", status: int = 400) -> ClientError:
    told = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(told, "CreateTrainingJob")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (refusal("ThrottlingException"), ServiceUnavailableError, "takes no more calls"),
        (refusal("Anything", status=429), ServiceUnavailableError, "takes no more calls"),
        (
            refusal(
                "ResourceLimitExceeded",
                "The account-level service limit 'Longest run time for a training job' is 432000 Seconds, with current "
                "utilization of 0 Seconds and a request delta of 604800 Seconds.",
            ),
            ServiceRefusedError, "lower LORA_WORKER_MAX_RUN_SECONDS",
        ),
        (refusal("ServiceUnavailable", status=503), LaunchInDoubtError, "AWS failed"),
        (refusal("ExpiredTokenException"), ServiceRefusedError, "refuses the worker's credentials"),
        (refusal("AccessDeniedException", "not authorized to perform: iam:PassRole on"), ServiceRefusedError, "Pass"),
        (refusal("ValidationException", "Could not assume role"), ServiceRefusedError, "Could not assume role"),
        (refusal("", "", status=0), ServiceRefusedError, "refuses the call"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_sentence(error: ClientError, kind: type[Exception], said: str) -> None:
    found = explain_refusal(error, creates=True)
    assert type(found) is kind
    assert said in str(found)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (faults.EndpointConnectionError(endpoint_url="x"), ServiceUnavailableError),
        (faults.ConnectTimeoutError(endpoint_url="x"), ServiceUnavailableError),
        (faults.ReadTimeoutError(endpoint_url="x"), LaunchInDoubtError),
        (faults.ConnectionClosedError(endpoint_url="x"), LaunchInDoubtError),
        (faults.NoCredentialsError(), ServiceRefusedError),
        (faults.ProfileNotFound(profile="secret-profile"), ServiceRefusedError),
        (faults.CredentialRetrievalError(provider="p", error_msg="secret-token"), ServiceUnavailableError),
        (faults.ParamValidationError(report="secret-request"), ServiceRefusedError),
        (ValueError("secret-answer"), LaunchInDoubtError),
    ],
)
def test_each_failure_has_its_sentence_without_values(error: Exception, kind: type[Exception]) -> None:
    found = explain_failure(error, creates=True)
    assert type(found) is kind
    assert "secret" not in str(found)
    assert ("AWS_PROFILE names a profile" in str(found)) is isinstance(error, faults.ProfileNotFound)
    assert not isinstance(explain_failure(error, creates=False), LaunchInDoubtError)


def test_refusal_that_repeats_the_request_hides_it() -> None:
    environment = request_of(payload(channel={"token": "run-token"}))["Environment"]
    text = f"1 validation error detected: Value '{environment}' at 'environment' failed to satisfy constraint"
    said = str(explain_refusal(refusal("ValidationException", text), creates=True))
    assert environment["LORA_TRAINER_REQUEST_0"][:48] not in said
    assert len(said) < 500


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b'{"TrainingJobArn": "', b"", b"[]", b'"text"', b"null"])
async def test_answer_that_boto3_reads_as_empty_is_no_acceptance_and_no_list(body: bytes) -> None:
    def answered(request: Any, **_: Any) -> AWSResponse:
        raw = SimpleNamespace(stream=lambda: iter([body]))
        return AWSResponse(request.url, 200, {"content-type": "application/x-amz-json-1.1"}, raw)

    def make(service: str, **how: Any) -> Any:
        client = boto3.session.Session("key", "secret").client(service, **how)
        client.meta.events.register("before-send", answered)
        return client

    launcher = SageMakerLauncher(Address("eu-west-1", ACCOUNT), AwsApi(make=make), SHAPE)
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch(payload(), POLICY)
    name = job_name(str(uuid4()), SHAPE.mark)
    assert (await launcher.observe(LaunchRef(launcher.endpoint, name))).state is LaunchState.UNKNOWN
    assert not (await launcher.health()).reachable
    with pytest.raises(ServiceUnavailableError):
        await launcher.owned()


# Threads


async def test_call_that_hangs_holds_up_nobody_who_is_stopped() -> None:
    begun, go_on = threading.Event(), threading.Event()
    slots = asyncio.Semaphore(1)

    def hang() -> bool:
        begun.set()
        return go_on.wait(60)

    task = asyncio.create_task(in_thread(hang, slots))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "cloud call")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slots.locked(), "what still runs keeps its slot"
    go_on.set()
    assert await in_thread(lambda: "next", slots) == "next"
    with pytest.raises(KeyError):
        await in_thread(lambda: {}["nothing"], slots)


@pytest.mark.parametrize(("creates", "error"), [(True, LaunchInDoubtError), (False, ServiceUnavailableError)])
async def test_call_whose_credentials_never_come_has_an_end(
    monkeypatch: pytest.MonkeyPatch, creates: bool, error: type[Exception]
) -> None:
    monkeypatch.setattr(sagemaker_api, "_CREDENTIALS_SECONDS", -59.95)  # less than the two tries that are added
    go_on = threading.Event()

    def make(*_: Any, **__: Any) -> Any:
        go_on.wait(60)

    try:
        with pytest.raises(error, match="did not answer"):
            await AwsApi(make=make).call("eu-west-1", "sagemaker", "create_training_job", {}, creates=creates)
    finally:
        go_on.set()


# moto: a job is Completed at once there, whatever the request; the stand-in of the conformance suite is strict


async def test_moto_takes_and_finds_the_job() -> None:
    with mock_aws():

        def make(service: str, **how: Any) -> Any:
            return boto3.session.Session("key", "secret").client(service, **how)

        launcher = SageMakerLauncher(Address("eu-west-1", ACCOUNT), AwsApi(make=make), SHAPE)
        name = await launcher.launch(payload(), POLICY)
        seen = await launcher.observe(LaunchRef(launcher.endpoint, name))
        assert (seen.state, seen.execution_seconds) == (LaunchState.COMPLETED, 0.0)
        missing = LaunchRef(launcher.endpoint, job_name(str(uuid4()), SHAPE.mark))
        # moto's text is none of AWS's, and what is not understood ends no run.
        assert (await launcher.observe(missing)).state is LaunchState.UNKNOWN
        assert (await launcher.health()).reachable
        assert await launcher.owned() == []
        sagemaker = make("sagemaker", region_name="eu-west-1")
        arn = sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobArn"]
        assert {tag["Key"] for tag in sagemaker.list_tags(ResourceArn=arn)["Tags"]} == {"lora-project", "lora-run"}
