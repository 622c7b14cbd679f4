"""Which nodes a change makes due: those it touched, and, later, those that read what changed.

*Direct*: nodes whose own lists or attributes changed; they are brought up to date in the same
micro-batch. *Ripples*: nodes that list a node whose state changed. They are collected, expanded in
waves and worked off in chunks, so that a product bought a hundred times between two waves costs its
listers one recomputation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freshet.model.config import LayerReads, TowerConfig
from freshet.store.columns import I32
from freshet.store.dirty import DirtySet
from freshet.store.graph import GraphStore, Touched


@dataclass(frozen=True)
class Direct:
    """Nodes to bring up to date at once, unique int32 arrays.

    `x_*`: feature vectors; `inner_*`: first-layer states; `users`: embeddings to write now;
    `new_products`: embeddings to insert now.
    """

    x_users: I32
    x_products: I32
    inner_users: I32
    inner_products: I32
    users: I32
    new_products: I32


def direct(touched: Touched, config: TowerConfig, graph: GraphStore) -> Direct:
    """What a batch made due in itself."""
    x_users = _union(touched.users_x, touched.new_users)
    x_products = _union(touched.products_x, touched.new_products)
    read_inner = {**config.user.inner, **config.item.inner}
    read_by_user = {**config.user.inner, **config.user.outer}
    product_lists = ["co_purchased"] if "co_purchased" in read_inner else []
    user_lists = [r for r in ("purchased", "viewed") if r in config.item.inner]
    own_lists = [r for r in ("purchased", "viewed", "has_session") if r in read_by_user]
    users = _union(touched.rows(*own_lists), x_users)
    named = np.array([graph.users.name(u) is not None for u in users.tolist()], dtype=np.bool_)
    return Direct(
        x_users=x_users,
        x_products=x_products,
        inner_users=_union(touched.rows(*user_lists), x_users),
        inner_products=_union(touched.rows(*product_lists), x_products),
        users=users[named] if users.shape[0] else users,
        new_products=_union(touched.new_products, touched.products_x),
    )


class Ripples:
    """Nodes that are stale because something they read has changed.

    `changed_*` hold sources whose readers have not been looked up yet; `due_*` hold the readers. A wave
    looks up the readers of all sources at once. `since_ms` is the age of the oldest unserved change.
    """

    def __init__(self, graph: GraphStore, config: TowerConfig) -> None:
        self.graph = graph
        self.user: LayerReads = config.user
        self.item: LayerReads = config.item
        self.changed_x_products = DirtySet()
        self.changed_users, self.changed_products = DirtySet(), DirtySet()
        self.due_inner_users, self.due_inner_products = DirtySet(), DirtySet()
        self.due_users, self.due_products = DirtySet(), DirtySet()
        self.sources_since_ms: float | None = None
        self.wave_since_ms: float | None = None

    def reserve(self) -> None:
        """Make room for every node of the graph."""
        for dirty in (self.changed_users, self.due_inner_users, self.due_users):
            dirty.reserve(len(self.graph.users))
        for dirty in (
            self.changed_x_products, self.changed_products, self.due_inner_products, self.due_products,
        ):  # fmt: skip
            dirty.reserve(len(self.graph.products))

    def note(self, done: Direct, touched: Touched, now_ms: float) -> None:
        """Collect the ripples of a batch whose direct part has been brought up to date."""
        self.reserve()
        self.changed_x_products.add(touched.products_x)
        self.note_inner(done.inner_users, done.inner_products, now_ms)
        outer_lists = touched.rows(*self.item.outer)
        self.due_products.add(outer_lists)
        if outer_lists.shape[0] and self.wave_since_ms is None:
            self.wave_since_ms = now_ms

    def note_inner(self, users: I32, products: I32, now_ms: float) -> None:
        """First-layer states were recomputed: their readers, and the products themselves, are stale."""
        self.changed_users.add(users)
        self.changed_products.add(products)
        if self.sources_since_ms is None and self.sources:
            self.sources_since_ms = now_ms

    @property
    def sources(self) -> int:
        """Sources whose readers have not been looked up."""
        return len(self.changed_x_products) + len(self.changed_users) + len(self.changed_products)

    @property
    def due(self) -> int:
        """Nodes known to be stale."""
        return len(self.due_inner_users) + len(self.due_inner_products) + len(self.due_users) + len(self.due_products)

    @property
    def since_ms(self) -> float | None:
        """When the oldest change that some reader still lacks was made; None when all is exact."""
        waiting = [t for t in (self.sources_since_ms, self.wave_since_ms) if t is not None]
        return min(waiting) if waiting else None

    def expand(self) -> None:
        """Start a wave: look up the readers of every source."""
        graph = self.graph
        x_products = self.changed_x_products.take()
        for relation in ("purchased", "viewed"):
            lists = getattr(graph, relation)
            if relation in self.item.inner:
                lists.mark_listers(x_products, self.due_inner_users)
            if relation in self.user.inner:
                lists.mark_listers(x_products, self.due_users)
        if "has_session" in self.user.outer and "contains" in self.user.inner:
            graph.sessions.mark_listers(x_products, self.due_users)
        if "co_purchased" in self.user.inner or "co_purchased" in self.item.inner:
            graph.co_purchased.mark_listers(x_products, self.due_inner_products)
        products, users = self.changed_products.take(), self.changed_users.take()
        for relation in ("purchased", "viewed"):
            if relation in self.user.outer:
                getattr(graph, relation).mark_listers(products, self.due_users)
        self.due_products.add(products)
        if "co_purchased" in self.item.outer:
            graph.co_purchased.mark_listers(products, self.due_products)
        for relation in ("purchased_by", "viewed_by"):
            if relation in self.item.outer:
                getattr(graph, relation).mark_listers(users, self.due_products)
        if self.sources_since_ms is not None:
            since = self.sources_since_ms
            self.wave_since_ms = since if self.wave_since_ms is None else min(since, self.wave_since_ms)
        self.sources_since_ms = None

    def settle(self) -> None:
        """Call when nothing is due: the wave is over."""
        if not self.due:
            self.wave_since_ms = None


def _union(*parts: I32) -> I32:
    filled = [p for p in parts if p.shape[0]]
    if not filled:
        return np.zeros(0, dtype=np.int32)
    return np.unique(np.concatenate(filled)) if len(filled) > 1 else np.unique(filled[0])
