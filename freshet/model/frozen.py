"""Frozen towers: the layers of `towers.py` as dense NumPy gathers with cached first-layer states.

No torch here: a worker serves from the bundle's weights alone. The caches hold what embeddings read of other nodes:
of a product its feature vector `x` and its inner state in each tower, of a user an inner state where the item tower
reads its buyers, so that an embedding costs one outer layer. Of a user's own features there are the codes alone: most
users have no profile, and a vector of theirs is three rows of small tables. Parity with the PyG layers is what the
tests and `freshet verify` check.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np

from freshet.model.bundle import Bundle, Fixture
from freshet.model.config import NEIGHBOR_OF_RELATION, Reads
from freshet.model.features import (
    UserCodes,
    embed_products,
    embed_sessions,
    embed_users,
    product_codes,
    session_codes,
    user_codes,
)
from freshet.store import kernels
from freshet.store.attributes import NEVER_MS
from freshet.store.columns import F32, I32, Bool
from freshet.store.graph import GraphStore
from freshet.store.lanes import Lanes
from freshet.store.lists import Block, Gather, NeighborLists, grown
from freshet.store.popularity import Levels, PopularityConfig

TowerName = Literal["user", "item"]

LAYERS: tuple[tuple[TowerName, Literal["outer", "inner"], str], ...] = (
    ("user", "outer", "user"),
    ("user", "inner", "user"),
    ("user", "inner", "product"),
    ("user", "inner", "session"),
    ("item", "outer", "product"),
    ("item", "inner", "product"),
    ("item", "inner", "user"),
)
"""Tower, layer and node type of everything that is computed."""

NORM_MIN = 1e-12
"""Least norm an embedding is divided by, as in torch.nn.functional.normalize."""


class Layer:
    """One layer of one tower for one node type: `W_self` and the relations' matrices.

    They are applied one after the other: OpenBLAS takes twice as long for one product with all of them stacked
    (`docs/LOG.md`, 2026-11-27).
    """

    def __init__(self, weights: Mapping[str, F32], prefix: str, node: str, reads: Reads) -> None:
        self.reads = dict(reads)
        self.own_matrix = _dense(weights[f"{prefix}.self.{node}"])
        self.matrices = [_dense(weights[f"{prefix}.{relation}"]) for relation in self.reads]
        self.bias: F32 = weights[f"{prefix}.bias.{node}"].astype(np.float32)
        self.dim = int(self.own_matrix.shape[1])

    def own(self, states: F32) -> F32:
        """What nodes of these states [n, dim] bring themselves, [n, dim]."""
        return self.bias + states @ self.own_matrix

    def means(self, n: int) -> F32:
        """Room for a neighbourhood mean a relation, [n, relations * dim]."""
        return np.zeros((n, len(self.reads) * self.dim), dtype=np.float32)

    def apply(self, own: F32, means: F32) -> F32:
        """What nodes bring themselves [n, dim], which is written to, and their neighbours, [n, relations * dim]."""
        for i, matrix in enumerate(self.matrices):
            own += means[:, i * self.dim : (i + 1) * self.dim] @ matrix
        return own


def _dense(matrix: F32) -> F32:
    return np.ascontiguousarray(matrix, dtype=np.float32)


class FrozenTowers:
    """Encodes users and products of one graph with one bundle.

    `refresh_*` bring the caches of the named nodes up to date; `encode_*` read them. The caller decides
    which nodes are due (`affected.py`). Numbers are the graph's dense ids, int32 [n].
    """

    def __init__(self, bundle: Bundle, graph: GraphStore) -> None:
        self.bundle = bundle
        self.graph = graph
        self.config = bundle.config
        self.dim = bundle.config.dim
        graph.co_purchased.freeze(bundle.frozen_counts(graph))
        self.levels = Levels(graph, bundle.frozen_popularity(graph), self.config.popularity or PopularityConfig())
        empty = np.zeros((0, self.dim), dtype=np.float32)
        self.x_product, self.inner_user_product, self.inner_item_product = empty, empty, empty
        self.inner_item_user = empty
        """Of no rows unless products read their buyers."""
        self._codes = UserCodes.absent(0)
        self._layers = {
            place: Layer(bundle.weights, f"{place[0]}.{place[1]}", place[2], self.config.reads(*place))
            for place in LAYERS
        }
        self._reads_buyers = any(NEIGHBOR_OF_RELATION[relation] == "user" for relation in self.config.item.outer)
        self._given: Bool = np.zeros(0, dtype=np.bool_)
        """Products whose states another worker computes."""
        self._device_names = 0
        self._device_embedding = empty
        self.rebuild()

    def rebuild(self) -> None:
        """Bring every cache up to date with the graph, from nothing."""
        self._codes = UserCodes.absent(0)
        users = self._with_states()
        products = np.arange(len(self.graph.products), dtype=np.int32)
        self._reserve()
        size = max(len(users), len(products))
        for refresh in self.refresh_features, self.refresh_inner:  # all of the former before any of the latter
            with Lanes() as lanes:
                for start in range(0, size, REBUILT):
                    some = slice(start, start + REBUILT)
                    lanes.put(partial(refresh, users[some], products[some]), little=size <= REBUILT)
        self.levels.move()

    def _with_states(self) -> I32:
        """Users of whom anything is kept: all where products read their buyers, else those with a profile."""
        if self._reads_buyers:
            return np.arange(len(self.graph.users), dtype=np.int32)
        written = self.graph.user_attributes.time[: len(self.graph.users)] != NEVER_MS
        return np.flatnonzero(written).astype(np.int32)

    # --- caches ---------------------------------------------------------------------------------

    def refresh_features(self, users: I32, products: I32) -> None:
        """Bring the features of these nodes up to date: codes of users, vectors `x` of products."""
        self._reserve()
        weights, features = self.bundle.weights, self.bundle.features
        for part in _chunks(users):
            codes = user_codes(self.graph.user_attributes.take(part), features, self.bundle.vocabulary)
            self._codes.put(part, codes)
        for part in _chunks(self._not_given(products)):
            ids = self.graph.products.names(part)
            attributes = self.graph.product_attributes.take(part)
            codes_p = product_codes(ids, attributes, features, self.bundle.vocabulary)
            self.x_product[part] = embed_products(weights, codes_p)

    def refresh_inner(self, users: I32, products: I32) -> None:
        """Recompute the first-layer states of these nodes, in every tower that reads them."""
        self._reserve()
        for part in _chunks(self._not_given(products)):
            blocks: dict[tuple[str, Gather], Block] = {}
            self.inner_user_product[part] = self._inner("user", "product", part, blocks)
            self.inner_item_product[part] = self._inner("item", "product", part, blocks)
        for part in _chunks(users) if self._reads_buyers else ():
            self.inner_item_user[part] = self._inner("item", "user", part, {})

    def states(self, products: I32) -> tuple[F32, F32]:
        """What user embeddings read of these products: feature vectors and first-layer states, [n, dim] each."""
        return self.x_product[products], self.inner_user_product[products]

    def give_states(self, products: I32, x: F32, inner: F32) -> None:
        """Take the `states` of products [n] from another worker; they are not computed here any more."""
        self._reserve()
        self.x_product[products] = x
        self.inner_user_product[products] = inner
        self._given[products] = True

    def _not_given(self, products: I32) -> I32:
        return products[~self._given[products]] if products.shape[0] else products

    def _reserve(self) -> None:
        users, products = len(self.graph.users), len(self.graph.products)
        self._given = grown(self._given, products, False)
        self._codes = self._codes.grown(users)
        if self._reads_buyers:
            self.inner_item_user = grown(self.inner_item_user, users)
        self.x_product = grown(self.x_product, products)
        self.inner_user_product = grown(self.inner_user_product, products)
        self.inner_item_product = grown(self.inner_item_product, products)

    # --- encoding -------------------------------------------------------------------------------

    def encode_users(self, users: I32) -> F32:
        """Embeddings of these users, [n, dim] float32."""
        out = np.empty((users.shape[0], self.dim), dtype=np.float32)
        for start in range(0, users.shape[0], CHUNK):
            part = users[start : start + CHUNK]
            blocks: dict[tuple[str, Gather], Block] = {}
            layer = self._layers["user", "outer", "user"]
            means = layer.means(part.shape[0])
            for i, (relation, gather) in enumerate(layer.reads.items()):
                if relation == "has_session":
                    means[:, i * self.dim : (i + 1) * self.dim] = self._session_mean(part, gather)
                else:
                    self._mean(relation, gather, part, self.inner_user_product, blocks, means, i)
            own = self._own(layer, part, blocks)
            out[start : start + CHUNK] = self._finished(layer.apply(own, means), None)
        return out

    def _own(self, layer: Layer, users: I32, blocks: dict[tuple[str, Gather], Block]) -> F32:
        """What users bring to the outer layer themselves, [n, dim]. Where they read nobody, it is a function of their
        codes, and computed once for all who share them: most have no profile."""
        if self._layers["user", "inner", "user"].reads:
            return layer.own(self._inner("user", "user", users, blocks))
        _, one, which = np.unique(self._codes.take(users).joint(), return_index=True, return_inverse=True)
        return layer.own(self._inner("user", "user", users[one], blocks))[which]

    def encode_products(self, products: I32) -> F32:
        """Embeddings of these products, [n, dim] float32."""
        out = np.empty((products.shape[0], self.dim), dtype=np.float32)
        for start in range(0, products.shape[0], CHUNK):
            part = products[start : start + CHUNK]
            layer = self._layers["item", "outer", "product"]
            means = layer.means(part.shape[0])
            for i, (relation, gather) in enumerate(layer.reads.items()):
                of_users = NEIGHBOR_OF_RELATION[relation] == "user"
                table = self.inner_item_user if of_users else self.inner_item_product
                self._mean(relation, gather, part, table, {}, means, i)
            own = layer.own(self.inner_item_product[part])
            out[start : start + CHUNK] = self._finished(layer.apply(own, means), part)
        return out

    def _finished(self, states: F32, products: I32 | None) -> F32:
        """L2-normalised; with popularity the last coordinate is 1 for users, and a product's weighted level."""
        if self.config.popularity is None:
            return normalise(states)
        states[:, :-1] = normalise(states[:, :-1])
        states[:, -1] = (
            1.0 if products is None else self.levels.read(products) * self.bundle.weights["popularity.weight"]
        )
        return states

    def _inner(self, tower: TowerName, node: str, nodes: I32, blocks: dict[tuple[str, Gather], Block]) -> F32:
        layer = self._layers[tower, "inner", node]
        x = embed_users(self.bundle.weights, self._codes.take(nodes)) if node == "user" else self.x_product[nodes]
        means = layer.means(nodes.shape[0])
        for i, (relation, gather) in enumerate(layer.reads.items()):
            self._mean(relation, gather, nodes, self.x_product, blocks, means, i)
        return self._activate(layer.apply(layer.own(x), means))

    def _mean(
        self, relation: str, gather: Gather, nodes: I32, table: F32,
        blocks: dict[tuple[str, Gather], Block], means: F32, place: int,
    ) -> None:  # fmt: skip
        """Write the weighted mean over one relation into its columns of `means`."""
        key = (relation, gather)
        if key not in blocks:
            blocks[key] = read_block(self.graph, relation, gather, nodes)
        block = blocks[key]
        kernels.weighted_sum(table, block.nbr, block.weight, means, place * self.dim)

    def _session_mean(self, users: I32, gather: Gather) -> F32:
        """Mean of the inner states of each user's newest sessions, [n, dim]."""
        layer = self._layers["user", "inner", "session"]
        items = layer.reads["contains"].num_neighbors if "contains" in layer.reads else 1
        block = self.graph.sessions.recent(users, gather.num_neighbors, items)
        row, place = np.nonzero(np.arange(gather.num_neighbors) < block.count[:, None])
        out = np.zeros((users.shape[0], self.dim), dtype=np.float32)
        if not row.shape[0]:
            return out
        own = layer.own(self._session_x(block.device[row, place], block.duration_s[row, place]))
        means = layer.means(row.shape[0])
        if "contains" in layer.reads:
            kernels.weighted_sum(self.x_product, block.nbr[row, place], block.weight[row, place], means, 0)
        states = self._activate(layer.apply(own, means))
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        out[row[starts]] = np.add.reduceat(states, starts, axis=0) / block.count[row[starts], None]
        return out

    def _session_x(self, device: I32, duration_s: F32) -> F32:
        names = self.graph.devices.names(device[device >= 0])
        of_device: list[str | None] = [None] * device.shape[0]
        for place, name in zip(np.flatnonzero(device >= 0).tolist(), names, strict=True):
            of_device[place] = name
        codes = session_codes(of_device, duration_s, self.bundle.features)
        return embed_sessions(self.bundle.weights, codes)

    def _activate(self, states: F32) -> F32:
        if self.config.activation == "relu":
            np.maximum(states, 0.0, out=states)
        return normalise(states) if self.config.activation == "normalise" else states


