"""Sets of nodes that are due for work, in the order in which they became due."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freshet.store import kernels
from freshet.store.columns import I32


class DirtySet:
    """A queue of distinct nodes; a node added again while it waits keeps its place."""

    def __init__(self) -> None:
        self.member: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.queue: I32 = np.zeros(1, dtype=np.int32)
        self.head = 0
        self.tail = 0

    def __len__(self) -> int:
        return self.tail - self.head

    def reserve(self, nodes: int) -> None:
        """Make room for node numbers below `nodes`."""
        if nodes <= self.member.shape[0]:
            return
        size = max(nodes, 2 * self.member.shape[0], 1024)
        waiting = self._places(self.tail - self.head)
        member = np.zeros(size, dtype=np.bool_)
        member[: self.member.shape[0]] = self.member
        queue = np.zeros(size, dtype=np.int32)
        queue[: waiting.shape[0]] = waiting
        self.member, self.queue, self.head, self.tail = member, queue, 0, waiting.shape[0]

    def add(self, nodes: I32) -> None:
        """Add nodes [n] int32; those already waiting stay where they are."""
        if nodes.shape[0]:
            self.tail = kernels.mark(nodes, self.member, self.queue, self.tail)

    def take(self, count: int | None = None) -> I32:
        """Remove and return up to `count` nodes (all by default), longest waiting first."""
        n = len(self) if count is None else min(count, len(self))
        nodes = self._places(n)
        self.head += n
        self.member[nodes] = False
        return nodes

    def _places(self, n: int) -> I32:
        places: I32 = self.queue[np.arange(self.head, self.head + n) % self.queue.shape[0]]
        return places
