"""A tiny job through the whole chain, and the removal of everything that it left in database and storage."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

from lora_worker.database.submission_rows import TRIAL_NAME
from lora_worker.errors import ArgumentError, ServiceError
from lora_worker.money.guide import needed_memory_gb
from lora_worker.services import Services
from lora_worker.submission.orders import Order

_FILES_AT_ONCE = 100

_PAIRS = (
    ("What is a lighthouse for?", "It shows ships at night where the coast is, and where they must not go."),
    ("Why do leaves turn red?", "They stop making green, and the red that remains can be seen."),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes, then into cold water."),
    ("What is a leap year?", "A year of 366 days, so that the calendar keeps up with the sun."),
    ("Who needs a compass?", "Whoever walks where no path and no sun shows the direction."),
    ("Why does bread rise?", "Yeast eats sugar and breathes out a gas, which stays in the dough."),
    ("What is a tide?", "The sea rises and falls twice a day, since the moon pulls at it."),
    ("How do bees find home?", "They remember the way by the sun and by what they passed."),
    ("What does a mason do?", "A mason builds walls of stones or bricks, and joins them with mortar."),
    ("Why is snow white?", "Its many small crystals send back light of every colour."),
    ("What is an echo?", "A sound that comes back from a wall or a mountain."),
    ("How is glass made?", "Sand is heated with soda and lime until it melts, and then formed."),
)


def write_trial_dataset(folder: Path) -> Path:
    """Write the trial's dataset into a folder: twelve questions with their answers. No two trials share a dataset.

    Raises:
        ArgumentError: the folder can't be written to.
    """
    path = folder / "lora-worker-smoke.jsonl"
    trial = uuid4().hex[:12]
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"{question} (trial {trial})"},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
        for question, answer in _PAIRS
    ]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"{path} can't be written ({error.strerror or type(error).__name__})") from None
    return path


def trial_order(file: Path, base_model: str, gpu: str | None) -> Order:
    """Return the order of a trial: a few steps with a small adapter, for the operator's own user."""
    # At a rate that no real job has: the proof asks for an answer that differs, and these are six steps.
    chosen = {"base_model": base_model, "epochs": 2, "rank": 8, "batch_size": 4, "learning_rate": 5e-3}
    return Order(file=file, hyperparameters=chosen, gpu=gpu, name=TRIAL_NAME)


def smallest_base(base_models: Sequence[str]) -> str:
    """Return the base model whose training takes the least memory, as far as that is known; the first of equals."""
    return min(base_models, key=lambda model: needed_memory_gb(model) or math.inf)


async def remove_trial(services: Services, job_id: UUID) -> str | None:
    """Remove all files and rows of a trial that has ended. Return why something is left, as a clause; None: nothing is.

    Raises:
        ServiceError: database or storage did not answer. The next trial removes what is left.
    """
    buckets: defaultdict[str, list[str]] = defaultdict(list)
    for file in await services.queue.training_trial_files(job_id):
        buckets[file["bucket"]].append(file["name"])
    for bucket, names in buckets.items():
        for start in range(0, len(names), _FILES_AT_ONCE):
            await services.storage.remove(bucket, names[start : start + _FILES_AT_ONCE])
    answer = await services.queue.remove_training_trial(job_id)
    return None if answer["removed"] else answer["reason"] or "the database does not say why"


async def remove_former_trials(services: Services) -> int:
    """Remove what former trials left that were killed before they could, and return how many were removed."""
    removed = 0
    for job_id in await services.queue.training_ended_trials():
        try:
            removed += await remove_trial(services, job_id) is None
        except ServiceError:
            # It stays for the next trial; this one does not depend on it.
            continue
    return removed
