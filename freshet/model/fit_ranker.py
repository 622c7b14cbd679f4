"""Fitting the final ranker: a logistic regression over what users took in a window after the embeddings' time.

Each user brings what a reader would choose from: what they had bought or viewed, and of the rest the products of
greatest inner product. Products further down, which nobody is offered, are left out: a straight line through all of
a large catalogue is far too steep where it matters (`docs/decisions/ranker.md`). Fitted by Newton's method (Hastie,
Tibshirani and Friedman 2009, 4.4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from freshet.model.config import DAY_MS
from freshet.model.evaluation.past import Past
from freshet.model.evaluation.targets import Targets, TargetsOf, Window, WindowError
from freshet.store.columns import F32, I32, I64, Bool
from freshet.store.history import History
from freshet.store.ranker import AGAIN_LIMIT, F64, NAMES, Pairs, Ranker, RankerWeights, features, reference_of
from freshet.store.recent import KINDS, bought_before, recent_before

SCORE_MIN = 0.01
"""Least coefficient of the score: products that are new to a user always keep the order of their scores."""

Scores = Callable[[I32], F32]
"""Users [q] int32 -> inner products with every product, [q, products] float32."""


@dataclass(frozen=True)
class FitRankerConfig:
    """`window_days` after the embeddings' time are what is predicted, of at most `users_max` users, each with what the
    value lists and the `offered` products of greatest inner product besides. `bought_max`, `recent_max`: as in the
    values that readers get; `lines_max`: purchases a user that are looked at (None: as the live lists keep). `ridge`:
    of the coefficients; the fit ends after `steps`, or when none moves by `tolerance`. Fewer than `taken_min` taken
    products are too few to fit. `again_prior`: lines that a product's share of repeats is shrunken by;
    `again_max`: products, those of most lines, that add anything where they are bought again."""

    window_days: float = 28.0
    users_max: int = 4000
    offered: int = 100
    bought_max: int = 128
    recent_max: int = 20
    lines_max: int | None = None
    ridge: float = 1.0
    steps: int = 40
    tolerance: float = 1e-6
    taken_min: int = 200
    again_prior: float = 5.0
    again_max: int = 50_000
    chunk_users: int = 256
    seed: int = 0


@dataclass(frozen=True)
class OwnPast:
    """What a ranker knows of n users, [n, products] each: `count`, `days` and `decayed` float32 and `viewed`
    bool, as in `Pairs`."""

    count: F32
    days: F32
    decayed: F32
    viewed: Bool

    @staticmethod
    def of(history: History, users: I32, at_ms: int, config: FitRankerConfig) -> OwnPast:
        """Of what happened strictly before `at_ms`, as values written then would have it."""
        shape = users.shape[0], len(history.products)
        own = bought_before(history, users, at_ms, config.bought_max, config.lines_max)
        seen = recent_before(history, users, at_ms, config.recent_max)
        count, days, decayed = np.zeros((3, *shape), np.float32)
        past = OwnPast(count, days, decayed, np.zeros(shape, np.bool_))
        row, column = np.nonzero(own.product >= 0)
        product = own.product[row, column]
        past.count[row, product] = own.count[row, column]
        past.decayed[row, product] = own.decayed[row, column]
        past.days[row, product] = (seen.event_time[row] - own.time[row, column]) / DAY_MS
        row, column = np.nonzero((seen.product >= 0) & (seen.kind == KINDS.index("view")))
        past.viewed[row, seen.product[row, column]] = True
        return past

    def pairs(self, score: F32, level: F32, again: F32, row: I64, column: I64) -> Pairs:
        """Some of the pairs; `score` [n, P], `level` and `again` [P]."""
        at = (row, column)
        reference = reference_of(score)[row]
        own = {name: part[at] for name, part in vars(self).items()}
        return Pairs(score[at], reference, level[column], **own, again=again[column])


def fit_ranker(
    history: History, scores: Scores, level: F32, at_ms: int, config: FitRankerConfig | None = None,
    what: TargetsOf = "purchases",
) -> Ranker | None:  # fmt: skip
    """The ranker, from what users known at `at_ms` took in the window after it; `scores` and `level` [products] are of
    embeddings that know what was before `at_ms` only. None where there is too little to fit."""
    config = config or FitRankerConfig()
    try:
        window = Window(at_ms, at_ms + int(config.window_days * DAY_MS))
        targets = Targets.of(history, window, at_ms, at_ms, what).sample(config.users_max, config.seed)
    except WindowError:
        return None
    rows, ptr, product = targets.kind("all")
    if product.shape[0] < config.taken_min:
        return None
    parts = []
    for start in range(0, rows.shape[0], config.chunk_users):
        end = min(start + config.chunk_users, rows.shape[0])
        taken = np.zeros((end - start, len(history.products)), dtype=np.bool_)
        owner = np.repeat(np.arange(end - start), np.diff(ptr[start : end + 1]))
        taken[owner, product[ptr[start] : ptr[end]]] = True
        users = targets.users[rows[start:end]]
        parts.append(_pairs(scores(users), level, OwnPast.of(history, users, at_ms, config), taken, config))
    x, y, bought = (np.concatenate(part) for part in zip(*parts, strict=True))
    of_product, lines = _of_products(history, at_ms, config)
    x = np.column_stack([x, np.where(bought[:, None] >= 0, of_product[bought], 0.0)])
    found = logistic(x, y, config)
    place = NAMES.index("score")
    if found[place] < SCORE_MIN:  # scores that say nothing, or the opposite: they only break ties
        rest = np.delete(np.arange(x.shape[1]), place)
        found[rest], found[place] = logistic(x[:, rest], y, config), SCORE_MIN
    again = np.clip(of_product @ found[len(NAMES) :], -AGAIN_LIMIT, AGAIN_LIMIT)
    return Ranker(RankerWeights(*found[: len(NAMES)].tolist()), _named(history, again, lines, config.again_max))


def _pairs(score: F32, level: F32, past: OwnPast, taken: Bool, config: FitRankerConfig) -> tuple[F64, Bool, I64]:
    """Features and outcome of the pairs that are looked at, and the product where it was bought before, else -1."""
    looked = (past.count > 0) | past.viewed
    offered = min(config.offered, score.shape[1])
    best = np.argpartition(np.where(looked, np.inf, -score), offered - 1, axis=1)[:, :offered]
    looked[np.arange(score.shape[0])[:, None], best] = True
    row, column = np.nonzero(looked)
    pairs = past.pairs(score, level, np.zeros_like(level), row, column)
    return features(pairs), taken[row, column], np.where(pairs.count > 0, column, -1)


def _of_products(history: History, at_ms: int, config: FitRankerConfig) -> tuple[F64, F32]:
    """What the past says of each product being bought again, [products, 2] float64, and how many lines bought it,
    [products] float32: the log odds that a line is not its buyer's first, against those of all lines and shrunken
    towards them, and the log of the lines."""
    past = Past.of(history, at_ms)
    lines = np.bincount(past.product, past.count, past.size).astype(np.float32)
    repeats = lines - np.bincount(past.product, minlength=past.size)
    every = (repeats.sum() + 1.0) / (lines.sum() + 2.0)
    share = (repeats + config.again_prior * every) / (lines + config.again_prior)
    return np.column_stack([np.log(share / (1.0 - share)) - np.log(every / (1.0 - every)), np.log1p(lines)]), lines


def _named(history: History, again: F64, lines: F32, most: int) -> dict[str, float]:
    """`again` [products] by product id, of the `most` products of most `lines`, without those that add next to
    nothing."""
    order = np.lexsort((history.products.hash[: lines.shape[0]], -lines))[:most]
    order = order[(lines[order] > 0) & (np.abs(again[order]) >= 0.001)]
    names = history.products.names(order.astype(np.int32))
    return {name: value for name, value in zip(names, again[order].round(3).tolist(), strict=True) if name is not None}


def logistic(x: F64, y: Bool, config: FitRankerConfig) -> F64:
    """Coefficients [k] of a logistic regression; `x` [n, k] with the ones of the bias first, which goes
    without ridge."""
    ridge = np.full(x.shape[1], config.ridge)
    ridge[0] = 1e-9
    base = max(float(y.sum()), 1e-9) / max(y.shape[0], 1)
    found: F64 = np.zeros(x.shape[1])
    found[0] = np.log(base / max(1.0 - base, 1e-9))
    value = np.inf
    step: F64 = np.zeros_like(found)
    for _ in range(config.steps):
        z = x @ found
        now = float((np.logaddexp(0.0, z) - z * y).sum()) + 0.5 * float(ridge @ found**2)
        if now > value + 1e-9 * abs(value):  # too far: half of the step back
            step *= 0.5
            found = np.asarray(found - step, np.float64)
            continue
        value = now
        p = 1.0 / (1.0 + np.exp(-z))
        gradient = x.T @ (p - y) + ridge * found
        hessian = (x * (p * (1.0 - p))[:, None]).T @ x + np.diag(ridge + 1e-9)
        step = np.asarray(-np.linalg.solve(hessian, gradient), np.float64)
        found = np.asarray(found + step, np.float64)
        if np.abs(step).max() < config.tolerance:
            break
    return found
