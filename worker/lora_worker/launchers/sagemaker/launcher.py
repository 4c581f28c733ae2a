"""Training jobs of AWS SageMaker, through boto3 (docs/sagemaker.md).

    CreateTrainingJob     the request in the container's environment; the name is ours, and is the launch's id
    DescribeTrainingJob   status, reason of a failure, billed seconds
    StopTrainingJob       SIGTERM, and two minutes later SIGKILL
    ListTrainingJobs      by the project's mark, which each name holds

A spot instance that is taken away is replaced by SageMaker, which starts the container again under the same name: to
the database that is a new execution of the same launch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx

from lora_worker.configuration.extras import require_extra
from lora_worker.errors import (
    LaunchInDoubtError,
    LaunchRefusedError,
    ServiceError,
    ServiceUnavailableError,
    SettingsError,
)
from lora_worker.launchers.addresses import split_endpoint
from lora_worker.launchers.base import (
    ContainerLine,
    EndpointHealth,
    Guide,
    LaunchRef,
    LaunchState,
    Observation,
    OwnedLaunch,
    Policy,
)
from lora_worker.launchers.machine_types import asked_gpu
from lora_worker.launchers.marks import project_mark, run_of_name
from lora_worker.launchers.sagemaker.addresses import Address, read_endpoint
from lora_worker.launchers.sagemaker.answers import Job, read_health, read_observation, read_time
from lora_worker.launchers.sagemaker.api import SERVICE, AwsApi
from lora_worker.launchers.sagemaker.instances import INSTANCES, Instance
from lora_worker.launchers.sagemaker.jobs import JobShape, job_name, mark_of, training_job
from lora_worker.launchers.sagemaker.logs import follow_log, read_log
from lora_worker.launchers.sagemaker.settings import SageMakerSettings

_GUIDE = Guide(
    title=SERVICE,
    console="the console of AWS (SageMaker, Training jobs)",
    check="check LORA_WORKER_SAGEMAKER_REGION, LORA_WORKER_SAGEMAKER_ROLE and the worker's credentials of AWS",
    former_endpoint="start a worker with LORA_WORKER_SAGEMAKER_ROLE of that account and credentials for it; its runs "
    "are neither ended nor billed before",
    volume="It is below checkpoints/ in LORA_WORKER_SAGEMAKER_S3_PATH, one folder a job.",
)
_ELSEWHERE = "it is of another account than LORA_WORKER_SAGEMAKER_ROLE, whose jobs these credentials don't see"
_MOST_DAYS = 30
"""No job lives longer (SageMaker's API reference, StoppingCondition)."""
_PAGE = 100
_MOST_OWNED = 1000
_MOST_FAILED = 10
_MOST_KNOWN = 2000


def most_connections(_settings: SageMakerSettings) -> int:
    """How many of the worker's HTTP connections it may use: none, since boto3 has its own."""
    return 0


class SageMakerLauncher:
    """A region of an account."""

    name = "sagemaker"
    guide = _GUIDE
    longest_launch_seconds = (_MOST_DAYS + 1) * 86_400.0
    takes_errands = False

    def __init__(
        self,
        address: Address,
        api: AwsApi,
        shape: JobShape,
        *,
        instance: Instance | None = None,
        gpu_count: int = 1,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`instance` is what every job gets; None: the GPU that it asks for, `gpu_count` of them."""
        self.endpoint = str(address)
        self._address, self._api, self._shape, self._now = address, api, shape, now
        self._instance, self._gpu_count = instance, gpu_count
        self._types: OrderedDict[tuple[str, str], str] = OrderedDict()
        """The instance types of jobs, by region and name."""

    @classmethod
    def open(
        cls, settings: SageMakerSettings, _http: httpx.AsyncClient, endpoint: str | None = None
    ) -> SageMakerLauncher:
        """The launcher of these settings, or of another endpoint with them: `sagemaker:<region>#<instance type>`.

        Raises:
            SettingsError: boto3 is not installed, or the endpoint is none of the settings' account.
            MachineUnknownError: there is no instance with its GPUs.
        """
        require_extra(SERVICE, "boto3", "boto3", "sagemaker")
        own = settings.sagemaker_address
        address = own if endpoint is None else read_endpoint(endpoint, own.account)
        if address is None or address.account != own.account:
            raise SettingsError(
                f"the endpoint {endpoint!s:.100} is none of account {own.account} at {SERVICE}: "
                "write sagemaker:REGION or sagemaker:REGION#INSTANCE-TYPE."
            )
        gpu_count = settings.endpoint_gpu_count
        instance = INSTANCES.of_endpoint(address.instance_type, settings.endpoint_gpu_type, gpu_count)
        api = AwsApi(concurrency=settings.launcher_concurrency, timeout_seconds=settings.request_timeout_seconds)
        shape = JobShape.of(settings, project_mark(settings.supabase_url))
        return cls(address, api, shape, instance=instance, gpu_count=gpu_count)

    def reaches(self, endpoint: str) -> bool:
        """Whether these credentials see the jobs of an endpoint. See `Launcher.reaches`."""
        return self._address_of(endpoint) is not None

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """Start a run as a training job. See `Launcher.launch`. For a run that has one, that one is taken."""
        try:
            name = job_name(str(payload.get("run_id", "")), self._shape.mark)
            request = training_job(self._shape, self._instance_for(payload).name, name, payload, policy)
        except ValueError as error:
            raise LaunchRefusedError(SERVICE, str(error), status=400) from None
        region = self._address.region
        try:
            answer = await self._api.call(
                region, "sagemaker", "create_training_job", request, creates=True, expected=_says_that_it_exists
            )
            doubt = LaunchInDoubtError(SERVICE, "a job of this run exists, and can't be looked at")
            if answer is not None and not _is_job(answer.get("TrainingJobArn"), name):
                # boto3 makes an empty answer of a page, or of half of one.
                answer, doubt = None, LaunchInDoubtError(SERVICE, "AWS's answer names no job")
        except LaunchInDoubtError as error:
            answer, doubt = None, error
        if answer is None:
            await self._require(region, name, request["ResourceConfig"]["InstanceType"], doubt)
        return name

    async def observe(self, launch: LaunchRef) -> Observation:
        """Look at a launch. See `Launcher.observe`."""
        address, name = self._address_of(launch.endpoint), launch.external_job_id
        if address is None:
            return Observation(LaunchState.UNKNOWN, reason=_ELSEWHERE)
        if (mark := mark_of(name)) is None:
            return Observation(LaunchState.MISSING, reason="no launch has such an id")
        if mark != self._shape.mark:
            return Observation(LaunchState.UNKNOWN, reason="its name bears the mark of another project's address")
        try:
            answer = await self._describe(address.region, name)
            if answer is not None:
                return read_observation(answer)
            account = await self._account(address.region)
        except ServiceError as error:
            return Observation(LaunchState.UNKNOWN, reason=str(error))
        if account != address.account:
            return Observation(LaunchState.UNKNOWN, reason=f"the credentials are of account {account:.20}")
        return Observation(LaunchState.MISSING, reason=f"{SERVICE} has no job of this name")

    async def cancel(self, launch: LaunchRef) -> bool:
        """Ask for the end of a launch. See `Launcher.cancel`."""
        address, name = self._address_of(launch.endpoint), launch.external_job_id
        if address is None:
            return False
        if (mark := mark_of(name)) != self._shape.mark:
            return mark is None
        request = {"TrainingJobName": name}
        try:
            await self._api.call(address.region, "sagemaker", "stop_training_job", request, expected=_is_over)
        except ServiceError:
            return False
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        """Look at what the project's jobs on the endpoint's instances say of it. See `Launcher.health`."""
        address = self._address_of(endpoint)
        if address is None:
            return EndpointHealth(False, 0, 0, _ELSEWHERE)
        region, instance_type = address.region, self._instance_type_at(address)
        try:
            live = [
                job
                for job in await self._list(region, "InProgress", most=_PAGE)
                if await self._is_on(instance_type, region, job)
            ]
            last = await self._last_failed(region, instance_type)
            return read_health(live, Job.model_validate(last) if last else None, self._now())
        except ServiceError as error:
            return EndpointHealth(False, 0, 0, str(error))
        except ValueError:
            return EndpointHealth(False, 0, 0, f"{SERVICE}'s answer can't be read")

    @property
    def account(self) -> str:
        """The account's region, whatever instances its jobs have. See `OwnerOfLaunches.account`."""
        return split_endpoint(self.endpoint)[0]

    async def owned(self) -> list[OwnedLaunch]:
        """The project's jobs that wait or work. See `OwnerOfLaunches.owned`."""
        found = await self._list(self._address.region, "InProgress", most=_MOST_OWNED)
        return [owned for job in reversed(found) if (owned := self._owned_by(job)) is not None]

    async def read(
        self,
        launch: LaunchRef,
        container: str | None,  # noqa: ARG002 - a job's containers are found by its name
        *,
        most_lines: int,
    ) -> list[ContainerLine]:
        """The last lines of a launch's last container, from CloudWatch Logs. See `ContainerLogs.read`."""
        region = self._region_of_log(launch)
        if region is None:
            return []
        return await read_log(self._api, region, launch.external_job_id, most_lines=most_lines)

    async def follow(
        self,
        launch: LaunchRef,
        container: str,  # noqa: ARG002
        *,
        since: datetime | None,
    ) -> AsyncIterator[ContainerLine]:
        """The lines of a launch's container as they come. See `ContainerLogs.follow`."""
        region = self._region_of_log(launch)
        if region is None:
            return
        async for line in follow_log(self._api, region, launch.external_job_id, since=since):
            yield line

    def _region_of_log(self, launch: LaunchRef) -> str | None:
        address = self._address_of(launch.endpoint)
        is_ours = address is not None and mark_of(launch.external_job_id) == self._shape.mark
        return address.region if address is not None and is_ours else None

    def _address_of(self, endpoint: str | None) -> Address | None:
        if endpoint is None:
            return self._address
        address = read_endpoint(endpoint, self._address.account)
        return address if address is not None and address.account == self._address.account else None

    def _instance_type_at(self, address: Address) -> str:
        """The type of an endpoint's instances; "" where it may have several. Other endpoints share the region."""
        if address.instance_type or address != self._address or self._instance is None:
            return address.instance_type
        return self._instance.name

    async def _is_on(self, instance_type: str, region: str, job: dict[str, Any]) -> bool:
        """Whether a job's instance is of this type; "" is any. Raises: ServiceError: that can't be known now."""
        name = str(job.get("TrainingJobName"))
        if instance_type and (region, name) not in self._types:
            await self._describe(region, name)
        return not instance_type or self._types.get((region, name)) == instance_type

    async def _last_failed(self, region: str, instance_type: str) -> dict[str, Any] | None:
        """What is said of the job that failed last on this type of instance; None where none of the latest has.

        Raises:
            ServiceError: that can't be known now.
        """
        for job in (await self._list(region, "Failed", most=_PAGE))[:_MOST_FAILED]:
            if await self._is_on(instance_type, region, job):
                return await self._describe(region, str(job.get("TrainingJobName")))
        return None

    def _instance_for(self, payload: dict[str, Any]) -> Instance:
        """The instance of a request's job. Raises: MachineUnknownError: there is none for it."""
        if self._instance is not None:
            return self._instance
        return INSTANCES.with_gpus(str(asked_gpu(payload)), self._gpu_count)

    def _owned_by(self, job: dict[str, Any]) -> OwnedLaunch | None:
        name = str(job.get("TrainingJobName"))
        run_id = run_of_name(name) if mark_of(name) == self._shape.mark else None
        if run_id is None:
            return None
        created = read_time(job.get("CreationTime"))
        age = max((self._now() - created).total_seconds(), 0.0) if created else None
        return OwnedLaunch(name, run_id, age)

    async def _require(self, region: str, name: str, instance_type: str, doubt: LaunchInDoubtError) -> None:
        """Look whether a run's job is there whose creation was not confirmed.

        Raises:
            LaunchInDoubtError: it is not seen; or it is one of another endpoint, whose instance is not billed here.
        """
        try:
            found = await self._describe(region, name)
        except ServiceError:
            raise doubt from None
        if found is None:
            raise doubt
        if not await self._is_on(instance_type, region, found):
            raise LaunchInDoubtError(SERVICE, "the run has a job there on another type of instance")

    async def _describe(self, region: str, name: str) -> dict[str, Any] | None:
        request = {"TrainingJobName": name}
        answer = await self._api.call(
            region, "sagemaker", "describe_training_job", request, expected=_says_that_it_is_missing
        )
        if answer is not None:
            # A list does not tell it, and it never changes.
            self._types[region, name] = str((answer.get("ResourceConfig") or {}).get("InstanceType"))[:100]
            if len(self._types) > _MOST_KNOWN:
                self._types.popitem(last=False)
        return answer

    async def _account(self, region: str) -> str:
        """The account of the worker's credentials."""
        # Asked each time: somebody may have given the worker other credentials.
        answer = await self._api.call(region, "sts", "get_caller_identity", {})
        return str((answer or {}).get("Account"))

    async def _list(self, region: str, status: str, *, most: int) -> list[dict[str, Any]]:
        """Summaries of those of the project's `most` latest jobs that have this status, the latest first.

        Raises:
            ServiceError: they can't be read now.
        """
        # AWS takes a page of all jobs and then leaves out those of another status; jobs are never deleted there. So
        # the pages must begin with the latest.
        request: dict[str, Any] = {
            "NameContains": self._shape.mark,
            "MaxResults": min(most, _PAGE),
            "StatusEquals": status,
            "SortBy": "CreationTime",
            "SortOrder": "Descending",
        }
        found: list[dict[str, Any]] = []
        # A token that comes again and again must not keep this here for ever.
        for _ in range(-(-most // _PAGE)):
            answer = await self._api.call(region, "sagemaker", "list_training_jobs", request) or {}
            page = answer.get("TrainingJobSummaries")
            if page is None:
                # It is there even if it is empty; boto3 makes an answer without it of a page, or of half of one.
                raise ServiceUnavailableError(SERVICE, "AWS's list of jobs can't be read")
            found += page
            if not (token := answer.get("NextToken")) or len(found) >= most:
                break
            request["NextToken"] = token
        return found[:most]


def _is_job(arn: Any, name: str) -> bool:
    return str(arn).endswith(f":training-job/{name}")


def _says_that_it_exists(code: str, text: str) -> bool:
    return code == "ResourceInUse" or (code == "ValidationException" and "already exists" in text)


def _says_that_it_is_missing(code: str, text: str) -> bool:
    # The documented code is the first, and what AWS answers the second (aws/aws-sdk issue 165).
    return code == "ResourceNotFound" or (code == "ValidationException" and "resource not found" in text)


def _is_over(code: str, text: str) -> bool:
    return _says_that_it_is_missing(code, text) or (code == "ValidationException" and "is in status" in text)
