"""Popularity: a decayed count that survives duplicates, moves at ticks, and is right while lists are long enough."""

from __future__ import annotations

import numpy as np
import pytest

from freshet.store.graph import GraphLimits, GraphStore
from freshet.store.history import History
from freshet.store.popular import PopularSettings, popular
from freshet.store.popularity import DAY_MS, FrozenPopularity, Levels, PopularityConfig, of_history, popularity
from freshet.stream.decode import decode_events
from freshet.stream.events import Event, Product, Purchase, View

CONFIG = PopularityConfig(half_life_ms=20 * DAY_MS, tick_ms=DAY_MS, view_weight=0.05)
NONE = FrozenPopularity(-1, np.zeros(0, np.float32))
NOW = 100 * DAY_MS


def bought(product: str, *days: float) -> list[Event]:
    return [Purchase(f"{product}{d}", f"u{d}", int(d * DAY_MS), product_id=product) for d in days]


def graph_of(events: list[Event], limits: GraphLimits | None = None) -> GraphStore:
    graph = GraphStore(limits)
    graph.apply(decode_events(events))
    return graph


def value(graph: GraphStore, product: str, at_ms: int = NOW, frozen: FrozenPopularity = NONE) -> float:
    return float(popularity(graph, graph.products.intern([product]), at_ms, frozen, CONFIG)[0])


def test_purchases_count_with_a_half_life_and_views_a_little() -> None:
    views: list[Event] = [View("v", "u", "a", 80 * DAY_MS)]
    graph = graph_of(bought("a", 60, 80, 99) + views)
    assert value(graph, "a") == pytest.approx(0.25 + 0.5 * 1.05 + 2 ** (-1 / 20), rel=1e-6)
    assert value(graph_of(bought("a", 99) * 5), "a") == value(graph_of(bought("a", 99)), "a")  # duplicates


def test_the_graph_and_the_history_agree() -> None:
    rng = np.random.default_rng(0)
    days = rng.uniform(0, 99, 60)
    events = bought("a", *days[:25]) + bought("b", *days[25:40])
    events += [View(f"v{i}", "u", "b", int(d * DAY_MS)) for i, d in enumerate(days[40:])]
    graph, history = graph_of(events), History.of([decode_events(events)])
    want = of_history(history, NOW, CONFIG)
    for product in ("a", "b"):
        assert value(graph, product) == pytest.approx(want[history.products.intern([product])[0]], rel=1e-5)


def test_the_bundle_stands_for_the_time_up_to_its_cut() -> None:
    events = bought("a", *range(10, 100, 3))
    cut = 50 * DAY_MS
    before = of_history(History.of([decode_events(events)]), cut + 1, CONFIG)
    graph = graph_of(events)
    frozen = FrozenPopularity(cut, np.array([before[0]], np.float32))
    assert value(graph, "a", frozen=frozen) == pytest.approx(value(graph, "a"), rel=1e-5)


def test_what_a_full_list_evicted_is_taken_to_have_come_at_the_rate_of_the_rest() -> None:
    events = bought("a", *np.arange(0.5, 100, 0.25))
    exact = value(graph_of(events, GraphLimits(purchased_by_max=1000)), "a")
    estimate = value(graph_of(events, GraphLimits(purchased_by_max=64)), "a")
    assert estimate == pytest.approx(exact, rel=0.15)
    at_once = bought("a", *np.full(1, 99.0)) + [Purchase(f"x{i}", f"u{i}", NOW - 1, product_id="a") for i in range(64)]
    assert value(graph_of(at_once, GraphLimits(purchased_by_max=64)), "a") < 64 * 40  # a burst is no steady rate


def test_levels_move_at_ticks_only() -> None:
    graph = graph_of(bought("a", 50.2) + bought("b", 10))
    levels = Levels(graph, NONE, CONFIG)
    products = graph.products.intern(["a", "b"])
    assert graph.products.names(levels.move()) == ["b"]  # what came after the tick of day 50 does not count yet
    before = levels.read(products).tolist()
    assert before[0] == 0.0 < before[1]
    graph.apply(decode_events(bought("b", 50.4)))
    assert levels.move().shape == (0,) and levels.read(products).tolist() == before
    graph.apply(decode_events(bought("c", 51.1)))
    assert set(graph.products.names(levels.move())) == {"a", "b"}
    assert levels.read(products)[0] > 0


def test_the_most_popular_come_first_and_what_is_withdrawn_does_not_come() -> None:
    gone: list[Event] = [Product("gone", NOW, withdrawn=True)]
    graph = graph_of(bought("a", 98, 99) + bought("b", 99) + bought("gone", 97, 98, 99) + bought("old", 1) + gone)
    everything = np.arange(len(graph.products), dtype=np.int32)
    found = popularity(graph, everything, NOW, NONE, CONFIG)
    numbers, values = popular(graph, found, PopularSettings(popular_max=2))
    assert graph.products.names(numbers) == ["a", "b"]
    assert values[0] > values[1] > 0
