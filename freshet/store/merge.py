"""Merging two graphs: the state that one graph would have, fed with the events of both.

State is a join-semilattice, so what one graph keeps is inserted into the other by the operations that
insert events: lists as top-K of the union, sessions by their newest event, attributes by last writer. Ids
are numbered by each graph for itself, so numbers are translated first. What either graph has forgotten
stays forgotten: `forgotten_until` is joined before any entry crosses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store import kernels, list_kernels
from freshet.store.attributes import KEY_MAX, NEVER_MS
from freshet.store.columns import F32, I32, I64, U64, Bool, ProductAttributes, UserAttributes
from freshet.store.graph import USER_LISTS, GraphLimits, GraphStore, Touched
from freshet.store.ids import IdMap
from freshet.store.lists import NeighborLists
from freshet.store.sessions import SessionLists

ROWS_AT_A_TIME = 16_384
"""Rows whose entries are copied out at a time: bounds the memory of a merge to a few tens of MB."""


class LimitsDiffer(FreshetError):
    """Two graphs keep lists of different lengths, so neither holds what the other would have kept."""


@dataclass(frozen=True)
class Entries:
    """n entries of neighbour lists, those of a row adjacent and oldest first: `row`, `nbr` (-1 forgotten) int32,
    `time` int64 ms, `key` uint64, `value` float32 (NaN absent), `flag` uint8."""

    row: I32
    nbr: I32
    time: I64
    key: U64
    value: F32
    flag: NDArray[np.uint8]


@dataclass(frozen=True)
class SessionEntries:
    """m sessions, oldest first within a user, with n items: `user`, `device` (-1 absent) [m] int32; `session`,
    `key` [m] uint64; `time` [m] int64 ms; `duration_s` [m] float32; `item_start` [m + 1] int64 (CSR);
    `product`, `position` [n] int32; `click` [n] int8."""

    user: I32
    session: U64
    time: I64
    key: U64
    device: I32
    duration_s: F32
    item_start: I64
    product: I32
    position: I32
    click: NDArray[np.int8]

    def take(self, kept: I64) -> SessionEntries:
        """These sessions alone."""
        starts, items = _items(self.item_start[kept], np.diff(self.item_start)[kept])
        return SessionEntries(
            self.user[kept], self.session[kept], self.time[kept], self.key[kept], self.device[kept],
            self.duration_s[kept], starts, self.product[items], self.position[items], self.click[items],
        )  # fmt: skip


def entries_of(lists: NeighborLists, rows: I32) -> Entries:
    """Copies of the entries in these rows."""
    n = int(lists.length[rows].sum())
    out = Entries(
        np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int64), np.empty(n, np.uint64),
        np.empty(n, np.float32), np.empty(n, np.uint8),
    )  # fmt: skip
    list_kernels.copy_entries(
        rows, lists.capacity, lists.head, lists.length, lists.nbr, lists.time, lists.key, lists.value, lists.flag,
        out.row, out.nbr, out.time, out.key, out.value, out.flag,
    )  # fmt: skip
    return out


def sessions_of(lists: SessionLists, users: I32) -> SessionEntries:
    """Copies of the sessions of these users."""
    which, place = _ragged(lists.length[users])
    user = users[which]
    slot = user.astype(np.int64) * lists.capacity + lists.order[user, place]
    starts, items = _items(slot * lists.items, lists.item_count[slot])
    return SessionEntries(
        user, lists.session[slot], lists.time[slot], lists.key[slot], lists.device[slot], lists.duration_s[slot],
        starts, lists.nbr[items], lists.position[items], lists.click[items],
    )  # fmt: skip


def merge_graphs(graph: GraphStore, other: GraphStore) -> Touched:
    """Merge `other` into `graph`, which then is what it would be had it been fed the events of both as well.

    `other` stays as it is. Of co-purchases the live entries are merged; the frozen counts belong to a bundle,
    and `graph` keeps those it has. Returns what changed in `graph`. Raises LimitsDiffer.
    """
    check_limits(graph.limits, other.limits)
    merge = Merge(graph)
    users, products = _numbers(other.users), _numbers(other.products)
    names = other.users.names(users)
    named = users[np.array([name is not None for name in names], dtype=np.bool_)]
    merge.name_users(named, [name for name in names if name is not None])
    merge.name_products(products, other.products.all_names())
    merge.name_devices(_numbers(other.devices), other.devices.all_names())
    mine, theirs = other.user_attributes, other.product_attributes
    merge.user_attributes(named, mine.time[named], mine.key[named], mine.take(named))
    merge.product_attributes(products, theirs.time[products], theirs.key[products], theirs.take(products))
    merge.forgotten(named, other.forgotten_until[named])
    merge.forgotten_hashes(dict(other.forgotten_by_hash))
    for relation in ("purchased", "viewed", "purchased_by", "viewed_by", "co_purchased"):
        lists = lists_of(other, relation)
        for rows in _pieces(users if relation in USER_LISTS else products):
            merge.entries(relation, entries_of(lists, rows))
    for rows in _pieces(users):
        merge.sessions(sessions_of(other.sessions, rows))
    graph.event_time_max = max(graph.event_time_max, other.event_time_max)
    return merge.touched()


def lists_of(graph: GraphStore, relation: str) -> NeighborLists:
    """The lists of a relation by its name; of co-purchases the live ones."""
    lists: NeighborLists = graph.co_purchased.live if relation == "co_purchased" else getattr(graph, relation)
    return lists


def check_limits(ours: GraphLimits, theirs: GraphLimits) -> None:
    """Raises LimitsDiffer, naming the limits that differ."""
    differing = [
        f"{f.name} is {getattr(ours, f.name)} in one and {getattr(theirs, f.name)} in the other"
        for f in fields(GraphLimits)
        if getattr(ours, f.name) != getattr(theirs, f.name)
    ]
    if differing:
        raise LimitsDiffer(
            f"graphs of different limits cannot be merged ({'; '.join(differing)}): build one of them again from "
            "its events, with the limits of the other"
        )


class Merge:
    """A merge into `graph` under way: what foreign numbers mean here, and what has changed so far.

    Names come first, then what is forgotten, then the rest in any order, in pieces of any size; a number of a user
    without a name is nobody's.
    """

    def __init__(self, graph: GraphStore) -> None:
        self.graph = graph
        self.users_before, self.products_before = len(graph.users), len(graph.products)
        self.user_of = self.product_of = self.device_of = np.full(1, -1, dtype=np.int32)
        self.changed: dict[str, list[I32]] = {}
        self.users_x: list[I32] = []
        self.products_x: list[I32] = []

    def name_users(self, numbers: I32, names: list[str]) -> None:
        """These users' foreign numbers [n] and their ids."""
        self.user_of = _with(self.user_of, numbers, self.graph.intern_users(names))

    def name_products(self, numbers: I32, names: list[str]) -> None:
        """These products' foreign numbers [n] and their ids."""
        self.product_of = _with(self.product_of, numbers, self.graph.intern_products(names))
        if self.graph.keeps is not None:
            self.graph.keeps(numbers[:0])  # it takes note of new ones here, and not where lists are merged side by side

    def name_devices(self, numbers: I32, names: list[str]) -> None:
        """These devices' foreign numbers [n] and their names."""
        self.device_of = _with(self.device_of, numbers, self.graph.devices.intern(names))

    def has_products(self, numbers: I32) -> bool:
        """Whether all these foreign numbers are named products."""
        return not numbers.shape[0] or (int(numbers.min()) >= 0 and int(_here(self.product_of, numbers).min()) >= 0)

    def user_attributes(self, numbers: I32, time: I64, key: U64, values: list[UserAttributes | None]) -> None:
        """Last writer wins."""
        here = _here(self.user_of, numbers)
        kept = np.flatnonzero(here >= 0)
        chosen = values if kept.shape[0] == len(values) else [values[i] for i in kept.tolist()]
        self.users_x.append(self.graph.user_attributes.put(here[kept], time[kept], key[kept], chosen))

    def product_attributes(self, numbers: I32, time: I64, key: U64, values: list[ProductAttributes | None]) -> None:
        """Last writer wins."""
        here = _here(self.product_of, numbers)
        self.products_x.append(self.graph.product_attributes.put(here, time, key, values))

    def forgotten(self, numbers: I32, until: I64) -> None:
        """Users forgotten up to and including `until` [n], NEVER_MS not at all."""
        here = _here(self.user_of, numbers)
        later = (here >= 0) & (until > self.graph.forgotten_until[here])
        for user, until_ms in zip(here[later].tolist(), until[later].tolist(), strict=True):
            self._forget(user, until_ms)

    def forgotten_hashes(self, until_of: dict[int, int]) -> None:
        """Users of whom a hash alone is known, and up to when they are forgotten."""
        if not until_of:
            return
        graph = self.graph
        here = np.flatnonzero(np.isin(graph.users.hash, np.fromiter(until_of, np.uint64, len(until_of))))
        known = {int(graph.users.hash[n]): n for n in here.tolist() if graph.users.name(n) is not None}
        for id_hash, until_ms in sorted(until_of.items()):
            user = known.get(id_hash)
            if user is None:
                graph.forgotten_by_hash[id_hash] = max(until_ms, graph.forgotten_by_hash.get(id_hash, NEVER_MS))
            else:
                self._forget(user, until_ms)

    def _forget(self, user: int, until_ms: int) -> None:
        own = np.array([user], dtype=np.int32)
        at, key = np.array([until_ms], dtype=np.int64), np.array([KEY_MAX], dtype=np.uint64)
        self.users_x.append(self.graph.user_attributes.put(own, at, key, [None]))
        self.graph.forget(user, until_ms, self.changed)

    def entries(self, relation: str, part: Entries) -> None:
        """Top-K of the union. An entry of a user forgotten since keeps its slot in a product's list, without the
        user; in the user's own it is gone."""
        users, products, until = self.user_of, self.product_of, self._until()
        nbrs, flags, kept = part.nbr, part.flag, None
        if relation in USER_LISTS:
            rows, nbrs = _here(users, part.row), _here(products, part.nbr)
            kept = (rows >= 0) & (part.time > until[rows])
        elif relation == "co_purchased":
            rows, nbrs = _here(products, part.row), _here(products, part.nbr)
        else:
            rows, nbrs = _here(products, part.row), _here(users, part.nbr)
            gone = (nbrs < 0) | (part.time <= until[nbrs])
            nbrs = np.where(gone, np.int32(-1), nbrs)
            flags = np.where(gone, part.flag | np.uint8(kernels.CANCELLED), part.flag)
        if relation not in USER_LISTS and self.graph.keeps is not None:
            kept = self.graph.keeps(rows)
        k: Bool | slice = slice(None) if kept is None or kept.all() else kept
        new = lists_of(self.graph, relation).merge(
            rows[k], nbrs[k], part.time[k], part.key[k], part.value[k], flags[k]
        )  # fmt: skip
        self.changed.setdefault(relation, []).append(_distinct(rows[k][new]))

    def sessions(self, part: SessionEntries) -> None:
        """The newest event of each session, then top-K."""
        users = _here(self.user_of, part.user)
        kept = (users >= 0) & (part.time > self._until()[users])
        part = part if kept.all() else part.take(np.flatnonzero(kept))
        users = users[kept]
        new = self.graph.sessions.merge(
            users, part.session, part.time, part.key, _here(self.device_of, part.device), part.duration_s,
            part.item_start, _here(self.product_of, part.product), part.position, part.click,
        )  # fmt: skip
        self.changed.setdefault("has_session", []).append(_distinct(users[new]))

    def _until(self) -> I64:
        """Up to when each user of the graph is forgotten, and nobody (-1) never."""
        until = self.graph.forgotten_until
        if until.shape[0] == len(self.graph.users):
            return np.append(until, np.int64(NEVER_MS))
        return until  # its last place is a user that does not exist

    def touched(self) -> Touched:
        """What changed; users who have nothing left are dropped, here as in a batch of events."""
        graph = self.graph
        touched = Touched(users_x=_union(self.users_x), products_x=_union(self.products_x))
        touched.lists = {r: _union(rows) for r, rows in self.changed.items()}
        touched.new_users = np.arange(self.users_before, len(graph.users), dtype=np.int32)
        touched.new_products = np.arange(self.products_before, len(graph.products), dtype=np.int32)
        asked = np.flatnonzero(graph.forgotten_until[: len(graph.users)] != NEVER_MS).astype(np.int32)
        graph.sweep_forgotten({name for name in graph.users.names(asked) if name is not None}, touched)
        return touched


