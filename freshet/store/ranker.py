"""The final ranker: how probable it is that a user takes a product, of what a reader knows of the pair.

A logistic model over few features, and a number for each product that is often bought again or seldom
(`docs/decisions/ranker.md`). It is fitted with the towers, travels in the bundle and reaches readers through the store.
NumPy only: it runs in a shop's own process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.columns import F32, Bool

F64 = NDArray[np.float64]

DAY_MS = 86_400_000
MONTH_DAYS = 30.0
AGAIN = "again"
AGAIN_LIMIT = 50.0
"""Greatest log odds that a product may add of its own: far beyond what any fit gives."""
REFERENCE = 10
"""Inner products count against the user's one of this rank: what is good for one user is poor for another."""


class RankerCorrupt(FreshetError):
    """Weights of a ranker that cannot be read."""


@dataclass(frozen=True)
class RankerWeights:
    """Coefficients of

        logit = bias + score * (s - r) + viewed * v + b * (own + log_count * log(n)
                + log_age * log(1 + d / 30) + log_lately * log(1 + c * 2^(-d / 30)) + own_score * s + own_level * l + a)

    of what is called as in `Pairs`: score s, reference r, viewed v, count n, days d, decayed c, level l, again a, and
    b 1 for a product the user bought. Products that are new to a user keep the order of their inner products.

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
class Ranker:
    """The coefficients, and `again`: by product id, the log odds that it adds of its own where a user bought it before
    (milk more than a lamp). A product that is not in there adds nothing."""

    weights: RankerWeights = field(default_factory=RankerWeights)
    again: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for product, value in self.again.items():
            if not abs(value) <= AGAIN_LIMIT:
                raise RankerCorrupt(
                    f"the ranker adds {value} for product {product!r} bought again, where {AGAIN_LIMIT} is the most: "
                    "fit it again"
                )

    def again_of(self, products: Sequence[str | None]) -> F32:
        """What each of n products adds, [n] float32."""
        found = (self.again.get(name, 0.0) if name is not None else 0.0 for name in products)
        return np.fromiter(found, np.float32, len(products))


@dataclass(frozen=True)
class Pairs:
    """n pairs of a user and a product, a column each: `score`, their inner product; `reference`, the user's
    `REFERENCE`th best one over all products; `level`, the part of the score that is popularity (the product's last
    coordinate); `count`, how often the user bought the product; `days` from the last of them to the user's newest
    event; `decayed`, the count with each time halved for every 30 days before the last; `viewed`, whether the user
    viewed the product lately; `again`, what the product adds of its own where it was bought (`Ranker.again`)."""

    score: F32
    reference: F32
    level: F32
    count: F32
    days: F32
    decayed: F32
    viewed: Bool
    again: F32


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


def logit(weights: RankerWeights, pairs: Pairs) -> F64:
    """Of each pair, [n] float64."""
    found: F64 = features(pairs) @ np.array([getattr(weights, name) for name in NAMES])
    return found + np.where(pairs.count > 0, pairs.again, 0.0)


def probability(logits: F64) -> F64:
    """That the user takes the product within the days the ranker was fitted on, [n] float64."""
    found: F64 = 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
    return found


def dump_ranker(ranker: Ranker) -> bytes:
    """JSON, as it stands in a bundle and in the store: the coefficients by name, and `again`."""
    return msgspec.json.encode(asdict(ranker.weights) | {AGAIN: dict(ranker.again)})


def load_ranker(raw: bytes) -> Ranker:
    """The inverse of `dump_ranker`. Raises RankerCorrupt, also for the coefficients of another formula."""
    try:
        found = msgspec.json.decode(raw, type=dict[str, float | dict[str, float]])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise RankerCorrupt(f"the weights of the ranker cannot be read: {e}") from e
    if wrong := {*NAMES, AGAIN} ^ found.keys():
        raise RankerCorrupt(
            f"the ranker is of another version of Freshet (it differs in {', '.join(sorted(wrong))}): make the bundle "
            "again with `freshet train` or `freshet dayzero`"
        )
    again, weights = found.pop(AGAIN), {name: value for name, value in found.items() if isinstance(value, float)}
    if not isinstance(again, dict) or len(weights) != len(NAMES):
        raise RankerCorrupt(f"the weights of the ranker are not numbers, with a map of numbers in {AGAIN!r}")
    return Ranker(RankerWeights(**weights), again)
