"""The training process: `python -m lora_trainer.recipe.train <pipe>`, with its task on standard input.

`train` is the recipe; read it from top to bottom. The process writes its outcome into the execution's folder before
it ends, whether it succeeded or failed. Where the file is missing, the process crashed, and the handler reports how.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The hub is not told about a user's training.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# A process trains on one GPU. If it saw more, transformers would wrap the model in DataParallel, which TRL refuses.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

import datasets
import torch
import transformers

from lora_contract.child_processes import ending_of
from lora_contract.protocol import Stage
from lora_trainer.artifact.folder import describe_artifact, round_adapter, save_artifact
from lora_trainer.artifact.model_card import ArtifactFacts
from lora_trainer.errors import ChildCrashedError, DiskFullError, OutOfMemoryError, StoppedError, TrainingError
from lora_trainer.models.adapters import load_earlier_adapter
from lora_trainer.models.attention import switch_off_cudnn
from lora_trainer.models.bases import BaseModels
from lora_trainer.models.compiling import compile_layers
from lora_trainer.models.cuda_faults import context_is_broken, is_out_of_memory
from lora_trainer.models.fused import fuse
from lora_trainer.models.hardware import detect_hardware, gpu_identity
from lora_trainer.models.loading import Lora, attach_lora, load_model
from lora_trainer.models.optimizer import choose_optimizer
from lora_trainer.models.quantised_cache import QuantisedCache
from lora_trainer.models.quantization import NF4
from lora_trainer.recipe.callbacks import RunCallback, load_trainable_weights
from lora_trainer.recipe.checkpoints import Checkpoint, newest_checkpoint
from lora_trainer.recipe.evaluation import Evaluator, measured_sentence
from lora_trainer.recipe.facts import collect_facts, summarise
from lora_trainer.recipe.next_try import (
    Ending,
    failed_outcome,
    failure_of,
    failure_of_helper,
    out_of_memory,
    quantised_try,
)
from lora_trainer.recipe.ranks import ALONE, Ranks
from lora_trainer.recipe.setup import TrainingSetup, prepare
from lora_trainer.recipe.steps import (
    StepTrainer,
    TrainingBatches,
    build_trainer,
    loraplus_optimizer,
    save_last_step,
    training_arguments,
)
from lora_trainer.recipe.stopping import StepInterruptedError, StopSwitch
from lora_trainer.run.gpu import GpuMonitor
from lora_trainer.run.helpers import HELPER, HelperEnding, Helpers
from lora_trainer.run.logs import configure_logging, describe
from lora_trainer.run.orphans import end_with_the_handler
from lora_trainer.run.progress_pipe import ProgressWriter
from lora_trainer.run.task import Outcome, Retry, Task
from lora_trainer.run.volume import FULL_DISK_HINT, is_full_disk

log = logging.getLogger("lora_trainer.recipe.train")


def train(
    task: Task,
    progress: ProgressWriter,
    stop: StopSwitch,
    gpu: GpuMonitor,
    cache: QuantisedCache,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Carry out one task, from the dataset's file to the artifact's folder.

    Of several processes that train together each calls it; the leader alone writes files and has an outcome to tell.

    Raises:
        TrainingError: with the reason, in the user's words.
    """
    transformers.set_seed(task.hyperparameters.seed)

    progress.begin_stage(Stage.PREPARING)
    models = BaseModels(task.volume, trusted=task.trust_remote_code)
    switch_off_cudnn()
    setup = prepare(task, models, detect_hardware(), gpu, ranks)

    progress.begin_stage(Stage.LOADING_MODEL)
    with ranks.leader_first():
        setup.base = models.complete(setup.base)
    try:
        model = load_model(
            setup.base,
            setup.config,
            setup.hardware,
            attention=setup.attention,
            quantize=setup.quantization == NF4,
            cache=cache,
            sharded=setup.sharded,
        )
    except Exception as error:
        if not is_out_of_memory(error) or (retry := quantised_try(task, setup)) is None:
            raise
        return out_of_memory(task, setup, retry)

    progress.begin_stage(Stage.CONFIGURING)
    lora = attach_lora(model, task.hyperparameters)
    if task.init_adapter is not None:
        load_earlier_adapter(
            task.init_adapter_folder, lora.model, base_name=setup.base.name, base_revision=setup.base.revision
        )
    trainer = configure_trainer(task, setup, lora, ranks)
    callback = RunCallback(
        task,
        progress,
        stop,
        gpu,
        validates=bool(setup.data.validation),
        quantization=setup.quantization,
        writes=ranks.leads,
    )
    callback.follow(trainer)
    resumed = take_up(task, setup, callback, ranks)

    progress.begin_stage(Stage.TRAINING, lora.sentence())
    evaluator = Evaluator(task, setup, trainer)
    ending = run_training(trainer, callback, evaluator, stop, resumed.folder if resumed else None)
    if ending is not Ending.DONE:
        return failed_outcome(ending, task, setup)
    if callback.stopped:
        raise StoppedError(
            f"The training was stopped after step {trainer.state.global_step} of {trainer.state.max_steps}.",
            "The next attempt goes on from there.",
        )

    progress.begin_stage(Stage.SAVING, measured_sentence(evaluator))
    if callback.best.step is not None:
        load_trainable_weights(trainer.model, callback.best.weights)
    if not ranks.leads:
        round_adapter(trainer.model)  # the leader does it where it saves
        evaluator.measure_tuned()
        return Outcome(status="trained", fingerprint=task.fingerprint)
    facts = save_and_measure(task, setup, lora, callback, evaluator, gpu)
    evaluator.hand_on(task.folder)
    return Outcome(
        status="trained",
        fingerprint=task.fingerprint,
        metrics=facts.metrics,
        evaluation=evaluator.evaluation,
        points=callback.points,
        summary=summarise(
            facts,
            skipped_lines=setup.data.skipped_lines,
            epochs_completed=trainer.state.epoch or 0,
            train_seconds=callback.train_seconds,
            gpu_count=gpu.count,
            resumed_from_step=resumed.state.step if resumed else None,
            # Other methods compute more for each token, so their pace tells nothing about the usual one; nor does that
            # of several GPUs about the one that estimates are made for.
            pace=callback.pace if task.hyperparameters.method == "sft" and ranks.count == 1 else None,
        ),
    )


