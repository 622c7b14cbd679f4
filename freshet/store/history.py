"""History: every interaction of a log sorted by time, so that any node can be read as it was at any moment.

The live lists keep the newest entries; training must ask for the newest *before the edge it predicts*. Here
nothing is evicted and a time bound shortens each list, then the same kernels gather from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshet.store import kernels, pair_kernels
from freshet.store.attributes import NEVER_MS, Registers
from freshet.store.columns import F32, I32, I64, U64, EventColumns, ProductAttributes, UserAttributes
from freshet.store.copurchase import FrozenCounts
from freshet.store.graph import GraphLimits
from freshet.store.ids import IdMap, hash_ids
from freshet.store.lists import Block, Gather, empty_block
from freshet.store.sessions import SessionBlock

NO_RING = 2**62
"""Capacity that no slice reaches: the kernels' rings never wrap in a history."""


@dataclass(frozen=True)
class Lines:
    """n distinct interactions sorted by `(time, event, key)`: `user`, `product` int32, `time` int64 ms, `event`
    and `key` uint64, `value` float32 (NaN absent), `flag` uint8 (1 cancelled)."""

    user: I32
    product: I32
    time: I64
    event: U64
    key: U64
    value: F32
    flag: NDArray[np.uint8]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Lines:
        """Some of the lines."""
        return Lines(*(column[rows] for column in vars(self).values()))


@dataclass(frozen=True)
class TimedLists:
    """One relation as a CSR: entries of row r are `ptr[r]:ptr[r + 1]`, sorted by `(time, key)`.

    `kept_max` is how many of them the live lists would hold.
    """

    ptr: I64
    nbr: I32
    time: I64
    value: F32
    flag: NDArray[np.uint8]
    kept_max: int

    @staticmethod
    def build(
        rows: I32, nbrs: I32, time: I64, key: U64, value: F32, flag: NDArray[np.uint8], size: int, kept_max: int
    ) -> TimedLists:
        """Sort n entries into `size` rows."""
        order = np.lexsort((key, time, rows))
        ptr = np.zeros(size + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=size), out=ptr[1:])
        return TimedLists(ptr, nbrs[order], time[order], value[order], flag[order], kept_max)

    def window(self, rows: I32, before_ms: I64, kept_max: int | None = None) -> tuple[I64, I64]:
        """Where the entries strictly older than `before_ms` [n] stand that a live list would hold (or one of
        `kept_max`): first place and length, [n] int64 each. Rows past the end are empty."""
        known = np.minimum(rows.astype(np.int64), self.ptr.shape[0] - 2)
        starts, ends = self.ptr[known], self.ptr[known + 1]
        ends = np.where(rows <= known, ends, starts)
        lengths = np.empty(rows.shape[0], dtype=np.int64)
        kernels.lengths_before(starts, ends, self.time, before_ms.astype(np.int64), lengths)
        kept = np.minimum(lengths, self.kept_max if kept_max is None else kept_max)
        return starts + lengths - kept, kept

    def recent(self, rows: I32, before_ms: I64, gather: Gather) -> Block:
        """The newest entries of each row strictly older than `before_ms` [n]."""
        block = empty_block(rows.shape[0], gather.num_neighbors)
        if self.ptr.shape[0] < 2:
            block.nbr[:], block.weight[:] = -1, 0.0
            return block
        first, lengths = self.window(rows, before_ms)
        kernels.gather_recent(
            first, np.zeros_like(lengths), lengths, NO_RING, self.nbr, self.time, self.value, self.flag,
            gather.half_life_ms, gather.weigh_value, gather.distinct, block.nbr, block.weight,
        )  # fmt: skip
        return block


@dataclass(frozen=True)
class PairHistory:
    """Co-purchases as they were at any time after `frozen.cut_ms`: frozen counts and the pairs since."""

    frozen: FrozenCounts
    since: TimedLists
    rank: U64

    def top(self, products: I32, before_ms: I64, k: int) -> Block:
        """The k most frequent partners of each product, of orders strictly older than `before_ms` [n]."""
        block = empty_block(products.shape[0], k)
        start, end = self.frozen.slices(products)
        first, lengths = self.since.window(products, before_ms)
        most = int((end - start).max(initial=0)) + int(lengths.max(initial=0))
        pair_kernels.top_frequent(
            first, np.zeros_like(lengths), lengths, NO_RING, self.since.nbr, self.since.time, self.since.flag,
            np.full(products.shape[0], self.frozen.cut_ms, dtype=np.int64), start, end, self.frozen.nbr,
            self.frozen.count, self.frozen.orders, self.rank, max(1, most), block.nbr, block.weight,
        )  # fmt: skip
        return block


