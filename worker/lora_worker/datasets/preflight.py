"""The preflight: checks of a job, its dataset and its budget before a GPU is paid for.

Each problem is reported as a sentence for the user.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from uuid import UUID

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.renderings import REFUSALS, RENDERINGS
from lora_contract.words import counted
from lora_conversations.errors import DatasetUnusableError
from lora_conversations.limits import refusal_of
from lora_conversations.survey import Survey, Surveyor
from lora_worker.configuration.contradictions import LEAST_USEFUL_SECONDS, PUBLISHING_SECONDS
from lora_worker.database.rows import Assignment, Dataset, Job, parse_gpu_config, parse_hyperparameters
from lora_worker.datasets.init_adapters import InitAdapter, find_init_adapter
from lora_worker.errors import DatasetPendingError, ObjectMissingError, PreflightError
from lora_worker.launchers.base import Policy
from lora_worker.launchers.places import Place, is_newer_than_image
from lora_worker.money.billing import Rate
from lora_worker.money.estimate import Work, estimate
from lora_worker.money.guide import shards_of, why_not_bf16
from lora_worker.money.places import price_at, terms_at
from lora_worker.money.pricing import GpuPrice, affordable_seconds, find_gpu
from lora_worker.money.terms import Terms
from lora_worker.services import Services
from lora_worker.storage.objects import Storage

_MAX_REASON_CHARACTERS = 300

WAITING_FOR_DATASET = "waiting_for_dataset"
"""Error code and stage of a run that was put back because its dataset is not validated yet. It counts as no failure."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A job that passed the preflight and may be launched, with the content of its dataset as counted just now."""

    hyperparameters: Hyperparameters
    gpu_config: GpuConfig
    price: GpuPrice
    rate: Rate
    policy: Policy
    survey: Survey
    place: Place
    """Where it is launched."""
    init_adapter: InitAdapter | None = None
    """The adapter with which the training begins; None: with a new one."""


async def check(assignment: Assignment, services: Services, place: Place) -> Plan:
    """Check the job, its dataset and its budget, for a launch at this place.

    Raises:
        PreflightError: the job can't be trained as it is.
        ServiceError: the storage did not answer; a retry may succeed.
    """
    settings = services.settings
    job = assignment.job
    if job is None:
        raise PreflightError("job_missing", "The job was deleted.")
    hyperparameters = parse_hyperparameters(job, default_base_model=settings.default_base_model)
    asked = parse_gpu_config(job)
    gpu_config = give_gpus(asked, place.gpu_count, may_be_fewer=settings.allow_fewer_gpus)
    check_base_model(hyperparameters, settings.base_models)
    price = check_gpu(gpu_config, services.prices, place)
    check_quantization(hyperparameters, price, gpu_config)
    rate = Rate.at(price, gpu_count=place.gpu_count, max_cost=settings.max_cost_per_job)
    policy = make_policy(
        rate,
        spent_cost=assignment.run.spent_cost,
        spent_seconds=assignment.run.spent_seconds,
        max_run_seconds=settings.max_run_seconds,
        queue_allowance_seconds=settings.queue_allowance_seconds,
        awaits_upload=assignment.run.awaits_upload,
    )
    dataset = check_dataset_row(job, assignment.dataset, patience_seconds=assignment.run.dataset_patience_seconds)
    adapter = await _init_adapter(hyperparameters, assignment.run.user_id, services)
    survey = await survey_dataset(
        dataset,
        services.storage,
        hyperparameters,
    )
    terms = await current_terms(services, hyperparameters.base_model, price, place)
    check_estimate(hyperparameters, survey, gpu_config.type, terms, gpus=gpu_config.count)
    return Plan(hyperparameters, gpu_config, price, rate, policy, survey, place, adapter)


async def _init_adapter(chosen: Hyperparameters, user_id: UUID, services: Services) -> InitAdapter | None:
    if chosen.init_adapter is None:
        return None
    return await find_init_adapter(chosen.init_adapter, user_id, chosen.base_model, services)


