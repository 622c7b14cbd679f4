"""Neighbour lists: for each node and one relation, the K newest entries by `(time, key)`.

Merging is top-K of the union, so lists are a join-semilattice: the order, the batches and the number of
times in which entries arrive do not matter.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshet.store import kernels, list_kernels
from freshet.store.columns import F32, I32, I64, U64, Bool
from freshet.store.dirty import DirtySet

ROWS_MIN = 1024
"""Rows (and neighbour nodes) allocated at first; both grow by doubling."""
SMALL_PAGES_FROM = 4 * 2**20
"""Bytes of an array from which on NumPy would ask for huge pages."""


@dataclass(frozen=True)
class Block:
    """Neighbours of n nodes: `nbr` [n, k] int32 (-1 empty), `weight` [n, k] float32, rows summing to 1 or 0."""

    nbr: I32
    weight: F32


@dataclass(frozen=True)
class Gather:
    """How one relation is read: `num_neighbors` newest entries, weighted by age and value.

    `half_life_ms` 0 turns age off; ages are relative to the list's own newest entry. `weigh_value`
    multiplies by `1 + log1p(value)` where the value (a quantity, seconds of dwell) is there. `distinct` takes of
    each neighbour the newest entry only.
    """

    num_neighbors: int
    half_life_ms: float = 0.0
    weigh_value: bool = False
    distinct: bool = False


def grown(array: NDArray, size: int, fill: float | int = 0) -> NDArray:  # type: ignore[type-arg]
    """`array` with room for `size` rows (at least doubled), new rows set to `fill`."""
    if size <= array.shape[0]:
        return array
    rows = max(size, 2 * array.shape[0], ROWS_MIN)
    shape = rows, *array.shape[1:]
    # Of zeros, memory is touched when it is used and not before: a table of a million users is half a gigabyte.
    out = np.full(shape, fill, dtype=array.dtype) if fill else np.zeros(shape, dtype=array.dtype)
    out[: array.shape[0]] = array
    return out


def doubled(size: int) -> int:
    """`ROWS_MIN` doubled until it is no less than `size`; 0 for 0."""
    return max(ROWS_MIN, 1 << (size - 1).bit_length()) if size else 0


class NeighborLists:
    """The lists of one relation: `capacity` entries a row at most, and the threads of who lists whom."""

    def __init__(self, capacity: int) -> None:
        if not 1 <= capacity <= 65_535:
            raise ValueError(f"capacity must be between 1 and 65535, not {capacity}")
        self.capacity = capacity
        self.head = np.zeros(0, dtype=np.uint16)
        self.length = np.zeros(0, dtype=np.uint16)
        self.nbr = np.zeros(0, dtype=np.int32)
        self.time = np.zeros(0, dtype=np.int64)
        self.key = np.zeros(0, dtype=np.uint64)
        self.value = np.zeros(0, dtype=np.float32)
        self.flag = np.zeros(0, dtype=np.uint8)
        self.nxt = np.zeros(0, dtype=np.int32)
        self.prv = np.zeros(0, dtype=np.int32)
        self.first = np.full(0, -1, dtype=np.int32)

    def reserve(self, rows: int, nodes: int) -> None:
        """Make room for `rows` rows and `nodes` neighbour nodes."""
        if rows > self.length.shape[0]:
            self.length = grown(self.length, rows)
            self.head = grown(self.head, rows)
            slots = self.length.shape[0] * self.capacity
            if slots > 2**31 - 1:
                raise MemoryError(f"{rows} rows of {self.capacity} entries pass 2^31 slots of one relation")
            for name in ("nbr", "time", "key", "value", "flag", "nxt", "prv"):
                setattr(self, name, resized(getattr(self, name), slots))
        self.first = grown(self.first, nodes, -1)

    def merge(self, rows: I32, nbrs: I32, times: I64, keys: U64, values: F32, flags: NDArray[np.uint8]) -> Bool:
        """Merge n entries; returns [n] bool, true where the entry changed its row."""
        changed = np.empty(rows.shape[0], dtype=np.bool_)
        if rows.shape[0]:
            list_kernels.merge_entries(
                rows, nbrs, times, keys, values, flags, self.capacity, self.head, self.length, self.nbr,
                self.time, self.key, self.value, self.flag, self.nxt, self.prv, self.first, changed,
            )  # fmt: skip
        return changed

    def recent(self, rows: I32, gather: Gather) -> Block:
        """The newest entries of each row that count; see `Gather`."""
        block = empty_block(rows.shape[0], gather.num_neighbors)
        known = rows.astype(np.int64)
        kernels.gather_recent(
            known * self.capacity, self.head[rows], self.length[rows], self.capacity, self.nbr, self.time,
            self.value, self.flag, gather.half_life_ms, gather.weigh_value, gather.distinct, block.nbr, block.weight,
        )  # fmt: skip
        return block

    def mark_listers(self, nodes: I32, dirty: DirtySet) -> None:
        """Mark every row that lists one of `nodes`."""
        dirty.tail = list_kernels.mark_listers(
            nodes, self.capacity, self.nxt, self.first, dirty.member, dirty.queue, dirty.tail
        )

    def drop_until(self, row: int, until_ms: int) -> int:
        """Drop the entries of `row` that are not newer than `until_ms`; returns how many."""
        return int(
            list_kernels.drop_until(
                row, until_ms, self.capacity, self.head, self.length, self.time, self.nbr, self.nxt, self.prv,
                self.first,
            )
        )  # fmt: skip

    def anonymise(self, node: int, until_ms: int) -> I32:
        """Take `node` out of the entries not newer than `until_ms`; returns the rows changed (unique)."""
        out = np.empty(list_kernels.thread_length(node, self.nxt, self.first), dtype=np.int32)
        count = list_kernels.anonymise(
            node, until_ms, self.capacity, self.time, self.flag, self.nbr, self.nxt, self.prv, self.first, out
        )
        return np.unique(out[:count])

    def slots_of(self, row: int) -> NDArray[np.int64]:
        """Slot numbers of a row's entries, newest first."""
        order = np.arange(int(self.length[row]) - 1, -1, -1, dtype=np.int64)
        return int(row) * self.capacity + (int(self.head[row]) + order) % self.capacity


def empty_block(n: int, k: int) -> Block:
    return Block(np.empty((n, k), dtype=np.int32), np.empty((n, k), dtype=np.float32))


def resized(array: NDArray, size: int) -> NDArray:  # type: ignore[type-arg]
    """`array` [n] in the first places of a new one [size], zeros in the others."""
    out = _zeros(size, array.dtype)
    out[: array.shape[0]] = array
    return out


def _zeros(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros in pages of the usual size. NumPy asks for huge ones, of which the first touch of a row fetches two
    megabytes: a large shop's lists are filled row by row, all over the place (`docs/decisions/state.md`)."""
    if size * dtype.itemsize < SMALL_PAGES_FROM:
        return np.zeros(size, dtype=dtype)
    pages = mmap.mmap(-1, size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that knows of no huge pages refuses
        pages.madvise(mmap.MADV_NOHUGEPAGE)  # its setting may be `always`
    return np.frombuffer(pages, dtype=dtype)
