"""The stand-in's log shows which runs were trained twice."""

from __future__ import annotations

from pathlib import Path

from sandbox.standin import TrainedStep, read_steps, runs_trained_twice


def steps_of(run_id: str, execution_id: str, first: int, last: int) -> list[TrainedStep]:
    return [TrainedStep(run_id, execution_id, step, 4, at=float(step)) for step in range(first, last + 1)]


def test_run_finished_by_two_executions_counts_as_trained_twice() -> None:
    assert runs_trained_twice(steps_of("r", "a", 1, 4) + steps_of("r", "b", 1, 4)) == {"r"}


def test_run_resumed_from_a_checkpoint_is_not_trained_twice() -> None:
    assert runs_trained_twice(steps_of("r", "a", 1, 3) + steps_of("r", "b", 3, 4)) == set()


def test_missing_log_means_nothing_was_trained(tmp_path: Path) -> None:
    assert read_steps(tmp_path / "steps.jsonl") == []
