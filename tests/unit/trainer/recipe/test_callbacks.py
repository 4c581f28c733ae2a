from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_contract.curve import thin_points, validation_points
from lora_contract.protocol import Pace, Point
from lora_trainer.recipe.callbacks import RunCallback, has_exploded, validates_after

pytestmark = pytest.mark.gpu_stack


@given(total=st.integers(1, 5000), limit=st.integers(2, 200))
def test_validation_points_fit_the_chart_and_include_the_last_step(total, limit):
    steps = [step for step in range(1, total + 1) if validates_after(step, total, limit)]
    assert steps[-1] == total
    assert len(steps) <= validation_points(limit) + 1


@given(total=st.integers(1, 3000), limit=st.integers(4, 200))
def test_chart_stays_within_its_limit_and_keeps_both_ends(total, limit):
    points = [
        Point(
            step=step,
            epoch=0,
            training_loss=1,
            validation_loss=1 if validates_after(step, total, limit) else None,
        )
        for step in range(1, total + 1)
    ]
    kept = thin_points(points, total_steps=total, limit=limit)
    assert len(kept) <= limit
    assert (kept[0].step, kept[-1].step) == (1, total)


def test_loss_counts_as_exploded_only_if_it_stays_high():
    assert not has_exploded([4.0, 50.0, 3.0, 2.0, 2.0, 2.0])
    assert not has_exploded([4.0, 20.0, 20.0, 20.0])
    assert not has_exploded([0.1, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert has_exploded([4.0, 3.0, 20.0, 20.0, 20.0, 20.0, 20.0])


@pytest.mark.fault(24)
def test_throughput_is_in_tokens_per_second(tmp_path):
    now = [0.0]
    sample = SimpleNamespace(utilization=None, memory_bytes=None)
    callback = RunCallback(
        SimpleNamespace(job_folder=tmp_path, execution_id="e1", chart_points=100),
        SimpleNamespace(end_step=lambda *_, **__: None),
        SimpleNamespace(requested=False),
        SimpleNamespace(sample=lambda: sample),
        validates=False,
        clock=lambda: now[0],
    )
    callback.on_train_begin(None, SimpleNamespace(global_step=0, max_steps=3), None)
    for step, tokens in ((1, 3000), (2, 4000)):
        now[0] += 2.0
        state = SimpleNamespace(global_step=step, max_steps=3)
        callback.on_log(SimpleNamespace(fp16=False), state, None, {"loss": 1.0, "num_tokens": tokens})
    assert [point.throughput for point in callback.points] == [1500.0, 500.0]
    assert callback.pace == Pace(tokens=4000, seconds=4.0, steps=2)


def test_loss_before_training_is_no_point_and_survives_a_resume(tmp_path):
    from lora_trainer.recipe.checkpoints import Checkpoint, CheckpointState

    def made():
        return RunCallback(
            SimpleNamespace(job_folder=tmp_path, execution_id="e1", chart_points=100),
            SimpleNamespace(end_step=lambda *_, **__: None),
            SimpleNamespace(requested=False),
            SimpleNamespace(),
            validates=True,
        )

    callback, begun = made(), SimpleNamespace(global_step=0, max_steps=3)
    callback.evaluate = lambda: callback.on_log(None, begun, None, {"eval_loss": 2.5}, model=None)
    callback.on_train_begin(None, begun, None)
    assert (callback.loss_before, callback.points, callback.best.step) == (2.5, [], None)
    resumed = made()
    resumed.restore(Checkpoint(tmp_path, CheckpointState(fingerprint="f", step=1, loss_before=2.5)))
    resumed.evaluate = lambda: pytest.fail("the weights are not the base's any more")
    resumed.on_train_begin(None, SimpleNamespace(global_step=1, max_steps=3), None)
    assert resumed.loss_before == 2.5
