"""Towers over a history: embeddings as they stood at a time, of what was known strictly before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from freshet.model.bundle import Bundle
from freshet.model.config import FeatureConfig, TowerConfig
from freshet.model.dayzero import history_codes
from freshet.model.features import ProductCodes, UserCodes, user_codes
from freshet.model.neighborhood import NO_NODES, Neighborhood, neighborhood, walk
from freshet.model.sampler import HistoryReader, PopularityHistory
from freshet.model.towers import Towers
from freshet.store.columns import F32, I32
from freshet.store.copurchase import FrozenCounts
from freshet.store.history import History, PairHistory
from freshet.store.ids import IdMap

USERS, PRODUCTS = 2048, 8192
"""Users and products encoded at a time."""


class TowersAt:
    """Encodes the users and the catalogue of a history. `towers` may go on learning in between."""

    def __init__(
        self, history: History, towers: Towers, config: TowerConfig, features: FeatureConfig, products: ProductCodes,
        users: UserCodes, frozen: FrozenCounts,
    ) -> None:  # fmt: skip
        self.history, self.towers, self.config, self.features = history, towers, config, features
        self._products, self._users, self._frozen = products, users, frozen
        self._popularity = PopularityHistory(history, config.popularity) if config.popularity else None
        self._pairs: tuple[int, PairHistory] | None = None

    @staticmethod
    def of(bundle: Bundle, history: History) -> TowersAt:
        """The towers of a bundle; the history learns no product from it."""
        names = set(history.products.all_names())
        bundle = replace(bundle, fixture=None).thin([p for p in _named(bundle) if p in names])
        towers = Towers(bundle.config, bundle.features, bundle.weights["product.id"].shape[0])
        users = np.arange(len(history.users), dtype=np.int32)
        return TowersAt(
            history, towers.load(bundle.weights).eval(), bundle.config, bundle.features,
            history_codes(history, bundle.features, bundle.vocabulary),
            user_codes(history.user_attributes.take(users), bundle.features, bundle.vocabulary),
            bundle.frozen_counts(_Products(history.products)),
        )  # fmt: skip

    def users(self, users: I32, at_ms: int) -> F32:
        """Embeddings of `users` [q], [q, dim] float32."""
        return self._encode(users, at_ms, USERS, of_users=True)

    def products(self, at_ms: int) -> F32:
        """Embeddings of every product of the history, [products, dim] float32."""
        return self._encode(np.arange(len(self.history.products), dtype=np.int32), at_ms, PRODUCTS, of_users=False)

    @torch.no_grad()
    def _encode(self, nodes: I32, at_ms: int, step: int, of_users: bool) -> F32:
        out = np.empty((nodes.shape[0], self.config.dim), dtype=np.float32)
        pairs = self._pairs_until(at_ms)
        for start in range(0, nodes.shape[0], step):
            part = nodes[start : start + step]
            target_ms = np.full(part.shape[0] if of_users else 0, at_ms, dtype=np.int64)
            reader = HistoryReader(self.history, pairs, target_ms, at_ms, popularity=self._popularity)
            pair = (part, NO_NODES) if of_users else (NO_NODES, part)
            found = walk(reader, self.config, *pair, len(self.history.products))
            graph: Neighborhood = neighborhood(found, self._products, self._users, self.features)
            graph = graph.to(self.towers.device)
            x = self.towers.x_product(graph.product)
            encode = self.towers.encode_users if of_users else self.towers.encode_items
            out[start : start + step] = encode(graph, x).cpu().numpy()
        return out

    def _pairs_until(self, at_ms: int) -> PairHistory:
        if self._pairs is None or self._pairs[0] != at_ms:
            self._pairs = at_ms, self.history.pairs_since(self._frozen, at_ms)
        return self._pairs[1]


class _Products:
    """Numbers of a history's products for `Bundle.frozen_counts`."""

    def __init__(self, products: IdMap) -> None:
        self._products = products

    def intern_products(self, ids: list[str]) -> I32:
        return self._products.intern(ids)


def _named(bundle: Bundle) -> list[str]:
    return list(dict.fromkeys([*bundle.pairs.product, *(p for p, _ in bundle.popular)]))
