"""Popular products: a rate that survives duplicates, moves at ticks, and leaves out what is withdrawn."""

from __future__ import annotations

import numpy as np

from freshet.store.graph import GraphStore
from freshet.store.popular import DAY_MS, PopularSettings, popular
from freshet.stream.decode import decode_events
from freshet.stream.events import Event, Product, Purchase, View

SETTINGS = PopularSettings(popular_max=10)
NOW = 100 * DAY_MS


def names(events: list[Event], prior: dict[str, int] | None = None, at_ms: int = NOW) -> list[str | None]:
    graph = GraphStore()
    graph.apply(decode_events(events))
    counts = np.zeros(len(graph.products))
    for name, count in (prior or {}).items():
        counts[graph.intern_products([name])[0]] = count
    numbers, rates = popular(graph, counts, at_ms, SETTINGS)
    assert (np.diff(rates) <= 0).all()
    return graph.products.names(numbers)


def bought(product: str, *days: int) -> list[Event]:
    return [Purchase(f"{product}{d}", f"u{d}", d * DAY_MS, product_id=product) for d in days]


def test_the_faster_and_the_more_recent_product_comes_first() -> None:
    events = bought("often", 96, 97, 98, 99) + bought("once", 99) + bought("long ago", 10, 11, 12, 13)
    assert names(events) == ["often", "once", "long ago"]


def test_duplicates_do_not_count() -> None:
    events = bought("twice", 98, 99) + bought("once", 99) * 5
    assert names(events) == ["twice", "once"]


def test_with_few_entries_the_frozen_count_decides() -> None:
    events = bought("known", 99) + bought("new", 99)
    assert names(events, prior={"known": 280}) == ["known", "new"]


def test_a_view_counts_less_than_a_purchase_and_a_withdrawn_product_not_at_all() -> None:
    views: list[Event] = [View(f"v{d}", "u", "seen", d * DAY_MS) for d in (97, 98, 99)]
    gone: list[Event] = [Product("gone", NOW, withdrawn=True)]
    assert names(views + bought("bought", 99) + bought("gone", 98, 99) + gone) == ["bought", "seen"]


def test_what_came_after_the_tick_does_not_count_yet() -> None:
    assert names(bought("early", 98) + bought("late", 101, 102)) == ["early"]
