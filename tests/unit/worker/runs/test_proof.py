"""A trainer that proves nothing is stopped at its first word, and what it leaves is not settled."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from lora_contract.error_codes import Fault
from lora_contract.protocol import Manifest, Progress, Stage
from lora_worker.errors import ArtifactError, ProofMissingError, ProofRefusedError
from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.runs.outcomes.failures import NOT_PROVEN, TRAINER_OUTDATED
from lora_worker.runs.outcomes.results import parse_progress
from lora_worker.runs.state.events import Ending
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps.limits import exceeded_limit
from lora_worker.runs.steps.settling import _judge
from lora_worker.services import Services
from tests.scripted import assignment

RATE = {"gpu_type": "H100", "gpu_count": 1, "price_per_hour": 2.0, "max_cost": 50}
RUNNING = Observation(LaunchState.RUNNING)
NEW, OLD = {"needs_proof": True}, dict[str, Any]()


def held(services: Services, launched: dict[str, Any], **progress: Any) -> HeldRun:
    holding = HeldRun.take(services, assignment(launched_with={**RATE, **launched}), asked_at=services.clock())
    if progress:
        told = {"run_id": holding.run_id, "stage": Stage.SETUP, "progress": 1, **progress}
        holding.progress = Progress.model_validate(told)
    return holding


@pytest.mark.parametrize(
    ("launched", "progress", "stopped"),
    [
        (NEW, {"proves": False}, True),
        (NEW, {"stage": "training"}, True),
        (NEW, {"proves": True}, False),
        (NEW, {}, False),
        (OLD, {"proves": False}, False),
    ],
)
def test_outdated_trainer_is_stopped_at_its_first_word(
    services: Services, launched: dict[str, Any], progress: dict[str, Any], stopped: bool
) -> None:
    assert exceeded_limit(held(services, launched, **progress), RUNNING) == (TRAINER_OUTDATED if stopped else None)


def test_earlier_trainer_without_check_in_is_not_asked_for_proof() -> None:
    progress = parse_progress({"progress": 10, "stage": "training"}, run_id="run")
    assert progress is not None
    assert progress.proves


@pytest.mark.parametrize(
    ("error", "code", "fault"),
    [
        (ProofMissingError("It says nothing."), NOT_PROVEN.code, Fault.PERMANENT),
        (ProofRefusedError("It is of another."), "proof_refused", Fault.TRANSIENT),
        (ArtifactError("It is damaged."), "artifact_missing", Fault.TRANSIENT),
    ],
)
async def test_refused_proof_ends_the_run_under_its_own_code(error: ArtifactError, code: str, fault: Fault) -> None:
    async def refuse() -> Manifest | None:
        raise error

    found = await _judge(Ending(None, look=True), refuse())
    assert found.manifest is None
    assert found.ending.failure is not None
    assert (found.ending.failure.code, found.ending.failure.fault) == (code, fault)


async def test_adapter_of_an_earlier_trainer_is_settled_with_a_note() -> None:
    file = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}
    manifest = Manifest.model_validate({"job_id": "j", "run_id": str(UUID(int=1)), "files": [file]})

    async def bring() -> Manifest | None:
        return manifest

    found = await _judge(Ending(None, look=True), bring())
    assert found.manifest is not None
    assert [note for note in found.manifest.summary.notes if "does not try it on its base" in note]
    assert manifest.summary.notes == [], "the kept manifest says what its trainer said"
