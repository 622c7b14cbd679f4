"""The only file that imports implicit: matrix factorization by alternating least squares and by BPR."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from threadpoolctl import threadpool_limits

from freshet.model.evaluation.past import Past, rate
from freshet.model.evaluation.sparse import csr_matrix, matrix
from freshet.model.evaluation.targets import TargetsOf
from freshet.store.columns import F32, I32
from freshet.store.history import History

logging.getLogger("implicit").setLevel(logging.ERROR)


class Factorization:
    """ALS for implicit feedback (Hu, Koren and Volinsky 2008) or BPR (Rendle et al. 2009) on binary user vectors.

    `alpha` is the confidence of ALS. Vectors of users are those of the fit; by ALS they are solved anew where more is
    known. One thread, so that a seed gives the same factors again.
    """

    def __init__(
        self, name: str, kind: Literal["als", "bpr"] = "als", factors: int = 64, regularization: float = 0.01,
        alpha: float = 1.0, iterations: int = 15, learning_rate: float = 0.05, seed: int = 0,
        what: TargetsOf = "purchases",
    ) -> None:  # fmt: skip
        self.name, self.kind, self.what, self.iterations, self.seed = name, kind, what, iterations, seed
        self.factors, self.regularization = factors, regularization
        self.alpha, self.learning_rate = alpha, learning_rate
        self._user: F32 | None = None

    def fit(self, history: History, until_ms: int) -> None:
        self._history, self._until_ms, self._user = history, until_ms, None
        rows = matrix(Past.of(history, until_ms, self.what))
        if not rows.nnz:
            return
        with threadpool_limits(1, "blas"):  # its own thread and those of BLAS get in each other's way
            self._model = self._untrained()
            self._model.fit(csr_matrix(rows), show_progress=False)
        self._user = np.asarray(self._model.user_factors)
        self._item = np.asarray(self._model.item_factors)
        self._never = np.asarray(rows.sum(axis=0)) == 0

    def _untrained(self) -> Any:
        if self.kind == "als":
            return AlternatingLeastSquares(
                factors=self.factors, regularization=self.regularization, alpha=self.alpha, num_threads=1,
                iterations=self.iterations, random_state=self.seed,
            )  # fmt: skip
        return BayesianPersonalizedRanking(
            factors=self.factors, regularization=self.regularization, iterations=self.iterations, num_threads=1,
            learning_rate=self.learning_rate, random_state=self.seed,
        )  # fmt: skip

    def scores(self, users: I32, at_ms: int) -> F32:
        past = Past.of(self._history, at_ms, self.what)
        popular = rate(self._history, at_ms, 30.0, self.what)
        if self._user is None:
            return np.tile(popular, (users.shape[0], 1))
        user = self._user[users]
        if at_ms > self._until_ms and self.kind == "als":
            user = np.asarray(self._model.recalculate_user(users, csr_matrix(matrix(past)[users])))
        out = np.ascontiguousarray(user @ self._item.T, dtype=np.float32)
        out[:, self._never] = -1e6  # a factor that was never trained says nothing
        first = Past.of(self._history, self._until_ms, self.what) if self.kind == "bpr" else past
        out[np.diff(first.ptr)[users] == 0] = popular
        return out
