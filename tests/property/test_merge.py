"""Graphs of parts of a log, merged in any order and grouping, are the graph of the whole log."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.store import merge
from freshet.store.canonical import canonical
from freshet.store.graph import GraphStore, Touched
from freshet.store.merge import LimitsDiffer
from freshet.stream.decode import decode_events
from freshet.stream.events import Profile, Session, SessionItem, View
from tests.property.logs import LIMITS, logs
from tests.property.reference import canonical_of


def graph_of(events: list[Any], rng: random.Random | None = None) -> GraphStore:
    """The graph of these events, in one batch or, with `rng`, in random ones."""
    graph, at = GraphStore(LIMITS), 0
    while at < len(events):
        size = len(events) if rng is None else rng.randint(1, len(events))
        graph.apply(decode_events(events[at : at + size]))
        at += size
    return graph


def split(events: list[Any], parts: int, rng: random.Random) -> list[list[Any]]:
    """Each event in one part or in several, in any order within it."""
    out: list[list[Any]] = [[] for _ in range(parts)]
    for event in events:
        for part in rng.sample(range(parts), rng.choice([1, 1, 1, 2])):
            out[part].append(event)
    for part in out:
        rng.shuffle(part)
    return out


def threads_are_whole(graph: GraphStore) -> bool:
    """Whether every thread names exactly the slots that hold its node."""
    for lists in (graph.purchased, graph.viewed, graph.purchased_by, graph.viewed_by, graph.co_purchased.live):
        listed: dict[int, list[int]] = {}
        for row in range(lists.length.shape[0]):
            for slot in lists.slots_of(row).tolist():
                listed.setdefault(int(lists.nbr[slot]), []).append(slot)
        for node in range(lists.first.shape[0]):
            thread, slot = [], int(lists.first[node])
            while slot >= 0 and len(thread) <= lists.nbr.shape[0]:
                thread.append(slot)
                slot = int(lists.nxt[slot])
            if sorted(thread) != sorted(listed.get(node, [])):
                return False
    return True


@settings(max_examples=100, deadline=None)
@given(events=logs, parts=st.integers(2, 4), rng=st.randoms(use_true_random=False))
def test_parts_merged_in_any_order_and_grouping_are_the_whole(
    events: list[Any], parts: int, rng: random.Random
) -> None:
    graphs = [graph_of(part, rng) for part in split(events, parts, rng)]
    rng.shuffle(graphs)
    while len(graphs) > 1:
        into = graphs.pop(rng.randrange(len(graphs)))
        other = graphs[place := rng.randrange(len(graphs))]
        before = canonical(other)
        into.merge(other)
        assert canonical(other) == before, "the other graph stays as it is"
        graphs[place] = into
    merged = graphs[0]
    assert canonical(merged) == canonical_of(events, LIMITS)
    assert threads_are_whole(merged)


@settings(max_examples=60, deadline=None)
@given(events=logs, later=logs, rng=st.randoms(use_true_random=False))
def test_a_merged_graph_goes_on_as_the_whole_would(events: list[Any], later: list[Any], rng: random.Random) -> None:
    """Nothing that a merge leaves behind shows only with the next events."""
    one, two = (graph_of(part) for part in split(events, 2, rng))
    one.merge(two)
    one.apply(decode_events(later))
    assert canonical(one) == canonical_of(events + later, LIMITS)


@settings(max_examples=60, deadline=None)
@given(events=logs)
def test_merging_with_itself_or_with_nothing_changes_nothing(events: list[Any]) -> None:
    graph, expected = graph_of(events), canonical_of(events, LIMITS)
    for other in (graph, GraphStore(LIMITS), graph_of(events)):
        touched = graph.merge(other)
        assert canonical(graph) == expected
        assert not touched.rows(*touched.lists).shape[0]
        assert not touched.users_x.shape[0]
        assert not touched.products_x.shape[0]
        assert not touched.forgotten_ids
    empty = GraphStore(LIMITS)
    empty.merge(graph)
    assert canonical(empty) == expected


@settings(max_examples=60, deadline=None)
@given(events=logs, more=logs)
def test_what_a_merge_touched_is_what_it_changed(events: list[Any], more: list[Any]) -> None:
    """Every list that differs afterwards is named, so that embeddings can follow."""
    graph, other = graph_of(events), graph_of(more)
    before = rows_by_name(graph)
    touched = graph.merge(other)
    after = rows_by_name(graph)
    for relation, names in (
        ("purchased", graph.users), ("viewed", graph.users), ("has_session", graph.users),
        ("purchased_by", graph.products), ("viewed_by", graph.products), ("co_purchased", graph.products),
    ):  # fmt: skip
        told = set(names.names(touched.rows(relation)))
        changed = {n for n in after[relation] if after[relation][n] != before[relation].get(n, [])}
        assert changed <= told, relation


def rows_by_name(graph: GraphStore) -> dict[str, dict[str, list[Any]]]:
    """The keys and flags of every list, by relation and by id."""
    out: dict[str, dict[str, list[Any]]] = {}
    for relation, lists, names in (
        ("purchased", graph.purchased, graph.users), ("viewed", graph.viewed, graph.users),
        ("purchased_by", graph.purchased_by, graph.products), ("viewed_by", graph.viewed_by, graph.products),
        ("co_purchased", graph.co_purchased.live, graph.products),
    ):  # fmt: skip
        out[relation] = {
            name: [
                (int(lists.time[s]), int(lists.key[s]), int(lists.flag[s]), str(lists.value[s]), lists.nbr[s] < 0)
                for s in lists.slots_of(row)
            ]
            for name in names.all_names()
            if (row := names.get(name)) is not None
        }
    s = graph.sessions
    out["has_session"] = {
        name: sorted(s.key[u * s.capacity + s.order[u, : s.length[u]].astype(np.int64)].tolist())
        for name in graph.users.all_names()
        if (u := graph.users.get(name)) is not None
    }
    return out


@pytest.mark.parametrize("forgets", ["the one that is merged", "the one merged into"])
def test_a_forgotten_user_does_not_come_back_by_merging(forgets: str) -> None:
    knows = graph_of([
        View(event_id="v", user_id="ann", product_id="p", timestamp=5),
        Session(event_id="s", user_id="ann", session_id="s", timestamp=6, items=(SessionItem("p"),)),
        Profile(user_id="ann", timestamp=4, geo="DE"),
    ])  # fmt: skip
    forgot = graph_of([Profile(user_id="ann", timestamp=9, forgotten=True)])
    into, other = (knows, forgot) if forgets == "the one that is merged" else (forgot, knows)
    touched: Touched = into.merge(other)
    assert into.users.all_names() == []
    assert b"ann" not in canonical(into)
    assert touched.forgotten_ids == ["ann"]
    assert into.viewed_by.nbr[into.viewed_by.slots_of(0)].tolist() == [-1]
    into.apply(decode_events([View(event_id="w", user_id="ann", product_id="p", timestamp=9)]))
    assert into.users.all_names() == [], "a late event is still refused"
    into.apply(decode_events([View(event_id="x", user_id="ann", product_id="p", timestamp=10)]))
    assert into.users.all_names() == ["ann"]


def test_rows_are_copied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "ROWS_AT_A_TIME", 3)
    events = [
        event
        for i in range(20)
        for event in (
            View(event_id=f"v{i}", user_id=f"u{i % 11}", product_id=f"p{i % 7}", timestamp=i + 1),
            Session(event_id=f"s{i}", user_id=f"u{i % 11}", session_id=f"s{i}", timestamp=i + 1,
                    items=(SessionItem(f"p{i % 5}"),)),
        )
    ]  # fmt: skip
    one, two = graph_of(events[::2]), graph_of(events[1::2])
    one.merge(two)
    assert canonical(one) == canonical_of(events, LIMITS)


def test_graphs_of_other_limits_are_refused_by_name() -> None:
    other = GraphStore(replace(LIMITS, viewed_max=9))
    with pytest.raises(LimitsDiffer, match=r"viewed_max is 2 in one and 9 in the other.*build one of them again"):
        GraphStore(LIMITS).merge(other)
