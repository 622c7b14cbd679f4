"""From targets to everything that a forward pass of the towers reads, as bipartite graphs between roles.

One walk for training and for the offline truth; only where the lists come from differs: the history under
a time bound, or the graph as it stands now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from freshet.model.config import FeatureConfig, Reads, TowerConfig
from freshet.model.features import ProductCodes, SessionCodes, UserCodes, session_codes
from freshet.store.columns import F32, I32, I64
from freshet.store.graph import GraphStore
from freshet.store.lists import Block, Gather
from freshet.store.popularity import FrozenPopularity, PopularityConfig, popularity
from freshet.store.sessions import SessionBlock

EdgeType = tuple[str, str, str]
"""(source role, relation, owner's role)."""

NO_NODES: I32 = np.zeros(0, dtype=np.int32)


class ListReader(Protocol):
    """Where neighbour lists come from. `role` says for whom they are read: `user` are the targets."""

    def block(self, role: str, relation: str, nodes: I32, gather: Gather) -> Block: ...

    def sessions(self, users: I32, num_sessions: int, num_items: int) -> SessionBlock: ...

    def device_names(self, devices: I32) -> Sequence[str | None]: ...

    def levels(self, products: I32) -> F32: ...


@dataclass
class Walk:
    """What was met on the way from the targets.

    `node`: ids of each role, int32. `edge`: source and owner (places in `node`, int64) and weight (float32),
    sorted by owner. `origin`: see `Neighborhood`. `device`, `duration_s`: of each session. `level`: of each item.
    """

    node: dict[str, I32] = field(default_factory=dict)
    edge: dict[EdgeType, tuple[I64, I64, F32]] = field(default_factory=dict)
    origin: dict[str, I64] = field(default_factory=dict)
    device: Sequence[str | None] = ()
    duration_s: F32 = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    level: F32 = field(default_factory=lambda: np.zeros(0, dtype=np.float32))


@dataclass
class Neighborhood:
    """What a forward pass reads. Edges point from neighbour to owner and are sorted by owner.

    `edge_index` maps an edge type to [2, edges] int64 and `edge_weight` to [edges] float32, summing to 1
    for each owner. `origin` maps `user_product` and `item_product` to their place in `product`, and
    `item` to its place in `item_product`. Codes are those of the roles; `level` [items] float32 are levels of
    popularity (empty when the towers do not use them).
    """

    edge_index: dict[EdgeType, Tensor]
    edge_weight: dict[EdgeType, Tensor]
    origin: dict[str, Tensor]
    product: ProductCodes
    user: UserCodes
    item_user: UserCodes
    session: SessionCodes
    level: Tensor

    def to(self, device: torch.device) -> Neighborhood:
        """The same on a device; codes stay where they are."""
        if device.type == "cpu":
            return self
        index = {e: t.to(device) for e, t in self.edge_index.items()}
        weight = {e: t.to(device) for e, t in self.edge_weight.items()}
        origin = {role: t.to(device) for role, t in self.origin.items()}
        return replace(self, edge_index=index, edge_weight=weight, origin=origin, level=self.level.to(device))


def walk(reader: ListReader, config: TowerConfig, users: I32, items: I32, products: int) -> Walk:
    """Everything the towers read for `users` (not necessarily distinct) and `items` (distinct).

    `products` is how many product numbers there are.
    """
    out = Walk()
    blocks: dict[EdgeType, Block] = {}
    out.node["user"], out.node["item"] = users, items
    _walk_users(reader, config, users, products, out, blocks)
    _walk_items(reader, config, items, products, out, blocks)
    read = [b.nbr[b.nbr >= 0] for e, b in blocks.items() if e[0] == "product"]
    _number("product", [out.node["user_product"], out.node["item_product"], *read], products, out)
    place = _places(out.node["product"], products)
    for edge_type, block in blocks.items():
        if edge_type[0] == "product":
            out.edge[edge_type] = _edges(block, place)
    out.origin["user_product"] = place[out.node["user_product"]]
    out.origin["item_product"] = place[out.node["item_product"]]
    if config.popularity is not None:
        out.level = reader.levels(items)
    return out


def _walk_users(
    reader: ListReader, config: TowerConfig, users: I32, products: int, out: Walk, blocks: dict[EdgeType, Block]
) -> None:
    outer, inner = config.reads("user", "outer", "user"), config.reads("user", "inner", "user")
    seen = {(r, g): reader.block("user", r, users, g) for r, g in [*_lists(outer), *_lists(inner)]}
    first = {r: seen[r, g] for r, g in _lists(outer)}
    _number("user_product", [b.nbr[b.nbr >= 0] for b in first.values()], products, out)
    place = _places(out.node["user_product"], products)
    for relation, block in first.items():
        out.edge["user_product", relation, "user"] = _edges(block, place)
    for relation, gather in _lists(inner):
        blocks["product", relation, "user"] = seen[relation, gather]
    for relation, gather in config.reads("user", "inner", "product").items():
        nodes = out.node["user_product"]
        blocks["product", relation, "user_product"] = reader.block("user_product", relation, nodes, gather)
    _walk_sessions(reader, config, users, out, blocks)


def _walk_sessions(
    reader: ListReader, config: TowerConfig, users: I32, out: Walk, blocks: dict[EdgeType, Block]
) -> None:
    gather = config.reads("user", "outer", "user").get("has_session")
    contains = config.reads("user", "inner", "session").get("contains")
    none = np.zeros(0, dtype=np.int64)
    rows, nth = none, none
    sessions: SessionBlock | None = None
    if gather is not None:
        sessions = reader.sessions(users, gather.num_neighbors, contains.num_neighbors if contains else 1)
        rows, nth = np.nonzero(np.arange(gather.num_neighbors) < sessions.count[:, None])
        weight = (1.0 / sessions.count[rows]).astype(np.float32)
        out.edge["session", "has_session", "user"] = (np.arange(rows.shape[0]), rows, weight)
        out.device = reader.device_names(sessions.device[rows, nth])
        out.duration_s = sessions.duration_s[rows, nth]
    out.node["session"] = np.arange(rows.shape[0], dtype=np.int32)
    if contains is not None:
        empty = Block(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32))
        read = empty if sessions is None else Block(sessions.nbr[rows, nth], sessions.weight[rows, nth])
        blocks["product", "contains", "session"] = read


