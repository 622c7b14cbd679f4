"""What a user did last and what they buy again, for readers: it filters what was seen, and is what is offered again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freshet.store import kernels, value_kernels
from freshet.store.attributes import NEVER_MS
from freshet.store.columns import I32, I64
from freshet.store.graph import GraphStore

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


def recent(graph: GraphStore, users: I32, k: int) -> Recent:
    """The newest k purchases and views of each user that are not cancelled."""
    n = users.shape[0]
    product = np.empty((n, k), dtype=np.int32)
    kind, time = np.zeros((n, k), dtype=np.int8), np.zeros((n, k), dtype=np.int64)
    a, b = graph.purchased, graph.viewed
    kernels.gather_latest(
        users, a.capacity, a.head, a.length, a.nbr, a.time, a.flag, b.capacity, b.head, b.length, b.nbr, b.time,
        b.flag, product, kind, time,
    )  # fmt: skip
    return Recent(product, kind, time, newest_event_time(graph, users))


@dataclass(frozen=True)
class Bought:
    """Distinct products that n users bought, newest first: `product` [n, k] int32 (-1 past the end), `count` [n, k]
    int32 (lines in the user's list) and `time` [n, k] int64 ms of the last of them."""

    product: I32
    count: I32
    time: I64


def bought(graph: GraphStore, users: I32, k: int) -> Bought:
    """At most k products that each user bought and did not cancel. Of more than k, those with the greatest
    `count^2 / (1 + days since the last / 30)` are kept, days against the newest in the list: the count and the age
    weigh as much as in the ranker, on average (`docs/decisions/ranker.md`)."""
    n, a = users.shape[0], graph.purchased
    found = Bought(np.empty((n, k), np.int32), np.empty((n, k), np.int32), np.empty((n, k), np.int64))
    value_kernels.gather_bought(
        users, a.capacity, a.head, a.length, a.nbr, a.time, a.flag, found.product, found.count, found.time
    )
    return found


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
