"""Any permutation, duplication and split into batches of a log gives the same bytes."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.store.canonical import canonical
from freshet.store.graph import GraphStore
from freshet.stream.decode import decode_events
from freshet.stream.events import Line, Product, Profile, Purchase, View
from tests.property.logs import LIMITS, logs
from tests.property.reference import canonical_of


def applied(events: list[Any], batches: list[int]) -> GraphStore:
    """The graph after applying `events` cut at `batches`."""
    graph = GraphStore(LIMITS)
    cuts = [0, *sorted({min(b, len(events)) for b in batches}), len(events)]
    for start, end in pairwise(cuts):
        graph.apply(decode_events(events[start:end]))
    return graph


@settings(max_examples=300, deadline=None)
@given(logs, st.lists(st.integers(0, 60), max_size=5), st.randoms(use_true_random=False))
def test_any_order_batches_and_duplicates_give_the_bytes_of_the_reference(
    events: list[Any], batches: list[int], rng: random.Random
) -> None:
    expected = canonical_of(events, LIMITS)
    assert canonical(applied(events, batches)) == expected
    again = events + rng.choices(events, k=len(events) // 2)
    rng.shuffle(again)
    assert canonical(applied(again, batches)) == expected


@settings(max_examples=100, deadline=None)
@given(logs, st.lists(st.integers(0, 60), max_size=3))
def test_threads_name_exactly_the_rows_that_list_a_node(events: list[Any], batches: list[int]) -> None:
    graph = applied(events, batches)
    for lists in (graph.purchased, graph.viewed, graph.purchased_by, graph.viewed_by, graph.co_purchased.live):
        listed: dict[int, set[int]] = {}
        for row in range(lists.length.shape[0]):
            for slot in lists.slots_of(row).tolist():
                if lists.nbr[slot] >= 0:
                    listed.setdefault(int(lists.nbr[slot]), set()).add(slot)
        for node in range(lists.first.shape[0]):
            thread, slot = [], int(lists.first[node])
            while slot >= 0:
                thread.append(slot)
                assert len(thread) <= lists.nbr.shape[0], "a thread goes in a circle"
                slot = int(lists.nxt[slot])
            assert set(thread) == listed.get(node, set())
            assert len(thread) == len(set(thread))


@pytest.mark.parametrize("cancel_first", [True, False])
def test_a_cancellation_counts_also_before_its_purchase(cancel_first: bool) -> None:
    order = Purchase(event_id="o", user_id="u", timestamp=5, items=(Line("p"), Line("q")))
    back = Purchase(event_id="o", user_id="u", timestamp=5, items=(Line("p", cancelled=True), Line("q")))
    events = [back, order] if cancel_first else [order, back]
    graph = applied(events, [1])
    rows = canonical(graph)
    assert rows == canonical(applied(events[::-1], [1]))
    slots = graph.purchased.slots_of(0)
    flags = {graph.products.name(int(graph.purchased.nbr[s])): int(graph.purchased.flag[s]) for s in slots}
    assert flags == {"p": 1, "q": 0}
    assert graph.co_purchased.live.flag[graph.co_purchased.live.slots_of(0)].tolist() == [1]


def test_a_forgotten_user_leaves_no_id_and_a_late_event_does_not_bring_them_back() -> None:
    seen = View(event_id="v", user_id="u", product_id="p", timestamp=5)
    forget = Profile(user_id="u", timestamp=9, forgotten=True)
    graph = applied([seen, forget], [1])
    assert graph.users.get("u") is None
    assert "u" not in graph.users.all_names()
    touched = graph.apply(decode_events([View(event_id="w", user_id="u", product_id="p", timestamp=9)]))
    assert graph.users.get("u") is None
    assert touched.forgotten_ids == ["u"]
    assert graph.viewed_by.nbr[graph.viewed_by.slots_of(0)].tolist() == [-1, -1]
    graph.apply(decode_events([View(event_id="x", user_id="u", product_id="p", timestamp=10)]))
    back = graph.users.get("u")
    assert back is not None
    assert graph.viewed.length[back] == 1


def test_a_withdrawn_product_comes_back_with_a_newer_record() -> None:
    graph = applied([Product("p", timestamp=1, brand="b"), Product("p", timestamp=2, withdrawn=True)], [1])
    number = graph.intern_products(["p"])
    assert graph.is_withdrawn(number).tolist() == [True]
    graph.apply(decode_events([Product("p", timestamp=1, brand="c")]))
    assert graph.is_withdrawn(number).tolist() == [True]
    graph.apply(decode_events([Product("p", timestamp=3, brand="c")]))
    assert graph.is_withdrawn(number).tolist() == [False]
