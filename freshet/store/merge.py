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
from freshet.store import kernels
from freshet.store.attributes import KEY_MAX, NEVER_MS, Registers
from freshet.store.columns import F32, I32, I64, U64, Bool
from freshet.store.graph import GraphLimits, GraphStore, Touched
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


def entries_of(lists: NeighborLists, start: int, end: int) -> Entries:
    """Copies of the entries in the rows from `start` up to `end`."""
    row, place = _ragged(lists.length[start:end])
    slot = (row + start) * lists.capacity + (lists.head[row + start].astype(np.int64) + place) % lists.capacity
    return Entries(
        (row + start).astype(np.int32), lists.nbr[slot], lists.time[slot], lists.key[slot], lists.value[slot],
        lists.flag[slot],
    )  # fmt: skip


def sessions_of(lists: SessionLists, start: int, end: int, newer_than: I64) -> SessionEntries:
    """Copies of the sessions of the users from `start` up to `end` that are newer than `newer_than` [end - start]."""
    row, place = _ragged(lists.length[start:end])
    slot = (row + start) * lists.capacity + lists.order[row + start, place]
    newer = lists.time[slot] > newer_than[row]
    row, slot = row[newer], slot[newer]
    session, item = _ragged(lists.item_count[slot])
    starts = np.zeros(slot.shape[0] + 1, dtype=np.int64)
    np.cumsum(lists.item_count[slot], out=starts[1:])
    items = slot[session] * lists.items + item
    return SessionEntries(
        (row + start).astype(np.int32), lists.session[slot], lists.time[slot], lists.key[slot], lists.device[slot],
        lists.duration_s[slot], starts, lists.nbr[items], lists.position[items], lists.click[items],
    )  # fmt: skip


def merge_graphs(graph: GraphStore, other: GraphStore) -> Touched:
    """Merge `other` into `graph`, which then is what it would be had it been fed the events of both as well.

    `other` stays as it is. Of co-purchases the live entries are merged; the frozen counts belong to a bundle,
    and `graph` keeps those it has. Returns what changed in `graph`. Raises LimitsDiffer.
    """
    check_limits(graph.limits, other.limits)
    merge = _Merge(graph, other)
    merge.attributes()
    merge.forgotten()
    merge.lists()
    merge.sessions()
    graph.event_time_max = max(graph.event_time_max, other.event_time_max)
    return merge.touched()


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


