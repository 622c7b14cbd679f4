"""The offline truth: embeddings by the plain PyTorch Geometric layers over a graph at rest.

Nothing is cached and nothing is shared with the serving path but the store's gathers, so a difference
between the two is a fault in one of them. `freshet verify` compares with this.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from freshet.model.bundle import Bundle, Fixture
from freshet.model.features import ProductCodes, UserCodes, product_codes, user_codes
from freshet.model.neighborhood import NO_NODES, GraphReader, neighborhood, walk
from freshet.model.towers import Towers
from freshet.store.columns import F32, I32
from freshet.store.graph import GraphStore

CHUNK = 4096
"""Targets encoded at a time."""


class OfflineTowers:
    """The plain towers over one graph. Raises KeyError or ValueError when the weights do not fit.

    `freeze` makes the graph count co-purchases with the bundle's frozen counts (a graph that already does
    needs it not).
    """

    def __init__(self, bundle: Bundle, graph: GraphStore, freeze: bool = True) -> None:
        self.bundle, self.graph = bundle, graph
        if freeze:
            graph.co_purchased.freeze(bundle.frozen_counts(graph))
        self.towers = Towers(bundle.config, bundle.features, bundle.weights["product.id"].shape[0])
        self.towers.load(bundle.weights).eval()
        self.reader = GraphReader(graph, bundle.frozen_popularity(graph), bundle.config.popularity)
        self._products, self._users = self._codes()

    def _codes(self) -> tuple[ProductCodes, UserCodes]:
        graph, features, vocabulary = self.graph, self.bundle.features, self.bundle.vocabulary
        products = np.arange(len(graph.products), dtype=np.int32)
        users = np.arange(len(graph.users), dtype=np.int32)
        attributes = graph.product_attributes.take(products)
        return (
            product_codes(graph.products.names(products), attributes, features, vocabulary),
            user_codes(graph.user_attributes.take(users), features, vocabulary),
        )

    @torch.no_grad()
    def encode_users(self, users: I32, progress: Callable[[int], None] = lambda done: None) -> F32:
        """Embeddings of `users` [n] int32, [n, dim] float32; `progress` is told how many are done."""
        out = np.empty((users.shape[0], self.bundle.config.dim), dtype=np.float32)
        for start in range(0, users.shape[0], CHUNK):
            part = users[start : start + CHUNK]
            found = walk(self.reader, self.bundle.config, part, NO_NODES, len(self.graph.products))
            graph = neighborhood(found, self._products, self._users, self.bundle.features)
            x = self.towers.x_product(graph.product)
            out[start : start + CHUNK] = self.towers.encode_users(graph, x).numpy()
            progress(start + part.shape[0])
        return out

    @torch.no_grad()
    def encode_products(self, products: I32, progress: Callable[[int], None] = lambda done: None) -> F32:
        """Embeddings of distinct `products` [n] int32, [n, dim] float32; `progress` is told how many are done."""
        out = np.empty((products.shape[0], self.bundle.config.dim), dtype=np.float32)
        for start in range(0, products.shape[0], CHUNK):
            part = products[start : start + CHUNK]
            found = walk(self.reader, self.bundle.config, NO_NODES, part, len(self.graph.products))
            graph = neighborhood(found, self._products, self._users, self.bundle.features)
            x = self.towers.x_product(graph.product)
            out[start : start + CHUNK] = self.towers.encode_items(graph, x).numpy()
            progress(start + part.shape[0])
        return out


def encode_users_offline(bundle: Bundle, graph: GraphStore, users: I32) -> F32:
    """Embeddings of `users` [n] int32 by the plain layers, [n, dim] float32."""
    return OfflineTowers(bundle, graph).encode_users(users)


def encode_products_offline(bundle: Bundle, graph: GraphStore, products: I32) -> F32:
    """Embeddings of distinct `products` [n] int32 by the plain layers, [n, dim] float32."""
    return OfflineTowers(bundle, graph).encode_products(products)


def encode_fixture(bundle: Bundle, fixture: Fixture) -> tuple[F32, F32]:
    """The plain layers' answer to a bundle's parity fixture (users, products); fits `Bundle.load`."""
    graph = GraphStore()
    graph.apply(fixture.events)
    towers = OfflineTowers(bundle, graph)
    users, products = graph.users.intern(fixture.users), graph.intern_products(fixture.products)
    return towers.encode_users(users), towers.encode_products(products)
