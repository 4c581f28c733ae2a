"""Processes that help the training process: how they are started, and what the death of one leads to."""

import threading

import pytest

from lora_trainer.run import helpers
from lora_trainer.run.helpers import HELPER, HelperEnding, Helpers, helper_environment


class Process:
    """A helper that ends when the test says so, or when it is killed."""

    pid = 0

    def __init__(self):
        self.status = None
        self.ended = threading.Event()

    def end(self, status):
        self.status = status
        self.ended.set()

    def wait(self, timeout=None):
        self.ended.wait(timeout)
        return self.status

    def poll(self):
        return self.status

    def kill(self):
        self.end(-9)


@pytest.fixture
def started(monkeypatch):
    found = []

    def spawn(arguments, task, gpu):
        found.append((Process(), arguments, task, gpu))
        return found[-1][0]

    monkeypatch.setattr(helpers, "spawn", spawn)
    return found


def test_each_further_gpu_gets_one_helper_that_sees_it_alone(started):
    group = Helpers(["a", "b", "c"], "{}", lambda _: None)
    store = str(group.store)
    assert [entry[1:] for entry in started] == [
        ([HELPER, "1", "3", store], "{}", "b"),
        ([HELPER, "2", "3", store], "{}", "c"),
    ]
    assert helper_environment({"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "a"}, "b")["CUDA_VISIBLE_DEVICES"] == "b"
    assert helper_environment({"PATH": "/bin"}, None) == {"PATH": "/bin"}
    group.close()
    assert [entry[0].status for entry in started] == [-9, -9]
    assert not group.store.parent.exists()


def test_leader_that_hangs_when_a_helper_has_died_is_told(started):
    told, done = [], threading.Event()
    group = Helpers(["a", "b"], "{}", lambda status: (told.append(status), done.set()), patience_seconds=0)
    started[0][0].end(HelperEnding.OUT_OF_MEMORY)
    assert done.wait(30)
    assert told == [HelperEnding.OUT_OF_MEMORY] == [group.failure()]
    group.close()


def test_helper_that_ends_after_the_last_step_ends_nothing(started):
    told = []
    group = Helpers(["a", "b"], "{}", told.append, patience_seconds=0)
    group.release()
    started[0][0].end(HelperEnding.FAILED)
    group.close()
    assert told == []
