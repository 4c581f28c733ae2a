"""Clouds that rent out machines: some have none at times, and take some away before their job is done."""

from __future__ import annotations

import random
from abc import abstractmethod
from contextlib import AbstractContextManager

from tests.chaos.clouds.base import MachineCloud


class SpotCloud(MachineCloud):
    """A cloud that gives each job a spot machine, and lists the jobs of the account."""

    @abstractmethod
    def take_one_away(self, rng: random.Random) -> None:
        """Take the machine of a job that is drawn by lot away, as the cloud does; does nothing where none trains."""

    @abstractmethod
    def have_no_machine(self, times: int) -> None:
        """Accept so many submissions to come, and then find no machine for them."""

    @abstractmethod
    def late_lists(self, seconds: float) -> AbstractContextManager[None]:
        """While the context is open, no list shows jobs yet that are younger than `seconds`."""
