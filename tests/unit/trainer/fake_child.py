"""A training process that does not train; the variable `FAKE_CHILD` chooses its behaviour."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lora_contract.error_codes import ErrorCode
from lora_contract.protocol import FinalMetrics, Point, Progress, Stage, Summary, TrainerError
from lora_trainer.run.task import Outcome, Retry, Task

_LONGER_THAN_ANY_TEST_SECONDS = 3600


def report(events, task: Task, step: int) -> None:
    points = [Point(step=n, epoch=n / 10, training_loss=5 - n / 10) for n in range(1, step + 1)]
    progress = Progress(run_id=task.run_id, stage=Stage.TRAINING, progress=25 + step, current_step=step, points=points)
    events.write(progress.model_dump_json() + "\n")
    events.flush()


def succeed(task: Task, points: list[Point]) -> None:
    task.artifact.mkdir(parents=True)
    (task.artifact / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (task.artifact / "adapter_config.json").write_text("{}")
    Outcome(
        status="trained",
        fingerprint=task.fingerprint,
        metrics=FinalMetrics(final_training_loss=4.0),
        summary=Summary(total_steps=len(points), notes=[f"micro-batch {task.micro_batch}"]),
        points=points,
    ).write(task.folder)


def long_point(step: int) -> Point:
    """A point with as many digits as a real one."""
    return Point(
        step=step,
        epoch=step / 3333,
        training_loss=1.2345678901234567,
        learning_rate=1.2345678901234567e-05,
        gradient_norm=0.12345678901234567,
        throughput=12345.67,
        gpu_utilization=99,
        gpu_memory_bytes=79_999_999_999,
        timestamp=1795576341.123,
    )


def fail(task: Task, points: list[Point]) -> None:
    error = TrainerError(code=ErrorCode.DATASET_INVALID, message="Line 17 is not JSON.")
    summary = Summary(total_steps=len(points) or None)
    Outcome(status="failed", fingerprint=task.fingerprint, error=error, points=points, summary=summary).write(
        task.folder
    )
    raise SystemExit(1)


def wait_for_sigterm(task: Task, *, measures: bool) -> None:
    """Train for ever; or, with all steps done, measure for ever, of which a stop leaves a finished adapter."""

    def save(number, frame):
        if measures:
            succeed(task, [Point(step=1, epoch=1, training_loss=4)])
            raise SystemExit(0)
        (task.folder / "saved").write_text("checkpoint")
        Outcome(
            status="stopped",
            fingerprint=task.fingerprint,
            error=TrainerError(code=ErrorCode.INTERRUPTED, message="Stopped at step 3."),
        ).write(task.folder)
        raise SystemExit(3)

    signal.signal(signal.SIGTERM, save)
    (task.folder / "ready").touch()
    time.sleep(_LONGER_THAN_ANY_TEST_SECONDS)


def print_something(verb: str, argument: str) -> None:
    print(os.environ.get("FAKE_CHILD_PRINTS", ""), file=sys.stderr, flush=True)
    if verb == "flood":
        print("x" * int(argument), flush=True)
    if verb == "leave_a_process":
        sleeping = [sys.executable, "-c", f"import time; time.sleep({argument})"]
        subprocess.Popen(sleeping, stdin=subprocess.DEVNULL, start_new_session=True)


def main() -> None:
    events = os.fdopen(int(sys.argv[1]), "w")
    task = Task.model_validate_json(sys.stdin.readline())
    note = {"pid": os.getpid(), "environment": dict(os.environ), "task": task.model_dump(mode="json")}
    Path(os.environ["FAKE_CHILD_NOTE"]).write_text(json.dumps(note))
    verb, _, argument = os.environ["FAKE_CHILD"].partition(":")
    report(events, task, 3)
    print_something(verb, argument)
    if verb in {"succeed", "flood", "leave_a_process"}:
        succeed(task, [Point(step=n, epoch=n, training_loss=5 - n) for n in (1, 2, 3)])
    elif verb in {"succeed_after", "fail_after"}:
        points = [long_point(step) for step in range(1, int(argument) + 1)]
        succeed(task, points) if verb == "succeed_after" else fail(task, points)
    elif verb == "out_of_memory_until":
        if task.micro_batch is None or task.micro_batch > int(argument):
            smaller = 4 if task.micro_batch is None else task.micro_batch // 2
            Outcome(status="failed", fingerprint=task.fingerprint, retry=Retry(micro_batch=smaller)).write(task.folder)
        else:
            succeed(task, [])
    elif verb == "fail":
        fail(task, [])
    elif verb == "signal":
        os.kill(os.getpid(), int(argument))
    elif verb == "exit":
        os._exit(int(argument))
    elif verb in {"wait", "measure"}:
        wait_for_sigterm(task, measures=verb == "measure")
    elif verb == "ignore_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (task.folder / "ready").touch()
        time.sleep(_LONGER_THAN_ANY_TEST_SECONDS)


main()