def check_gpu(gpu_config: GpuConfig, prices: tuple[GpuPrice, ...], place: Place | None = None) -> GpuPrice:
    """Return the price of the GPU that a job gets: the place's if it has one, else the one that it asks for.

    Raises:
        PreflightError: the GPU is not in the price table, or newer than the place's image; the text names the others.
    """
    price = price_at(place, prices, gpu_config.type) if place else find_gpu(prices, gpu_config.type)
    refuses_newer = place is not None and not place.takes_newer_gpus
    if price is None or (refuses_newer and is_newer_than_image(price.type)):
        known = ", ".join(each.type for each in prices if not (refuses_newer and is_newer_than_image(each.type)))
        raise PreflightError(
            "gpu_config_invalid",
            f"gpu_config: {gpu_config.type!r} is not a GPU that is offered; choose one of {known}.",
        )
    return price


def give_gpus(gpu_config: GpuConfig, there: int, *, may_be_fewer: bool) -> GpuConfig:
    """What a job gets of the GPUs that a launch has: as many as it asks for, or fewer where that is allowed.

    Raises:
        PreflightError: it asks for more than there are; the text says how many there are.
    """
    if gpu_config.count > there and may_be_fewer:
        return gpu_config.model_copy(update={"count": there})
    if gpu_config.count > there:
        raise PreflightError(
            "gpu_config_invalid",
            f"gpu_config: count is {gpu_config.count}, and the endpoint has {counted(there, 'GPU')} for a job; set it "
            f"to {there}{' or fewer' if there > 1 else ''}.",
        )
    return gpu_config


def check_quantization(hyperparameters: Hyperparameters, price: GpuPrice, gpu_config: GpuConfig) -> None:
    """Refuse a base model that shall not be quantised, but can't fit the job's GPUs so.

    Raises:
        PreflightError: the text says why, and what to choose instead.
    """
    if hyperparameters.quantization != "bf16":
        return
    reason = why_not_bf16(hyperparameters.base_model, price, gpus=shards_of(hyperparameters, gpu_config))
    if reason is not None:
        raise PreflightError(
            "hyperparameters_invalid",
            f"hyperparameters: quantization is bf16, but {reason}; set it to auto or nf4, or choose a larger GPU.",
        )


def check_base_model(hyperparameters: Hyperparameters, allowed: tuple[str, ...]) -> None:
    """Refuse a base model that is not on the list, or whose answers can't be rendered for training.

    Raises:
        PreflightError: the text names the base model and those that may be chosen.
    """
    if hyperparameters.base_model not in allowed:
        raise PreflightError(
            "base_model_unknown",
            f"hyperparameters: base_model {hyperparameters.base_model!r} is not offered; choose one of "
            f"{', '.join(allowed)}.",
        )
    if reason := REFUSALS.get(hyperparameters.base_model or ""):
        raise PreflightError(
            "base_model_unknown",
            f"hyperparameters: base_model {hyperparameters.base_model!r} can't be trained: {reason}. Choose one of "
            f"{', '.join(base for base in allowed if base not in REFUSALS)}.",
        )


def check_dataset_row(job: Job, dataset: Dataset | None, *, patience_seconds: float | None = None) -> Dataset:
    """Return the job's dataset if it may be used for training.

    Raises:
        DatasetPendingError: it is still being uploaded or validated, and the job may wait `patience_seconds` longer.
        PreflightError: it is missing or deleted, belongs to somebody else, failed its validation, or is not ready.
    """
    if dataset is None:
        named = (
            f"The dataset {job.dataset_id} does not exist any more" if job.dataset_id else "The job names no dataset"
        )
        raise PreflightError("dataset_missing", f"{named}; choose another.")
    if dataset.deleted_at is not None:
        raise PreflightError("dataset_deleted", f"The dataset “{dataset.name}” was deleted; choose another.")
    if not dataset.is_readable_by(job.user_id):
        raise PreflightError(
            "dataset_foreign",
            f"The dataset “{dataset.name}” or its file belongs to somebody else; choose one of yours.",
        )
    if "?" in dataset.storage_path:
        raise PreflightError(
            "dataset_unreachable",
            f"The file of the dataset “{dataset.name}” has a ? in its name, for which the storage signs no URL that "
            "works; rename the file and upload it again.",
        )
    if dataset.status in {"uploading", "validating"} and patience_seconds:
        raise DatasetPendingError(WAITING_FOR_DATASET, f"The dataset “{dataset.name}” is not validated yet.")
    if dataset.status != "ready" or not dataset.training_ready:
        raise PreflightError("dataset_not_ready", _not_ready(dataset))
    return dataset


