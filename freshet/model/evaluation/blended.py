"""Candidates of an inner-product system and of a user's own history, in one ranking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freshet.model.config import DAY_MS
from freshet.model.evaluation.past import Past, rate
from freshet.model.evaluation.systems import System
from freshet.model.evaluation.targets import TargetsOf
from freshet.store.columns import F32, I32
from freshet.store.history import History


@dataclass(frozen=True)
class OwnTerms:
    """What a product that the user bought is worth more than another, in deviations of the inner score:
    base + count x log(count) - age x log(1 + days since the last / 30) + recent x log(1 + purchases by all in 30 days).
    """

    base: float = 3.0
    count: float = 2.0
    age: float = 0.5
    recent: float = 1.0

    def of(self, past: Past, popular: F32) -> F32:
        """Of each entry of `past`, [entries] float32; `popular` [products] are purchases in the last 30 days."""
        days = (past.at_ms - past.last_ms) / DAY_MS
        worth = self.base + self.count * np.log(past.count) - self.age * np.log1p(days / 30.0)
        return (worth + self.recent * np.log1p(popular[past.product])).astype(np.float32)


class Blended:
    """`inner` over the deviation of its scores, plus `OwnTerms` for what a user bought.

    Systems with other terms may share one `inner`: it is fitted once for each time.
    """

    def __init__(self, name: str, inner: Shared, terms: OwnTerms, what: TargetsOf = "purchases") -> None:
        self.name, self.inner, self.terms, self.what = name, inner, terms, what
        self._history: History | None = None

    def fit(self, history: History, until_ms: int) -> None:
        self._history = history
        self.inner.fit(history, until_ms)

    def scores(self, users: I32, at_ms: int) -> F32:
        assert self._history is not None, "fit first"
        past = Past.of(self._history, at_ms, self.what)
        known = np.zeros(past.size, dtype=np.bool_)
        known[past.product] = True
        out = self.inner.scores(users, at_ms)
        spread = np.maximum(np.where(known, out, 0.0).std(axis=1, where=known[None, :]), 1e-6)
        out /= spread[:, None]
        out += past.dense(users, self.terms.of(past, rate(self._history, at_ms, 30.0, self.what)))
        return out


class Shared:
    """A system that is fitted once for a history and a time, however many ask."""

    def __init__(self, inner: System) -> None:
        self.name, self._inner = inner.name, inner
        self._at: tuple[History, int] | None = None

    def fit(self, history: History, until_ms: int) -> None:
        if self._at is None or self._at[0] is not history or self._at[1] != until_ms:
            self._inner.fit(history, until_ms)
            self._at = history, until_ms

    def scores(self, users: I32, at_ms: int) -> F32:
        return self._inner.scores(users, at_ms)
