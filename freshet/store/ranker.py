"""The final ranker: how probable it is that a user takes a product, of what a reader knows of the pair.

A logistic model over few features (`docs/decisions/ranker.md`). It is fitted with the towers, travels in the bundle
and reaches readers through the store. NumPy only: it runs in a shop's own process.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.columns import F32, Bool

F64 = NDArray[np.float64]

DAY_MS = 86_400_000
MONTH_DAYS = 30.0
REFERENCE = 10
"""Inner products count against the user's one of this rank: what is good for one user is poor for another."""


class RankerCorrupt(FreshetError):
    """Weights of a ranker that cannot be read."""


@dataclass(frozen=True)
class RankerWeights:
    """Coefficients of

        logit = bias + score * (s - r) + viewed * v + b * (own + log_count * log(n)
                + log_age * log(1 + d / 30) + log_lately * log(1 + c * 2^(-d / 30)) + own_score * s + own_level * l)

    of what is called as in `Pairs`: score s, reference r, viewed v, count n, days d, decayed c, level l, and b 1
    for a product the user bought. Products that are new to a user keep the order of their inner products.

    The defaults were fitted on a gift wholesaler's year (`docs/decisions/ranker.md`), for where there is too little
    to fit.
    """

    bias: float = -2.7
    score: float = 2.7
    viewed: float = 3.0
    own: float = -0.8
    log_count: float = 0.65
    log_age: float = 0.1
    own_score: float = 0.4
    own_level: float = 6.4
    log_lately: float = 1.2

    def __post_init__(self) -> None:
        wrong = [f.name for f in fields(self) if not np.isfinite(getattr(self, f.name))]
        if wrong:
            raise RankerCorrupt(f"the ranker's {', '.join(wrong)} is not a finite number: fit it again")
        if self.score <= 0:
            raise RankerCorrupt(f"the ranker's score is {self.score}: it has to be positive, or it ranks backwards")


NAMES = tuple(f.name for f in fields(RankerWeights))
"""Of the coefficients, in the order of the columns of `features`, behind a column of ones for the bias."""


@dataclass(frozen=True)
class Pairs:
    """n pairs of a user and a product, a column each: `score`, their inner product; `reference`, the user's
    `REFERENCE`th best one over all products; `level`, the part of the score that is popularity (the product's last
    coordinate); `count`, how often the user bought the product; `days` from the last of them to the user's newest
    event; `decayed`, the count with each time halved for every 30 days before the last; `viewed`, whether the user
    viewed the product lately."""

    score: F32
    reference: F32
    level: F32
    count: F32
    days: F32
    decayed: F32
    viewed: Bool


def features(pairs: Pairs) -> F64:
    """[n, 9] float64, in the order of `NAMES`."""
    p, own = pairs, pairs.count > 0
    months = np.maximum(p.days, 0.0) / MONTH_DAYS
    columns = [
        np.ones(p.score.shape[0]), p.score - p.reference, p.viewed & ~own, own, np.log(np.where(own, p.count, 1.0)),
        own * np.log1p(months), own * p.score, own * p.level, own * np.log1p(p.decayed * 0.5**months),
    ]  # fmt: skip
    return np.column_stack([column.astype(np.float64) for column in columns])


def reference_of(score: F32) -> F32:
    """The inner product of rank `REFERENCE` of each row of `score` [q, products], [q] float32; where there are fewer,
    the least one."""
    rank = min(REFERENCE, score.shape[1])
    found: F32 = np.partition(score, -rank, axis=1)[:, -rank] if rank else np.zeros(score.shape[0], np.float32)
    return found


def logit(weights: RankerWeights, x: F64) -> F64:
    """Of each pair, [n] float64; `x` are `features`."""
    found: F64 = x @ np.array([getattr(weights, name) for name in NAMES])
    return found


def probability(logits: F64) -> F64:
    """That the user takes the product within the days the ranker was fitted on, [n] float64."""
    found: F64 = 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
    return found


def dump_weights(weights: RankerWeights) -> bytes:
    """JSON, as it stands in a bundle and in the store."""
    return msgspec.json.encode(asdict(weights))


def load_weights(raw: bytes) -> RankerWeights:
    """The inverse of `dump_weights`. Raises RankerCorrupt, also for the weights of another formula."""
    try:
        found = msgspec.json.decode(raw, type=dict[str, float])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise RankerCorrupt(f"the weights of the ranker cannot be read: {e}") from e
    if wrong := set(NAMES) ^ found.keys():
        raise RankerCorrupt(
            f"the ranker is of another version of Freshet (it differs in {', '.join(sorted(wrong))}): make the bundle "
            "again with `freshet train` or `freshet dayzero`"
        )
    return RankerWeights(**found)