class _Merge:
    """One merge under way: the translation of numbers, and what has changed so far."""

    def __init__(self, graph: GraphStore, other: GraphStore) -> None:
        self.graph, self.other = graph, other
        self.users_before, self.products_before = len(graph.users), len(graph.products)
        names = other.users.names(np.arange(len(other.users), dtype=np.int32))
        self.named = np.flatnonzero(np.array([name is not None for name in names], dtype=np.bool_))
        # One place more than there are numbers, so that -1, nobody, is translated into itself.
        self.user_of = np.full(len(other.users) + 1, -1, dtype=np.int32)
        self.user_of[self.named] = graph.intern_users([name for name in names if name is not None])
        self.product_of = np.append(graph.intern_products(other.products.all_names()), np.int32(-1))
        self.device_of = np.append(graph.devices.intern(other.devices.all_names()), np.int32(-1))
        self.changed: dict[str, list[I32]] = {}
        self.users_x: I32 = np.zeros(0, dtype=np.int32)
        self.products_x: I32 = np.zeros(0, dtype=np.int32)

    def attributes(self) -> None:
        """Last writer wins."""
        graph, other = self.graph, self.other
        self.users_x = _merge_registers(
            graph.user_attributes, other.user_attributes, self.user_of, self.named.astype(np.int32)
        )
        products = np.arange(len(other.products), dtype=np.int32)
        self.products_x = _merge_registers(
            graph.product_attributes, other.product_attributes, self.product_of, products
        )

    def forgotten(self) -> None:
        """Join what was forgotten: users that `other` still names, and those of whom it has a hash alone."""
        graph, other = self.graph, self.other
        until = other.forgotten_until[self.named]
        later = until > graph.forgotten_until[self.user_of[self.named]]
        for user, until_ms in zip(self.user_of[self.named[later]].tolist(), until[later].tolist(), strict=True):
            graph.forget(user, until_ms, self.changed)
        if not other.forgotten_by_hash:
            return
        asked = set(other.forgotten_by_hash)
        here = np.flatnonzero(np.isin(graph.users.hash, np.array(sorted(asked), dtype=np.uint64)))
        known = {int(graph.users.hash[n]): n for n in here.tolist() if graph.users.name(n) is not None}
        written = []
        for id_hash, until_ms in sorted(other.forgotten_by_hash.items()):
            user = known.get(id_hash)
            if user is None:
                graph.forgotten_by_hash[id_hash] = max(until_ms, graph.forgotten_by_hash.get(id_hash, NEVER_MS))
                continue
            own = np.array([user], dtype=np.int32)
            at, key = np.array([until_ms], dtype=np.int64), np.array([KEY_MAX], dtype=np.uint64)
            written.append(graph.user_attributes.merge(own, at, key, [None]))
            graph.forget(user, until_ms, self.changed)
        self.users_x = np.unique(np.concatenate([self.users_x, *written]))

    def until(self) -> I64:
        """Up to when each user of the graph is forgotten, and nobody (-1) never."""
        return np.append(self.graph.forgotten_until[: len(self.graph.users)], np.int64(NEVER_MS))

    def lists(self) -> None:
        """Top-K of the union, relation by relation."""
        graph, other, until = self.graph, self.other, self.until()
        users, products = self.user_of, self.product_of
        for relation in ("purchased", "viewed"):
            theirs: NeighborLists = getattr(other, relation)
            for part in _entries(theirs, len(other.users)):
                rows = users[part.row]
                kept = part.time > until[rows]
                self._insert(relation, getattr(graph, relation), part, rows, products[part.nbr], part.flag, kept)
        for relation in ("purchased_by", "viewed_by"):
            theirs = getattr(other, relation)
            for part in _entries(theirs, len(other.products)):
                nbrs = users[part.nbr]
                gone = (nbrs < 0) | (part.time <= until[nbrs])
                nbrs = np.where(gone, np.int32(-1), nbrs)
                flags = np.where(gone, part.flag | np.uint8(kernels.CANCELLED), part.flag)
                self._insert(relation, getattr(graph, relation), part, products[part.row], nbrs, flags)
        for part in _entries(other.co_purchased.live, len(other.products)):
            rows = products[part.row]
            self._insert("co_purchased", graph.co_purchased.live, part, rows, products[part.nbr], part.flag)

    def _insert(
        self, relation: str, lists: NeighborLists, part: Entries, rows: I32, nbrs: I32, flags: NDArray[np.uint8],
        kept: Bool | slice = slice(None),
    ) -> None:  # fmt: skip
        new = lists.merge(rows[kept], nbrs[kept], part.time[kept], part.key[kept], part.value[kept], flags[kept])
        self.changed.setdefault(relation, []).append(rows[kept][new])

    def sessions(self) -> None:
        """The newest event of each session, then top-K."""
        graph, other, until = self.graph, self.other, self.until()
        for start in range(0, len(other.users), ROWS_AT_A_TIME):
            end = min(start + ROWS_AT_A_TIME, len(other.users))
            part = sessions_of(other.sessions, start, end, until[self.user_of[start:end]])
            users = self.user_of[part.user]
            new = graph.sessions.merge(
                users, part.session, part.time, part.key, self.device_of[part.device], part.duration_s,
                part.item_start, self.product_of[part.product], part.position, part.click,
            )  # fmt: skip
            self.changed.setdefault("has_session", []).append(users[new])

    def touched(self) -> Touched:
        """What changed; users who have nothing left are dropped, here as in a batch of events."""
        graph = self.graph
        touched = Touched(users_x=self.users_x, products_x=self.products_x)
        touched.lists = {r: np.unique(np.concatenate(rows)) for r, rows in self.changed.items()}
        touched.new_users = np.arange(self.users_before, len(graph.users), dtype=np.int32)
        touched.new_products = np.arange(self.products_before, len(graph.products), dtype=np.int32)
        asked = np.flatnonzero(graph.forgotten_until[: len(graph.users)] != NEVER_MS).astype(np.int32)
        graph.sweep_forgotten({name for name in graph.users.names(asked) if name is not None}, touched)
        return touched


def _entries(lists: NeighborLists, rows: int) -> Iterator[Entries]:
    for start in range(0, rows, ROWS_AT_A_TIME):
        yield entries_of(lists, start, min(start + ROWS_AT_A_TIME, rows))


def _merge_registers(ours: Registers, theirs: Registers, number_of: I32, nodes: I32) -> I32:  # type: ignore[type-arg]
    """Write the registers of `nodes` [n], which `number_of` translates, where they are newer; returns those written."""
    here = number_of[nodes]
    time, key = theirs.time[nodes], theirs.key[nodes]
    newer = (time > ours.time[here]) | ((time == ours.time[here]) & (key > ours.key[here]))
    newer &= time != NEVER_MS
    return ours.merge(here[newer], time[newer], key[newer], theirs.take(nodes[newer]))


def _ragged(lengths: NDArray[np.integer]) -> tuple[I64, I64]:  # type: ignore[type-arg]
    """Row and place within its row of every element of rows of these lengths, [sum] int64 each."""
    sizes = lengths.astype(np.int64)
    row = np.repeat(np.arange(sizes.shape[0]), sizes)
    return row, np.arange(row.shape[0]) - np.repeat(np.cumsum(sizes) - sizes, sizes)
