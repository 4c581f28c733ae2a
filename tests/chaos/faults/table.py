"""The table of faults: each by its name, with the clouds at which it can happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.chaos.clouds.base import Cloud
from tests.chaos.scene import Act

OUTAGE_SECONDS = 4
"""How long something is away."""


@dataclass(frozen=True)
class Fault:
    """A fault. `act` queues its jobs, breaks something, and returns when that is over."""

    act: Act
    at: type[Cloud]
    """The kind of cloud at which it can happen."""


class FaultTable(dict[str, Fault]):
    """Faults that can happen at clouds of one kind, by their names in the report."""

    def __init__(self, at: type[Cloud]) -> None:
        super().__init__()
        self._at = at

    def add(self, name: str) -> Callable[[Act], Act]:
        """Have the decorated function as a fault of this name."""

        def register(act: Act) -> Act:
            self[name] = Fault(act, self._at)
            return act

        return register


def select(faults: Mapping[str, Fault], cloud: type[Cloud]) -> dict[str, Act]:
    """Those of the faults that can happen at a cloud: of its kind, and not spared by it."""
    return {
        name: fault.act for name, fault in faults.items() if issubclass(cloud, fault.at) and name not in cloud.spared
    }
