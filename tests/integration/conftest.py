"""Warm GPU workers for the whole session, and a stage for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lora_worker.database.migrations import migrate
from sandbox.runpod import LocalRunPod
from sandbox.standin import standin_env
from sandbox.supabase.project import Project
from tests.application.pipeline import Pipeline
from tests.database.rows import Database
from tests.processes.stage import Stage
from tests.processes.warm import await_idle

_GPUS = 2


@pytest.fixture
def db(database: str) -> Iterator[Database]:
    """A fresh, migrated database, as the worker's functions are called in it."""
    connected = Database(database)
    yield connected
    connected.close()


@pytest.fixture
def pipeline(db: Database, database: str) -> Pipeline:
    """The application's newer queue in that database."""
    made = Pipeline(db)
    made.create()
    migrate(database)
    return made


@pytest.fixture(scope="session")
def gpu_volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network volume of `gpus`."""
    return tmp_path_factory.mktemp("volume")


@pytest.fixture(scope="session")
def gpus(gpu_volume: Path) -> Iterator[LocalRunPod]:
    """An endpoint with the trainer's real handler and a stand-in for the training."""
    with LocalRunPod.start(
        workers_max=_GPUS,
        env=standin_env(gpu_volume, step_seconds=0.02),
        idle_timeout_seconds=3600,
        rate_limits={},
    ) as runpod:
        await_idle(runpod, _GPUS)
        yield runpod


LEAKED_TOKEN = "planted-token-of-the-hub"


@pytest.fixture(scope="session")
def leaky_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalRunPod, Path]]:
    """An endpoint whose trainings print rows and keys, and its volume."""
    volume = tmp_path_factory.mktemp("leaky")
    child = {"LORA_TRAINER_CHILD": "tests.handlers.leaky_training", "LEAKED_TOKEN": LEAKED_TOKEN}
    with LocalRunPod.start(
        workers_max=1, env={**standin_env(volume), **child}, idle_timeout_seconds=3600, rate_limits={}
    ) as runpod:
        yield runpod, volume


@pytest.fixture
def stage_with(empty_supabase: Project, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Makes a stage with any endpoint: `stage_with(runpod, volume)`."""
    with ExitStack() as stack:

        def make(runpod: LocalRunPod, volume: Path | None = None) -> Stage:
            stage = Stage(empty_supabase, runpod, tmp_path, volume)
            stack.callback(stage.close)
            return stage

        yield make


@pytest.fixture
def stage(stage_with: Callable[..., Stage], gpus: LocalRunPod, gpu_volume: Path) -> Stage:
    """A stage with the session's warm GPU workers."""
    return stage_with(gpus, gpu_volume)