@dataclass(frozen=True)
class TimedSessions:
    """Session events as a CSR over users, sorted by `(time, key)`; `until` is when a newer event of the same
    session replaced this one. `item_start` [m + 1] over `product`, `click`."""

    ptr: I64
    time: I64
    until: I64
    device: I32
    duration_s: F32
    item_start: I64
    product: I32
    click: NDArray[np.int8]

    def recent(self, users: I32, before_ms: I64, num_sessions: int, num_items: int) -> SessionBlock:
        """The newest sessions of each user as they stood strictly before `before_ms` [n].

        Looks at the last `8 * num_sessions` events of a user; a session replaced more often than that hides
        older ones.
        """
        n = users.shape[0]
        starts, ends = self.ptr[users], self.ptr[users + 1]
        lengths = np.empty(n, dtype=np.int64)
        kernels.lengths_before(starts, ends, self.time, before_ms.astype(np.int64), lengths)
        back = np.arange(1, 8 * num_sessions + 1)
        place = (starts + lengths)[:, None] - back
        inside = back <= lengths[:, None]
        place = np.where(inside, place, 0)
        if self.time.shape[0]:
            inside &= self.until[place] >= before_ms[:, None]
        counted = np.cumsum(inside, axis=1)
        row, column = np.nonzero(inside & (counted <= num_sessions))
        event, nth = place[row, column], counted[row, column] - 1
        block = SessionBlock(
            np.minimum(inside.sum(axis=1), num_sessions).astype(np.int32),
            np.full((n, num_sessions), -1, dtype=np.int32),
            np.full((n, num_sessions), np.nan, dtype=np.float32),
            np.full((n, num_sessions, num_items), -1, dtype=np.int32),
            np.zeros((n, num_sessions, num_items), dtype=np.float32),
        )
        block.device[row, nth] = self.device[event]
        block.duration_s[row, nth] = self.duration_s[event]
        for j in range(num_items):
            item = self.item_start[event + 1] - 1 - j
            some = np.flatnonzero(item >= self.item_start[event])
            block.nbr[row[some], nth[some], j] = self.product[item[some]]
            block.weight[row[some], nth[some], j] = np.where(self.click[item[some]] == 1, 2.0, 1.0)
        block.weight[:] /= np.maximum(block.weight.sum(axis=2, keepdims=True), 1e-30)
        return block


