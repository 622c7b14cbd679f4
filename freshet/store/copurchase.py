"""Co-purchases: counts frozen in the bundle plus the newest live entries of each product.

`frequency` is a frozen count of all history up to the cut plus the number of live entries after it;
counting without counters, so that applying an order twice changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from freshet.store import pair_kernels
from freshet.store.columns import F32, I32, I64, U64
from freshet.store.dirty import DirtySet
from freshet.store.lists import Block, NeighborLists, empty_block


@dataclass(frozen=True)
class FrozenCounts:
    """Pair counts of the history up to `cut_ms`, the top N partners of each product.

    CSR over products: `ptr` [products + 1] int64, `nbr` [n] int32, `count` [n] float32; `orders` [m] float32 is
    in how many orders each product was. A product with a number past the end of `ptr` or `orders` has none.
    """

    cut_ms: int
    ptr: I64
    nbr: I32
    count: F32
    orders: F32

    @staticmethod
    def none() -> FrozenCounts:
        """No history: every live entry counts."""
        return FrozenCounts(
            -1, np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32),
            np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.float32),
        )  # fmt: skip

    def slices(self, products: I32) -> tuple[I64, I64]:
        """Start and end of each product's partners, [n] int64 each."""
        last = self.ptr.shape[0] - 1
        known = np.minimum(products.astype(np.int64), last)
        start = self.ptr[known]
        return start, np.where(products < last, self.ptr[np.minimum(known + 1, last)], start)

    def listers(self) -> tuple[I64, I32]:
        """The transposed CSR: for each product, which products hold it as a partner."""
        sources = np.repeat(np.arange(self.ptr.shape[0] - 1, dtype=np.int32), np.diff(self.ptr))
        size = int(max(self.ptr.shape[0] - 1, self.nbr.max(initial=-1) + 1))
        order = np.argsort(self.nbr, kind="stable")
        ptr = np.zeros(size + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.nbr, minlength=size), out=ptr[1:])
        return ptr, sources[order]


def top_frequent(
    lists: NeighborLists, starts: I64, heads: Any, lengths: Any, products: I32, counts: FrozenCounts, rank: U64, k: int
) -> Block:
    """The k most frequent partners; `starts`, `heads`, `lengths` [n] say where each list's entries stand."""
    block = empty_block(products.shape[0], k)
    start, end = counts.slices(products)
    most_frozen = int((end - start).max(initial=0))
    most_live = int(lengths.max(initial=0))
    pair_kernels.top_frequent(
        starts, heads, lengths, lists.capacity, lists.nbr, lists.time, lists.flag,
        np.full(products.shape[0], counts.cut_ms, dtype=np.int64), start, end, counts.nbr, counts.count,
        counts.orders, rank, max(1, most_frozen + most_live), block.nbr, block.weight,
    )  # fmt: skip
    return block


class CoPurchases:
    """Live pairs in lists of `capacity` entries, joined with the frozen counts of the bundle in use."""

    def __init__(self, capacity: int) -> None:
        self.live = NeighborLists(capacity)
        self.frozen = FrozenCounts.none()
        self._listers = self.frozen.listers()

    def freeze(self, counts: FrozenCounts) -> None:
        """Use these counts from now on."""
        self.frozen = counts
        self._listers = counts.listers()

    def top(self, products: I32, rank: U64, k: int) -> Block:
        """The k most frequent partners of each product; ties by `rank` [products] uint64."""
        starts = products.astype(np.int64) * self.live.capacity
        heads, lengths = self.live.head[products], self.live.length[products]
        return top_frequent(self.live, starts, heads, lengths, products, self.frozen, rank, k)

    def mark_listers(self, products: I32, dirty: DirtySet) -> None:
        """Mark every product that holds one of `products` as a partner, live or frozen."""
        self.live.mark_listers(products, dirty)
        ptr, rows = self._listers
        dirty.tail = pair_kernels.mark_frozen_listers(products, ptr, rows, dirty.member, dirty.queue, dirty.tail)
