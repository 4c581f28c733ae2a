"""The process that tries the published files: `python -m lora_trainer.proof.process <pipe>`.

Its task is a line on standard input.

It is a process of its own, so that nothing of the training is left in it: no fused layer, no adapter in memory, and the
whole GPU free. It completes the artifact's evaluation and model card, writes the archive, and last of all the proof
into the folder of the execution that trained. Where that file is missing, the process crashed.
"""

from __future__ import annotations

import logging
import os
import sys

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import transformers

from lora_trainer.artifact.archive import write_archive
from lora_trainer.artifact.evaluation import complete_evaluation
from lora_trainer.errors import DiskFullError, OutOfMemoryError, SupersededError, TrainingError
from lora_trainer.models.attention import switch_off_cudnn
from lora_trainer.models.cuda_faults import is_out_of_memory
from lora_trainer.models.hardware import detect_hardware
from lora_trainer.models.quantised_cache import QuantisedCache
from lora_trainer.proof.trial import Tried, try_files
from lora_trainer.run.logs import configure_logging, describe
from lora_trainer.run.orphans import end_with_the_handler
from lora_trainer.run.proof_task import Proof, ProofTask
from lora_trainer.run.volume import FULL_DISK_HINT, JobFolder, is_full_disk, naming_full_disks

log = logging.getLogger("lora_trainer.proof.process")


def prove(task: ProofTask) -> Proof:
    """Try the published files, and complete the artifact with what was found.

    Raises:
        TrainingError: with the reason, in the user's words.
    """
    switch_off_cudnn()
    with QuantisedCache(task.volume, int(task.quantised_cache_gb * 1e9)) as cache:
        tried = try_files(task, detect_hardware(), cache)
    complete_artifact(task, tried)
    return Proof(application=tried.application, notes=tried.notes)


def complete_artifact(task: ProofTask, tried: Tried) -> None:
    """Write the answers side by side into the artifact, and the archive, which has them, too.

    Raises:
        DiskFullError: there is no room.
        SupersededError: another execution has taken the job's folder, and may be uploading these files.
    """
    _check_owner(task)
    with naming_full_disks(task.artifact):
        complete_evaluation(task.artifact, samples=tried.samples, application=tried.application)
        if task.archive_name is None:
            return
        archive = task.artifact / task.archive_name
        archive.unlink(missing_ok=True)
        unfinished = task.folder / "archive.part"
        write_archive(task.artifact, unfinished)
        _check_owner(task)
        archive.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(archive)


def _check_owner(task: ProofTask) -> None:
    if not JobFolder(task.job_folder, task.execution_id).is_owned():
        raise SupersededError("Another execution of this job is at work now.")


def attempt(task: ProofTask) -> Proof:
    """Call `prove`, and turn each exception into a proof that says why there is none."""
    try:
        return prove(task)
    except TrainingError as error:
        return Proof(error=error.as_protocol())
    except Exception as error:
        # The exception's text may contain text of the dataset.
        log.error("%s", describe(error))
        return Proof(error=explain(error).as_protocol())


def explain(error: Exception) -> TrainingError:
    """The error that tells the user what a library's exception means."""
    if is_out_of_memory(error):
        return OutOfMemoryError("Memory ran out while the published adapter was tried on the base.")
    if is_full_disk(error):
        return DiskFullError("The disk or the network volume is full.", FULL_DISK_HINT)
    return TrainingError(
        f"The published adapter could not be tried on the base ({type(error).__name__}).",
        "The adapter is kept on the volume; if it happens again, please report it to support.",
    )


def main(arguments: list[str]) -> int:  # noqa: ARG001 it has no progress to write to the pipe that the argument names
    """Read the task from standard input, try the files, and write the proof. Returns 0 where there is one."""
    configure_logging()
    # It has a handler of its own otherwise, which prints whole messages.
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.disable_progress_bar()
    task = ProofTask.model_validate_json(sys.stdin.readline())
    end_with_the_handler()
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    proof = attempt(task)
    proof.write(task.folder)
    return 0 if proof.application is not None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
