"""The final ranker as a system: what `Reader.recommend` would offer, ranked over the whole catalogue."""

from __future__ import annotations

import numpy as np

from freshet.model.at_time import TowersAt
from freshet.model.config import DAY_MS
from freshet.model.evaluation.embeddings import MakeBundle, TwoTower
from freshet.model.evaluation.targets import TargetsOf
from freshet.model.fit_ranker import FitRankerConfig, OwnPast, fit_ranker
from freshet.store.columns import F32, I32
from freshet.store.history import History
from freshet.store.ranker import Ranker, RankerWeights, logit, reference_of


class FinalRanker:
    """Towers and a ranker. Without `ranker` it is fitted: with towers of what was before the last
    `window_days` of the time that may be learned from, on what was taken in those. Then the towers are made anew of
    all of it."""

    def __init__(
        self, name: str, make: MakeBundle | TwoTower, ranker: Ranker | None = None,
        config: FitRankerConfig | None = None, what: TargetsOf = "purchases",
    ) -> None:  # fmt: skip
        """`make`: what makes a bundle, or towers that are made, which need `ranker`."""
        if isinstance(make, TwoTower) and ranker is None:
            raise ValueError("a ranker is fitted with towers of an earlier time: give what makes them, or the ranker")
        self.name, self.make, self.ranker, self.what = name, make, ranker, what
        self.config = config or FitRankerConfig()
        self._towers: TwoTower | None = None
        self._history: History | None = None
        self.used: Ranker | None = None
        self._again: F32 = np.zeros(0, np.float32)

    def fit(self, history: History, until_ms: int) -> None:
        """See System."""
        self.used = self.ranker
        if self.used is None:
            assert not isinstance(self.make, TwoTower), "checked when it was made"
            at_ms = until_ms - int(self.config.window_days * DAY_MS)
            towers = TowersAt.of(self.make(history, at_ms), history)
            self.used = ranker_of(towers, history, at_ms, self.config, self.what)
        self._history, self._again = history, self.used.again_of(history.products.all_names())
        made = self.make
        self._towers = made if isinstance(made, TwoTower) else TwoTower(self.name, made(history, until_ms))
        self._towers.fit(history, until_ms)

    def scores(self, users: I32, at_ms: int) -> F32:
        """See System. Logits."""
        assert self._towers is not None and self._history is not None and self.used is not None, "fit first"
        score = self._towers.scores(users, at_ms)
        past = OwnPast.of(self._history, users, at_ms, self.config)
        return whole_catalogue(self.used.weights, score, self._towers.levels(at_ms), self._again, past)


def ranker_of(
    towers: TowersAt, history: History, at_ms: int, config: FitRankerConfig, what: TargetsOf = "purchases"
) -> Ranker:
    """The ranker for these towers, from the window after `at_ms`; the defaults where there is too little in it."""
    item = towers.products(at_ms)
    found = fit_ranker(history, lambda users: towers.users(users, at_ms) @ item.T, item[:, -1], at_ms, config, what)
    return found or Ranker()


def whole_catalogue(weights: RankerWeights, score: F32, level: F32, again: F32, past: OwnPast) -> F32:
    """Logits of all pairs, [q, products] float32; `score` likewise, `level` and `again` [products] (`Pairs`)."""
    out: F32 = np.float32(weights.bias) + np.float32(weights.score) * (score - reference_of(score)[:, None])
    row, column = np.nonzero((past.count > 0) | past.viewed)
    out[row, column] = logit(weights, past.pairs(score, level, again, row, column))
    return out
