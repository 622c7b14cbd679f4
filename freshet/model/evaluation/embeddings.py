"""Two towers as systems: a bundle's embeddings as they stood at a time, and their inner products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.dayzero import dayzero, history_codes
from freshet.model.features import user_codes
from freshet.model.neighborhood import NO_NODES, Neighborhood, neighborhood, walk
from freshet.model.sampler import HistoryReader, PopularityHistory
from freshet.model.towers import Towers
from freshet.model.train import TrainConfig, train
from freshet.store.columns import F32, I32
from freshet.store.history import History
from freshet.store.ids import IdMap

USERS, PRODUCTS = 2048, 8192
"""Users and products encoded at a time."""


class TowersAt:
    """A bundle over a history: embeddings of what was known strictly before a time."""

    def __init__(self, bundle: Bundle, history: History) -> None:
        self.history = history
        names = set(history.products.all_names())
        self.bundle = replace(bundle, fixture=None).thin([p for p in _named(bundle) if p in names])
        self.towers = Towers(bundle.config, bundle.features, bundle.weights["product.id"].shape[0])
        self.towers.load(bundle.weights).eval()
        self._products = history_codes(history, bundle.features, bundle.vocabulary)
        users = np.arange(len(history.users), dtype=np.int32)
        self._users = user_codes(history.user_attributes.take(users), bundle.features, bundle.vocabulary)
        self._popularity = PopularityHistory(history, bundle.config.popularity) if bundle.config.popularity else None
        self._frozen = self.bundle.frozen_counts(_Products(history.products))

    def users(self, users: I32, at_ms: int) -> F32:
        """Embeddings of `users` [q], [q, dim] float32."""
        return self._encode(users, at_ms, USERS, of_users=True)

    def products(self, at_ms: int) -> F32:
        """Embeddings of every product of the history, [products, dim] float32."""
        return self._encode(np.arange(len(self.history.products), dtype=np.int32), at_ms, PRODUCTS, of_users=False)

    @torch.no_grad()
    def _encode(self, nodes: I32, at_ms: int, step: int, of_users: bool) -> F32:
        out = np.empty((nodes.shape[0], self.bundle.config.dim), dtype=np.float32)
        pairs = self.history.pairs_since(self._frozen, at_ms)
        for start in range(0, nodes.shape[0], step):
            part = nodes[start : start + step]
            target_ms = np.full(part.shape[0] if of_users else 0, at_ms, dtype=np.int64)
            reader = HistoryReader(self.history, pairs, target_ms, at_ms, popularity=self._popularity)
            pair = (part, NO_NODES) if of_users else (NO_NODES, part)
            found = walk(reader, self.bundle.config, *pair, len(self.history.products))
            graph: Neighborhood = neighborhood(found, self._products, self._users, self.bundle.features)
            x = self.towers.x_product(graph.product)
            encode = self.towers.encode_users if of_users else self.towers.encode_items
            out[start : start + step] = encode(graph, x).numpy()
        return out


class TwoTower:
    """Inner products of a bundle's embeddings. The bundle was made beforehand, so `fit` only checks that it was made
    without what it is tested on."""

    def __init__(self, name: str, bundle: Bundle) -> None:
        self.name, self.bundle = name, bundle
        self._towers: TowersAt | None = None
        self._at: tuple[int, F32] | None = None

    def fit(self, history: History, until_ms: int) -> None:
        """Raises FreshetError for a bundle that has seen what comes after `until_ms`."""
        if self.bundle.cut_ms >= until_ms:
            cut, until = (str(np.datetime64(int(t), "s")) for t in (self.bundle.cut_ms // 1000, until_ms // 1000))
            raise FreshetError(
                f"the bundle {self.name} was made of events up to {cut}, and training ends at {until}: "
                "make it anew with --before, or move --train-before"
            )
        self._towers, self._at = TowersAt(self.bundle, history), None

    def scores(self, users: I32, at_ms: int) -> F32:
        assert self._towers is not None, "fit first"
        if self._at is None or self._at[0] != at_ms:
            self._at = at_ms, self._towers.products(at_ms)
        user = torch.from_numpy(self._towers.users(users, at_ms))
        found: F32 = (user @ torch.from_numpy(self._at[1]).T).numpy()
        return found


class DayZero:
    """The bundle without training, made of what was known at the cut."""

    def __init__(self, name: str = "day_zero") -> None:
        self.name = name
        self._system: TwoTower | None = None

    def fit(self, history: History, until_ms: int) -> None:
        self._system = TwoTower(self.name, dayzero(history, cut_ms=until_ms - 1))
        self._system.fit(history, until_ms)

    def scores(self, users: I32, at_ms: int) -> F32:
        assert self._system is not None, "fit first"
        return self._system.scores(users, at_ms)


class Trained:
    """Towers trained on what was before the cut, with settings that were chosen elsewhere: nothing later is read."""

    def __init__(self, name: str = "two_tower", settings: TrainConfig | None = None) -> None:
        self.name, self.settings = name, replace(settings or TrainConfig(), validate=False)
        self._system: TwoTower | None = None

    def fit(self, history: History, until_ms: int) -> None:
        """Raises FreshetError when there is nothing to train on."""
        try:
            self._system = TwoTower(self.name, train(history, self.settings, split_ms=until_ms))
        except ValueError as e:
            raise FreshetError(f"{self.name}: {e}") from e
        self._system.fit(history, until_ms)

    def scores(self, users: I32, at_ms: int) -> F32:
        assert self._system is not None, "fit first"
        return self._system.scores(users, at_ms)


class _Products:
    """Numbers of a history's products for `Bundle.frozen_counts`."""

    def __init__(self, products: IdMap) -> None:
        self._products = products

    def intern_products(self, ids: list[str]) -> I32:
        return self._products.intern(ids)


def _named(bundle: Bundle) -> list[str]:
    return list(dict.fromkeys([*bundle.pairs.product, *(p for p, _ in bundle.popular)]))
