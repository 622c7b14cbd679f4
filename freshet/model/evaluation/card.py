"""The evaluation card of a bundle: how it was made, how well it ranks what came after, and for whom."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshet.model.bundle import Bundle
from freshet.model.config import DAY_MS
from freshet.model.evaluation.embeddings import TwoTower
from freshet.model.evaluation.final import FinalRanker
from freshet.model.evaluation.metrics import PER_USER
from freshet.model.evaluation.past import rate
from freshet.model.evaluation.report import report
from freshet.model.evaluation.run import Entry, EvaluateConfig, Progress, Run, evaluate
from freshet.model.evaluation.systems import OwnHistory, Popularity
from freshet.model.evaluation.targets import Kind, Window, WindowError, Windows
from freshet.model.fit_ranker import FitRankerConfig
from freshet.store.columns import I64
from freshet.store.history import History

F64 = NDArray[np.float64]

HISTORY = (1, 6, 21, 51, 101)
"""Least distinct products of a user's history, of each group of users."""
AGE_DAYS = (0, 7, 30, 90)
"""Least days since a product's first event, of each group of targets."""
SLICED: tuple[Kind, ...] = ("all", "novel")
LISTS = FitRankerConfig()
"""Lists as workers keep and write them by default."""


@dataclass(frozen=True)
class CardConfig:
    """Windows of `window_days`: the first one after the cut is what training and the ranker were chosen by
    (`validation`), the second one nothing has seen (`test`). `users_max` users of each are ranked."""

    window_days: float = 7.0
    users_max: int = 1000
    resamples: int = 500
    seed: int = 0


def make_card(
    bundle: Bundle, history: History, config: CardConfig | None = None, ranker: FitRankerConfig | None = LISTS,
    progress: Progress = lambda what, share: None,
) -> dict[str, Any]:  # fmt: skip
    """Measures of `bundle` in the windows after its cut, as JSON types; without events there, of none. `ranker`: how
    long the lists are that its ranker gets (None: it is left out).

    Users and products are known up to the begin of each window, as a worker would have known them."""
    config = config or CardConfig()
    cut, window_ms = bundle.cut_ms + 1, int(config.window_days * DAY_MS)
    settings = EvaluateConfig(users_max=config.users_max, resamples=config.resamples, seed=config.seed)
    entries = _entries(bundle, ranker)
    windows: dict[str, Any] = {}
    slices: dict[str, Any] = {}
    for nth, name in enumerate(("validation", "test")):
        start = cut + nth * window_ms
        asked = Windows(cut, Window(start, start + window_ms), None, start)
        try:
            run = evaluate(history, asked, entries, settings, "purchases", progress)
        except WindowError:
            continue
        if run.ranked:
            windows[name] = report(run)
            slices = {"window": name, **slices_of(run, history)}
    return {
        "model_version": bundle.model_version,
        "kind": bundle.kind,
        "cut_ms": bundle.cut_ms,
        "products": len(bundle.vocabulary.row_of),
        "ranker": vars(bundle.ranker.weights),
        "ranker_products": len(bundle.ranker.again),
        "windows": windows,
        "slices": slices,
    }


def _entries(bundle: Bundle, ranker: FitRankerConfig | None) -> list[Entry]:
    name = "two_tower" if bundle.kind == "trained" else "day_zero"
    towers = TwoTower(name, bundle)
    found = [
        Entry(name, {"as it is": lambda: towers}),
        Entry("popular_recent", {"30 days": lambda: Popularity("popular_recent", 30)}),
        Entry("own_history", {"counts": lambda: OwnHistory("own_history")}),
    ]
    if ranker is not None:
        final = FinalRanker("final_ranker", towers, bundle.ranker, ranker)
        found.insert(0, Entry("final_ranker", {"as it is": lambda: final}))
    return found


def slices_of(run: Run, history: History) -> dict[str, Any]:
    """Recall@20 by length of the user's history (a mean over users, with its standard error), and the share of targets
    among the first 20 by age of the product and by decile of its popularity."""
    at_ms = run.windows.known_ms
    column = PER_USER.index("recall@20")
    percentile = _percentile(rate(history, at_ms, 30.0))
    age = (at_ms - _first_ms(history)) / DAY_MS
    out: dict[str, Any] = {"by_history": {}, "by_age": {}, "by_popularity": {}}
    for kind in SLICED:
        rows, ptr, product = run.targets.kind(kind)
        if not rows.shape[0]:
            continue
        seen = np.diff(run.targets.seen_ptr)[rows]
        of_user = np.searchsorted(HISTORY, seen, side="right") - 1
        owner = np.repeat(np.arange(rows.shape[0]), np.diff(ptr))
        of_age = np.searchsorted(AGE_DAYS, age[product], side="right") - 1
        of_popularity = np.minimum((percentile[product] * 10).astype(np.int64), 9)
        for name, ranked in run.ranked.items():
            values = ranked.values[kind][:, column]
            hit = (ranked.top[kind][owner] == product[:, None]).any(axis=1).astype(np.float64)
            for by, groups, labels, value in (
                ("by_history", of_user, _labels(HISTORY), values),
                ("by_age", of_age, _labels(AGE_DAYS, " days"), hit),
                ("by_popularity", of_popularity, [str(i + 1) for i in range(10)], hit),
            ):
                place = out[by].setdefault(kind, {"groups": labels, "count": _count(groups, len(labels))})
                place.setdefault("recall@20", {})[name] = _means(groups, value, len(labels))
    return out


def _percentile(popular: NDArray[Any]) -> F64:
    """The share of the other products that are less popular, [products]."""
    order = np.argsort(popular, kind="stable")
    found = np.empty(popular.shape[0])
    found[order] = np.arange(popular.shape[0]) / max(1, popular.shape[0] - 1)
    return found


def _first_ms(history: History) -> I64:
    """The first event of each product; that of the log for one without any."""
    found = np.full(len(history.products), np.iinfo(np.int64).max)
    for lines in (history.purchases, history.views):
        np.minimum.at(found, lines.product, lines.time)
    none = found == np.iinfo(np.int64).max
    found[none] = found[~none].min(initial=0)
    return found


def _labels(least: tuple[int, ...], unit: str = "") -> list[str]:
    ends = [f"{a} to {b - 1}{unit}" for a, b in pairwise(least)]
    return [*ends, f"{least[-1]}{unit} and more"]


def _count(groups: I64, size: int) -> list[int]:
    return [int((groups == g).sum()) for g in range(size)]


def _means(groups: I64, value: F64, size: int) -> list[list[float] | None]:
    """Mean and standard error of each group; None for an empty one."""
    out: list[list[float] | None] = []
    for g in range(size):
        some = value[groups == g]
        error = float(some.std() / np.sqrt(some.shape[0])) if some.shape[0] else 0.0
        out.append([round(float(some.mean()), 5), round(error, 5)] if some.shape[0] else None)
    return out