def encode_fixture(bundle: Bundle, fixture: Fixture) -> tuple[F32, F32]:
    """The serving path's answer to a bundle's parity fixture (users, products); fits `Bundle.load`."""
    graph = GraphStore()
    graph.apply(fixture.events)
    towers = FrozenTowers(bundle, graph)
    users, products = graph.users.intern(fixture.users), graph.products.intern(fixture.products)
    return towers.encode_users(users), towers.encode_products(products)


REBUILT = 16_384
"""Nodes of a rebuild that one thread takes at a time."""
CHUNK = 1024
"""Nodes encoded at a time: bounds the memory of the gathered inputs."""


def _chunks(nodes: I32) -> list[I32]:
    return [nodes[i : i + CHUNK] for i in range(0, nodes.shape[0], CHUNK)]


def normalise(vectors: F32) -> F32:
    """Divide each row by its L2 norm."""
    norm = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    out: F32 = vectors / np.maximum(norm, NORM_MIN)[:, None]
    return out


def read_block(graph: GraphStore, relation: str, gather: Gather, nodes: I32) -> Block:
    """The neighbours of `nodes` in one relation, as the towers read them."""
    if relation == "co_purchased":
        return graph.co_purchased.top(nodes, graph.products.hash, gather.num_neighbors)
    lists: NeighborLists = getattr(graph, relation)
    return lists.recent(nodes, gather)
