"""Training by several processes: who they are, and what they tell each other besides gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Peers:
    """This process is number `rank` of `size` that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what there is to write."""
        return self.rank == 0

    def share(self, batches: Sequence[T]) -> list[T]:
        """This process's part of an epoch's batches, equally many for each; the few that are left over wait for another
        epoch, which orders them anew. All of them where there are fewer than processes."""
        if len(batches) < self.size:
            return list(batches)
        return list(batches[: len(batches) - len(batches) % self.size][self.rank :: self.size])

    def agreed(self, value: float) -> float:
        """The first process's value: clocks differ, and all must stop at the same step."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            told = told.cuda()
        distributed.broadcast(told, src=0)
        return float(told.item())

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()

    def averaged(self, model: nn.Module) -> nn.Module:
        """The model, with gradients that are the mean over all processes."""
        return DistributedDataParallel(model, find_unused_parameters=True) if self.size > 1 else model


@contextmanager
def joined() -> Iterator[Peers]:
    """The processes that `torchrun` started, this one alone where it did not. Gloo on CPUs, NCCL on GPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Peers()
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Peers(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
