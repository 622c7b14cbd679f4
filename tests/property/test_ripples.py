"""One change at a time, each of which reaches a node only as a ripple of one kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from freshet.model.affected import Wave
from freshet.store.graph import NO_NODES
from freshet.stream.events import Line, Product, Profile, Purchase, Session, SessionItem, View
from tests.property.test_parity import BUNDLE, NARROW, Live, close, offline

BOUGHT = Purchase("a", "u1", 10, product_id="p1")
VIEWED = View("a", "u1", "p1", 10)
VISITED = Session("a", "u1", "s", 10, items=(SessionItem("p1"),))
PAIR = Purchase("a", "u3", 10, items=(Line("p1"), Line("p5")))


@pytest.mark.parametrize("bundle", [BUNDLE, NARROW], ids=["all relations", "few relations"])
@pytest.mark.parametrize(
    ("first", "second", "user", "product"),
    [
        (BOUGHT, Product("p1", timestamp=11, brand="b"), "u1", None),
        (VIEWED, Product("p1", timestamp=11, brand="b"), "u1", None),
        (VISITED, Product("p1", timestamp=11, brand="b"), "u1", None),
        (BOUGHT, View("b", "u1", "p4", 11), None, "p1"),
        (BOUGHT, Purchase("b", "u1", 11, product_id="p4"), None, "p1"),
        (VIEWED, Purchase("b", "u1", 11, product_id="p4"), None, "p1"),
        (BOUGHT, Purchase("b", "u2", 11, items=(Line("p1"), Line("p3"))), "u1", None),
        (VIEWED, Purchase("b", "u2", 11, items=(Line("p1"), Line("p3"))), "u1", None),
        (PAIR, Product("p5", timestamp=11, brand="b"), "u3", "p1"),
        (PAIR, Purchase("b", "u2", 11, items=(Line("p5"), Line("p3"))), "u3", "p1"),
        (BOUGHT, View("b", "u2", "p1", 11), None, "p1"),
        (BOUGHT, Purchase("b", "u2", 11, items=(Line("p1"), Line("p3"))), None, "p1"),
        (BOUGHT, Profile("u1", 11, forgotten=True), None, "p1"),
        (VIEWED, Profile("u1", 11, forgotten=True), None, "p1"),
    ],
)
def test_a_ripple_arrives(bundle: Any, first: Any, second: Any, user: str | None, product: str | None) -> None:
    """The second event changes embeddings that it does not name; where nothing waits any more, all are exact."""
    live = Live(bundle)
    live.step([first])
    live.drain()
    before = dict(live.users), dict(live.products)
    live.step([second])
    assert live.ripples.waiting
    live.drain()
    users, products = offline([first, second], bundle)
    close(live.users, users)
    close({p: live.products[p] for p in products}, products)
    if bundle is BUNDLE:  # it reads every relation, so there is something to arrive
        for name, table, old in ((user, users, before[0]), (product, products, before[1])):
            assert name is None or np.abs(table[name] - old[name]).max() > 1e-3


def test_a_wave_knows_its_oldest_change() -> None:
    wave, some = Wave(), np.array([1], dtype=np.int32)
    for dirty in (wave.users, wave.products, wave.due):
        dirty.reserve(4)
    wave.note_sources(NO_NODES, NO_NODES, 1.0)
    wave.note_due(1.0)
    assert wave.since_ms is None, "nothing changed"
    wave.note_sources(some, NO_NODES, 2.0)
    wave.note_sources(NO_NODES, some, 3.0)
    assert wave.since_ms == 2.0
    users, products = wave.take_sources()
    assert (users.tolist(), products.tolist()) == ([1], [1])
    assert wave.since_ms == 2.0, "the wave under way owes it"
    wave.due.add(some)
    wave.note_due(4.0)
    wave.note_due(5.0)
    assert wave.since_ms == 2.0
    wave.finish()
    assert wave.since_ms == 4.0, "what came behind the wave"
    wave.take_sources()
    wave.due.take()
    wave.finish()
    assert wave.since_ms is None


def test_an_item_that_waits_alone_makes_the_ripples_stale() -> None:
    """A purchase of a known product by a known user changes only what the product's own embedding reads."""
    live = Live(NARROW)
    live.step([VIEWED])
    live.drain()
    live.step([Purchase("b", "u1", 11, product_id="p1")])
    assert not live.ripples.item.sources
    assert len(live.ripples.item.due) == 1
    assert live.ripples.since_ms == 0.0
