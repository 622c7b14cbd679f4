"""The graph in memory: what a log of events comes to, whatever the order in which it arrives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from freshet.store import kernels, pair_kernels
from freshet.store.attributes import KEY_MAX, NEVER_MS, TIME_MAX, Registers
from freshet.store.columns import (
    F32,
    I32,
    I64,
    U64,
    Bool,
    EventColumns,
    ProductAttributes,
    ProductColumns,
    ProfileColumns,
    PurchaseColumns,
    SessionColumns,
    UserAttributes,
    ViewColumns,
)
from freshet.store.copurchase import CoPurchases
from freshet.store.ids import IdMap, hash_ids
from freshet.store.lists import NeighborLists, doubled, grown
from freshet.store.sessions import SessionLists

NO_NODES: I32 = np.zeros(0, dtype=np.int32)

USER_LISTS = ("purchased", "viewed", "has_session")
"""Relations whose lists belong to users."""

PRODUCT_LISTS = ("purchased_by", "viewed_by", "co_purchased")
"""Relations whose lists belong to products."""


@dataclass(frozen=True)
class GraphLimits:
    """Entries kept for each node, by relation; more than a forward pass reads (cancelled ones keep their slot)."""

    purchased_max: int = 256
    viewed_max: int = 32
    purchased_by_max: int = 64
    viewed_by_max: int = 32
    co_purchased_max: int = 64
    sessions_max: int = 6
    session_items_max: int = 12
    partners_max: int = 16
    """Of a large order, the other lines each line is paired with."""


@dataclass
class Touched:
    """What a batch changed, in dense numbers, each array unique.

    `lists` maps a relation to the rows whose list changed; `users_x` and `products_x` had attributes
    written; `forgotten` have nothing left; `forgotten_ids` are their ids (the store has dropped them).
    """

    lists: dict[str, I32] = field(default_factory=dict)
    users_x: I32 = field(default_factory=lambda: NO_NODES)
    products_x: I32 = field(default_factory=lambda: NO_NODES)
    new_users: I32 = field(default_factory=lambda: NO_NODES)
    new_products: I32 = field(default_factory=lambda: NO_NODES)
    forgotten: I32 = field(default_factory=lambda: NO_NODES)
    forgotten_ids: list[str] = field(default_factory=list)

    def rows(self, *relations: str) -> I32:
        """Unique rows whose list changed in one of `relations`."""
        parts = [self.lists[r] for r in relations if r in self.lists]
        return np.unique(np.concatenate(parts)) if parts else NO_NODES


class GraphStore:
    """Users, products, sessions and the five relations between them, as a join-semilattice.

    Applying the same events twice, in another order or in other batches gives the same state. Work
    per event depends on the limits alone, not on how many nodes or events there are.
    """

    def __init__(self, limits: GraphLimits | None = None, product_lists: bool = True) -> None:
        """Without `product_lists` nothing is kept of who bought or viewed a product, nor of what with: for a worker
        of users, which is told the states of products."""
        self.limits = limits or GraphLimits()
        self.product_lists = product_lists
        self.keeps: Callable[[I32], Bool] | None = None
        """Of which products [n] lists are kept, [n] bool; None: of all."""
        m = self.limits
        self.users = IdMap()
        self.products = IdMap()
        self.devices = IdMap()
        self.purchased = NeighborLists(m.purchased_max)
        self.viewed = NeighborLists(m.viewed_max)
        self.purchased_by = NeighborLists(m.purchased_by_max)
        self.viewed_by = NeighborLists(m.viewed_by_max)
        self.co_purchased = CoPurchases(m.co_purchased_max)
        self.sessions = SessionLists(m.sessions_max, m.session_items_max)
        self.user_attributes: Registers[UserAttributes] = Registers()
        self.product_attributes: Registers[ProductAttributes] = Registers()
        self.forgotten_until: I64 = np.full(0, NEVER_MS, dtype=np.int64)
        self.forgotten_by_hash: dict[int, int] = {}
        self.event_time_max = NEVER_MS

    def intern_products(self, ids: list[str]) -> I32:
        """Numbers of products, adding those not seen before (a bundle names products, too)."""
        numbers = self.products.intern(ids)
        self._reserve()
        return numbers

    def apply(self, events: EventColumns) -> Touched:
        """Merge a batch into the state; returns what it changed."""
        touched = Touched()
        users_before, products_before = len(self.users), len(self.products)
        changed: dict[str, list[I32]] = {}
        self._apply_profiles(events.profiles, touched, changed)
        self._apply_products(events.products, touched)
        self._apply_views(events.views, changed)
        self._apply_purchases(events.purchases, changed)
        self._apply_sessions(events.sessions, changed)
        touched.lists = {r: np.unique(np.concatenate(rows)) for r, rows in changed.items()}
        touched.new_users = np.arange(users_before, len(self.users), dtype=np.int32)
        touched.new_products = np.arange(products_before, len(self.products), dtype=np.int32)
        rows = events.profiles
        asked = {name for name, value in zip(rows.user, rows.attributes, strict=True) if value is None}
        self.sweep_forgotten(asked, touched)
        return touched

    def merge(self, other: GraphStore) -> Touched:
        """Merge another graph into this one; see `merge_graphs`. Raises LimitsDiffer."""
        from freshet.store.merge import merge_graphs  # it is written in terms of this class

        return merge_graphs(self, other)

    def release(self, users: I32) -> None:
        """Drop all that is known of these users, without a trace: they are another worker's.

        Only without `product_lists`, which would name them. Their numbers are not given out again.
        """
        assert not self.product_lists, "products would list users who are gone"
        for user in users.tolist():  # once for each time that a partition moves away
            for lists in (self.purchased, self.viewed, self.sessions):
                lists.drop_until(user, TIME_MAX)
            self.users.forget(user)
        self.user_attributes.clear(users)
        self.forgotten_until[users] = NEVER_MS

    def is_withdrawn(self, products: I32) -> Bool:
        """[n] bool: the newest catalogue record of the product withdraws it."""
        values = self.product_attributes.take(products)
        written = self.product_attributes.time[products] != NEVER_MS
        withdrawn: Bool = written & np.array([v is None for v in values], dtype=np.bool_)
        return withdrawn

    # --- parts of apply -------------------------------------------------------------------------

    def intern_users(self, ids: list[str]) -> I32:
        """Numbers of users, adding those not seen before; one who was forgotten comes back forgotten."""
        before = len(self.users)
        numbers = self.users.intern(ids)
        self._reserve()
        if self.forgotten_by_hash:
            for number in range(before, len(self.users)):
                self._remember_forgetting(number)
        return numbers

    def _remember_forgetting(self, user: int) -> None:
        """A user who comes back under a new number is still forgotten up to the same time."""
        until_ms = self.forgotten_by_hash.get(int(self.users.hash[user]))
        if until_ms is not None:
            self.forgotten_until[user] = until_ms
            self.user_attributes.time[user] = until_ms
            self.user_attributes.key[user] = KEY_MAX

    def _reserve(self) -> None:
        """Room for the lists of all users and products, a power of two: growing copies every list."""
        users, products = doubled(len(self.users)), doubled(len(self.products))
        self.purchased.reserve(users, products)
        self.viewed.reserve(users, products)
        self.sessions.reserve(users, products)
        self.purchased_by.reserve(products, users)
        self.viewed_by.reserve(products, users)
        self.co_purchased.live.reserve(products, products)
        self.user_attributes.reserve(users)
        self.product_attributes.reserve(products)
        self.forgotten_until = grown(self.forgotten_until, users, NEVER_MS)

    def _apply_profiles(self, rows: ProfileColumns, touched: Touched, changed: dict[str, list[I32]]) -> None:
        if not rows.user:
            return
        users = self.intern_users(rows.user)
        touched.users_x = self.user_attributes.merge(users, rows.time, rows.key, list(rows.attributes))
        for i, attributes in enumerate(rows.attributes):
            if attributes is None:
                self.forget(int(users[i]), int(rows.time[i]), changed)

    def forget(self, user: int, until_ms: int, changed: dict[str, list[I32]]) -> None:
        """Drop what the user did up to and including `until_ms`; adds the rows it changed to `changed`."""
        if until_ms <= self.forgotten_until[user]:
            return
        self.forgotten_until[user] = until_ms
        own = np.array([user], dtype=np.int32)
        if self.purchased.drop_until(user, until_ms):
            changed.setdefault("purchased", []).append(own)
        if self.viewed.drop_until(user, until_ms):
            changed.setdefault("viewed", []).append(own)
        if self.sessions.drop_until(user, until_ms):
            changed.setdefault("has_session", []).append(own)
        changed.setdefault("purchased_by", []).append(self.purchased_by.anonymise(user, until_ms))
        changed.setdefault("viewed_by", []).append(self.viewed_by.anonymise(user, until_ms))

    def sweep_forgotten(self, asked: set[str], touched: Touched) -> None:
        """Drop the ids of those asked for, and of new users, who were forgotten and have nothing newer.

        A hash stays, to refuse late events. Writes `forgotten` and `forgotten_ids` of `touched`.
        """
        returned = touched.new_users[self.forgotten_until[touched.new_users] != NEVER_MS]
        asked.update(name for name in self.users.names(returned) if name is not None)
        gone = []
        for name in sorted(asked):
            user = self.users.get(name)
            if user is None or not self._is_bare(user):
                continue
            known_until = self.forgotten_by_hash.get(int(self.users.hash[user]), NEVER_MS)
            self.forgotten_by_hash[int(self.users.hash[user])] = max(known_until, int(self.forgotten_until[user]))
            self.users.forget(user)
            gone.append(user)
            touched.forgotten_ids.append(name)
        touched.forgotten = np.array(gone, dtype=np.int32)

    def _is_bare(self, user: int) -> bool:
        return (
            self.forgotten_until[user] != NEVER_MS
            and self.user_attributes[user] is None
            and not (self.purchased.length[user] or self.viewed.length[user] or self.sessions.length[user])
            # Where a graph holds the products of a snapshot alone, what is newer stands in their lists only.
            and self.purchased_by.first[user] < 0
            and self.viewed_by.first[user] < 0
        )

    def _apply_products(self, rows: ProductColumns, touched: Touched) -> None:
        if rows.product:
            products = self.intern_products(rows.product)
            touched.products_x = self.product_attributes.merge(products, rows.time, rows.key, list(rows.attributes))

    def _apply_views(self, rows: ViewColumns, changed: dict[str, list[I32]]) -> None:
        if not rows.user:
            return
        users, products = self.intern_users(rows.user), self.intern_products(rows.product)
        key = self._line_keys(rows.event_hash, users, products)
        flags = np.zeros(users.shape[0], dtype=np.uint8)
        self._merge_both(
            "viewed", self.viewed, self.viewed_by, users, products, rows.time, key, rows.dwell_s, flags, changed
        )

    def _apply_purchases(self, rows: PurchaseColumns, changed: dict[str, list[I32]]) -> None:
        if not rows.user:
            return
        users, products = self.intern_users(rows.user), self.intern_products(rows.product)
        key = self._line_keys(rows.event_hash, users, products)
        flags = rows.cancelled.astype(np.uint8)
        self._merge_both(
            "purchased", self.purchased, self.purchased_by, users, products, rows.time, key, rows.quantity,
            flags, changed,
        )  # fmt: skip
        if not self.product_lists:
            return
        src, dst, line, pair_key, flag = self._pairs(rows, products, key)
        if self.keeps is not None:
            here = self.keeps(src)
            src, dst, line, pair_key, flag = src[here], dst[here], line[here], pair_key[here], flag[here]
        if src.shape[0]:
            values = np.full(src.shape[0], np.nan, dtype=np.float32)
            new = self.co_purchased.live.merge(src, dst, rows.time[line], pair_key, values, flag)
            changed.setdefault("co_purchased", []).append(src[new])

    def _merge_both(
        self, relation: str, forward: NeighborLists, reverse: NeighborLists, users: I32, products: I32,
        time: I64, key: U64, value: F32, flags: np.ndarray, changed: dict[str, list[I32]],
    ) -> None:  # fmt: skip
        """An interaction goes into the user's list and into the product's.

        Of a user forgotten since, the product's entry keeps its slot without the user.
        """
        gone = time <= self.forgotten_until[users]
        kept = ~gone
        new = forward.merge(users[kept], products[kept], time[kept], key[kept], value[kept], flags[kept])
        changed.setdefault(relation, []).append(users[kept][new])
        self.event_time_max = max(self.event_time_max, int(time.max()))
        if not self.product_lists:
            return
        listed = np.where(gone, np.int32(-1), users)
        flags = np.where(gone, np.uint8(kernels.CANCELLED), flags)
        if self.keeps is not None:
            here = self.keeps(products)
            products, listed, flags = products[here], listed[here], flags[here]
            time, key, value = time[here], key[here], value[here]
        new = reverse.merge(products, listed, time, key, value, flags)
        changed.setdefault(f"{relation}_by", []).append(products[new])

    def _apply_sessions(self, rows: SessionColumns, changed: dict[str, list[I32]]) -> None:
        if not rows.user:
            return
        users, products = self.intern_users(rows.user), self.intern_products(rows.product)
        session_hash = hash_ids(rows.session)
        device = np.full(users.shape[0], -1, dtype=np.int32)
        for i, name in enumerate(rows.device):
            if name is not None:
                device[i] = self.devices.intern([name])[0]
        key = np.empty(users.shape[0], dtype=np.uint64)
        kernels.mix_keys(rows.event_hash, self.users.hash[users], session_hash, key)
        kept = np.flatnonzero(rows.time > self.forgotten_until[users])
        starts, product, position, click = _take_items(rows, products, kept)
        new = self.sessions.merge(
            users[kept], session_hash[kept], rows.time[kept], key[kept], device[kept], rows.duration_s[kept],
            starts, product, position, click,
        )  # fmt: skip
        changed.setdefault("has_session", []).append(users[kept][new])
        self.event_time_max = max(self.event_time_max, int(rows.time.max()))

    def _line_keys(self, event_hash: U64, users: I32, products: I32) -> U64:
        key = np.empty(users.shape[0], dtype=np.uint64)
        kernels.mix_keys(event_hash, self.users.hash[users], self.products.hash[products], key)
        return key

    def _pairs(self, rows: PurchaseColumns, products: I32, key: U64) -> tuple[I32, I32, I64, U64, np.ndarray]:
        sizes = np.diff(rows.order_start)
        room = int((sizes * np.minimum(self.limits.partners_max, np.maximum(sizes - 1, 0))).sum())
        src, dst = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
        line, pair_key = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.uint64)
        flag = np.empty(room, dtype=np.uint8)
        n = pair_kernels.order_pairs(
            rows.order_start, products, self.products.hash[products], key, rows.cancelled,
            self.limits.partners_max, src, dst, line, pair_key, flag,
        )  # fmt: skip
        return src[:n], dst[:n], line[:n], pair_key[:n], flag[:n]


def _take_items(rows: SessionColumns, products: I32, kept: I64) -> tuple[I64, I32, I32, np.ndarray]:
    """The items of the sessions in `kept`, as a CSR of their own."""
    if kept.shape[0] == rows.time.shape[0]:
        return rows.item_start, products, rows.position, rows.click
    sizes = np.diff(rows.item_start)[kept]
    starts = np.zeros(kept.shape[0] + 1, dtype=np.int64)
    np.cumsum(sizes, out=starts[1:])
    index = np.repeat(rows.item_start[:-1][kept] - starts[:-1], sizes) + np.arange(starts[-1])
    return starts, products[index], rows.position[index], rows.click[index]
