"""A cloud's table of machine types: which has so many GPUs of a type, and which one the name of an endpoint means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

_MAX_NAME_CHARACTERS = 100


class MachineUnknownError(ValueError):
    """The cloud has no such machine; the text is a sentence that says what it has.

    `setting` is the one that names it without a routing table; None: the launcher's own that names a machine type.
    """

    def __init__(self, text: str, setting: str | None = None) -> None:
        super().__init__(text)
        self.setting = setting


class MachineType(Protocol):
    """One row of the table."""

    @property
    def name(self) -> str:
        """The type's name, as the cloud writes it."""

    @property
    def gpu_type(self) -> str:
        """Its GPU, as the price table calls it."""

    @property
    def gpu_count(self) -> int:
        """How many it has."""


M = TypeVar("M", bound=MachineType)


def asked_gpu(payload: Mapping[str, Any]) -> str | None:
    """The GPU type that a request's job asks for; None where it names none."""
    gpu_config = payload.get("gpu_config")
    wanted = gpu_config.get("type") if isinstance(gpu_config, dict) else None
    return wanted if isinstance(wanted, str) else None


def longest_part(parts: Iterable[str], gpu_type: str) -> str | None:
    """The longest of these parts of names that a GPU's name has, however both are spelled; None where it has none."""
    name = _plain(gpu_type[:_MAX_NAME_CHARACTERS])
    return max((part for part in parts if _plain(part) in name), key=len, default=None)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


class MachineTypes(Generic[M]):
    """The machine types of one cloud.

    Args:
        cloud: its name, as a sentence begins with it.
        noun: what it calls a machine.
        chosen: the types that are taken for so many GPUs of a type, one for each number.
        further: those that are had by their own name only.
        names: which GPU of the table a name means that has this part, in small letters and digits; of several parts
            that fit the longest counts. None: a GPU that is none of the table's, though its name holds that of one.
    """

    def __init__(
        self,
        cloud: str,
        noun: str,
        chosen: Iterable[M],
        *,
        further: Iterable[M] = (),
        names: Mapping[str, str | None],
    ) -> None:
        self._cloud, self._noun, self._names = cloud, noun, names
        self._by_gpu: dict[str, dict[int, M]] = {}
        for machine in chosen:
            self._by_gpu.setdefault(machine.gpu_type, {})[machine.gpu_count] = machine
        self.all = (*(machine for sizes in self._by_gpu.values() for machine in sizes.values()), *further)
        """All that a job can be given."""
        self._by_name = {machine.name: machine for machine in self.all}

    def with_gpus(self, gpu_type: str, gpu_count: int) -> M:
        """The machine with so many GPUs of a type, as the price table or a job writes it.

        Raises:
            MachineUnknownError: the cloud has no such GPU, or no machine with so many of them.
        """
        sizes = self._by_gpu[self._gpu_named(gpu_type)]
        if gpu_count not in sizes:
            counts = ", ".join(map(str, sizes))
            raise MachineUnknownError(
                f"{self._cloud} has no {self._noun} with {gpu_count} × {gpu_type:.50}; there may be {counts}",
                "endpoint_gpu_count",
            )
        return sizes[gpu_count]

    def named(self, name: str) -> M:
        """The machine of this type.

        Raises:
            MachineUnknownError: the table has none.
        """
        if name not in self._by_name:
            raise MachineUnknownError(
                f"{name!r:.60} is no {self._noun} type with GPUs that is known here; choose one of "
                f"{', '.join(sorted(self._by_name))}"
            )
        return self._by_name[name]

    def of_endpoint(self, name: str, gpu_type: str | None, gpu_count: int) -> M | None:
        """The machine of an endpoint that names its type or its GPU; None where it has what each job asks for.

        Raises:
            MachineUnknownError: there is none, or it has other GPUs than the endpoint's, by which runs are billed.
        """
        if not name:
            return self.with_gpus(gpu_type, gpu_count) if gpu_type else None
        machine = self.named(name)
        if gpu_type is None or self._gpu_named(gpu_type) != machine.gpu_type or gpu_count != machine.gpu_count:
            raise MachineUnknownError(
                f"{name} has {machine.gpu_count} × {machine.gpu_type}, and bills go by the endpoint's GPU: set "
                "LORA_WORKER_ENDPOINT_GPU_TYPE and LORA_WORKER_ENDPOINT_GPU_COUNT (gpu_type and gpu_count in a routing "
                "table) to that"
            )
        return machine

    def _gpu_named(self, gpu_type: str) -> str:
        gpu = self._names.get(longest_part(self._names, gpu_type) or "")
        if gpu is None:
            raise MachineUnknownError(
                f"{self._cloud} has no {gpu_type:.50} for this worker; choose one of {', '.join(self._by_gpu)}",
                "endpoint_gpu_type",
            )
        return gpu