def _walk_items(
    reader: ListReader, config: TowerConfig, items: I32, products: int, out: Walk, blocks: dict[EdgeType, Block]
) -> None:
    outer = config.reads("item", "outer", "product")
    first = {r: reader.block("item", r, items, g) for r, g in outer.items()}
    named = [b.nbr[b.nbr >= 0] for r, b in first.items() if r == "co_purchased"]
    _number("item_product", [items, *named], products, out)
    place = _places(out.node["item_product"], products)
    out.origin["item"] = place[items]
    buyers = [b.nbr[b.nbr >= 0] for r, b in first.items() if r != "co_purchased"]
    highest = max((int(b.max(initial=-1)) for b in buyers), default=-1) + 1
    _number("item_user", buyers, highest, out)
    place_user = _places(out.node["item_user"], highest)
    for relation, block in first.items():
        source = "item_product" if relation == "co_purchased" else "item_user"
        table = place if relation == "co_purchased" else place_user
        out.edge[source, relation, "item"] = _edges(block, table)
    for role, node in (("item_product", "product"), ("item_user", "user")):
        for relation, gather in config.reads("item", "inner", node).items():
            blocks["product", relation, role] = reader.block(role, relation, out.node[role], gather)


def _lists(reads: Reads) -> list[tuple[str, Gather]]:
    """Relations that are neighbour lists (sessions are read in a way of their own)."""
    return [(r, g) for r, g in reads.items() if r != "has_session"]


def _number(role: str, ids: list[I32], size: int, out: Walk) -> None:
    """Give the role the distinct ids, in increasing order (a table of `size`, cheaper than sorting)."""
    met = np.zeros(size, dtype=np.bool_)
    for some in ids:
        met[some] = True
    out.node[role] = np.flatnonzero(met).astype(np.int32)


def _places(ids: I32, size: int) -> I64:
    place = np.full(size, -1, dtype=np.int64)
    place[ids] = np.arange(ids.shape[0])
    return place


def _edges(block: Block, place: I64) -> tuple[I64, I64, F32]:
    owner, column = np.nonzero(block.nbr >= 0)
    return place[block.nbr[owner, column]], owner, block.weight[owner, column]


def neighborhood(found: Walk, products: ProductCodes, users: UserCodes, features: FeatureConfig) -> Neighborhood:
    """Tensors of a walk; `products` and `users` hold the codes of every number."""
    return Neighborhood(
        {e: torch.from_numpy(np.stack([s, d])) for e, (s, d, _) in found.edge.items()},
        {e: torch.from_numpy(w) for e, (_, _, w) in found.edge.items()},
        {role: torch.from_numpy(place) for role, place in found.origin.items()},
        products.take(found.node["product"]),
        users.take(found.node["user"]),
        users.take(found.node["item_user"]),
        session_codes(found.device, found.duration_s, features),
        torch.from_numpy(found.level),
    )


class GraphReader:
    """Lists as they stand in a graph store now, and levels of popularity at the newest tick."""

    def __init__(self, graph: GraphStore, frozen: FrozenPopularity, config: PopularityConfig | None) -> None:
        self.graph, self._frozen = graph, frozen
        self._popularity = config or PopularityConfig()

    def block(self, role: str, relation: str, nodes: I32, gather: Gather) -> Block:
        if relation == "co_purchased":
            return self.graph.co_purchased.top(nodes, self.graph.products.hash, gather.num_neighbors)
        lists = {
            "purchased": self.graph.purchased,
            "viewed": self.graph.viewed,
            "purchased_by": self.graph.purchased_by,
            "viewed_by": self.graph.viewed_by,
        }
        return lists[relation].recent(nodes, gather)

    def sessions(self, users: I32, num_sessions: int, num_items: int) -> SessionBlock:
        return self.graph.sessions.recent(users, num_sessions, num_items)

    def device_names(self, devices: I32) -> Sequence[str | None]:
        return named_devices(self.graph.devices.all_names(), devices)

    def levels(self, products: I32) -> F32:
        at_ms = self._popularity.tick(self.graph.event_time_max, self._frozen.cut_ms)
        return self._popularity.level(popularity(self.graph, products, at_ms, self._frozen, self._popularity))


def named_devices(names: Sequence[str], devices: I32) -> list[str | None]:
    """The name of each device; -1 has none."""
    return [names[d] if d >= 0 else None for d in devices.tolist()]
