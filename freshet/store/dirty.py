"""Sets of nodes that are due for work, in the order in which they became due."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freshet.store import kernels
from freshet.store.columns import I32


class DirtySet:
    """A queue of distinct nodes. A node added twice keeps its first place, so waits are bounded.

    `oldest_ms` is when the node now at the front was added, to the accuracy of one `stamp` a batch.
    """

    def __init__(self) -> None:
        self.member: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.queue: I32 = np.zeros(0, dtype=np.int32)
        self.head = 0
        self.tail = 0
        self._stamps: list[tuple[int, float]] = []

    def __len__(self) -> int:
        return self.tail - self.head

    def reserve(self, nodes: int) -> None:
        """Make room for node numbers below `nodes`."""
        if nodes <= self.member.shape[0]:
            return
        size = max(nodes, 2 * self.member.shape[0], 1024)
        waiting = self.queue[np.arange(self.head, self.tail) % max(1, self.queue.shape[0])]
        member = np.zeros(size, dtype=np.bool_)
        member[: self.member.shape[0]] = self.member
        queue = np.zeros(size, dtype=np.int32)
        queue[: waiting.shape[0]] = waiting
        shift = self.head
        self._stamps = [(place - shift, at) for place, at in self._stamps]
        self.member, self.queue, self.head, self.tail = member, queue, 0, waiting.shape[0]

    def add(self, nodes: I32) -> None:
        """Add nodes [n] int32; those already waiting stay where they are."""
        if nodes.shape[0]:
            self.tail = kernels.mark(nodes, self.member, self.queue, self.tail)

    def stamp(self, now_ms: float) -> None:
        """Note that everything added since the last stamp was added at `now_ms`."""
        if not self._stamps or self._stamps[-1][0] < self.tail:
            if len(self):
                self._stamps.append((self.tail, now_ms))

    def oldest_ms(self) -> float | None:
        """When the front node was added; None when nothing waits."""
        while self._stamps and self._stamps[0][0] <= self.head:
            self._stamps.pop(0)
        if not len(self):
            return None
        return self._stamps[0][1] if self._stamps else None

    def take(self, count: int) -> I32:
        """Remove and return up to `count` nodes, longest waiting first."""
        n = min(count, len(self))
        nodes = self.queue[np.arange(self.head, self.head + n) % max(1, self.queue.shape[0])]
        self.head += n
        self.member[nodes] = False
        return nodes
