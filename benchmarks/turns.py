"""Trainings that take turns, step by step, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import math
import threading
import time
from typing import Any


class _Turns:
    """Lets trainings in several threads take turns, one step at a time.

    `steps` is the number of steps of each training; a training with fewer steps takes its turns at larger intervals.
    """

    def __init__(self, steps: dict[str, int]) -> None:
        places = [((n + 0.5) / count, name) for name, count in steps.items() for n in range(count)]
        self._order = [name for _, name in sorted(places)]
        self._at = 0
        self._changed = threading.Condition()
        self.failure: BaseException | None = None
        self.seconds: dict[str, list[float]] = {name: [] for name in steps}

    def take(self, name: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None or self._order[self._at] == name)
        if self.failure is not None:
            raise RuntimeError("another training has failed")

    def give(self, name: str, seconds: float) -> None:
        with self._changed:
            self.seconds[name].append(seconds)
            self._at = min(self._at + 1, len(self._order) - 1)
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify_all()


def _clock(turns: _Turns, name: str) -> Any:
    """Make a callback that measures from the beginning of a step to that of the next, including all callbacks."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        begun: float | None = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._end()
            turns.take(name)
            self.begun = time.process_time()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self._end()

        def _end(self) -> None:
            if self.begun is not None:
                turns.give(name, time.process_time() - self.begun)

    return Clock()


def train_in_turns(trainers: dict[str, Any]) -> dict[str, list[float]]:
    """Run all trainings to their ends; returns the processor's seconds of each step.

    Only one of them computes at a time, so these are its own, and other processes don't count.

    Raises:
        BaseException: that of the first training that failed.
    """
    turns = _Turns({name: _steps_of(trainer) for name, trainer in trainers.items()})

    def train(trainer: Any) -> None:
        try:
            trainer.train()
        except BaseException as error:
            turns.fail(error)

    threads = []
    for name, trainer in trainers.items():
        trainer.add_callback(_clock(turns, name))
        threads.append(threading.Thread(target=train, args=[trainer]))
        threads[-1].start()
    for thread in threads:
        thread.join()
    if turns.failure is not None:
        raise turns.failure
    return turns.seconds


def _steps_of(trainer: Any) -> int:
    batches = len(trainer.get_train_dataloader())
    a_pass = math.ceil(batches / trainer.args.gradient_accumulation_steps)
    return trainer.args.max_steps if trainer.args.max_steps > 0 else a_pass * int(trainer.args.num_train_epochs)
