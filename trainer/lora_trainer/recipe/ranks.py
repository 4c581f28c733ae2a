"""The processes that train together, one for each GPU, and what they tell each other.

Each has the whole recipe and the same trainable weights. They share out the items of every optimizer step and the
forward passes of every measurement, and add up what they found. So losses are sums over the whole step divided by its
whole amount, however many processes there are. accelerate's DistributedDataParallel would not give that: it averages
after each backward pass, and waits for ever where the processes have different numbers of passes.

Numbers and small objects travel through the processor (gloo), which notices at once when a process has died. Gradients
of a GPU travel through NCCL, and only when all processes have told that theirs are complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from lora_trainer.run.helpers import Helpers

T = TypeVar("T")

_TIMEOUT = timedelta(days=2)
"""Never reached: a process may have to wait long for one that downloads or saves, and the death of one is noticed."""
_BUCKET_NUMBERS = 1 << 23
"""So many gradients are added up at a time (32 MB): they are copied for it."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. With `count` 1 it is alone, and nothing is sent."""

    rank: int = 0
    count: int = 1
    helpers: Helpers | None = None
    """The others, where this process leads them."""
    small: dist.ProcessGroup | None = None
    """Through which numbers in main memory travel."""

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, artifact, progress and outcome. There is one that does."""
        return self.rank == 0

    @classmethod
    def join(cls, rank: int, count: int, store: Path, *, helpers: Helpers | None = None) -> Ranks:
        """Meet the other processes at a file on this machine's own disk."""
        on_gpu = torch.cuda.is_available()
        # gloo would take the interface of the machine's name, which others may reach.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=FileStore(str(store), count),
            rank=rank,
            world_size=count,
            timeout=_TIMEOUT,
        )
        return cls(rank, count, helpers, dist.new_group(backend="gloo", timeout=_TIMEOUT))

    def numbers(self, passes: int) -> list[int]:
        """Which of so many forward passes this process computes: at least one, and as many as every other process.

        Where they can't be shared out evenly, some are computed twice.
        """
        if self.count == 1 or passes == 0:
            return list(range(passes))
        rounds = -(-passes // self.count)
        return [(turn * self.count + self.rank) % passes for turn in range(rounds)]

    def union(self, found: Mapping[int, T]) -> list[T]:
        """What all processes found, by the number of the forward pass; in their order."""
        joined: dict[int, T] = {}
        for part in self.gather(dict(found)):
            joined |= part
        return [joined[number] for number in sorted(joined)]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order. They must be small, and in main memory."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.small)
        return values

    def of_leader(self, value: T) -> T:
        """The leader's value."""
        return self.gather(value)[0]

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """While this context is open, the leader works, and then all others at the same time."""
        if not self.leads:
            self.gather(None)
        yield
        if self.leads:
            self.gather(None)

    def spread_weights(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give all processes the leader's weights."""
        if self.count == 1:
            return
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)

    def add_up_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give each parameter the sum of all processes' gradients; None where no process has one.

        Raises:
            RuntimeError: a process has died.
        """
        if self.count == 1:
            return
        # The first collective of a step is one of gloo, so a process that died is noticed before NCCL waits for it.
        present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        dist.all_reduce(present, dist.ReduceOp.MAX, group=self.small)
        chosen = [parameter for parameter, has in zip(parameters, present.tolist(), strict=True) if has]
        for bucket in _buckets(chosen):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for parameter, gradient, part in zip(bucket, gradients, parts, strict=True):
                parameter.grad = gradient.copy_(part.view_as(gradient))


ALONE = Ranks()


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.numel() > _BUCKET_NUMBERS or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
