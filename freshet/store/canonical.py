"""The state of a graph as bytes that depend on the log alone, for tests and for comparing snapshots."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from freshet.store.attributes import NEVER_MS
from freshet.store.graph import GraphStore
from freshet.store.ids import IdMap
from freshet.store.lists import NeighborLists


def canonical(graph: GraphStore) -> bytes:
    """MessagePack of every user and product by id, lists newest first, neighbours by id."""
    state = {
        "users": _users(graph),
        "products": _products(graph),
        "forgotten": sorted([h, until] for h, until in graph.forgotten_by_hash.items() if not _is_back(graph, h)),
        "event_time_max": graph.event_time_max,
    }
    return msgspec.msgpack.encode(state)


def _is_back(graph: GraphStore, id_hash: int) -> bool:
    numbers = np.flatnonzero(graph.users.hash == np.uint64(id_hash))
    return any(graph.users.name(int(n)) is not None for n in numbers)


def _users(graph: GraphStore) -> list[Any]:
    out = []
    for name in sorted(graph.users.all_names()):
        u = graph.users.get(name)
        assert u is not None
        out.append(
            [
                name,
                int(graph.forgotten_until[u]),
                _register(graph.user_attributes, u),
                _entries(graph.purchased, u, graph.products),
                _entries(graph.viewed, u, graph.products),
                _sessions(graph, u),
            ]
        )
    return out


def _products(graph: GraphStore) -> list[Any]:
    out = []
    for name in sorted(graph.products.all_names()):
        p = graph.products.get(name)
        assert p is not None
        row = [
            name,
            _register(graph.product_attributes, p),
            _entries(graph.purchased_by, p, graph.users),
            _entries(graph.viewed_by, p, graph.users),
            _entries(graph.co_purchased.live, p, graph.products),
        ]
        if row[1] or row[2] or row[3] or row[4]:
            out.append(row)
    return out


def _register(registers: Any, node: int) -> list[Any]:
    if registers.time[node] == NEVER_MS:
        return []
    return [int(registers.time[node]), int(registers.key[node]), registers[node]]


def _entries(lists: NeighborLists, row: int, names: IdMap) -> list[Any]:
    return [
        [
            int(lists.time[s]),
            int(lists.key[s]),
            names.name(int(lists.nbr[s])) if lists.nbr[s] >= 0 else None,
            lists.value[s : s + 1].tobytes(),
            int(lists.flag[s]),
        ]
        for s in lists.slots_of(row)
    ]


def _sessions(graph: GraphStore, user: int) -> list[Any]:
    lists = graph.sessions
    out = []
    for j in range(int(lists.length[user]) - 1, -1, -1):
        s = user * lists.capacity + int(lists.order[user, j])
        items = slice(s * lists.items, s * lists.items + int(lists.item_count[s]))
        out.append(
            [
                int(lists.time[s]),
                int(lists.key[s]),
                int(lists.session[s]),
                graph.devices.name(int(lists.device[s])) if lists.device[s] >= 0 else None,
                lists.duration_s[s : s + 1].tobytes(),
                graph.products.names(lists.nbr[items]),
                lists.position[items].tolist(),
                lists.click[items].tolist(),
            ]
        )
    return out