def _not_ready(dataset: Dataset) -> str:
    if dataset.status == "error":
        # The validator wrote this text, but the dataset's owner may have replaced it by anything.
        why = " ".join((dataset.error_message or "").split())[:_MAX_REASON_CHARACTERS].rstrip(". ")
        reason = f": {why}" if why else ""
        return f"The validation of the dataset “{dataset.name}” failed{reason}. Mend the file and upload it again."
    if dataset.status == "uploading":
        return f"The dataset “{dataset.name}” was not uploaded to its end within a day; upload it again."
    if dataset.status == "validating":
        return f"The dataset “{dataset.name}” was not validated within a day; upload it again, or ask support."
    return f"The dataset “{dataset.name}” is not ready (its status is {dataset.status!r}); choose another."


async def current_terms(services: Services, base_model: str | None, price: GpuPrice, place: Place) -> Terms:
    """Return the terms of a place with this GPU, with the speed of finished runs of this base on it.

    Raises:
        ServiceError: the database did not answer.
    """
    base_model = base_model or services.terms.default_base_model
    speed = await services.queue.training_run_speed(base_model, price.type)
    return terms_at(services.terms, price, place.gpu_count).with_measured(base_model, price.type, speed)


def expect_work(chosen: Hyperparameters, survey: Survey, gpu_type: str, *, lowest: bool = False) -> Work:
    """Return what a training of a dataset does, for an estimate; `lowest`: if it ends as early as it may."""
    longest = survey.examples * chosen.max_length * (2 if chosen.method == "dpo" else 1)
    rendering = RENDERINGS.get(chosen.base_model or "")
    apart = rendering is not None and rendering.row == "answer"
    merges = chosen.merge_conversations and chosen.method == "sft" and not apart
    # Answers of one example may still share a row in a chain of calls, so the lowest estimate counts its history once.
    rows = survey.answers / max(survey.examples, 1) if apart and chosen.method == "sft" and not lowest else 1.0
    return Work(
        tokens=round(min(survey.tokens * (rows + 1) / 2, longest * rows) * (1 - chosen.validation_share)),
        pairs=max(round(survey.examples * rows * (1 - chosen.validation_share)), 1),
        pairs_per_conversation=survey.examples / max(survey.conversations, 1) if merges else 1.0,
        # Early stopping may end the training after the first epoch.
        epochs=1 if lowest and chosen.early_stopping_patience else chosen.epochs,
        batch_size=chosen.batch_size,
        max_steps=chosen.max_steps,
        base_model=chosen.base_model,
        gpu_type=gpu_type,
        method=chosen.method,
    )


def check_estimate(chosen: Hyperparameters, survey: Survey, gpu_type: str, terms: Terms, *, gpus: int = 1) -> None:
    """Refuse a job that would exceed its limit of cost or time even by the lowest estimate, on so many GPUs.

    Raises:
        PreflightError: the text gives the lowest estimate and the limit.
    """
    expected = estimate(replace(expect_work(chosen, survey, gpu_type, lowest=True), gpus=gpus), terms)
    if expected is None:
        return
    remedy = "choose fewer epochs or a smaller dataset, or ask for a higher limit."
    if expected.cost.low > terms.max_cost_per_job:
        raise PreflightError(
            "budget_exhausted",
            f"The training would cost at least ${expected.cost.low:.2f} on {expected.gpu_count} × {expected.gpu_type}, "
            f"and a job may cost ${terms.max_cost_per_job:.2f}; {remedy}",
        )
    if expected.seconds.low > terms.max_run_seconds:
        raise PreflightError(
            "time_limit",
            f"The training would take at least {expected.seconds.low / 3600:.1f} hours on "
            f"{expected.gpu_count} × {expected.gpu_type}, and may take {terms.max_run_seconds / 3600:.1f}; {remedy}",
        )


