"""Attributes of nodes as last-writer-wins registers by `(time, key)`."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

from freshet.store.columns import I32, I64, U64
from freshet.store.lists import grown

A = TypeVar("A")

NEVER_MS = -1
"""Time of a register that nobody wrote."""


TIME_MAX = 2**63 - 1
"""Later than any event."""

KEY_MAX = 2**64 - 1
"""Key of a write that takes the value back: at the same time it wins over any value."""


class Registers(Generic[A]):
    """One register a node; a register nobody wrote, or whose last write took the value back, holds None."""

    def __init__(self) -> None:
        self.time: I64 = np.full(0, NEVER_MS, dtype=np.int64)
        self.key: U64 = np.zeros(0, dtype=np.uint64)
        self._value: list[A | None] = []

    def reserve(self, nodes: int) -> None:
        """Make room for node numbers below `nodes`."""
        self.time = grown(self.time, nodes, NEVER_MS)
        self.key = grown(self.key, nodes)
        self._value.extend([None] * (nodes - len(self._value)))

    def merge(self, nodes: I32, times: I64, keys: U64, values: list[A | None]) -> I32:
        """Write n registers where `(time, key)` is greater; returns the nodes written (unique).

        A loop over records: attributes change a thousand times less often than lists do.
        """
        written: list[int] = []
        for i, (node, time, key) in enumerate(zip(nodes.tolist(), times.tolist(), keys.tolist(), strict=True)):
            if (time, key) > (int(self.time[node]), int(self.key[node])):
                self.time[node] = time
                self.key[node] = key
                self._value[node] = values[i]
                written.append(node)
        return np.unique(np.array(written, dtype=np.int32))

    def clear(self, nodes: I32) -> None:
        """Make these registers what nobody wrote."""
        self.time[nodes] = NEVER_MS
        self.key[nodes] = 0
        for node in nodes.tolist():
            self._value[node] = None

    def put(self, nodes: I32, times: I64, keys: U64, values: list[A | None]) -> I32:
        """`merge` for n nodes that all differ, many at a time; returns those written."""
        newer = (times > self.time[nodes]) | ((times == self.time[nodes]) & (keys > self.key[nodes]))
        newer &= times != NEVER_MS
        written: I32 = nodes[newer]
        self.time[written], self.key[written] = times[newer], keys[newer]
        for node, i in zip(written.tolist(), np.flatnonzero(newer).tolist(), strict=True):
            self._value[node] = values[i]
        return written

    def __getitem__(self, node: int) -> A | None:
        return self._value[node] if node < len(self._value) else None

    def take(self, nodes: I32) -> list[A | None]:
        """The values of `nodes`."""
        return [self._value[n] for n in nodes.tolist()]
