"""The command `lora-worker estimate`: what a training takes and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

from lora_worker.configuration.settings import Settings
from lora_worker.errors import ArgumentError
from lora_worker.money.estimate import Work, estimate
from lora_worker.money.guide import check_card, check_model
from lora_worker.money.pricing import load_prices
from lora_worker.money.terms import make_terms
from lora_worker.services import Services

Found = Mapping[str, Any]
"""An estimate as the SQL function returns it, which has the keys of `money.estimate.Estimate`."""


async def estimate_job(services: Services, job: str) -> Found | None:
    """Estimate a job of the database by its id; None if the database knows too little about it.

    Raises:
        ArgumentError: the text is no id.
        ServiceError: the database did not answer.
    """
    try:
        job_id = UUID(job)
    except ValueError:
        raise ArgumentError(f"--job: {job!r} is not the id of a job") from None
    return await services.queue.estimate_job(job_id)


def estimate_work(settings: Settings, work: Work, *, gpu_count: int) -> Found:
    """Estimate a training that is described on the command line, on `gpu_count` GPUs; 0: as many as the endpoint has.

    A GPU that is named comes before the endpoint's, so that cards can be compared.

    Raises:
        ArgumentError: the size of the dataset is missing, or model or GPU are unknown or don't fit each other.
        SettingsError: the price table can't be read.
    """
    if not work.tokens and not work.pairs:
        raise ArgumentError("how large is the dataset? Give --dataset-tokens, --pairs or --job")
    prices = load_prices(settings.price_table)
    terms = make_terms(settings, prices, gpu_count=gpu_count or None)
    if work.gpu_type:
        terms = terms.of_any_gpu()
    work = replace(work, gpu_type=work.gpu_type or terms.default_gpu_type, gpus=terms.endpoint_gpu_count)
    base_model = work.base_model or terms.default_base_model
    check_model(base_model, terms, settings.base_models)
    check_card(terms.endpoint_gpu_type or work.gpu_type or terms.default_gpu_type, base_model, terms, prices)
    found = estimate(work, terms)
    assert found is not None
    return asdict(found)


def format_estimate(found: Found) -> str:
    """Write an estimate for a terminal: time and cost, then a line for each assumption."""
    seconds, cost = found["seconds"], found["cost"]
    gpus = f"{found['gpu_count']:.0f} × {found['gpu_type']} (${found['price_per_hour']:.2f} an hour each)"
    return "\n".join(
        [
            f"{format_duration(seconds['low'])} to {format_duration(seconds['high'])},"
            f" ${cost['low']:.2f} to ${cost['high']:.2f}, on {gpus}: {found['tokens']:,.0f} tokens an epoch.",
            _speed(found),
            *found["assumptions"],
        ]
    )


def _speed(found: Found) -> str:
    """The sentence on how fast the training is expected to be, and whence that is known."""
    speed, gpu = found["tokens_per_second"], found["gpu_type"]
    sources = {
        "runs": f"by the median of {found['speed_runs']} finished runs of this base on {gpu} here",
        "benchmark": f"as measured with this base on {gpu}",
        "derived": f"derived from measurements of other bases or GPUs: {gpu} with this base has not been measured",
    }
    return f"{speed['low']:,.0f} to {speed['high']:,.0f} tokens a second, {sources[found['speed_source']]}."


def format_duration(seconds: float) -> str:
    """Write a time in whole minutes, or in hours and minutes."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
