"""Metrics of rankings, one value a user, and their bootstrap confidence intervals.

All work on hits: `hits` [n, k] bool says which of a user's first k products are targets, `targets` [n] int64 how
many targets there are (at least one). Definitions are those of Järvelin and Kekäläinen 2002 (NDCG, binary gains) and
of the Kaggle metric MAP@k (average precision at the hits, divided by min(k, targets)).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from freshet.store.columns import F32, I32, I64, Bool

F64 = NDArray[np.float64]

TOP = 100
"""Products of a ranking that are looked at; MRR and AUROC look at all."""

RECALLS = (10, 20, 50, 100)
PER_USER = (*(f"recall@{k}" for k in RECALLS), "map@12", "ndcg@10", "mrr", "hit_rate@20", "auroc", "popularity@20")
"""Metrics with one value a user, in the order of their columns."""
COVERAGE = "coverage@20"
"""A metric of the whole ranking: the share of the catalogue that is among anybody's first 20."""


def recall(hits: Bool, targets: I64, k: int) -> F64:
    """Targets among the first k, divided by min(k, targets)."""
    found: F64 = hits[:, :k].sum(axis=1) / np.minimum(targets, k)
    return found


def average_precision(hits: Bool, targets: I64, k: int) -> F64:
    """Precision at each hit among the first k, summed and divided by min(k, targets)."""
    some = hits[:, :k]
    precision = np.cumsum(some, axis=1) / np.arange(1, some.shape[1] + 1)
    found: F64 = np.asarray((precision * some).sum(axis=1) / np.minimum(targets, k), dtype=np.float64)
    return found


def ndcg(hits: Bool, targets: I64, k: int) -> F64:
    """Discounted gain 1 / log2(1 + rank) of the hits among the first k, divided by the best possible."""
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    best = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(targets, k)]
    some = hits[:, :k]
    found: F64 = np.asarray((some * discount[: some.shape[1]]).sum(axis=1) / best, dtype=np.float64)
    return found


def hit_rate(hits: Bool, k: int) -> F64:
    """1 where any target is among the first k."""
    found: F64 = np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)
    return found


def reciprocal_rank(first: I64) -> F64:
    """1 / rank of the best placed target over the whole catalogue; `first` [n], 0 for none."""
    return np.where(first > 0, 1.0 / np.maximum(first, 1), 0.0)


def auroc(positive: F32, owner: NDArray[np.int64], negative: F32, valid: Bool) -> F64:
    """How probably a target scores above a product that was drawn uniformly from those the user never interacted
    with (a tie counts one half), [n]; NaN where nothing could be drawn.

    `positive` [m] scores of the targets of users `owner` [m] (every user has one); `negative` [n, draws] scores of the
    drawn products, of which `valid` ones count.
    """
    drawn = negative[owner]
    better = (positive[:, None] > drawn) + 0.5 * (positive[:, None] == drawn)
    count = valid.sum(axis=1)
    won = (better * valid[owner]).sum(axis=1)
    targets = np.bincount(owner, minlength=negative.shape[0])
    pairs = (count * targets).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: F64 = np.bincount(owner, won, minlength=negative.shape[0]) / pairs
    return found


def popularity_percentile(purchases: NDArray[np.number]) -> F32:
    """[products] float32 in [0, 1]: the share of products that were bought less often, ties at their middle."""
    order = np.sort(purchases)
    low, high = np.searchsorted(order, purchases, "left"), np.searchsorted(order, purchases, "right")
    found: F32 = ((low + high) / (2.0 * max(1, purchases.shape[0]))).astype(np.float32)
    return found


def mean_percentile(top: I32, percentile: F32, k: int) -> F64:
    """Popularity bias: the mean percentile of popularity of a user's first k, [n]; 0.5 is what uniform draws have."""
    some = top[:, :k]
    counted = some >= 0
    total = np.where(counted, percentile[some], 0.0).sum(axis=1)
    found: F64 = total / np.maximum(counted.sum(axis=1), 1)
    return found


def coverage(top: I32, k: int, products: int) -> float:
    """The share of the catalogue that is among the first k of any of the users."""
    some = np.where(top[:, :k] >= 0, top[:, :k], products)
    return _distinct(some, products) / max(1, products)


@dataclass(frozen=True)
class Resamples:
    """Resamples of n users with replacement, shared by all systems, so that differences are paired:
    `count` [resamples, n] float32 says how often each user was drawn."""

    count: F32

    @staticmethod
    def draw(users: int, resamples: int, seed: int) -> Resamples:
        """As the bootstrap does (Efron and Tibshirani 1993)."""
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, max(1, users), size=(resamples, users))
        flat = drawn + users * np.arange(resamples)[:, None]
        return Resamples(np.bincount(flat.ravel(), minlength=resamples * users).reshape(resamples, users).astype("f4"))

    def means(self, values: F64) -> F64:
        """Mean of each column of `values` [n, m] in each resample, [resamples, m]; NaN values do not count."""
        counted = np.isfinite(values)
        total = self.count @ np.where(counted, values, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: F64 = np.asarray(total / (self.count @ counted.astype(np.float64)), dtype=np.float64)
        return found

    def interval(self, values: F64, level: float = 0.95) -> F64:
        """Percentile interval of the mean of each column of `values` [n, m], [2, m]."""
        return percentile_interval(self.means(values), level)

    def coverage_interval(self, top: I32, k: int, products: int, level: float = 0.95) -> F64:
        """Normal interval [2] of `coverage` with the bootstrap's standard deviation: a resample has fewer distinct
        users than the sample, so that its coverage is too low, but varies as much."""
        some = np.where(top[:, :k] >= 0, top[:, :k], products)  # a place past the end takes what is empty
        found = np.array([_distinct(some[row > 0], products) for row in self.count[:200]]) / max(1, products)
        half = float(_normal_quantile(level)) * float(found.std())
        at = coverage(top, k, products)
        return np.array([max(0.0, at - half), min(1.0, at + half)])


def percentile_interval(means: F64, level: float = 0.95) -> F64:
    """The middle `level` of each column of `means` [resamples, m], [2, m]."""
    tail = 50.0 * (1.0 - level)
    found: F64 = np.nanpercentile(means, [tail, 100.0 - tail], axis=0)
    return found


def _distinct(numbers: NDArray[np.integer], size: int) -> int:
    """How many of 0 to `size` - 1 are among `numbers`: a mark each, which is ten times as fast as `np.unique`."""
    there = np.zeros(size + 1, dtype=np.bool_)
    there[numbers] = True
    return int(np.count_nonzero(there[:size]))


def _normal_quantile(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2.0)
