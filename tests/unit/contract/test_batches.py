from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_contract.batches import (
    forward_passes,
    shape_batches,
    share_out,
    share_step,
    smaller_micro_batch,
    steps_of_epoch,
)

EXAMPLES = st.lists(st.tuples(st.integers(1, 6), st.integers(30, 2000)), min_size=1, max_size=120)


def unzip(examples):
    answers, lengths = zip(*examples, strict=True)
    return list(answers), list(lengths)


@pytest.mark.parametrize(
    ("lengths", "batch_size", "steps"),
    [([600] * 36, 4, 9), ([700] * 40, 2, 20), ([1100] * 90, 2, 45), ([100] * 47, 4, 12), ([100] * 9, 8, 2)],
    ids=["a third is left empty", "two fill no row", "one fills half a row", "many fit", "one too many for a step"],
)
@pytest.mark.parametrize("packing", [True, False])
def test_epoch_has_the_documented_steps_however_rows_fill(lengths, batch_size, steps, packing):
    shape = shape_batches(lengths, len(lengths), batch_size=batch_size, max_length=2048, packing=packing)
    assert shape.steps_per_epoch == steps
    shares = share_out([1] * len(lengths), lengths, shape.steps_per_epoch, seed="1")
    assert len(shares) == steps
    sizes = sorted(map(len, shares))
    assert sizes[-1] - sizes[0] <= 1, "an epoch's last step is a remainder"
    assert sizes[-1] <= batch_size


@given(examples=EXAMPLES, batch_size=st.integers(1, 64), seed=st.integers(0, 5))
def test_each_example_is_learned_once_per_epoch_in_even_steps(examples, batch_size, seed):
    answers, lengths = unzip(examples)
    steps = steps_of_epoch(answers=sum(answers), examples=len(examples), batch_size=batch_size)
    shares = share_out(answers, lengths, steps, seed=str(seed))
    assert sorted(chain.from_iterable(shares)) == list(range(len(examples)))
    held = [sum(answers[index] for index in share) for share in shares]
    assert min(held) > 0
    assert max(held) - min(held) <= max(answers)
    assert shares == share_out(answers, lengths, steps, seed=str(seed)), "a resumed run would see other steps"


def test_next_epoch_has_other_steps():
    assert share_out([1] * 40, [9] * 40, 10, seed="42:0") != share_out([1] * 40, [9] * 40, 10, seed="42:1")


@given(examples=EXAMPLES, batch_size=st.integers(1, 64), micro_batch=st.integers(1, 8), packing=st.booleans())
def test_no_forward_pass_exceeds_the_planned_memory(examples, batch_size, micro_batch, packing):
    answers, lengths = unzip(examples)
    shape = shape_batches(lengths, sum(answers), batch_size=batch_size, max_length=2048, packing=packing)
    assert max(lengths) <= shape.row_tokens <= 2048
    for share in share_out(answers, lengths, shape.steps_per_epoch, seed="1"):
        passes = forward_passes(share, lengths, shape, micro_batch)
        assert sorted(chain.from_iterable(passes)) == sorted(share)
        for chosen in passes:
            tokens = sum(lengths[index] for index in chosen)
            room = tokens <= micro_batch * shape.row_tokens if packing else len(chosen) <= micro_batch
            assert room


def test_packed_rows_are_no_longer_than_a_step_needs():
    shape = shape_batches([200] * 100, 100, batch_size=4, max_length=4096, packing=True)
    assert shape.row_tokens == pytest.approx(1000, abs=64)
    assert shape.rows_per_step == 1


def test_row_fits_the_longest_held_out_example():
    shape = shape_batches([200] * 100, 100, batch_size=4, max_length=4096, packing=True, longest_held_out=3000)
    assert shape.row_tokens == 3000


def test_number_of_steps_follows_the_epochs_or_max_steps():
    shape = shape_batches([100] * 47, 47, batch_size=4, max_length=2048, packing=False)
    assert shape.total_steps(epochs=3, max_steps=None) == 36
    assert shape.total_steps(epochs=3, max_steps=5) == 5
    assert shape.total_steps(epochs=1, max_steps=100) == 12


def test_halving_the_micro_batch_stops_at_one_row():
    tried, micro = [], 12
    while micro is not None:
        tried.append(micro)
        micro = smaller_micro_batch(micro)
    assert tried == [12, 6, 3, 1]


def test_items_of_a_step_are_shared_out_among_gpus_by_their_tokens():
    lengths = [90, 10, 40, 50, 30, 20]
    shares = share_step(range(6), lengths, 2)
    assert sorted(index for share in shares for index in share) == list(range(6))
    assert [sum(lengths[index] for index in share) for share in shares] == [120, 120]
    assert share_step([4], lengths, 3) == [[4], [], []]
