"""The only file that imports scipy: sparse user-product matrices, item-kNN and EASE with all that follows from it.

Both are written on the side of the users when there are fewer of them than of products: no matrix of products by
products is ever made then, so that catalogues of 100 thousand products need no truncation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import LinearOperator, eigsh

from freshet.model.config import DAY_MS
from freshet.model.evaluation.past import Past, rate
from freshet.model.evaluation.targets import TargetsOf
from freshet.store.columns import F32, I32
from freshet.store.history import History

Matrix = Any
"""A scipy.sparse.csr_array of float32."""

SIDE_MAX = 12_000
"""The greatest matrix that is inverted: 1.2 GB in double precision."""


def csr_matrix(rows: Matrix) -> Any:
    """The older class of the same matrix, which some libraries ask for."""
    return sparse.csr_matrix(rows)


def matrix(past: Past, value: F32 | None = None) -> Matrix:
    """Users by products; ones, or `value` [entries]."""
    data = np.ones(past.product.shape[0], dtype=np.float32) if value is None else value
    return sparse.csr_array((data, past.product.astype(np.int64), past.ptr), (past.ptr.shape[0] - 1, past.size))


class _FromHistory:
    """What the systems of this file share: the rows of users at a time, and what unknown users get."""

    def __init__(self, name: str, what: TargetsOf) -> None:
        self.name, self.what = name, what
        self._history: History | None = None
        self._at: tuple[int, Past, F32] | None = None

    def _begin(self, history: History, until_ms: int) -> Past:
        self._history, self._at = history, None
        return self._state(until_ms)[0]

    def _state(self, at_ms: int) -> tuple[Past, F32]:
        assert self._history is not None, "fit first"
        if self._at is None or self._at[0] != at_ms:
            past = Past.of(self._history, at_ms, self.what)
            popular = rate(self._history, at_ms, 30.0, self.what)
            self._at = at_ms, past, popular / (popular.max(initial=0.0) + 1.0)
        return self._at[1:]

    def _with_popular(self, scores: F32, users: I32, past: Past, popular: F32) -> F32:
        """Users of whom nothing is known get the popular products."""
        empty = np.diff(past.ptr)[users] == 0
        scores[empty] = popular
        return scores


class ItemKNN(_FromHistory):
    """Item-kNN: the sum of the cosines (over binary user vectors) between a product and each that the user bought
    (Sarwar et al. 2001), itself among them. All products are neighbours: a cut at the nearest K only costs here."""

    def __init__(self, name: str, what: TargetsOf = "purchases") -> None:
        super().__init__(name, what)
        self._x: Matrix = None

    def fit(self, history: History, until_ms: int) -> None:
        x = matrix(self._begin(history, until_ms))
        count = np.asarray(x.sum(axis=0))
        self._scale = (1.0 / np.sqrt(np.maximum(count, 1.0))).astype(np.float32)
        self._x = (x[np.flatnonzero(np.diff(x.indptr))] @ sparse.diags_array(self._scale)).tocsr()

    def scores(self, users: I32, at_ms: int) -> F32:
        past, popular = self._state(at_ms)
        rows = matrix(past)[users]
        out = _through(_dense(rows @ self._x.T), self._x)
        return self._with_popular(out, users, past, popular)


class EASE(_FromHistory):
    """EASE (Steck 2019) on binary user vectors with ridge `penalty`, exactly, on the smaller side.

    P = (X'X + penalty I)^-1, B = I - P / diag(P). With fewer users than products P = (I - X' K^-1 X) / penalty with
    K = X X' + penalty I (Woodbury), which gives products of vectors with B without B itself. Where both sides are
    greater than `side_max`, the most bought `side_max` products take part and the others score zero.

    `own` > 0 adds `own` times what the user bought how often. `rank` > 0 takes the leading eigenvectors of the
    symmetrised B in its place; a user's products are then weighted (1 + age / 7 days)^-`recency`, and `popularity`
    times log(1 + popularity decayed with a half-life of `popularity_days`) is added: what an inner-product index can
    serve.
    """

    def __init__(
        self, name: str, penalty: float = 100.0, own: float = 0.0, rank: int = 0, recency: float = 0.0,
        popularity: float = 0.0, what: TargetsOf = "purchases", side_max: int = SIDE_MAX,
        popularity_days: float = 20.0,
    ) -> None:  # fmt: skip
        super().__init__(name, what)
        self.penalty, self.own, self.rank, self.recency, self.popularity = penalty, own, rank, recency, popularity
        self.popularity_days = popularity_days
        self.side_max = side_max
        self._kept: NDArray[np.int64] | None = None
        self._vectors: F32 | None = None

    def fit(self, history: History, until_ms: int) -> None:
        past = self._begin(history, until_ms)
        self._x = matrix(past)
        self._fit_sides()
        self._vectors = None
        if self.rank and min(self._train.shape) > 2:
            self._vectors, self._values = self._eigen(min(self.rank, self._train.shape[1] - 1))

    def _fit_sides(self) -> None:
        x = self._x
        self._kept = None
        active = np.flatnonzero(np.diff(x.indptr))
        if min(active.shape[0], x.shape[1]) > self.side_max:
            self._kept = np.sort(np.argsort(-np.asarray(x.sum(axis=0)), kind="stable")[: self.side_max])
            x = x[:, self._kept]
        self._train = x[active]
        self._on_users = active.shape[0] < x.shape[1]
        one = self._train
        gram = (one @ one.T if self._on_users else one.T @ one).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += self.penalty
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        inverse = cho_solve(factor, np.eye(gram.shape[0]), overwrite_b=True, check_finite=False)
        if self._on_users:
            self._inverse = inverse.astype(np.float32)
            within = self._quadratic(one)
            self._diagonal = ((1.0 - within) / self.penalty).astype(np.float32)
        else:
            diagonal = np.diag(inverse)
            b = -inverse / diagonal[None, :]
            b[np.diag_indices_from(b)] = 0.0
            self._inverse, self._diagonal = b.astype(np.float32), diagonal.astype(np.float32)

    def _quadratic(self, one: Matrix) -> NDArray[np.float64]:
        """x_j' K^-1 x_j for every product j, a block of products at a time."""
        columns = one.tocsc()
        out = np.empty(one.shape[1])
        for start in range(0, one.shape[1], 8192):
            part = columns[:, start : start + 8192]
            out[start : start + 8192] = np.asarray(part.multiply(self._inverse @ part.toarray()).sum(axis=0))
        return out

    def _times(self, rows: Matrix) -> F32:
        """`rows` [q, products] times B, [q, products] float32."""
        if self._kept is not None:
            rows = rows[:, self._kept]
        if self._on_users:
            out = _dense(rows) - _through(_dense(rows @ self._train.T) @ self._inverse, self._train)
            out *= -1.0 / (self.penalty * self._diagonal)
            out += _dense(rows)
        else:
            out = np.asarray(rows @ self._inverse)
        if self._kept is None:
            return np.ascontiguousarray(out, dtype=np.float32)
        wide = np.zeros((out.shape[0], self._x.shape[1]), dtype=np.float32)
        wide[:, self._kept] = out
        return wide

    def _eigen(self, rank: int) -> tuple[F32, F32]:
        """The `rank` leading eigenvectors [products, rank] and eigenvalues of (B + B') / 2."""
        size = self._train.shape[1]
        train, d, inverse = self._train, self._diagonal, self._inverse

        def through(v: F32) -> F32:
            return np.asarray((v - train.T @ (inverse @ (train @ v))) / self.penalty, dtype=np.float32)

        if self._on_users:

            def product(v: F32) -> F32:
                v = v.ravel()
                return np.asarray(v - 0.5 * (through(v / d) + through(v) / d), dtype=np.float32)

            operator: Any = LinearOperator((size, size), dtype=np.float32, matvec=product)
        else:
            operator = 0.5 * (inverse + inverse.T)
        start = np.random.default_rng(0).normal(size=size).astype(np.float32)
        values, vectors = eigsh(operator, k=rank, which="LA", v0=start, tol=1e-3)
        return vectors.astype(np.float32), values.astype(np.float32)

    def scores(self, users: I32, at_ms: int) -> F32:
        past, popular = self._state(at_ms)
        if self._vectors is None:
            out = self._times(matrix(past)[users])
        else:
            out = self._low_rank(past, users)
            decayed = _decayed_rate(past, self.popularity_days)
            out += self.popularity * np.log1p(decayed)
        if self.own:
            out += self.own * past.dense(users, past.count)
        return self._with_popular(out, users, past, popular)

    def _low_rank(self, past: Past, users: I32) -> F32:
        assert self._vectors is not None
        age = (past.at_ms - past.last_ms) / DAY_MS
        weight = ((1.0 + age / 7.0) ** -self.recency).astype(np.float32)
        rows = matrix(past, weight)[users]
        norm = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1))).astype(np.float32)
        if self._kept is not None:
            rows = rows[:, self._kept]
        user = np.asarray(rows @ (self._vectors * self._values)) / np.maximum(norm, 1e-6)[:, None]
        found = user @ self._vectors.T
        if self._kept is None:
            return np.ascontiguousarray(found, dtype=np.float32)
        out = np.zeros((found.shape[0], self._x.shape[1]), dtype=np.float32)
        out[:, self._kept] = found
        return out


def _decayed_rate(past: Past, half_life_days: float) -> F32:
    age = (past.at_ms - past.lines.time) / DAY_MS
    return np.bincount(past.lines.product, 2.0 ** (-age / half_life_days), minlength=past.size).astype(np.float32)


def _dense(rows: Any) -> F32:
    return np.asarray(rows if isinstance(rows, np.ndarray) else rows.toarray(), dtype=np.float32)


def _through(left: F32, train: Matrix) -> F32:
    """Dense [q, users] times sparse [users, products]."""
    return np.asarray((train.T @ left.T).T, dtype=np.float32)
