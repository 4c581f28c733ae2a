"""Misspelt keys of a job are refused, unknown ones are noted, and the application's own are accepted."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_worker.database.job_keys import misspelt_key, unread_keys
from lora_worker.database.rows import Job, parse_gpu_config, parse_hyperparameters
from lora_worker.errors import PreflightError


def job(hyperparameters: Any = None, gpu_config: Any = None) -> Job:
    return Job(id=uuid4(), user_id=uuid4(), hyperparameters=hyperparameters or {}, gpu_config=gpu_config or {})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *[("lr", "learning_rate"), ("epoch", "epochs"), ("Epochs", "epochs"), ("num_train_epochs", "epochs")],
        *[("learningRate", "learning_rate"), ("learning-rate", "learning_rate"), ("leraning_rate", "learning_rate")],
        *[("r", "rank"), ("lora_r", "rank"), ("ranks", "rank"), ("batchsize", "batch_size"), ("alhpa", "alpha")],
        *[("max_seq_length", "max_length"), ("weight_decy", "weight_decay"), ("seeds", "seed")],
        *[("early_stoping_patience", "early_stopping_patience"), ("drop_out", "dropout"), ("max_step", "max_steps")],
    ],
)
def test_misspelt_hyperparameter_is_refused_with_the_right_key(key: str, meant: str) -> None:
    with pytest.raises(PreflightError) as caught:
        parse_hyperparameters(job({"learning_rate": 1e-4, key: 3}), default_base_model="m")
    assert str(caught.value).startswith(f"hyperparameters: {key!r} is no key that is read, and {meant!r} may be meant.")


@pytest.mark.parametrize(
    ("key", "meant"), [("gpus", "count"), ("gpu", "type"), ("gpu_typ", "gpu_type"), ("cuont", "count")]
)
def test_misspelt_gpu_key_is_refused(key: str, meant: str) -> None:
    with pytest.raises(PreflightError, match=f"gpu_config: {key!r} is no key that is read, and {meant!r} may be"):
        parse_gpu_config(job(gpu_config={key: 1}))


_PAGE = {
    "short": {"learning_rate": 1e-4, "batch_size": 4, "epochs": 3, "rank": 16, "alpha": 32, "dropout": 0.1},
    "long": {
        "base_model": "m", "learning_rate": 1e-4, "batch_size": 4, "num_epochs": 3, "lora_rank": 16, "lora_alpha": 32,
        "lora_dropout": 0.1, "warmup_steps": 10, "weight_decay": 0.01,
    },
    "with what the page shows": {
        "name": "Balanced", "icon": "scale", "description": "d", "details": {"a": 1}, "preset_id": "balanced",
        "epochs": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", _PAGE)
def test_applications_own_keys_are_accepted_in_both_shapes(shape: str) -> None:
    row = _PAGE[shape]
    parsed = parse_hyperparameters(job(row), default_base_model="m")
    # And as the row stands after the database has added the other shape.
    whole = job({**_PAGE["long"], **_PAGE["short"], **row})
    assert parse_hyperparameters(whole, default_base_model="m").epochs == parsed.epochs
    assert unread_keys(whole.hyperparameters, whole.gpu_config) == []


@pytest.mark.parametrize("row", [{"type": "H100", "count": 1}, {"gpu_type": "H100", "num_gpus": 1}])
def test_applications_own_gpu_keys_are_accepted_without_a_note(row: dict[str, Any]) -> None:
    parsed = parse_gpu_config(job(gpu_config=row))
    whole = {"type": "H100", "count": 1, "gpu_memory_gb": 80, "cost_per_gpu_hour": 4.0, **row}
    assert parse_gpu_config(job(gpu_config=whole)) == parsed
    assert unread_keys({}, whole) == []


def test_every_key_of_the_worker_is_accepted() -> None:
    assert misspelt_key("hyperparameters", dict.fromkeys(Hyperparameters.model_fields, 1)) is None
    assert misspelt_key("gpu_config", dict.fromkeys(GpuConfig.model_fields, 1)) is None


def test_unknown_keys_are_noted_with_bounded_length() -> None:
    assert unread_keys({"optimizer": "lion", "lr": None, "epochs": 1}, {"region": "eu"}) == [
        "hyperparameters: 'optimizer' changed nothing; this service knows no such key.",
        "gpu_config: 'region' changed nothing; this service knows no such key.",
    ]
    many = {f"{n:03}" + "x\n" * 500: n for n in range(300)}
    (note,) = unread_keys(many, "no object")
    assert "and 295 more" in note
    assert len(note) < 500
    assert "\n" not in note
