"""What a trial makes of a figure that can't be had, and of kernels that don't compute the same twice."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_trainer.errors import NotAppliedError
from lora_trainer.proof.asking import fingerprint
from lora_trainer.proof.trial import _check_base, _served_loss
from lora_trainer.run.held_out import HeldOut, HeldOutRow

pytestmark = pytest.mark.gpu_stack

HELD_OUT = HeldOut(rows=[HeldOutRow(ids=[5, 6, 7, 8], labels=[-100, -100, 7, 8])])


class Base(nn.Module):
    """A base of its own code."""

    def __init__(self, answer):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.forward = answer


def knows_no_such_argument(*, input_ids, use_cache):
    raise AssertionError("unreachable")


def leaves_the_argument_out(**given):
    return SimpleNamespace(logits=torch.zeros(1, given["input_ids"].shape[1], 16))


def runs_out_of_memory(**_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("answer", [knows_no_such_argument, leaves_the_argument_out, runs_out_of_memory])
def test_loss_as_served_that_cannot_be_had_fails_no_adapter(answer):
    assert _served_loss(Base(answer), HELD_OUT) is None


def test_broken_gpu_is_not_taken_for_a_missing_figure():
    def breaks(**_):
        raise RuntimeError("CUDA error: an illegal memory access")

    with pytest.raises(RuntimeError, match="CUDA error"):
        _served_loss(Base(breaks), HELD_OUT)


BEFORE, FLIPPED = [[1, 2], [3, 4]], [[1, 2], [3, 5]]


class Adapted(Base):
    """A base with an adapter that can be switched off, and taken off."""

    def __init__(self):
        super().__init__(None)
        self.off = False

    @contextmanager
    def disable_adapter(self):
        self.off = True
        yield
        self.off = False

    def unload(self):
        self.off = True
        return self


class Questions:
    """Answers, one after another, which only the base alone may be asked for."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def ask(self, model):
        assert model.off
        return self.answers.pop(0)


def check(*answers):
    adapted = Adapted()
    return _check_base(adapted, fingerprint(adapted), Questions(*answers), BEFORE, FLIPPED)


def test_one_token_that_flips_once_is_told_and_fails_nothing():
    [note] = check(BEFORE, BEFORE)
    assert "the base alone answered 1 prompt anew" in note


def test_base_that_answers_otherwise_each_time_is_told_and_fails_nothing():
    assert len(check(FLIPPED, FLIPPED)) == 1


def test_adapter_that_leaks_whenever_it_is_off_is_not_applied():
    with pytest.raises(NotAppliedError, match="1 of 2 prompts otherwise"):
        check(FLIPPED, BEFORE)
