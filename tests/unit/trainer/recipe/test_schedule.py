"""The learning rate schedule: no step has a rate of 0."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.recipe.schedule import rate_share, warm_up_steps

DECAYS = ["cosine", "linear", "constant"]


@given(total=st.integers(1, 400), asked=st.one_of(st.none(), st.integers(0, 500)), decay=st.sampled_from(DECAYS))
def test_no_step_has_a_learning_rate_of_0(total, asked, decay):
    warm_up = warm_up_steps(total, asked)
    shares = [rate_share(step, total_steps=total, warm_up=warm_up, decay=decay) for step in range(total)]
    assert all(0 < share <= 1 for share in shares)
    assert warm_up >= total or max(shares) == 1


@pytest.mark.parametrize(("total", "steps"), [(1, 0), (29, 0), (30, 1), (100, 3), (10_000, 300)])
def test_default_warm_up_is_3_percent_of_a_long_training(total, steps):
    assert warm_up_steps(total, None) == steps


def test_requested_warm_up_and_decay_are_used():
    assert warm_up_steps(10, 4) == 4
    shares = [rate_share(step, total_steps=10, warm_up=4, decay="constant") for step in range(10)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])