@dataclass
class History:
    """All interactions of a log, and the nodes they name. Build one with `History.of`.

    `purchases` and `views` are the lines themselves; `purchased`, `purchased_by`, `viewed`, `viewed_by` the
    same by user and by product; `sessions` by user. What forgotten users did is not in it.
    """

    limits: GraphLimits
    users: IdMap
    products: IdMap
    devices: IdMap
    user_attributes: Registers[UserAttributes]
    product_attributes: Registers[ProductAttributes]
    purchases: Lines
    views: Lines
    sessions: TimedSessions
    purchased: TimedLists = field(init=False)
    purchased_by: TimedLists = field(init=False)
    viewed: TimedLists = field(init=False)
    viewed_by: TimedLists = field(init=False)

    def __post_init__(self) -> None:
        m = self.limits
        self.purchased, self.purchased_by = self._both(self.purchases, m.purchased_max, m.purchased_by_max)
        self.viewed, self.viewed_by = self._both(self.views, m.viewed_max, m.viewed_by_max)

    @property
    def span_ms(self) -> tuple[int, int] | None:
        """Times of the first and the last purchase or view; None where there is neither."""
        times = [part.time for part in (self.purchases, self.views) if part.time.shape[0]]
        return (int(min(t[0] for t in times)), int(max(t[-1] for t in times))) if times else None

    @staticmethod
    def of(chunks: Iterable[EventColumns], limits: GraphLimits | None = None) -> History:
        """Read a log, in chunks of any size and order."""
        return _Reading(limits or GraphLimits()).read(chunks)

    def freeze(self, cut_ms: int, top_n: int = 32) -> FrozenCounts:
        """Pair counts of the orders with `time <= cut_ms`: the `top_n` partners of each product."""
        return self.freeze_each([cut_ms], top_n)[0]

    def freeze_each(self, cuts_ms: Sequence[int], top_n: int = 32) -> list[FrozenCounts]:
        """`freeze` at several times for little more than the price of the latest."""
        cuts = np.unique(np.array(cuts_ms, dtype=np.int64))
        src, dst, time, _, flag = self._pairs(-1, int(cuts.max(initial=-1)))
        size, steps = max(1, len(self.products)), cuts.shape[0] + 1
        there = flag == 0
        # One number for source, partner and the first cut that counts it: plain numbers are sorted fastest.
        step = np.searchsorted(cuts, time[there])
        cell = np.sort((src[there].astype(np.int64) * size + dst[there]) * steps + step)
        pair, first_cut = np.divmod(cell, steps)
        start = np.flatnonzero(np.diff(pair, prepend=-1, append=-1))
        source, partner = np.divmod(pair[start[:-1]], size)
        rows, partner = _row_starts(source, size), partner.astype(np.int32)
        found = {}
        for nth, cut in enumerate(cuts.tolist()):
            orders = self._orders(cut)
            root, hashes = np.sqrt(orders + np.float32(5.0)), self.products.hash
            count, kept = np.empty(partner.shape[0], dtype=np.int32), np.empty(partner.shape[0], dtype=np.bool_)
            pair_kernels.top_damped(rows, partner, start, first_cut, nth, root, hashes, top_n, count, kept)
            at = np.flatnonzero(kept)
            found[cut] = FrozenCounts(
                cut, _row_starts(source[at], size), partner[at], count[at].astype(np.float32), orders
            )
        return [found[int(cut)] for cut in cuts_ms]

    def _orders(self, cut_ms: int) -> F32:
        """In how many orders up to the cut each product was, [products] float32."""
        lines = self.purchases
        inside = (lines.time <= cut_ms) & (lines.flag == 0)
        return np.bincount(lines.product[inside], minlength=max(1, len(self.products))).astype(np.float32)

    def pairs_since(self, frozen: FrozenCounts, until_ms: int) -> PairHistory:
        """Co-purchases readable at any time in `(frozen.cut_ms, until_ms]`."""
        src, dst, time, key, flag = self._pairs(frozen.cut_ms, until_ms)
        value = np.full(src.shape[0], np.nan, dtype=np.float32)
        since = TimedLists.build(
            src, dst, time, key, value, flag, max(1, len(self.products)), self.limits.co_purchased_max
        )
        return PairHistory(frozen, since, self.products.hash)

    def _pairs(self, after_ms: int, until_ms: int) -> tuple[I32, I32, I64, U64, NDArray[np.uint8]]:
        """Source, partner, time, key and flag of the pairs with `after_ms < time <= until_ms`."""
        p = self.purchases
        a, b = np.searchsorted(p.time, [after_ms, until_ms], side="right")
        lines = p.take(np.arange(a, b))
        if b == a:
            return lines.user, lines.product, lines.time, lines.key, lines.flag
        new = (np.diff(lines.event) != 0) | (np.diff(lines.time) != 0) | (np.diff(lines.user) != 0)
        order_start = np.concatenate([[0], np.flatnonzero(new) + 1, [b - a]]).astype(np.int64)
        sizes, most = np.diff(order_start), self.limits.partners_max
        room = int((sizes * np.minimum(most, np.maximum(sizes - 1, 0))).sum())
        src, dst = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
        line, key = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.uint64)
        flag = np.empty(room, dtype=np.uint8)
        pair_kernels.order_pairs(
            order_start, lines.product, self.products.hash[lines.product], lines.key, lines.flag != 0, most,
            src, dst, line, key, flag,
        )  # fmt: skip
        return src, dst, lines.time[line], key, flag

    def _both(self, lines: Lines, forward_max: int, reverse_max: int) -> tuple[TimedLists, TimedLists]:
        rest = (lines.time, lines.key, lines.value, lines.flag)
        users, products = len(self.users), len(self.products)
        forward = TimedLists.build(lines.user, lines.product, *rest, users, forward_max)
        return forward, TimedLists.build(lines.product, lines.user, *rest, products, reverse_max)


