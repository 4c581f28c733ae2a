import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches import largest_micro_batch, shape_batches, smaller_micro_batch


def test_without_merging_and_packing_the_batch_is_what_was_asked_for():
    shape = shape_batches([100] * 47, 47, batch_size=4, max_length=2048, packing=False)
    assert (shape.rows_per_step, shape.row_tokens) == (4, 100)


@given(
    lengths=st.lists(st.integers(30, 2000), min_size=20, max_size=200),
    batch_size=st.integers(1, 64),
    answers_a_row=st.integers(1, 6),
    packing=st.booleans(),
)
def test_steps_per_epoch_stay_about_answers_over_batch_size(lengths, batch_size, answers_a_row, packing):
    answers = len(lengths) * answers_a_row
    shape = shape_batches(lengths, answers, batch_size=batch_size, max_length=2048, packing=packing)
    answers_per_row = shape.row_tokens * answers / sum(lengths) if packing else answers_a_row
    learned = shape.rows_per_step * answers_per_row
    # A step is whole rows, so it can't learn less than one row does, nor match more finely than half of one.
    assert learned <= max(1.5 * batch_size, 2 * answers_per_row, batch_size + 64 * answers / sum(lengths))
    assert learned >= batch_size / 1.5
    assert max(lengths) <= shape.row_tokens <= 2048


@given(rows=st.integers(1, 64), limit=st.integers(1, 64))
def test_a_micro_batch_divides_the_step(rows, limit):
    micro = largest_micro_batch(rows, limit)
    assert rows % micro == 0
    assert micro <= limit
    smaller = smaller_micro_batch(rows, micro)
    assert smaller is None if micro == 1 else (rows % smaller == 0 and smaller <= micro / 2)


def test_halving_ends_at_one_row():
    tried, micro = [], 12
    while micro is not None:
        tried.append(micro)
        micro = smaller_micro_batch(12, micro)
    assert tried == [12, 6, 3, 1]


def test_packed_rows_are_no_longer_than_a_step_needs():
    shape = shape_batches([200] * 100, 100, batch_size=4, max_length=4096, packing=True)
    assert shape.row_tokens == pytest.approx(800, abs=64)
    assert shape.rows_per_step == 1
