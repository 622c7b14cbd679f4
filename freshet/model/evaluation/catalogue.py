"""Every system that `freshet evaluate` knows, with the settings that validation chooses from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import product

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.evaluation.blended import Blended, OwnTerms, Shared
from freshet.model.evaluation.embeddings import DayZero, Trained, TwoTower
from freshet.model.evaluation.run import Entry
from freshet.model.evaluation.sparse import EASE, ItemKNN
from freshet.model.evaluation.systems import OwnHistory, Popularity, System
from freshet.model.evaluation.targets import TargetsOf
from freshet.model.train import TrainConfig

RIDGES = (100.0, 200.0, 300.0, 500.0, 1000.0)
OWN_TERMS = [OwnTerms(b, c, a, r) for b, c, a, r in product((3.0, 5.0), (1.0, 2.0), (0.5, 1.0), (0.5, 1.0))]

Make = Callable[[], System]


def entries(what: TargetsOf, seed: int, budget_s: float, bundles: Mapping[str, Bundle]) -> dict[str, Entry]:
    """By name. `budget_s` bounds each training of the towers (0: all epochs), `bundles` are ranked as they are."""
    trained = Shared(Trained("two_tower", TrainConfig(seed=seed, time_budget_s=budget_s)))
    closed = Shared(DayZero())
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
            f"ridge {r:g}, popularity {w:g}": _low_rank(r, w, what) for r, w in product((300.0, 1000.0), (0.01, 0.003))
        }, "novel"),
        Entry("als", {f"alpha {a:g}, regularization {r:g}": _factors("als", what, seed, r, a)
                      for a, r in ((1.0, 0.01), (1.0, 1.0), (10.0, 0.01))}, "novel"),
        Entry("bpr", {"100 iterations": _factors("bpr", what, seed, 0.01, 1.0, 100)}, "novel"),
        Entry("lightgbm", {"lambdarank": lambda: _boosted(what, seed)}),
        Entry("day_zero", {"closed form": lambda: closed}),
        Entry("day_zero_own", {str(t): _blended("day_zero_own", closed, t, what) for t in OWN_TERMS}),
        Entry("two_tower", {"trained": lambda: trained}),
        Entry("two_tower_own", {str(t): _blended("two_tower_own", trained, t, what) for t in OWN_TERMS}),
    ]  # fmt: skip
    for name, bundle in bundles.items():
        ready = Shared(TwoTower(name, bundle))
        found.append(Entry(name, {"as it is": _itself(ready)}))
        found.append(Entry(f"{name}_own", {str(OwnTerms()): _blended(f"{name}_own", ready, OwnTerms(), what)}))
    return {entry.name: entry for entry in found}


def _itself(system: System) -> Make:
    return lambda: system


def _popular(days: int, what: TargetsOf) -> Make:
    return lambda: Popularity("popular_recent", days, what)


def _decayed(days: int, what: TargetsOf) -> Make:
    return lambda: OwnHistory("own_history_decayed", float(days), what=what)


def _tuned(terms: tuple[float, float, float], what: TargetsOf) -> Make:
    return lambda: OwnHistory("own_history_tuned", tuned=terms, what=what)


def _ease(penalty: float, what: TargetsOf, own: float = 0.0) -> Make:
    return lambda: EASE("ease_own" if own else "ease", penalty, own=own, what=what)


def _low_rank(penalty: float, weight: float, what: TargetsOf) -> Make:
    return lambda: EASE("ease_low_rank", penalty, rank=128, recency=0.5, popularity=weight, what=what)


def _blended(name: str, inner: Shared, terms: OwnTerms, what: TargetsOf) -> Make:
    return lambda: Blended(name, inner, terms, what)


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
