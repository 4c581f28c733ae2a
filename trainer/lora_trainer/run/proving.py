"""Has the published files of a finished training tried in a process of its own, before they are uploaded.

A proof that was made is kept beside the training's outcome. So an execution that finds a finished adapter, because only
its upload was missing, tries it again only where its files are others than those that were tried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_contract.child_processes import ending_of
from lora_contract.crash_points import crash_point
from lora_contract.error_codes import ErrorCode
from lora_contract.protocol import Request, TrainerError
from lora_trainer.errors import ProofMissingError, ReportedError, SupersededError
from lora_trainer.run.child import ChildProcess
from lora_trainer.run.proof_task import PROOF_NAME, Proof, ProofTask, kept_proof
from lora_trainer.run.task import Outcome
from lora_trainer.settings import Settings

if TYPE_CHECKING:
    from lora_trainer.run.volume import JobFolder

log = logging.getLogger(__name__)

_KEPT = "It is kept on the volume; the next attempt only tries and publishes it, without training again."
_FINDINGS = frozenset({ErrorCode.NOT_APPLIED, ErrorCode.NOTHING_LEARNED, ErrorCode.DISK_FULL})
"""What the process says of the adapter or the volume. Any other error is of its own try, and another may go well."""


class Prover:
    """Tries the files of finished trainings. When `prove` is cancelled, it ends the process before it returns."""

    def __init__(self, settings: Settings, *, on_line: Callable[[str], None], secrets: tuple[str, ...] = ()) -> None:
        self._child = ChildProcess(
            settings.proof,
            grace_seconds=0,
            on_message=lambda _: None,
            on_line=on_line,
            secrets=secrets,
        )
        self._child.save_on_stop = False  # it has nothing to save

    async def prove(self, task: ProofTask, outcome: Outcome) -> None:
        """Put the proof's figures and notes into `outcome`.

        A try that found out nothing, because memory ran out, it crashed or the base could not be loaded, is repeated
        once with the base in 4 bits.

        Raises:
            ProofMissingError: both tries found out nothing; the next attempt begins with a third.
            ReportedError: the files are not to be published, or the volume is full.
            SupersededError: another execution has taken the job's folder.
        """
        proof = await asyncio.to_thread(kept_proof, task.folder)
        if proof is None:
            proof = await self._try(task)
            crash_point("trainer.proof.after")
        outcome.application = proof.application
        outcome.summary.notes = list(dict.fromkeys([*outcome.summary.notes, *proof.notes]))

    async def _try(self, task: ProofTask) -> Proof:
        reason = ""
        for precision in (None, "nf4"):
            (task.folder / PROOF_NAME).unlink(missing_ok=True)
            status = await self._child.run(task.model_copy(update={"precision": precision}).model_dump_json())
            proof = await asyncio.to_thread(Proof.read, task.folder)
            if proof is not None and proof.application is not None:
                return proof
            if proof is not None and proof.error is not None:
                _raise_finding(proof.error)
            reason = proof.error.message if proof and proof.error else f"Its process ended with {ending_of(status)}."
            log.warning("the published adapter could not be tried: %s", reason)
        raise ProofMissingError(f"The adapter is trained, but could not be tried on its base. {reason}", _KEPT)


def _raise_finding(error: TrainerError) -> None:
    if error.code is ErrorCode.SUPERSEDED:
        raise SupersededError(error.message, error.hint)
    if error.code in _FINDINGS:
        raise ReportedError(error)


def proof_task(request: Request, folder: JobFolder, artifact: Path, outcome: Outcome, settings: Settings) -> ProofTask:
    """The task of trying the files in `artifact`, with which a training has ended as `outcome` says."""
    return ProofTask(
        execution_id=folder.execution_id,
        job_folder=folder.path,
        folder=artifact.parent,
        volume=folder.path.parent.parent,
        base_revision=outcome.summary.base_revision or request.hyperparameters.base_revision,
        hyperparameters=request.hyperparameters,
        archive_name=request.output.archive_name,
        trust_remote_code=settings.trust_remote_code,
        quantised_cache_gb=settings.quantised_cache_gb,
        trained_in_4_bits=outcome.summary.quantization == "nf4",
        gpus=outcome.summary.gpus_used or 1,
        train_seconds=outcome.summary.train_seconds or 0,
    )
