"""The only file that imports lightgbm: a ranker of boosted trees on flat features of a user and a product."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from freshet.model.config import DAY_MS
from freshet.model.evaluation.past import Past, rate
from freshet.model.evaluation.ranking import tie_ranks, top_k
from freshet.model.evaluation.sparse import EASE, ItemKNN
from freshet.model.evaluation.targets import Targets, TargetsOf, Window, WindowError
from freshet.store.columns import F32, I32, Bool
from freshet.store.history import History

CANDIDATES_EACH = 100
"""Products taken of each cheap system; all that a user bought are candidates too."""
FEATURES = (
    "own_count", "own_decayed_30", "own_decayed_90", "days_since_last", "popular_7", "popular_30", "popular_all",
    "ease", "item_knn", "user_lines", "user_products", "user_days_since_last", "product_repeat_share", "log_price",
)  # fmt: skip
CHUNK = 256
NEVER = -1e6
"""Scores of products that are no candidates: behind all candidates, by popularity."""


class BoostedRanker:
    """LambdaMART (Burges 2010) by LightGBM on candidates of own history, EASE and popularity.

    It learns from the last `window_days` before `until_ms`, with features of what was known before them (the cheap
    systems are fitted on that time too, then again on everything), from at most `users_max` users.
    """

    def __init__(
        self, name: str = "lightgbm", penalty: float = 300.0, window_days: float = 14.0, rounds: int = 200,
        users_max: int = 4000, seed: int = 0, what: TargetsOf = "purchases",
    ) -> None:  # fmt: skip
        self.name, self.what, self.penalty, self.window_days = name, what, penalty, window_days
        self.rounds, self.users_max, self.seed = rounds, users_max, seed
        self._model: lightgbm.Booster | None = None

    def fit(self, history: History, until_ms: int) -> None:
        self._history = history
        self._ties = tie_ranks(history.products.hash)
        self._price = _log_prices(history)
        self._model = None
        cut_ms = int(until_ms - self.window_days * DAY_MS)
        try:
            targets = Targets.of(history, Window(cut_ms, until_ms), cut_ms, what=self.what)
        except WindowError:
            return  # nothing happened in the window: candidates are ranked by popularity
        self._fit_cheap(history, cut_ms)
        rows, ptr, product = targets.sample(self.users_max, self.seed).kind("all")
        users = targets.sample(self.users_max, self.seed).users[rows]
        self._train(users, ptr, product, cut_ms)
        self._fit_cheap(history, until_ms)

    def _fit_cheap(self, history: History, until_ms: int) -> None:
        self._ease, self._knn = EASE("ease", self.penalty, what=self.what), ItemKNN("item_knn", self.what)
        self._ease.fit(history, until_ms)
        self._knn.fit(history, until_ms)

    def _train(self, users: I32, ptr: NDArray[np.int64], product: I32, at_ms: int) -> None:
        size = len(self._history.products)
        wanted = np.repeat(np.arange(users.shape[0]), np.diff(ptr)) * size + product
        x: list[F32] = []
        y: list[Bool] = []
        groups: list[NDArray[np.int64]] = []
        for start in range(0, users.shape[0], CHUNK):
            row, item, features = self._features(users[start : start + CHUNK], at_ms)
            x.append(features)
            y.append(np.isin((row + start) * size + item, wanted))
            groups.append(np.bincount(row, minlength=users[start : start + CHUNK].shape[0]))
        label = np.concatenate(y) if y else np.zeros(0, np.bool_)
        if not label.any():
            return
        data = lightgbm.Dataset(np.concatenate(x), label.astype(np.int32), group=np.concatenate(groups))
        settings = {
            "objective": "lambdarank", "lambdarank_truncation_level": 30, "learning_rate": 0.05, "num_leaves": 31,
            "min_data_in_leaf": 50, "num_threads": 2, "seed": self.seed, "deterministic": True, "verbosity": -1,
            "feature_fraction": 0.8, "force_row_wise": True,
        }  # fmt: skip
        self._model = lightgbm.train(settings, data, num_boost_round=self.rounds)

    def scores(self, users: I32, at_ms: int) -> F32:
        popular = rate(self._history, at_ms, 30.0, self.what)
        out = np.tile(popular / (popular.max(initial=0.0) + 1.0), (users.shape[0], 1)).astype(np.float32)
        if self._model is None:
            return out
        out += NEVER  # coarse in float32, ties by hash: nobody looks that far down but AUROC
        row, item, features = self._features(users, at_ms)
        known = np.diff(Past.of(self._history, at_ms, self.what).ptr)[users] > 0
        out[row, item] = np.asarray(self._model.predict(features))
        out[~known] = popular
        return out

    def _features(self, users: I32, at_ms: int) -> tuple[NDArray[np.int64], NDArray[np.int64], F32]:
        """Candidates of `users` [q]: row and product [n], sorted by row, and features [n, FEATURES] float32."""
        past = Past.of(self._history, at_ms, self.what)
        popular = [rate(self._history, at_ms, days, self.what) for days in (7.0, 30.0, None)]
        ease, knn = self._ease.scores(users, at_ms), self._knn.scores(users, at_ms)
        own_row, entry = past.places(users)
        own = past.product[entry]
        tops = [top_k(s, self._ties, CANDIDATES_EACH) for s in (ease, np.tile(popular[1], (users.shape[0], 1)))]
        top = np.concatenate(tops, axis=1)
        size = past.size
        key = np.concatenate([own_row * size + own, (np.arange(users.shape[0])[:, None] * size + top)[top >= 0]])
        key = np.unique(key)
        row, item = np.divmod(key, size)
        place = np.searchsorted(key, own_row * size + own)
        mine = np.zeros((key.shape[0], 4), dtype=np.float32)
        mine[:, 3] = np.nan
        columns: tuple[NDArray[Any], ...] = (
            past.count,
            past.decayed(30.0),
            past.decayed(90.0),
            (at_ms - past.last_ms) / DAY_MS,
        )
        for j, column in enumerate(columns):
            mine[place, j] = column[entry]
        lines, products, last = self._user_features(past, users, own_row, entry)
        return row, item, np.column_stack([
            mine, *(p[item] for p in popular), ease[row, item], knn[row, item], lines[row], products[row], last[row],
            _repeat_share(past)[item], self._price[item],
        ]).astype(np.float32)  # fmt: skip

    @staticmethod
    def _user_features(
        past: Past, users: I32, row: NDArray[np.int64], entry: NDArray[np.int64]
    ) -> tuple[F32, F32, F32]:
        """Lines, distinct products and days since the last line of each user, [q] each."""
        n = users.shape[0]
        lines = np.bincount(row, past.count[entry], minlength=n).astype(np.float32)
        products = np.bincount(row, minlength=n).astype(np.float32)
        last = np.full(n, np.inf)
        np.minimum.at(last, row, (past.at_ms - past.last_ms[entry]) / DAY_MS)
        return lines, products, np.where(np.isfinite(last), last, np.nan).astype(np.float32)


def _repeat_share(past: Past) -> F32:
    """The share of a product's lines that are not a user's first, [products] float32."""
    lines = np.bincount(past.product, past.count, minlength=past.size)
    first = np.bincount(past.product, minlength=past.size)
    return ((lines - first) / np.maximum(lines, 1.0)).astype(np.float32)


def _log_prices(history: History) -> F32:
    """log(1 + price) of each product, NaN where it is absent or not a price, [products] float32."""
    attributes = history.product_attributes.take(np.arange(len(history.products), dtype=np.int32))
    price = np.array([np.nan if a is None or a.price is None else a.price for a in attributes], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(price >= 0, np.log1p(price), np.nan).astype(np.float32)