class _Reading:
    """What `History.of` collects on its way through a log."""

    def __init__(self, limits: GraphLimits) -> None:
        self.limits = limits
        self.users, self.products, self.devices = IdMap(), IdMap(), IdMap()
        self.user_attributes: Registers[UserAttributes] = Registers()
        self.product_attributes: Registers[ProductAttributes] = Registers()
        self.forgotten_until: dict[int, int] = {}
        self.purchases: list[Lines] = []
        self.views: list[Lines] = []
        self.sessions: list[tuple[NDArray, ...]] = []  # type: ignore[type-arg]

    def read(self, chunks: Iterable[EventColumns]) -> History:
        for events in chunks:
            self._attributes(events)
            p, v = events.purchases, events.views
            flag = p.cancelled.astype(np.uint8)
            self.purchases.append(self._lines(p.user, p.product, p.time, p.event_hash, p.quantity, flag))
            none = np.zeros(len(v.user), dtype=np.uint8)
            self.views.append(self._lines(v.user, v.product, v.time, v.event_hash, v.dwell_s, none))
            self._sessions(events)
        self.user_attributes.reserve(len(self.users))
        self.product_attributes.reserve(len(self.products))
        until = np.full(len(self.users), NEVER_MS, dtype=np.int64)
        for user, time in self.forgotten_until.items():
            until[user] = time
        return History(
            self.limits, self.users, self.products, self.devices, self.user_attributes,
            self.product_attributes, _joined(self.purchases, until), _joined(self.views, until),
            self._timed_sessions(until),
        )  # fmt: skip

    def _attributes(self, events: EventColumns) -> None:
        rows = events.profiles
        users = self.users.intern(rows.user)
        self.user_attributes.reserve(len(self.users))
        self.user_attributes.merge(users, rows.time, rows.key, list(rows.attributes))
        for user, time, value in zip(users.tolist(), rows.time.tolist(), rows.attributes, strict=True):
            if value is None:
                self.forgotten_until[user] = max(time, self.forgotten_until.get(user, NEVER_MS))
        products = self.products.intern(events.products.product)
        self.product_attributes.reserve(len(self.products))
        self.product_attributes.merge(
            products, events.products.time, events.products.key, list(events.products.attributes)
        )

    def _lines(
        self, user: Sequence[str], product: Sequence[str], time: I64, event: U64, value: F32, flag: NDArray[np.uint8]
    ) -> Lines:
        users, products = self.users.intern(user), self.products.intern(product)
        key = np.empty(users.shape[0], dtype=np.uint64)
        kernels.mix_keys(event, self.users.hash[users], self.products.hash[products], key)
        return Lines(users, products, time, event, key, value, flag)

    def _sessions(self, events: EventColumns) -> None:
        s = events.sessions
        users, session = self.users.intern(s.user), hash_ids(s.session)
        device = np.array(
            [-1 if d is None else self.devices.intern([d])[0] for d in s.device], dtype=np.int32
        )  # a loop over sessions: devices have few names
        key = np.empty(users.shape[0], dtype=np.uint64)
        kernels.mix_keys(s.event_hash, self.users.hash[users], session, key)
        sizes = np.diff(s.item_start)
        self.sessions.append(
            (users, session, s.time, key, device, s.duration_s, sizes, self.products.intern(s.product), s.click)
        )

    def _timed_sessions(self, until: I64) -> TimedSessions:
        columns = [np.concatenate(c) for c in zip(*self.sessions, strict=True)] if self.sessions else None
        if columns is None:
            columns = [np.zeros(0, t) for t in ("i4", "u8", "i8", "u8", "i4", "f4", "i8", "i4", "i1")]
        users, session, time, key, device, duration, sizes, product, click = columns
        start = np.cumsum(sizes) - sizes
        order = np.lexsort((key, time, session, users))
        same = (np.diff(users[order]) == 0) & (np.diff(session[order]) == 0)
        replaced = np.full(order.shape[0], np.iinfo(np.int64).max)
        replaced[order[:-1][same]] = time[order[1:][same]]
        order = np.lexsort((key, time, users))
        order = order[time[order] > until[users[order]]]
        taken = np.minimum(sizes[order], self.limits.session_items_max)
        item_start = np.concatenate([[0], np.cumsum(taken)]).astype(np.int64)
        item = np.repeat(start[order] + sizes[order] - taken - item_start[:-1], taken) + np.arange(item_start[-1])
        ptr = np.zeros(len(self.users) + 1, dtype=np.int64)
        np.cumsum(np.bincount(users[order], minlength=len(self.users)), out=ptr[1:])
        return TimedSessions(
            ptr, time[order], replaced[order], device[order], duration[order], item_start, product[item], click[item]
        )


def _row_starts(rows: NDArray[Any], size: int) -> I64:
    """`ptr` [size + 1] of a CSR whose entries are in `rows`."""
    ptr = np.zeros(size + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=size), out=ptr[1:])
    return ptr


def _joined(parts: list[Lines], forgotten_until: I64) -> Lines:
    """Distinct lines in order of `(time, event, key)`: flags of copies are OR-ed, the greatest value is kept."""
    if not parts:
        kinds = ("i4", "i4", "i8", "u8", "u8", "f4", "u1")
        return Lines(*(np.zeros(0, kind) for kind in kinds))
    lines = Lines(*(np.concatenate(c) for c in zip(*(vars(p).values() for p in parts), strict=True)))
    lines = lines.take(lines.time > forgotten_until[lines.user])
    lines = lines.take(np.lexsort((lines.key, lines.event, lines.time)))
    if not lines.user.shape[0]:
        return lines
    new = (np.diff(lines.key) != 0) | (np.diff(lines.event) != 0) | (np.diff(lines.time) != 0)
    first = np.concatenate([[0], np.flatnonzero(new) + 1])
    flag = np.bitwise_or.reduceat(lines.flag, first)
    value = np.fmax.reduceat(lines.value, first)
    one = lines.take(first)
    return Lines(one.user, one.product, one.time, one.event, one.key, value, flag)