def _union(parts: list[I32]) -> I32:
    return _distinct(np.sort(np.concatenate(parts))) if parts else np.zeros(0, dtype=np.int32)


def _distinct(rows: I32) -> I32:
    """Adjacent equal rows once: a piece holds the entries of a row together."""
    out: I32 = rows[np.append(True, rows[1:] != rows[:-1])] if rows.shape[0] else rows
    return out


def _numbers(ids: IdMap) -> I32:
    return np.arange(len(ids), dtype=np.int32)


def _pieces(rows: I32) -> Iterator[I32]:
    for start in range(0, rows.shape[0], ROWS_AT_A_TIME):
        yield rows[start : start + ROWS_AT_A_TIME]


def _with(table: I32, numbers: I32, here: I32) -> I32:
    """`table` with `here` at `numbers`. Its last place is -1, so that -1, nobody, is translated into itself."""
    size = max(table.shape[0], int(numbers.max(initial=-1)) + 2)
    out = np.full(size, -1, dtype=np.int32)
    out[: table.shape[0]] = table
    out[numbers] = here
    return out


def _here(table: I32, numbers: I32) -> I32:
    """What foreign numbers are here; -1 for one without a name."""
    here: I32 = table[np.minimum(numbers, table.shape[0] - 1)]
    return here


def _ragged(lengths: NDArray[np.integer]) -> tuple[I64, I64]:  # type: ignore[type-arg]
    """Row and place within its row of every element of rows of these lengths, [sum] int64 each."""
    sizes = lengths.astype(np.int64)
    row = np.repeat(np.arange(sizes.shape[0]), sizes)
    return row, np.arange(row.shape[0]) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _items(first: I64, count: NDArray[np.integer]) -> tuple[I64, I64]:  # type: ignore[type-arg]
    """Of m sessions whose items stand from `first` on: their CSR [m + 1], and where each item stands."""
    session, place = _ragged(count)
    starts = np.zeros(count.shape[0] + 1, dtype=np.int64)
    np.cumsum(count, out=starts[1:])
    return starts, first[session] + place
