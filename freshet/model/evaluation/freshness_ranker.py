"""What `Reader.recommend` would offer in a replay: the ranker over inner products and what users' values said then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from freshet.model.evaluation.final import whole_catalogue
from freshet.model.fit_ranker import FitRankerConfig, OwnPast
from freshet.store.columns import F32, I32
from freshet.store.history import History
from freshet.store.ids import IdMap
from freshet.store.ranker import Ranker


class RankerAt:
    """A ranker over a history that holds everything that is played: whatever the time, users' values are as they
    would have been written then. Products are numbered by somebody else, who may learn of more of them."""

    def __init__(self, ranker: Ranker, history: History, config: FitRankerConfig | None = None) -> None:
        self.ranker, self.history, self.config = ranker, history, config or FitRankerConfig()
        self._column: I32 = np.zeros(0, dtype=np.int32)
        self._again: F32 = np.zeros(0, dtype=np.float32)

    def logits(self, score: F32, level: F32, users: Sequence[str], products: IdMap, at_ms: int) -> F32:
        """Of all pairs, [q, products] float32, by what was known strictly before `at_ms`. `score` is of the same shape,
        `level` [products] the part of it that is popularity; `users` [q] are in the history."""
        rows = self.history.users.intern(users)
        column = self._columns(products)[: score.shape[1]]
        there = column >= 0
        past = vars(OwnPast.of(self.history, rows, at_ms, self.config))
        past = {name: values[:, column] * there for name, values in past.items()}
        return whole_catalogue(self.ranker.weights, score, level, self._again[: score.shape[1]], OwnPast(**past))

    def _columns(self, products: IdMap) -> I32:
        """The history's number of each of `products`, -1 for one that it does not have; keeps what each adds, too."""
        known = self._column.shape[0]
        if known < len(products):
            names = products.names(np.arange(known, len(products), dtype=np.int32))
            found = [-1 if name is None else self.history.products.get(name) for name in names]
            new = np.array([-1 if n is None else n for n in found], dtype=np.int32)
            self._column = np.concatenate([self._column, new])
            self._again = np.concatenate([self._again, self.ranker.again_of(names)])
        return self._column
