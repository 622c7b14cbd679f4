"""The past as a system sees it: which products each user bought, how often and when last, and what is popular."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freshet.model.config import DAY_MS
from freshet.model.evaluation.targets import TargetsOf, lines_of
from freshet.store.columns import F32, I32, I64
from freshet.store.history import History, Lines


@dataclass(frozen=True)
class Past:
    """Interactions before `at_ms` as a CSR over all users: `ptr` [users + 1] int64 over the distinct `product` int32 of
    each, with `count` float32 and the newest time `last_ms` int64. `lines` are the single interactions, and
    `entry` [lines] says which entry each belongs to; `size` is the number of products."""

    at_ms: int
    size: int
    ptr: I64
    product: I32
    count: F32
    last_ms: I64
    lines: Lines
    entry: I64

    @staticmethod
    def of(history: History, at_ms: int, what: TargetsOf = "purchases") -> Past:
        """Everything before `at_ms`, cancelled lines left out. The last few asked for are remembered: all systems of a
        run ask for the same ones."""
        for known, key, past in _RECENT:
            if known is history and key == (at_ms, what):
                return past
        past = Past._read(history, at_ms, what)
        _RECENT.insert(0, (history, (at_ms, what), past))
        del _RECENT[2:]
        return past

    @staticmethod
    def _read(history: History, at_ms: int, what: TargetsOf) -> Past:
        size = max(1, len(history.products))
        lines = lines_of(history, what)
        lines = lines.take(np.arange(int(np.searchsorted(lines.time, at_ms))))
        pair, entry, count = np.unique(
            lines.user.astype(np.int64) * size + lines.product, return_inverse=True, return_counts=True
        )
        last = np.zeros(pair.shape[0], dtype=np.int64)
        np.maximum.at(last, entry, lines.time)
        ptr = np.searchsorted(pair // size, np.arange(len(history.users) + 1))
        product, counted = (pair % size).astype(np.int32), count.astype(np.float32)
        return Past(at_ms, len(history.products), ptr, product, counted, last, lines, entry)

    def decayed(self, half_life_days: float) -> F32:
        """Interactions of each entry, each worth half after `half_life_days`, [entries] float32."""
        age = (self.at_ms - self.lines.time) / DAY_MS
        found = np.bincount(self.entry, 2.0 ** (-age / half_life_days), minlength=self.product.shape[0])
        return found.astype(np.float32)

    def places(self, users: I32) -> tuple[I64, I64]:
        """Row and entry of everything that `users` [q] did, [n] int64 each, sorted by row."""
        sizes = np.diff(self.ptr)[users]
        row = np.repeat(np.arange(users.shape[0]), sizes)
        start = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if users.shape[0] else sizes
        return row, np.repeat(self.ptr[users] - start, sizes) + np.arange(row.shape[0])

    def dense(self, users: I32, value: F32) -> F32:
        """`value` [entries] of `users` [q] as a matrix, [q, products] float32, zero elsewhere."""
        row, entry = self.places(users)
        out = np.zeros((users.shape[0], self.size), dtype=np.float32)
        out[row, self.product[entry]] = value[entry]
        return out


_RECENT: list[tuple[History, tuple[int, TargetsOf], Past]] = []


def rate(history: History, at_ms: int, days: float | None = 30.0, what: TargetsOf = "purchases") -> F32:
    """Interactions of each product in the `days` before `at_ms` (None: ever), [products] float32."""
    lines = Past.of(history, at_ms, what).lines
    first = 0 if days is None else int(np.searchsorted(lines.time, at_ms - days * DAY_MS))
    return np.bincount(lines.product[first:], minlength=len(history.products)).astype(np.float32)
