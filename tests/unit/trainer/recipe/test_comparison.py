"""What the figures of base and tuned model say: gain, interval, guard, and the sentences about them."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from lora_contract.evaluation import Comparison, Evaluation, Measure
from lora_trainer.data.general import MOST_TOKENS as GENERAL_TOKENS
from lora_trainer.recipe.comparison import (
    GENERAL_RISE_PERCENT,
    PairedFigures,
    RowFigures,
    choose_conversations,
    compare,
    evaluation_notes,
    evaluation_of,
    mean_interval,
    t_quantile,
    tokens_to_measure,
)

FORWARD_SHARE = 0.5
"""Of a trained token's time. LoRA computes 4 operations a weight and token (6 with recomputing), a forward pass 2."""
NOTHING = PairedFigures([], [])


def figures(losses, tokens=10):
    """A conversation for each mean loss, of as many tokens."""
    return [RowFigures(loss * tokens, tokens // 2, tokens) for loss in losses]


def held_out(gain, low=None, high=None):
    base = Measure(loss=2.5, token_accuracy=0.5, tokens=100)
    tuned = Measure(loss=2.5 - gain, token_accuracy=0.5, tokens=100)
    return Comparison(base=base, tuned=tuned, conversations=9, gain=gain, gain_low=low, gain_high=high)


def test_conversations_count_alike_for_the_gain_and_tokens_for_the_loss():
    base = [RowFigures(20, 5, 10), RowFigures(300, 50, 100)]
    tuned = [RowFigures(10, 6, 10), RowFigures(290, 52, 100)]
    found = compare(PairedFigures(base, tuned))
    assert found.gain == pytest.approx((1 + 0.1) / 2)
    assert found.base.loss == pytest.approx(320 / 110)
    assert found.tuned.token_accuracy == pytest.approx(58 / 110)
    assert (found.base.tokens, found.conversations) == (110, 2)


def test_one_conversation_has_a_gain_and_no_interval():
    found = compare(PairedFigures(figures([2.0]), figures([1.5])))
    assert (found.gain, found.gain_low, found.gain_high) == (0.5, None, None)


def test_nothing_held_out_is_no_comparison():
    assert compare(NOTHING) is None
    assert evaluation_of(NOTHING, NOTHING) == Evaluation()


@pytest.mark.parametrize(
    ("freedom", "table"),
    # Abramowitz and Stegun, table 26.10.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_quantile_of_students_t_is_that_of_the_tables(freedom, table):
    assert t_quantile(freedom) == pytest.approx(table, abs=1e-3)


@pytest.mark.parametrize("size", [3, 5, 20])
def test_interval_holds_the_true_mean_in_95_of_100_samples(size):
    chance = random.Random(size)
    samples = [[chance.gauss(0.3, 1) for _ in range(size)] for _ in range(4000)]
    intervals = [mean_interval(sample) for sample in samples]
    covered = fmean(low <= 0.3 <= high for low, high in intervals)
    print(f"{size} conversations: {covered:.1%} covered")
    assert 0.94 < covered < 0.96


def test_guard_speaks_where_the_general_loss_rose_by_more_than_allowed():
    allowed = 1 + GENERAL_RISE_PERCENT / 100
    within = evaluation_of(NOTHING, PairedFigures(figures([2.0, 3.0]), figures([2.0 * allowed, 2.9 * allowed])))
    beyond = evaluation_of(NOTHING, PairedFigures(figures([2.0, 3.0]), figures([2.1 * allowed, 3.0 * allowed])))
    assert within.guard_passed
    assert evaluation_notes(within, "sft") == []
    assert not beyond.guard_passed
    assert beyond.general_change_percent == pytest.approx(12.2)
    (note,) = evaluation_notes(beyond, "sft")
    assert "rose by 12 %" in note
    assert "learning_rate" in note


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (held_out(0.3, 0.1, 0.5), None),
        (held_out(0.3), None),
        (held_out(0.1, -0.1, 0.3), "No sure gain on held-out conversations"),
        (held_out(-0.3, -0.5, -0.1), "Worse than the base on held-out conversations"),
        (held_out(-0.3), "Worse than the base on held-out conversations"),
        (held_out(0.0), "No sure gain"),
    ],
)
def test_user_is_told_where_held_out_conversations_show_no_gain(found, said):
    notes = evaluation_notes(Evaluation(held_out=found), "sft")
    assert notes == [] if said is None else notes[0].startswith(said)


def test_less_probable_better_answers_are_no_failure_of_preference_methods():
    (note,) = evaluation_notes(Evaluation(held_out=held_out(-0.3, -0.5, -0.1)), "dpo")
    assert "became less probable" in note
    assert "reward margin" in note


def test_measured_tokens_are_a_share_of_the_training_within_bounds():
    assert tokens_to_measure(100) == 4096
    assert tokens_to_measure(1_000_000) == 20_000
    assert tokens_to_measure(10**9) == 65_536


def test_measured_conversations_are_a_sample_of_all_whatever_their_length():
    lengths = [10] * 50 + [1000] * 50
    chosen = choose_conversations(lengths, 8_000, seed=1)
    long = sum(number >= 50 for number in chosen)
    print(f"{len(chosen)} conversations, {long} of them long")
    assert sum(lengths[number] for number in chosen) <= 8_000
    assert 0.25 < long / len(chosen) < 0.75
    assert chosen == choose_conversations(lengths, 8_000, seed=1)
    assert choose_conversations([5, 0, 7], 100, seed=1) == [0, 2], "nothing to measure in the second"
    assert choose_conversations([9000], 100, seed=1) == [0], "one is always measured"


@pytest.mark.parametrize("tokens_per_second", [519, 2_000, 12_473])
def test_measurement_costs_less_than_5_percent_of_ten_minutes(tokens_per_second):
    # From the slowest to the fastest training of one GPU that others have published (docs/performance.md).
    training = 600 * tokens_per_second
    measured = 2 * (tokens_to_measure(training) + 40 * GENERAL_TOKENS)
    share = measured * FORWARD_SHARE / training
    print(f"{tokens_per_second} tokens/s: {measured:,} tokens measured, {share:.1%} of the training")
    assert share < 0.05
