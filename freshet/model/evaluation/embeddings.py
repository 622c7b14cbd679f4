"""Two towers as systems: inner products of a bundle's embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from freshet.errors import FreshetError
from freshet.model.at_time import TowersAt
from freshet.model.bundle import Bundle
from freshet.model.dayzero import dayzero
from freshet.model.train import train
from freshet.model.train_config import TrainConfig
from freshet.store.columns import F32, I32
from freshet.store.history import History

MakeBundle = Callable[[History, int], Bundle]
"""A history and a time -> a bundle of what was before that time."""


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
        if self._towers is None or self._towers.history is not history:
            self._towers, self._at = TowersAt.of(self.bundle, history), None

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
