"""What a user did last and what they buy again, for readers: it filters what was seen, and is what is offered again.

Read from the live lists, or from a history as it was at a time, by the same compiled loops: a ranker is fitted on
what it will be given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshet.store import value_kernels
from freshet.store.attributes import NEVER_MS
from freshet.store.columns import F32, I32, I64
from freshet.store.graph import GraphStore
from freshet.store.history import NO_RING, History, TimedLists
from freshet.store.lists import NeighborLists

KINDS = ("purchase", "view")


@dataclass(frozen=True)
class Recent:
    """The newest k purchases and views of n users, newest first: `product` [n, k] int32 (-1 past the end),
    `kind` [n, k] int8 (index into KINDS), `time` [n, k] int64 ms; `event_time` [n] int64, the newest
    event of any kind that is in the user's lists (-1 none)."""

    product: I32
    kind: NDArray[np.int8]
    time: I64
    event_time: I64


@dataclass(frozen=True)
class Bought:
    """Distinct products that n users bought, newest first: `product` [n, k] int32 (-1 past the end), `count` [n, k]
    int32 (lines in the user's list), `time` [n, k] int64 ms of the last of them, and `decayed` [n, k] float32: the
    same lines, each counting half for every 30 days that it lies before the last."""

    product: I32
    count: I32
    time: I64
    decayed: F32


def recent(graph: GraphStore, users: I32, k: int) -> Recent:
    """The newest k purchases and views of each user that are not cancelled."""
    return _recent(_live(graph.purchased, users), _live(graph.viewed, users), newest_event_time(graph, users), k)


def recent_before(history: History, users: I32, before_ms: int, k: int) -> Recent:
    """As `recent`, of what happened strictly before a time."""
    parts = [_past(lists, users, before_ms) for lists in (history.purchased, history.viewed)]
    newest = np.full(users.shape[0], NEVER_MS, dtype=np.int64)
    for first, _, length, _, _, time, _ in parts:
        has = length > 0
        newest[has] = np.maximum(newest[has], time[(first + length - 1)[has]])
    s = history.sessions
    for i, user in enumerate(users.tolist()):  # a loop over users of a fit
        times = s.time[s.ptr[user] : s.ptr[user + 1]]
        place = int(np.searchsorted(times, before_ms))
        if place:
            newest[i] = max(newest[i], times[place - 1])
    return _recent(parts[0], parts[1], newest, k)


def bought(graph: GraphStore, users: I32, k: int) -> Bought:
    """At most k products that each user bought and did not cancel. Of more than k, those of the greatest
    `count^2 / (1 + days since the last / 30)` are kept, days against the newest (`docs/decisions/ranker.md`)."""
    return _bought(_live(graph.purchased, users), k)


def bought_before(history: History, users: I32, before_ms: int, k: int, lines_max: int | None = None) -> Bought:
    """As `bought`, of what happened strictly before a time; `lines_max` instead of what the live lists keep."""
    return _bought(_past(history.purchased, users, before_ms, lines_max), k)


def newest_event_time(graph: GraphStore, users: I32) -> I64:
    """Time of the newest entry in any list of each user, [n] int64 ms (-1 none)."""
    newest = np.full(users.shape[0], NEVER_MS, dtype=np.int64)
    for lists in (graph.purchased, graph.viewed):
        length = lists.length[users].astype(np.int64)
        has = length > 0
        last = (lists.head[users].astype(np.int64) + length - 1) % lists.capacity
        slots = users.astype(np.int64) * lists.capacity + last
        newest[has] = np.maximum(newest[has], lists.time[slots[has]])
    s = graph.sessions
    length = s.length[users].astype(np.int64)
    has = length > 0
    slots = users[has].astype(np.int64) * s.capacity + s.order[users[has], length[has] - 1]
    newest[has] = np.maximum(newest[has], s.time[slots])
    return newest


def _live(lists: NeighborLists, users: I32) -> tuple[Any, ...]:
    """Where the entries of each user begin, and the arrays that hold them, as the kernels take them."""
    base = users.astype(np.int64) * lists.capacity
    return base, lists.head[users], lists.length[users], lists.capacity, lists.nbr, lists.time, lists.flag


def _past(lists: TimedLists, users: I32, before_ms: int, lines_max: int | None = None) -> tuple[Any, ...]:
    first, length = lists.window(users, np.full(users.shape[0], before_ms, dtype=np.int64), lines_max)
    return first, np.zeros_like(length), length, NO_RING, lists.nbr, lists.time, lists.flag


def _recent(purchased: tuple[Any, ...], viewed: tuple[Any, ...], newest: I64, k: int) -> Recent:
    n = newest.shape[0]
    product = np.empty((n, k), dtype=np.int32)
    kind, time = np.zeros((n, k), dtype=np.int8), np.zeros((n, k), dtype=np.int64)
    value_kernels.gather_latest(*purchased, *viewed, product, kind, time)  # type: ignore[call-arg]
    return Recent(product, kind, time, newest)


def _bought(purchased: tuple[Any, ...], k: int) -> Bought:
    shape = purchased[0].shape[0], k
    found = Bought(
        np.empty(shape, np.int32), np.empty(shape, np.int32), np.empty(shape, np.int64), np.empty(shape, np.float32)
    )
    value_kernels.gather_bought(*purchased, *vars(found).values())  # type: ignore[call-arg]
    return found
