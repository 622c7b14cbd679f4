"""Which nodes a change makes due: those it touched, and, later, those that read what changed.

*Direct*: nodes whose own lists or attributes changed; they are brought up to date in the same
micro-batch. *Ripples*: nodes that list a node whose state changed. They are collected, expanded in
waves and worked off in chunks, so that a product bought a hundred times between two waves costs its
listers one recomputation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freshet.model.config import Reads, TowerConfig
from freshet.store.columns import I32
from freshet.store.dirty import DirtySet
from freshet.store.graph import NO_NODES, GraphStore, Touched


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


class Wave:
    """The readers of one tower: sources whose readers have not been looked up, and readers that are due.

    `since_ms` is when the oldest change was made that some reader still lacks; None when all are exact.
    """

    def __init__(self) -> None:
        self.products, self.users = DirtySet(), DirtySet()
        self.due = DirtySet()
        self._sources_since_ms: float | None = None
        self._wave_since_ms: float | None = None
        self._later_since_ms: float | None = None

    @property
    def sources(self) -> int:
        """Sources waiting."""
        return len(self.products) + len(self.users)

    @property
    def since_ms(self) -> float | None:
        """See the class."""
        return _least(self._sources_since_ms, self._wave_since_ms, self._later_since_ms)

    def note_sources(self, users: I32, products: I32, now_ms: float) -> None:
        """States of these nodes changed."""
        self.users.add(users)
        self.products.add(products)
        if self._sources_since_ms is None and self.sources:
            self._sources_since_ms = now_ms

    def note_due(self, now_ms: float) -> None:
        """Readers were added to `due` for a change made now, behind those of the wave under way."""
        if len(self.due) and self._later_since_ms is None:
            self._later_since_ms = now_ms

    def take_sources(self) -> tuple[I32, I32]:
        """Start a wave: all sources (users, products), for their readers to be looked up."""
        self._wave_since_ms = self.since_ms
        self._sources_since_ms = self._later_since_ms = None
        return self.users.take(), self.products.take()

    def finish(self) -> None:
        """Every reader that was due when the wave started has been brought up to date."""
        self._wave_since_ms = None


class Ripples:
    """Nodes that are stale because something they read has changed.

    `user` holds what the user embeddings lack and `item` what the item embeddings lack: each is expanded in
    waves of its own, since a stale user matters sooner. `changed_x` are products whose features changed,
    `due_inner_*` nodes whose first-layer states read one of those.
    """

    def __init__(self, graph: GraphStore, config: TowerConfig, users: bool = True, items: bool = True) -> None:
        """Without `users` or `items` the embeddings of these are written elsewhere, and nothing is collected."""
        self.graph = graph
        self.config = config
        self._users, self._items = users, items
        self.clear()

    def clear(self) -> None:
        """Nothing is stale: all that was noted is made good otherwise."""
        self.user, self.item = Wave(), Wave()
        self.changed_x = DirtySet()
        self.due_inner_users, self.due_inner_products = DirtySet(), DirtySet()

    def reserve(self) -> None:
        """Make room for every node of the graph."""
        users, products = len(self.graph.users), len(self.graph.products)
        for dirty in (self.user.users, self.item.users, self.user.due, self.due_inner_users):
            dirty.reserve(users)
        for dirty in (self.user.products, self.item.products, self.item.due, self.due_inner_products, self.changed_x):
            dirty.reserve(products)

    def note(self, done: Direct, touched: Touched, now_ms: float) -> None:
        """Collect the ripples of a batch whose direct part has been brought up to date."""
        self.reserve()
        self.changed_x.add(touched.products_x)
        self.note_inner(done.inner_users, done.inner_products, now_ms)
        if self._users:
            self.user.note_sources(NO_NODES, touched.products_x, now_ms)
        if not self._items:
            return
        self.item.due.add(touched.rows(*self.config.item.outer))
        if self.config.popularity is not None:
            self.item.due.add(touched.rows("purchased_by", "viewed_by"))
        self.item.note_due(now_ms)

    def note_moved(self, products: I32, now_ms: float) -> None:
        """A tick moved the popularity of these products."""
        if self.config.popularity is None or not self._items:
            return
        self.reserve()
        self.item.due.add(products)
        self.item.note_due(now_ms)

    def note_inner(self, users: I32, products: I32, now_ms: float) -> None:
        """First-layer states were recomputed: their readers, and the products themselves, are stale."""
        if self._users:
            self.user.note_sources(NO_NODES, products, now_ms)
        if self._items:
            self.item.note_sources(users, products, now_ms)

    def note_given(self, products: I32, now_ms: float) -> None:
        """Another worker told the states of these products: whoever reads them, or their features, is stale."""
        self.reserve()
        self.changed_x.add(products)
        self.user.note_sources(NO_NODES, products, now_ms)

    @property
    def user_sources(self) -> int:
        """Sources that the next wave of users would look up."""
        return self.user.sources + len(self.changed_x)

    @property
    def waiting(self) -> int:
        """Nodes that are stale, and sources whose readers are not known yet."""
        return (
            self.user_sources + len(self.user.due) + self.item.sources + len(self.item.due)
            + len(self.due_inner_users) + len(self.due_inner_products)
        )  # fmt: skip

    @property
    def since_ms(self) -> float | None:
        """When the oldest change was made that some embedding lacks; None when all are exact."""
        return _least(self.user.since_ms, self.item.since_ms)

    def expand_users(self) -> None:
        """Start a wave of users: look up who reads the changed products."""
        self.reserve()  # lists may name nodes that came without ripples of their own
        outer, inner = self.config.user.outer, self.config.user.inner
        _, products = self.user.take_sources()
        for relation in ("purchased", "viewed"):
            if relation in outer:
                getattr(self.graph, relation).mark_listers(products, self.user.due)
        if len(self.changed_x):
            self._expand_x(self.changed_x.take(), inner)

    def _expand_x(self, products: I32, inner: Reads) -> None:
        """Who reads the features of these products, in either tower."""
        graph = self.graph
        for relation in ("purchased", "viewed"):
            lists = getattr(graph, relation)
            if relation in self.config.item.inner:
                lists.mark_listers(products, self.due_inner_users)
            if relation in inner:
                lists.mark_listers(products, self.user.due)
        if "has_session" in self.config.user.outer and "contains" in inner:
            graph.sessions.mark_listers(products, self.user.due)
        if "co_purchased" in inner or "co_purchased" in self.config.item.inner:
            graph.co_purchased.mark_listers(products, self.due_inner_products)

    def expand_items(self) -> None:
        """Start a wave of items: look up who reads the changed users and products."""
        self.reserve()
        outer = self.config.item.outer
        users, products = self.item.take_sources()
        self.item.due.add(products)
        if "co_purchased" in outer:
            self.graph.co_purchased.mark_listers(products, self.item.due)
        for relation in ("purchased_by", "viewed_by"):
            if relation in outer:
                getattr(self.graph, relation).mark_listers(users, self.item.due)


def _least(*times_ms: float | None) -> float | None:
    known = [t for t in times_ms if t is not None]
    return min(known) if known else None


def _union(*parts: I32) -> I32:
    filled = [p for p in parts if p.shape[0]]
    if not filled:
        return np.zeros(0, dtype=np.int32)
    return np.unique(np.concatenate(filled)) if len(filled) > 1 else np.unique(filled[0])