def save_and_measure(
    task: Task, setup: TrainingSetup, lora: Lora, callback: RunCallback, evaluator: Evaluator, gpu: GpuMonitor
) -> ArtifactFacts:
    """Write the artifact, then measure its adapter and add the figures. Returns what the artifact's texts say.

    In this order, because a fault of the GPU while it measures may leave memory that can't be read any more: the next
    process would resume at the last step, measure again, and meet the same fault.
    """
    facts = collect_facts(task, setup, lora, callback, evaluator, gpu)
    save_artifact(task.artifact, lora.model, setup.tokenizer, facts, points=callback.points)
    evaluator.measure_tuned()
    facts = collect_facts(task, setup, lora, callback, evaluator, gpu)
    describe_artifact(task.artifact, facts)
    return facts


def take_up(task: Task, setup: TrainingSetup, callback: RunCallback, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint from which this training resumes, which the callback has taken over; None: it begins anew."""
    resumed = ranks.of_leader(newest_checkpoint(task.job_folder, task.fingerprint, setup.quantization))
    if resumed is not None:
        callback.restore(resumed)
    elif ranks.leads:
        # What an earlier process of this execution left with the base in another quantisation. transformers keeps the
        # checkpoints with the highest steps, and would remove this training's first ones.
        shutil.rmtree(task.checkpoints, ignore_errors=True)
    return resumed


def configure_trainer(task: Task, setup: TrainingSetup, lora: Lora, ranks: Ranks = ALONE) -> StepTrainer:
    """The trainer, ready for its first step but for the callback, with layers fused or compiled as the setup says."""
    parameters, hardware = task.hyperparameters, setup.hardware
    if hardware.is_gpu and not setup.sharded:
        fuse(lora.model, lean=setup.lean)
    if setup.compiles:
        compile_layers(lora.model)
    arguments = training_arguments(
        parameters,
        setup.shape,
        hardware,
        task.checkpoints,
        trackers=setup.trackers,
        optimizer=choose_optimizer(lora.trainable, is_gpu=hardware.is_gpu),
        recompute=setup.recompute,
    )
    batches = TrainingBatches(setup.data.train, setup.data.validation, setup.shape, setup.micro_batch)
    trainer = build_trainer(setup.method.trainer, lora, setup.tokenizer, batches, arguments, parameters, ranks)
    trainer.shards_base = setup.sharded
    trainer.continues = task.init_adapter is not None
    if parameters.loraplus_lr_ratio is not None:
        trainer.optimizer = loraplus_optimizer(trainer, parameters)
    return trainer


def run_training(
    trainer: StepTrainer, callback: RunCallback, evaluator: Evaluator, stop: StopSwitch, checkpoint: Path | None
) -> Ending:
    """Measure the base, then train until the end or until a stop is requested.

    Whatever ends it in the middle of a step leaves a checkpoint of the last whole step, from which the next process
    resumes. If the GPU failed in such a way that its memory can't be read any more, nothing is saved, and the next
    process resumes from the checkpoint before.
    """
    trainer.stop_requested = lambda: stop.requested
    try:
        trainer.begin(checkpoint)
        evaluator.measure_base()
        stop.training_begins()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except StepInterruptedError:
        ending, callback.stopped = Ending.DONE, True
    except RuntimeError as error:
        failure = failure_of(error) or failure_of_helper(trainer.ranks)
        if failure is Ending.LOST and not context_is_broken(error):
            save_last_step(trainer, callback)
        if failure in (None, Ending.LOST):
            raise
        ending = failure
        log.warning("%s", describe(error))
        if context_is_broken(error):
            return ending
        traceback.clear_frames(error.__traceback__)  # they hold the tensors for which there was too little memory
    else:
        if trainer.ranks.helpers is not None:
            trainer.ranks.helpers.release()
        return Ending.DONE
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    save_last_step(trainer, callback)
    if ending is Ending.DONE:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)  # trackers write their rest
    return ending


def main(arguments: list[str]) -> int:
    """Read the task from standard input, train, and write the outcome. Returns 0 when the artifact is complete.

    The only argument is the number of the file descriptor to which progress is written. A process that helps another
    (`lora_trainer.run.helpers`) has other arguments, and its exit status is a `HelperEnding`.
    """
    configure_logging()
    datasets.disable_progress_bars()
    # It has a handler of its own otherwise, which prints whole messages.
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.disable_progress_bar()
    task = Task.model_validate_json(sys.stdin.readline())
    end_with_the_handler()
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # only tiny models train on a CPU, and more threads don't make them faster
    if arguments[0] == HELPER:
        help_leader(task, int(arguments[1]), int(arguments[2]), Path(arguments[3]))
    gpu = GpuMonitor(wanted=torch.cuda.is_available(), **gpu_identity())
    with os.fdopen(int(arguments[0]), "w", encoding="utf-8") as pipe:
        outcome = attempt(task, ProgressWriter(pipe, task, gpu), gpu)
    outcome.write(task.folder)
    return 0 if outcome.status == "trained" else 1


def attempt(task: Task, progress: ProgressWriter, gpu: GpuMonitor) -> Outcome:
    """Call `train`, with helpers where the job asks for several GPUs, and turn each exception into an outcome."""
    stop = StopSwitch(lambda: _end_before_training(task))
    helpers: Helpers | None = None
    try:
        # Without a name a helper would get the leader's GPU.
        gpus = task.gpus[:1] if torch.cuda.is_available() and None in task.gpus else task.gpus
        with QuantisedCache(task.volume, int(task.quantised_cache_gb * 1e9)) as cache:
            if len(gpus) <= 1:
                return train(task, progress, stop, gpu, cache)
            helpers = Helpers(gpus, task.model_dump_json(), lambda status: _end_without(status, task))
            return train(task, progress, stop, gpu, cache, Ranks.join(0, len(gpus), helpers.store, helpers=helpers))
    except TrainingError as error:
        status: Any = "stopped" if isinstance(error, StoppedError) else "failed"
        return Outcome(status=status, fingerprint=task.fingerprint, error=error.as_protocol())
    except Exception as error:
        # The exception's text may contain text of the dataset.
        log.error("%s", describe(error))
        lost = helpers.failure() if helpers is not None and not is_out_of_memory(error) else None
        known = explain(error) if lost is None else explain_lost(lost)
        return Outcome(status="failed", fingerprint=task.fingerprint, error=known.as_protocol())
    finally:
        if helpers is not None:
            helpers.close()


def help_leader(task: Task, rank: int, count: int, store: Path) -> NoReturn:
    """Train as one of several processes. The leader tells of progress, saves, and ends this one when it has ended."""
    logging.getLogger().setLevel(logging.WARNING)
    stop = StopSwitch(lambda: os._exit(HelperEnding.FAILED))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the leader decides when to stop
    gpu = GpuMonitor(wanted=False)
    try:
        ranks = Ranks.join(rank, count, store)
        cache = QuantisedCache(task.volume, int(task.quantised_cache_gb * 1e9))
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, cache:
            outcome = train(task, ProgressWriter(nowhere, task, gpu), stop, gpu, cache, ranks)
    except Exception as error:
        log.error("process %d: %s", rank, describe(error))
        ending = HelperEnding.OUT_OF_MEMORY if is_out_of_memory(error) else HelperEnding.FAILED
    else:
        ending = _helper_ending(outcome)
    logging.shutdown()
    os._exit(ending)  # the libraries that connect the processes would wait for the others


def _helper_ending(outcome: Outcome) -> HelperEnding:
    if outcome.status == "trained":
        return HelperEnding.DONE
    is_memory = outcome.error is not None and outcome.error.code == OutOfMemoryError.code
    return HelperEnding.OUT_OF_MEMORY if is_memory else HelperEnding.NOT_COMPILED


def explain_lost(status: int) -> TrainingError:
    """The error that tells the user that one of several processes has ended."""
    if status == HelperEnding.OUT_OF_MEMORY:
        return OutOfMemoryError(
            "Memory ran out on one of the GPUs.", "Choose GPUs with more memory, or a smaller base model."
        )
    return ChildCrashedError(
        f"One of the training processes ended with {ending_of(status)}.",
        "The next attempt goes on from the last checkpoint.",
    )


def explain(error: Exception) -> TrainingError:
    """The error that tells the user what a library's exception means."""
    if is_out_of_memory(error):
        return OutOfMemoryError(
            "Memory ran out before the training began.", "Choose a GPU with more memory, or a smaller base model."
        )
    if context_is_broken(error):
        return TrainingError(
            f"The GPU failed ({type(error).__name__}).",
            "The next attempt goes on from the last checkpoint.",
        )
    if is_full_disk(error):
        return DiskFullError("The disk or the network volume is full.", FULL_DISK_HINT)
    return TrainingError(f"The training failed unexpectedly ({type(error).__name__}).", "Please report it to support.")


def _end_without(status: int, task: Task) -> NoReturn:
    # Where layers are gathered in each pass, this process hangs in one and can't save: the last checkpoint stands.
    retry = None
    if status == HelperEnding.OUT_OF_MEMORY and task.micro_batch != 1:
        retry = Retry(micro_batch=1, recompute=True, quantization=task.quantization, compile=task.compile)
    error = explain_lost(status).as_protocol()
    Outcome(status="failed", fingerprint=task.fingerprint, error=error, retry=retry).write(task.folder)
    os._exit(1)


def _end_before_training(task: Task) -> NoReturn:
    error = StoppedError("The training was stopped before its first step.", "The next attempt starts anew.")
    Outcome(status="stopped", fingerprint=task.fingerprint, error=error.as_protocol()).write(task.folder)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
