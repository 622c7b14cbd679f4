"""Every system that `freshet evaluate` knows, with the settings that validation chooses from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import product

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.evaluation.embeddings import Kept, MadeTowers, MakeBundle, TwoTower, day_zero, trained
from freshet.model.evaluation.final import FinalRanker
from freshet.model.evaluation.run import Entry
from freshet.model.evaluation.sparse import EASE, ItemKNN
from freshet.model.evaluation.systems import OwnHistory, Popularity, System
from freshet.model.evaluation.targets import TargetsOf
from freshet.model.fit_ranker import FitRankerConfig
from freshet.model.train_config import TrainConfig

RIDGES = (100.0, 200.0, 300.0, 500.0, 1000.0)
LONGER = FitRankerConfig(lines_max=512)
"""Of a ranker whose users' lists of purchases are twice as long as by default (`FRESHET_GRAPH_PURCHASED_MAX`)."""
UNBOUNDED = FitRankerConfig(bought_max=100_000, lines_max=1_000_000)
"""Of a ranker that knows everything a user ever bought: what bounded lists cost."""

Make = Callable[[], System]


def entries(what: TargetsOf, seed: int, budget_s: float, bundles: Mapping[str, Bundle]) -> dict[str, Entry]:
    """By name. `budget_s` bounds each training of the towers (0: all epochs), `bundles` are ranked as they are."""
    towers = Kept(trained(TrainConfig(seed=seed, time_budget_s=budget_s)))
    closed = Kept(day_zero)
    found = [
        Entry("popular_all_time", {"all": lambda: Popularity("popular_all_time", None, what)}),
        Entry("popular_recent", {f"{d} days": _popular(d, what) for d in (30, 14, 7)}),
        Entry("own_history", {"counts": lambda: OwnHistory("own_history", what=what)}),
        Entry("own_history_decayed", {f"half-life {d} days": _decayed(d, what) for d in (90, 45, 180)}, "repeat"),
        Entry("own_history_tuned", {
            f"count {a}, age {b}, popularity {c}": _tuned((a, b, c), what)
            for a, b, c in product((2.0, 1.0), (0.5, 1.0), (1.0, 0.5))
        }),
        Entry("item_knn", {"cosine": lambda: ItemKNN("item_knn", what)}),
        Entry("ease", {f"ridge {r:g}": _ease(r, what) for r in RIDGES}, "novel"),
        Entry("ease_own", {f"ridge {r:g}": _ease(r, what, own=1.0) for r in RIDGES}),
        Entry("ease_low_rank", {
            f"ridge {r:g}, popularity {w:g} of {d:g} days": _low_rank(r, w, d, what)
            for r, w, d in product((300.0, 1000.0), (0.01, 0.003), (20.0, 7.0))
        }, "novel"),
        Entry("als", {f"alpha {a:g}, regularization {r:g}": _factors("als", what, seed, r, a)
                      for a, r in ((1.0, 0.01), (1.0, 1.0), (10.0, 0.01))}, "novel"),
        Entry("bpr", {"100 iterations": _factors("bpr", what, seed, 0.01, 1.0, 100)}, "novel"),
        Entry("lightgbm", {"lambdarank": lambda: _boosted(what, seed)}),
        Entry("day_zero", {"closed form": lambda: MadeTowers("day_zero", closed)}),
        Entry("day_zero_ranker", {"fitted": lambda: FinalRanker("day_zero_ranker", closed, what=what)}),
        Entry("two_tower", {"trained": lambda: MadeTowers("two_tower", towers)}),
        Entry("final_ranker", {"fitted": lambda: FinalRanker("final_ranker", towers, what=what)}),
        Entry("final_ranker_512", {
            "fitted": lambda: FinalRanker("final_ranker_512", towers, config=LONGER, what=what)
        }),
        Entry("final_ranker_unbounded", {
            "fitted": lambda: FinalRanker("final_ranker_unbounded", towers, config=UNBOUNDED, what=what)
        }),
    ]  # fmt: skip
    for name, bundle in bundles.items():
        found.append(Entry(name, {"as it is": _ready(name, bundle)}))
        found.append(Entry(f"{name}_ranker", {"as it is": _ranked(f"{name}_ranker", bundle, what)}))
    return {entry.name: entry for entry in found}


def _ready(name: str, bundle: Bundle) -> Make:
    return lambda: TwoTower(name, bundle)


def _ranked(name: str, bundle: Bundle, what: TargetsOf) -> Make:
    made: MakeBundle = lambda history, until_ms: bundle  # noqa: E731
    return lambda: FinalRanker(name, made, bundle.ranker, what=what)


def _popular(days: int, what: TargetsOf) -> Make:
    return lambda: Popularity("popular_recent", days, what)


def _decayed(days: int, what: TargetsOf) -> Make:
    return lambda: OwnHistory("own_history_decayed", float(days), what=what)


def _tuned(terms: tuple[float, float, float], what: TargetsOf) -> Make:
    return lambda: OwnHistory("own_history_tuned", tuned=terms, what=what)


def _ease(penalty: float, what: TargetsOf, own: float = 0.0) -> Make:
    return lambda: EASE("ease_own" if own else "ease", penalty, own=own, what=what)


def _low_rank(penalty: float, weight: float, days: float, what: TargetsOf) -> Make:
    return lambda: EASE(
        "ease_low_rank", penalty, rank=128, recency=0.5, popularity=weight, popularity_days=days, what=what
    )


def _factors(
    kind: str, what: TargetsOf, seed: int, regularization: float, alpha: float, iterations: int = 15
) -> Make:
    def make() -> System:
        _needs("implicit")
        from freshet.model.evaluation.factorization import Factorization  # an optional package

        return Factorization(
            kind, "als" if kind == "als" else "bpr", regularization=regularization, alpha=alpha,
            iterations=iterations, seed=seed, what=what,
        )  # fmt: skip

    return make


def _boosted(what: TargetsOf, seed: int) -> System:
    _needs("lightgbm")
    from freshet.model.evaluation.boosted import BoostedRanker  # an optional package

    return BoostedRanker(what=what, seed=seed)


def _needs(package: str) -> None:
    if find_spec(package) is None:
        raise FreshetError(f"{package} is not installed: pip install 'freshet[evaluate]'")