def make_policy(
    rate: Rate,
    *,
    spent_cost: float,
    spent_seconds: float,
    max_run_seconds: float,
    queue_allowance_seconds: float,
    awaits_upload: bool = False,
) -> Policy:
    """Compute how long a launch may execute and exist, from the money and time that the job's earlier runs left.

    A launcher deletes a launch when its ttl is over, even while it is running, and counts the ttl from the submission.
    So the ttl must cover the longest wait in the queue plus the longest execution. The launcher's settings keep this
    sum within what it allows.

    `awaits_upload`: an earlier run has trained the adapter. Then it gets `PUBLISHING_SECONDS` beyond the limits:
    a training that ended just before them would be lost otherwise.

    Raises:
        PreflightError: the remaining money or time is too little for a useful run.
    """
    budget = rate.max_cost - spent_cost
    affordable = affordable_seconds(budget, price_per_hour=rate.price_per_hour, gpu_count=rate.gpu_count)
    time_left = max_run_seconds - spent_seconds
    execution = min(affordable, time_left)
    if awaits_upload:
        # Counted in seconds: bills end at the job's cap, so they don't tell how far earlier runs went beyond it.
        paid = affordable_seconds(rate.max_cost, price_per_hour=rate.price_per_hour, gpu_count=rate.gpu_count)
        overdrawn = max(spent_seconds - min(max_run_seconds, paid), 0)
        execution = max(execution, PUBLISHING_SECONDS - overdrawn)
    if execution >= LEAST_USEFUL_SECONDS:
        return Policy(execution, execution + queue_allowance_seconds)
    if affordable < LEAST_USEFUL_SECONDS:
        raise PreflightError(
            "budget_exhausted",
            f"The job's budget has ${max(budget, 0):.2f} left, less than five minutes of a {rate.gpu_type} "
            f"(${rate.price_per_hour:.2f} an hour); choose a cheaper GPU or ask for a higher limit.",
        )
    raise PreflightError(
        "time_limit",
        f"The job's attempts have used {spent_seconds / 3600:.1f} of the {max_run_seconds / 3600:.1f} GPU hours "
        "that it may take; choose fewer epochs or a smaller dataset, or ask for a higher limit.",
    )


def surveyor_for(chosen: Hyperparameters) -> Surveyor:
    """Return the surveyor that counts what the job's method and base model can learn from."""
    return Surveyor(refusal_of(RENDERINGS.get(chosen.base_model or "")), chosen.method)


async def survey_dataset(dataset: Dataset, storage: Storage, chosen: Hyperparameters) -> Survey:
    """Read the dataset once, with constant memory, and count what the job's method and base model can learn from.

    Raises:
        PreflightError: the file is missing, can't be read, or has too few usable examples.
        ServiceError: the storage did not answer.
    """
    surveyor = surveyor_for(chosen)
    try:
        async with storage.stream(dataset.bucket, dataset.storage_path) as chunks:
            async for chunk in chunks:
                # Parsing a megabyte of JSON on the event loop would delay the lease renewals of other runs.
                await asyncio.to_thread(surveyor.feed, chunk)
        await asyncio.to_thread(surveyor.close)
        survey = surveyor.result()
        survey.check(chosen.max_bad_line_share)
    except ObjectMissingError:
        raise PreflightError(
            "dataset_missing",
            f"The file of the dataset “{dataset.name}” is not in the storage; upload it again.",
        ) from None
    except DatasetUnusableError as error:
        raise PreflightError("dataset_invalid", error.sentence()) from None
    return survey
