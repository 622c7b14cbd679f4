"""Sessions: for each user the K newest, each with the last S of its items.

A session is one value that the newest event of that session replaces whole, so its items never have to
be collected from several events, and a session that has left its user's list leaves nothing behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freshet.store import list_kernels, session_kernels
from freshet.store.columns import F32, I32, I64, U64
from freshet.store.dirty import DirtySet
from freshet.store.lists import grown, resized


@dataclass(frozen=True)
class SessionBlock:
    """Sessions of n users, newest first: `count` [n] int32 sessions each; `device` [n, k] int32 (-1 absent);
    `duration_s` [n, k] float32 (NaN absent); `nbr` [n, k, s] int32 products (-1 empty); `weight`
    [n, k, s] float32, summing to 1 over s (0 when the session has no items)."""

    count: I32
    device: I32
    duration_s: F32
    nbr: I32
    weight: F32


class SessionLists:
    """`capacity` sessions a user and `items` products a session, at most."""

    def __init__(self, capacity: int, items: int) -> None:
        self.capacity = capacity
        self.items = items
        self.order: NDArray[np.uint8] = np.zeros((0, capacity), dtype=np.uint8)
        self.length: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        self.session: U64 = np.zeros(0, dtype=np.uint64)
        self.time: I64 = np.zeros(0, dtype=np.int64)
        self.key: U64 = np.zeros(0, dtype=np.uint64)
        self.device: I32 = np.zeros(0, dtype=np.int32)
        self.duration_s: F32 = np.zeros(0, dtype=np.float32)
        self.item_count: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        self.nbr: I32 = np.zeros(0, dtype=np.int32)
        self.position: I32 = np.zeros(0, dtype=np.int32)
        self.click: NDArray[np.int8] = np.zeros(0, dtype=np.int8)
        self.nxt: I32 = np.zeros(0, dtype=np.int32)
        self.prv: I32 = np.zeros(0, dtype=np.int32)
        self.first: I32 = np.full(0, -1, dtype=np.int32)

    def reserve(self, users: int, products: int) -> None:
        """Make room for `users` rows and `products` neighbour nodes."""
        if users > self.length.shape[0]:
            self.length = grown(self.length, users)
            self.order = grown(self.order, users)
            slots = self.length.shape[0] * self.capacity
            if slots * self.items > 2**31 - 1:
                raise MemoryError(f"{users} users pass 2^31 session items")
            for name in ("session", "time", "key", "device", "duration_s", "item_count"):
                setattr(self, name, resized(getattr(self, name), slots))
            for name in ("nbr", "position", "click", "nxt", "prv"):
                setattr(self, name, resized(getattr(self, name), slots * self.items))
        self.first = grown(self.first, products, -1)

    def merge(
        self, users: I32, session: U64, times: I64, keys: U64, device: I32, duration_s: F32,
        item_start: I64, product: I32, position: I32, click: NDArray[np.int8],
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Merge m sessions; returns [m] bool, true where the user's list changed."""
        changed = np.empty(users.shape[0], dtype=np.bool_)
        if users.shape[0]:
            session_kernels.merge_sessions(
                users, session, times, keys, device, duration_s, item_start, product, position, click,
                self.capacity, self.items, self.order, self.length, self.session, self.time, self.key,
                self.device, self.duration_s, self.item_count, self.nbr, self.position, self.click, self.nxt,
                self.prv, self.first, changed,
            )  # fmt: skip
        return changed

    def recent(self, users: I32, num_sessions: int, num_items: int) -> SessionBlock:
        """The newest sessions of each user with the last items of each; a clicked item weighs double."""
        n = users.shape[0]
        block = SessionBlock(
            np.zeros(n, dtype=np.int32),
            np.full((n, num_sessions), -1, dtype=np.int32),
            np.full((n, num_sessions), np.nan, dtype=np.float32),
            np.full((n, num_sessions, num_items), -1, dtype=np.int32),
            np.zeros((n, num_sessions, num_items), dtype=np.float32),
        )
        session_kernels.gather_sessions(
            users, self.length, self.order, self.capacity, self.items, self.device, self.duration_s,
            self.item_count, self.nbr, self.click, block.count, block.device, block.duration_s, block.nbr,
            block.weight,
        )  # fmt: skip
        return block

    def mark_listers(self, products: I32, dirty: DirtySet) -> None:
        """Mark every user one of whose sessions holds one of `products`."""
        dirty.tail = list_kernels.mark_listers(
            products, self.capacity * self.items, self.nxt, self.first, dirty.member, dirty.queue, dirty.tail
        )

    def drop_until(self, user: int, until_ms: int) -> int:
        """Drop the user's sessions that are not newer than `until_ms`; returns how many."""
        return int(
            session_kernels.drop_sessions_until(
                user, until_ms, self.capacity, self.items, self.order, self.length, self.time, self.session,
                self.item_count, self.nbr, self.nxt, self.prv, self.first,
            )
        )  # fmt: skip
