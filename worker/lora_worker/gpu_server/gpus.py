"""Finds the GPUs of this machine, without a library of NVIDIA: the driver's own tool lists them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence

import structlog

from lora_worker.errors import ArgumentError, GpuServerError
from lora_worker.observability.actions import Action

log = structlog.get_logger(__name__)

CPU = "cpu"
"""The word for no GPU at all: so that a machine whose driver is broken does not train on its CPU unasked."""

_GPU = re.compile(r"GPU (\d+): .*\(UUID: (GPU-[0-9a-f-]+)\)")
_MIG = re.compile(r"MIG .*\(UUID: (MIG-[0-9A-Za-z/-]+)\)")
_EXPLICIT = re.compile(r"[0-9]{1,3}|GPU-[0-9a-f-]{36}|MIG-[0-9A-Za-z/-]{36,100}")
"""What `CUDA_VISIBLE_DEVICES` takes and means one GPU, whether a tool lists it or not."""
_SECONDS = 30
_TO_USE_THE_CPU = "mend the driver, or give --gpus cpu to train on the CPU"


def choose_gpus(asked: str) -> list[str | None]:
    """The GPUs that `--gpus` asks for, by their UUIDs, which `CUDA_VISIBLE_DEVICES` takes; empty: all of the machine.

    A UUID names the same card after a restart, and an index may not. `cpu` is one training on the CPU, and so one None;
    `cpu,cpu` are two at once. Where nothing lists the GPUs, as in some containers, indexes and full UUIDs
    are taken as they are.

    Raises:
        ArgumentError: a name is none of the machine's, or names a GPU twice.
        GpuServerError: the machine has no GPU, or its driver does not tell, and not all names are such.
    """
    names = [name.strip() for name in asked.split(",")] if asked.strip() else []
    if names and set(names) == {CPU}:
        return [None for _ in names]
    try:
        known = _known_gpus()
    except GpuServerError as error:
        if not names or not all(map(_EXPLICIT.fullmatch, names)):
            raise
        log.warning(
            "the GPUs are taken as they were named, since nothing lists them",
            action=Action.GPUS_UNLISTED, gpus=names, problem=str(error),
        )  # fmt: skip
        known = {name: name for name in names}
    return list(resolve_gpus(names, known) if names else _whole_gpus(known))


def _known_gpus() -> dict[str, str]:
    known = read_gpus(list_gpus())
    if not known:
        raise GpuServerError(f"the driver lists no NVIDIA GPU (nvidia-smi -L): {_TO_USE_THE_CPU}")
    return known


def list_gpus() -> str:
    """What `nvidia-smi -L` prints. One card that is broken makes it end in failure, and it still lists the others.

    Raises:
        GpuServerError: there is no driver, or it is broken.
    """
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise GpuServerError(f"there is no NVIDIA driver here (no nvidia-smi): {_TO_USE_THE_CPU}") from None
    except subprocess.TimeoutExpired:
        raise GpuServerError(f"nvidia-smi -L did not end within {_SECONDS} seconds: {_TO_USE_THE_CPU}") from None
    except OSError as error:
        raise GpuServerError(f"nvidia-smi can't be run ({error.strerror}): {_TO_USE_THE_CPU}") from None
    if listed.returncode:
        said = " ".join((listed.stdout + listed.stderr).split())[:200].rstrip(". ")
        if not read_gpus(listed.stdout):
            raise GpuServerError(f"nvidia-smi -L ended with status {listed.returncode} ({said}): {_TO_USE_THE_CPU}")
        log.warning("nvidia-smi -L ended in failure; the GPUs that it lists are used",
                    action=Action.GPUS_UNLISTED, status=listed.returncode,
                    said=" ".join(listed.stderr.split())[:200])  # fmt: skip
    return listed.stdout


def read_gpus(listed: str) -> dict[str, str]:
    """The UUIDs in what `nvidia-smi -L` prints, each by the names that it has: its index and itself.

    MIG instances stand below their GPU, and have no index of their own.
    """
    known: dict[str, str] = {}
    for line in map(str.strip, listed.splitlines()):
        if gpu := _GPU.fullmatch(line):
            known |= {gpu[1]: gpu[2], gpu[2]: gpu[2]}
        elif mig := _MIG.fullmatch(line):
            known[mig[1]] = mig[1]
    return known


def _whole_gpus(known: Mapping[str, str]) -> Sequence[str]:
    return [uuid for name, uuid in known.items() if name.isdecimal()]


def resolve_gpus(names: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """The UUIDs of these names, of which each is one of `known`.

    Raises:
        ArgumentError: a name is not known, or means a GPU that was named before.
    """
    chosen: list[str] = []
    for name in names:
        uuid = known.get(name)
        if uuid is None:
            raise ArgumentError(
                f"--gpus: {name[:60]!r} is no GPU of this machine; choose of {', '.join(known)} (nvidia-smi -L), "
                f"or {CPU} alone"
            )
        if uuid in chosen:
            raise ArgumentError(f"--gpus: {name} is a GPU that is named twice, and one job has it alone")
        chosen.append(uuid)
    return chosen
