"""Checks the endpoint that answers with finished adapters, where the settings name one.

What is wrong here fails in silence otherwise: an adapter that vLLM does not find, or finds with another base's name, is
a request that is answered with 404.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lora_contract.words import counted
from lora_worker.deployment.account import open_api
from lora_worker.deployment.answering import why_none
from lora_worker.deployment.fleet import FinishedAdapters
from lora_worker.deployment.inference import OFFLINE_VARIABLES
from lora_worker.deployment.resources import Endpoint
from lora_worker.deployment.serving_plan import PLUGINS, RESOLVER_VARIABLES
from lora_worker.doctor.account import container_faults
from lora_worker.doctor.check import Check
from lora_worker.errors import ServiceError, ServiceRefusedError
from lora_worker.launchers.addresses import endpoint_id_of
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.services import Services

_SUBJECT = "inference"
_APPLY = "run `lora-worker deploy inference apply`"
_SETTING = "LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID"
_TRUE = frozenset({"true", "1", "yes", "on"})


@dataclass(frozen=True, slots=True)
class Answering:
    """The endpoint that answers, and what it has to fit. `trainer` is None where it can't be read."""

    endpoint: Endpoint
    trainer: Endpoint | None
    default_base_model: str
    fleet: Sequence[FinishedAdapters] = ()


async def check_inference(services: Services) -> list[Check]:
    """Read the endpoint that answers through RunPod's REST API, and check it against the trainer's and the settings.

    Raises:
        ServiceError: RunPod does not answer.
    """
    settings = services.settings
    if not isinstance(settings, RunPodSettings) or not settings.runpod_inference_endpoint_id:
        return []  # None is wanted.
    api = open_api(settings, services.http)
    if api is None:
        finding, _, remedy = why_none(settings).partition(": ")
        return [Check(_SUBJECT, None, finding, remedy)]
    try:
        endpoint = await api.read_endpoint(settings.runpod_inference_endpoint_id)
        trainer_id = endpoint_id_of(settings.gpu_cluster_api_url)
        trainer = await api.read_endpoint(trainer_id) if trainer_id else None
    except ServiceRefusedError as error:
        if error.status not in {401, 403}:
            raise
        return []  # The check of the account says what the key lacks.
    if endpoint is None:
        text = f"the account of the RunPod key has no endpoint {settings.runpod_inference_endpoint_id}"
        return [Check(_SUBJECT, False, text, f"correct {_SETTING}, or take it out")]
    found = Answering(endpoint, trainer, settings.default_base_model, await _finished_adapters(services))
    return examine_answering(found)


async def _finished_adapters(services: Services) -> Sequence[FinishedAdapters]:
    try:
        return await services.queue.finished_adapters()
    except ServiceError:
        return ()  # The database's checks say why.


def examine_answering(found: Answering) -> list[Check]:
    """Check the endpoint that answers: whether it starts, sees the adapters, and takes them."""
    checks = [Check(_SUBJECT, False, text, remedy) for text, remedy in container_faults(found.endpoint, _APPLY)]
    workers = found.endpoint.workers
    if workers and workers.max == 0:
        checks.append(_fault("it may have no worker (max 0): every request waits"))
    variables = found.endpoint.env or {}
    model = variables.get("MODEL_NAME", "")
    if not model:
        return [*checks, _fault("its variable MODEL_NAME names no base model, so vLLM does not start")]
    if variables.get("ENABLE_LORA", "").lower() not in _TRUE:
        # A merged export is served under the path of a folder or another name than the base's.
        if model == found.default_base_model:
            checks.append(_fault("its variable ENABLE_LORA is not true: no adapter can be called"))
        return checks or [Check(_SUBJECT, True, f"answers with {model}, without adapters")]
    checks += _examine_base(model, found)
    checks += _examine_finding(found)
    checks += _examine_ranks(model, variables.get("MAX_LORA_RANK", ""), found.fleet)
    return checks or [Check(_SUBJECT, True, f"answers with {model} and its finished adapters")]


def _fault(finding: str, remedy: str = _APPLY) -> Check:
    return Check(_SUBJECT, False, finding, remedy)


def _examine_base(model: str, found: Answering) -> Iterator[Check]:
    if model != found.default_base_model:
        yield _fault(
            f"it answers with {model}, and jobs that name no base model are trained on {found.default_base_model}: "
            "their adapters can't be called there",
            f"set inference.base_model, and {_APPLY}",
        )
    for name in OFFLINE_VARIABLES:
        if (found.endpoint.env or {}).get(name, "").lower() in _TRUE:
            yield _fault(f"its variable {name} makes vLLM serve the base under its path: no adapter is found")


def _examine_finding(found: Answering) -> Iterator[Check]:
    """Whether finished adapters are found: on the trainer's volume, by the resolver."""
    own, variables = set(found.endpoint.network_volumes or ()), found.endpoint.env or {}
    if not own:
        text = "it has no network volume: only adapters of `lora-worker deploy inference modules` can be called"
        yield Check(_SUBJECT, None, text)
        return
    if found.trainer is not None and not own & set(found.trainer.network_volumes or ()):
        yield _fault(
            "its network volume is none of the trainer's endpoint: finished adapters are not there",
            f"name the volume of both in deploy.toml, and {_APPLY}",
        )
    # Without a list of plugins vLLM loads all of them.
    listed = {PLUGINS: RESOLVER_VARIABLES[PLUGINS], **variables}
    wrong = sorted(name for name, value in RESOLVER_VARIABLES.items() if not _means(listed.get(name), value))
    if wrong:
        yield _fault(f"vLLM finds no adapter by its name: {', '.join(wrong)} are not as they have to be")


def _means(found: str | None, wanted: str) -> bool:
    """Whether a variable says what it has to: an address with a slash, or one of several plugins, does so, too."""
    if found is None:
        return False
    if wanted == "true":
        return found.strip().lower() in {"true", "1"}
    return wanted in {part.strip().rstrip("/") for part in found.split(",")}


def _examine_ranks(model: str, highest: str, fleet: Iterable[FinishedAdapters]) -> Iterator[Check]:
    # vLLM's own default.
    limit = int(highest) if highest.isdecimal() and len(highest) < 6 else 16
    above = [some for some in fleet if some.base_model == model and not some.use_dora and some.rank > limit]
    if above:
        ranks = max(some.rank for some in above)
        yield _fault(
            f"{counted(sum(some.adapters for some in above), 'finished adapter')} can't be called: vLLM takes ranks up "
            f"to {limit} (MAX_LORA_RANK), and theirs are up to {ranks}"
        )
