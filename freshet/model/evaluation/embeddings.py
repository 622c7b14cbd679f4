"""Two towers as systems: a bundle's embeddings as they stood at a time, and their inner products."""

from __future__ import annotations

from collections.abc import Callable
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

MakeBundle = Callable[[History, int], Bundle]
"""A history and a time -> a bundle of what was before that time."""
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
        """See System."""
        item = self._items(at_ms)
        assert self._towers is not None
        found: F32 = (torch.from_numpy(self._towers.users(users, at_ms)) @ torch.from_numpy(item).T).numpy()
        return found

    def levels(self, at_ms: int) -> F32:
        """The part of every score that is the product's popularity, [products] float32."""
        return self._items(at_ms)[:, -1]

    def _items(self, at_ms: int) -> F32:
        assert self._towers is not None, "fit first"
        if self._at is None or self._at[0] != at_ms:
            self._at = at_ms, self._towers.products(at_ms)
        return self._at[1]


class MadeTowers:
    """Towers that are made of what was before the cut."""

    def __init__(self, name: str, make: MakeBundle) -> None:
        self.name, self.make = name, make
        self._system: TwoTower | None = None

    def fit(self, history: History, until_ms: int) -> None:
        """See System. Raises FreshetError when there is nothing to make them of."""
        self._system = TwoTower(self.name, self.make(history, until_ms))
        self._system.fit(history, until_ms)

    def scores(self, users: I32, at_ms: int) -> F32:
        """See System."""
        assert self._system is not None, "fit first"
        return self._system.scores(users, at_ms)


class Kept:
    """A maker of bundles that keeps the last few: several systems ask for the same ones."""

    def __init__(self, make: MakeBundle, kept_max: int = 3) -> None:
        self._make, self._kept_max = make, kept_max
        self._made: list[tuple[History, int, Bundle]] = []

    def __call__(self, history: History, until_ms: int) -> Bundle:
        for known, cut, bundle in self._made:
            if known is history and cut == until_ms:
                return bundle
        bundle = self._make(history, until_ms)
        self._made = [(history, until_ms, bundle), *self._made][: self._kept_max]
        return bundle


def day_zero(history: History, until_ms: int) -> Bundle:
    """The bundle without training, of what was before a time."""
    return dayzero(history, cut_ms=until_ms - 1)


def trained(settings: TrainConfig) -> MakeBundle:
    """Training on what was before a time, with settings that were chosen elsewhere: nothing later is read."""
    settings = replace(settings, validate=False)

    def make(history: History, until_ms: int) -> Bundle:
        try:
            return train(history, settings, split_ms=until_ms)
        except ValueError as e:
            raise FreshetError(str(e)) from e

    return make


class _Products:
    """Numbers of a history's products for `Bundle.frozen_counts`."""

    def __init__(self, products: IdMap) -> None:
        self._products = products

    def intern_products(self, ids: list[str]) -> I32:
        return self._products.intern(ids)


def _named(bundle: Bundle) -> list[str]:
    return list(dict.fromkeys([*bundle.pairs.product, *(p for p, _ in bundle.popular)]))
