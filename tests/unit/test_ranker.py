"""The final ranker: its fit finds what made the data, from what values would say, and its weights travel whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from freshet.model.at_time import TowersAt
from freshet.model.config import DAY_MS
from freshet.model.dayzero import dayzero
from freshet.model.evaluation.final import FinalRanker, ranker_of
from freshet.model.fit_ranker import SCORE_MIN, FitRankerConfig, OwnPast, fit_ranker, logistic
from freshet.store.columns import EventColumns, PurchaseColumns, ViewColumns
from freshet.store.graph import GraphLimits, GraphStore
from freshet.store.history import History
from freshet.store.ranker import (
    NAMES,
    Pairs,
    Ranker,
    RankerCorrupt,
    RankerWeights,
    dump_ranker,
    load_ranker,
    logit,
    probability,
    reference_of,
)
from freshet.store.recent import bought, recent

CONFIG = FitRankerConfig(window_days=14.0, bought_max=5, recent_max=6, offered=10, taken_min=100)


def shop(seed: int = 0, days: int = 90, loyal: bool = True) -> EventColumns:
    """Users who buy what they bought before (when `loyal`) more than anything else, and view now and then."""
    rng = np.random.default_rng(seed)
    user, product, time, viewer, viewed, viewed_at = [], [], [], [], [], []
    mine = {u: rng.choice(60, 6, replace=False) for u in range(50)}
    for day in range(days):
        for u in range(50):
            if rng.random() < 0.4:
                p = rng.choice(mine[u]) if loyal and rng.random() < 0.8 else rng.integers(60)
                user.append(f"u{u}")
                product.append(f"p{p}")
                time.append(day * DAY_MS + u + 1)
            if rng.random() < 0.3:
                viewer.append(f"u{u}")
                viewed.append(f"p{rng.integers(60)}")
                viewed_at.append(day * DAY_MS + u + 2)
    n, m = len(user), len(viewer)
    purchases = PurchaseColumns(
        user, product, np.array(time), np.arange(1, n + 1, dtype=np.uint64), np.ones(n, np.float32),
        rng.random(n) < 0.05, np.arange(n + 1),
    )  # fmt: skip
    views = ViewColumns(
        viewer, viewed, np.array(viewed_at), np.arange(10_000, 10_000 + m, dtype=np.uint64),
        np.full(m, np.nan, np.float32),
    )  # fmt: skip
    return EventColumns(purchases=purchases, views=views)


def test_the_fit_sees_what_a_value_written_then_would_say() -> None:
    """Training and serving read the same lists: both kinds, bounded alike, with cancelled lines."""
    events, limits = shop(), GraphLimits(purchased_max=20, viewed_max=4)
    at_ms = 60 * DAY_MS
    p, v = events.purchases, events.views
    assert p is not None and v is not None
    rows, seen = np.flatnonzero(p.time < at_ms), np.flatnonzero(v.time < at_ms)
    graph = GraphStore(limits)
    graph.apply(
        EventColumns(
            purchases=PurchaseColumns(
                [p.user[i] for i in rows], [p.product[i] for i in rows], p.time[rows], p.event_hash[rows],
                p.quantity[rows], p.cancelled[rows], np.arange(rows.shape[0] + 1),
            ),
            views=ViewColumns(
                [v.user[i] for i in seen], [v.product[i] for i in seen], v.time[seen], v.event_hash[seen],
                v.dwell_s[seen],
            ),
        )
    )  # fmt: skip
    history = History.of([events], limits)
    names = [f"u{i}" for i in range(50)]
    past = OwnPast.of(history, history.users.intern(names), at_ms, CONFIG)
    users = graph.users.intern(names)
    own, lately = bought(graph, users, CONFIG.bought_max), recent(graph, users, CONFIG.recent_max)
    for i in range(len(names)):
        there = own.product[i] >= 0
        products = graph.products.names(own.product[i][there])
        days = (lately.event_time[i] - own.time[i][there]) / DAY_MS
        want = dict(
            zip(products, zip(own.count[i][there].tolist(), np.float32(days).tolist(), own.decayed[i][there].tolist()))
        )
        found = {
            name: (past.count[i, j], past.days[i, j], past.decayed[i, j])
            for j, name in enumerate(history.products.all_names()) if past.count[i, j]
        }  # fmt: skip
        assert found == want
        kinds = lately.kind[i] == 1
        want_viewed = set(graph.products.names(lately.product[i][kinds & (lately.product[i] >= 0)]))
        assert {n for j, n in enumerate(history.products.all_names()) if past.viewed[i, j]} == want_viewed


def test_logistic_regression_finds_the_coefficients_that_made_the_outcomes() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(40_000), rng.normal(size=(40_000, 3))])
    truth = np.array([-2.0, 1.5, -0.5, 0.0])
    y = rng.random(40_000) < 1 / (1 + np.exp(-(x @ truth)))
    np.testing.assert_allclose(logistic(x, y, CONFIG), truth, atol=0.08)


def test_separable_outcomes_do_not_run_away() -> None:
    x = np.column_stack([np.ones(50), np.arange(50.0) - 24.5])
    found = logistic(x, np.arange(50) > 24, CONFIG)
    assert np.isfinite(found).all()
    assert 0 < found[1] < 20


def test_a_ranker_is_fitted_to_the_shop_and_its_chances_are_those_of_the_catalogue() -> None:
    at_ms = 76 * DAY_MS
    found = {}
    for loyal in (True, False):
        history = History.of([shop(loyal=loyal)])
        found[loyal] = ranker_of(TowersAt.of(dayzero(history, cut_ms=at_ms - 1), history), history, at_ms, CONFIG)
    loyal, fickle = found[True].weights, found[False].weights
    assert loyal != RankerWeights()
    assert loyal.own + loyal.log_count > fickle.own + fickle.log_count + 1.0
    history = History.of([shop()])
    system = FinalRanker("ranker", lambda h, until_ms: dayzero(h, cut_ms=until_ms - 1), config=CONFIG)
    system.fit(history, at_ms)
    users = np.arange(len(history.users), dtype=np.int32)
    chance = probability(system.scores(users, at_ms).astype(np.float64))
    p = history.purchases
    inside = (p.time >= at_ms) & (p.time < at_ms + 14 * DAY_MS) & (p.flag == 0)
    taken = np.unique(p.user[inside].astype(np.int64) * 1000 + p.product[inside]).shape[0]
    assert chance.sum() == pytest.approx(taken, rel=0.25)  # fitted on the fortnight before


def test_too_little_to_fit_gives_the_defaults() -> None:
    history = History.of([shop(days=10)])
    towers = TowersAt.of(dayzero(history, cut_ms=9 * DAY_MS), history)
    assert ranker_of(towers, history, 9 * DAY_MS + 1, CONFIG) == Ranker()
    assert ranker_of(towers, history, 20 * DAY_MS, CONFIG) == Ranker()  # nothing there at all


def test_embeddings_that_rank_backwards_only_break_ties() -> None:
    """What users take has the least scores: a ranker that followed the fit would turn every list around."""
    history = History.of([shop(loyal=False)])
    at_ms = 76 * DAY_MS
    p = history.purchases
    inside = p.time >= at_ms
    taken = np.bincount(p.product[inside], minlength=len(history.products)).astype(np.float32)
    level = np.zeros(len(history.products), np.float32)
    good = fit_ranker(history, lambda users: np.tile(taken, (users.shape[0], 1)), level, at_ms, CONFIG)
    bad = fit_ranker(history, lambda users: np.tile(-taken, (users.shape[0], 1)), level, at_ms, CONFIG)
    assert good is not None and good.weights.score > 0.02
    assert bad is not None and bad.weights.score == SCORE_MIN


def test_products_that_nobody_is_offered_do_not_move_the_fit() -> None:
    """However far down: the rest of a large catalogue would bend the line where lists are made."""
    stranger = PurchaseColumns(
        ["stranger"] * 99, [f"far{i}" for i in range(99)], np.arange(1, 100), np.arange(1, 100, dtype=np.uint64) << 32,
        np.ones(99, np.float32), np.zeros(99, np.bool_), np.arange(100),
    )  # fmt: skip
    history = History.of([shop(), EventColumns(purchases=stranger)])
    near = np.array([name.startswith("p") for name in history.products.all_names()])
    taken = np.bincount(history.purchases.product, minlength=near.shape[0]).astype(np.float32)
    level = np.zeros(near.shape[0], np.float32)
    found = []
    for far in (-1.0, -100.0):
        score = np.where(near, taken / taken.max(), np.float32(far))
        found.append(fit_ranker(history, lambda u, s=score: np.tile(s, (len(u), 1)), level, 76 * DAY_MS, CONFIG))
    assert found[0] is not None and found[0] == found[1]


def test_products_new_to_a_user_keep_the_order_of_their_scores() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=100).astype(np.float32)
    none = np.zeros(100, np.float32)
    reference = np.full(100, reference_of(score[None])[0])
    often = rng.normal(size=100).astype(np.float32)  # bought again by others, which says nothing of who did not buy
    pairs = Pairs(score, reference, score / 2, none, none, none, np.zeros(100, np.bool_), often)
    found = probability(logit(RankerWeights(), pairs))
    assert np.argsort(-found, kind="stable").tolist() == np.argsort(-score, kind="stable").tolist()
    assert reference_of(score[None])[0] == np.sort(score)[-10]
    assert reference_of(score[None, :3])[0] == score[:3].min()


def test_a_product_that_is_bought_again_more_than_others_adds_to_its_chance() -> None:
    """Milk and lamps: every user has bought both once before the weeks of the fit, and buys milk again."""
    users, days = 120, 60
    rng = np.random.default_rng(0)
    bought = [(u, f"{what}{i}", int(day)) for u in range(users) for what in ("milk", "lamp") for i in range(3)
              for day in (rng.integers(1, 20), *(rng.integers(20, days, 3) if what == "milk" else ()))]  # fmt: skip
    n = len(bought)
    history = History.of([EventColumns(purchases=PurchaseColumns(
        [f"u{u}" for u, _, _ in bought], [p for _, p, _ in bought], np.array([day * DAY_MS for _, _, day in bought]),
        np.arange(1, n + 1, dtype=np.uint64), np.ones(n, np.float32), np.zeros(n, np.bool_), np.arange(n + 1),
    ))])  # fmt: skip
    at_ms = 46 * DAY_MS
    none = np.zeros(len(history.products), np.float32)
    found = fit_ranker(history, lambda u: np.tile(none, (len(u), 1)), none, at_ms, CONFIG)
    assert found is not None
    assert min(found.again[f"milk{i}"] for i in range(3)) > max(found.again[f"lamp{i}"] for i in range(3)) + 1.0
    few = fit_ranker(history, lambda u: np.tile(none, (len(u), 1)), none, at_ms, replace(CONFIG, again_max=2))
    assert few is not None and few.weights == found.weights
    assert len(few.again) == 2 and all(p.startswith("milk") for p in few.again), "those of most lines"


def test_weights_survive_the_round_trip_and_bad_ones_are_named() -> None:
    weights = RankerWeights(*np.linspace(-1, 2, len(NAMES)).tolist()[:1], *[0.5] * (len(NAMES) - 1))
    ranker = Ranker(weights, {"milk": 0.5, "ü": -2.0})
    assert load_ranker(dump_ranker(ranker)) == ranker
    assert ranker.again_of(["ü", None, "lamp", "milk"]).tolist() == [-2.0, 0.0, 0.0, 0.5]
    with pytest.raises(RankerCorrupt, match="log_age is not a finite number"):
        RankerWeights(log_age=float("nan"))
    with pytest.raises(RankerCorrupt, match="positive"):
        RankerWeights(score=0.0)
    with pytest.raises(RankerCorrupt, match=r"another version of Freshet \(it differs in log_lately\)"):
        load_ranker(dump_ranker(ranker).replace(b',"log_lately":0.5', b""))
    with pytest.raises(RankerCorrupt, match=r"adds 51\.0 for product 'milk'"):
        Ranker(weights, {"milk": 51.0})
