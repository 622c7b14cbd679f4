"""Snapshots: what is copied while the stream runs, together with what came after, is the state of the whole log."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.store import snapshot
from freshet.store.canonical import canonical
from freshet.store.dirty import DirtySet
from freshet.store.graph import GraphStore
from freshet.store.lists import NeighborLists
from freshet.store.sessions import SessionLists
from freshet.store.snapshot import Judge, Part, SnapshotHead, absorb, parts
from freshet.store.snapshot_file import SnapshotReader, SnapshotWriter
from freshet.stream.decode import decode_events
from freshet.stream.events import Profile, Purchase, Session, SessionItem, View
from tests.property.logs import LIMITS, logs
from tests.property.reference import canonical_of
from tests.property.test_merge import graph_of, threads_are_whole

HEAD = SnapshotHead("all", {("views", 0): 7, ("views", 1): 0}, 1_700_000_000_000, LIMITS, "m1", {"views": "t1"})


def everything(numbers: np.ndarray) -> np.ndarray:
    return np.ones(numbers.shape[0], dtype=np.bool_)


def file_of(pieces: Iterator[Part], head: SnapshotHead = HEAD) -> bytes:
    file = io.BytesIO()
    writer = SnapshotWriter(file)
    for part in pieces:
        writer.write_part(part)
    writer.finish(head)
    return file.getvalue()


def absorbed(data: bytes, graph: GraphStore | None = None) -> GraphStore:
    """The graph, by default an empty one, after taking in the snapshot of these bytes."""
    graph = graph or GraphStore(LIMITS)
    reader = SnapshotReader(io.BytesIO(data), "test.snapshot")
    absorb(graph, reader.head, reader.parts())
    return graph


def listers_are_right(graph: GraphStore) -> bool:
    """Whether `mark_listers` finds exactly the rows that a look at every slot finds."""
    for lists, rows, nodes in [
        (graph.purchased, graph.users, graph.products), (graph.viewed, graph.users, graph.products),
        (graph.sessions, graph.users, graph.products), (graph.co_purchased.live, graph.products, graph.products),
        (graph.purchased_by, graph.products, graph.users), (graph.viewed_by, graph.products, graph.users),
    ]:  # fmt: skip
        there = [held(lists, row) for row in range(len(rows))]
        for node in range(len(nodes)):
            dirty = DirtySet()
            dirty.reserve(len(rows))
            lists.mark_listers(np.array([node], dtype=np.int32), dirty)
            if sorted(dirty.take().tolist()) != [row for row, nbrs in enumerate(there) if node in nbrs]:
                return False
    return True


def held(lists: NeighborLists | SessionLists, row: int) -> set[int]:
    if isinstance(lists, NeighborLists):
        return set(lists.nbr[lists.slots_of(row)].tolist())
    slots = [row * lists.capacity + int(lists.order[row, j]) for j in range(int(lists.length[row]))]
    return {int(lists.nbr[s * lists.items + i]) for s in slots for i in range(int(lists.item_count[s]))}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "ROWS_AT_A_TIME", 3)


@settings(max_examples=60, deadline=None)
@given(events=logs, entries_max=st.integers(1, 8), rng=st.randoms(use_true_random=False))
def test_a_snapshot_taken_in_is_the_graph(events: list[Any], entries_max: int, rng: random.Random) -> None:
    graph = graph_of(events, rng)
    data = file_of(parts(graph, everything, everything, entries_max))
    assert canonical(graph) == canonical_of(events, LIMITS), "taking a snapshot changes nothing"
    loaded = absorbed(data)
    assert canonical(loaded) == canonical_of(events, LIMITS)
    assert threads_are_whole(loaded)
    assert listers_are_right(loaded)
    unordered = GraphStore(LIMITS)
    absorb(unordered, HEAD, parts(graph, everything, everything, entries_max))
    assert canonical(unordered) == canonical(loaded), "in the order in which parts are made, too"


@settings(max_examples=150, deadline=None)
@given(events=logs, later=logs, entries_max=st.integers(1, 8), rng=st.randoms(use_true_random=False))
def test_a_snapshot_of_a_running_stream_with_what_came_after_is_the_whole(
    events: list[Any], later: list[Any], entries_max: int, rng: random.Random
) -> None:
    """Events after the noted positions are applied between the pieces, then all of them are replayed."""
    graph, at = graph_of(events), 0

    def while_running() -> Iterator[Part]:
        nonlocal at
        for part in parts(graph, everything, everything, entries_max):
            yield part
            if at < len(later) and rng.random() < 0.5:
                size = rng.randint(1, 4)
                graph.apply(decode_events(later[at : at + size]))
                at += size

    loaded = absorbed(file_of(while_running()))
    loaded.apply(decode_events(later))
    assert canonical(loaded) == canonical_of(events + later, LIMITS)
    assert threads_are_whole(loaded)
    assert listers_are_right(loaded)


@settings(max_examples=60, deadline=None)
@given(events=logs, more=logs)
def test_taken_into_a_graph_that_holds_something_it_is_a_merge(events: list[Any], more: list[Any]) -> None:
    graph, merged = graph_of(more), graph_of(more)
    other = graph_of(events)
    reader = SnapshotReader(io.BytesIO(file_of(parts(other, everything, everything))), "test.snapshot")
    touched, expected = absorb(graph, reader.head, reader.parts()), merged.merge(other)
    assert canonical(graph) == canonical(merged) == canonical_of(events + more, LIMITS)
    assert threads_are_whole(graph)
    for relation in graph_relations(touched.lists, expected.lists):
        assert graph_names(graph, relation, touched.rows(relation)) == graph_names(
            merged, relation, expected.rows(relation)
        )
    assert sorted(touched.forgotten_ids) == sorted(expected.forgotten_ids)
    again = absorb(graph, reader.head, reader.parts())
    assert canonical(graph) == canonical(merged), "twice is once"
    assert not again.rows(*again.lists).shape[0]


def graph_relations(*found: dict[str, Any]) -> list[str]:
    return sorted({relation for lists in found for relation in lists})


def graph_names(graph: GraphStore, relation: str, rows: np.ndarray) -> set[str | None]:
    ids = graph.users if relation in ("purchased", "viewed", "has_session") else graph.products
    return set(ids.names(rows)) - {None}


@settings(max_examples=80, deadline=None)
@given(events=logs, later=logs, rng=st.randoms(use_true_random=False))
def test_scopes_taken_in_any_order_are_the_whole(events: list[Any], later: list[Any], rng: random.Random) -> None:
    """Users in two parts, products in two, each a snapshot of another moment."""
    graph = graph_of(events)
    half = rng.sample([f"u{i}" for i in range(1, 8)] + ["ü3"], 4)

    def judge(ids: Any, wanted: bool, which: list[str]) -> Judge:
        return lambda numbers: np.array([(name in which) == wanted for name in ids.names(numbers)], dtype=np.bool_)

    snapshots = []
    for wanted in (True, False):
        snapshots.append(file_of(parts(graph, judge(graph.users, wanted, half), None, 2)))
        graph.apply(decode_events(later[: len(later) // 2]))
        snapshots.append(file_of(parts(graph, None, judge(graph.products, wanted, ["p1", "p2"]), 2)))
        graph.apply(decode_events(later))
    rng.shuffle(snapshots)
    loaded = GraphStore(LIMITS)
    for data in snapshots:
        absorbed(data, loaded)
    loaded.apply(decode_events(later))
    assert canonical(loaded) == canonical_of(events + later, LIMITS)
    assert threads_are_whole(loaded)


@settings(max_examples=60, deadline=None)
@given(events=logs)
def test_scopes_of_a_quiet_graph_need_no_replay(events: list[Any]) -> None:
    graph = graph_of(events)
    users, products = file_of(parts(graph, everything, None)), file_of(parts(graph, None, everything))
    for first, second in ((users, products), (products, users)):
        loaded = absorbed(second, absorbed(first))
        assert canonical(loaded) == canonical_of(events, LIMITS)
        assert listers_are_right(loaded)


def test_a_forgotten_user_is_in_no_byte_of_a_later_snapshot() -> None:
    name = "ann-0815"
    graph = graph_of([
        View(event_id="v", user_id=name, product_id="p", timestamp=5),
        Purchase(event_id="o", user_id=name, product_id="p", timestamp=5),
        Session(event_id="s", user_id=name, session_id="s", timestamp=6, items=(SessionItem("p"),)),
        Profile(user_id=name, timestamp=4, geo="DE"),
        View(event_id="w", user_id="bob", product_id="p", timestamp=7),
    ])  # fmt: skip
    assert name.encode() in file_of(parts(graph, everything, everything))
    graph.apply(decode_events([Profile(user_id=name, timestamp=9, forgotten=True)]))
    data = file_of(parts(graph, everything, everything))
    assert name.encode() not in data
    assert b"bob" in data
    loaded = absorbed(data)
    loaded.apply(decode_events([View(event_id="x", user_id=name, product_id="p", timestamp=9)]))
    assert loaded.users.all_names() == ["bob"], "a late event is still refused"


def test_a_user_forgotten_while_the_snapshot_was_made_is_in_no_list_that_is_taken_in() -> None:
    graph = graph_of([
        View(event_id="v", user_id="ann", product_id="p", timestamp=5),
        Session(event_id="s", user_id="ann", session_id="s", timestamp=6, items=(SessionItem("p"),)),
    ])  # fmt: skip

    def forgotten_before_the_names() -> Iterator[Part]:
        for part in parts(graph, everything, everything):
            yield part
            if part.section == "viewed_by":
                graph.apply(decode_events([Profile(user_id="ann", timestamp=9, forgotten=True)]))

    loaded = absorbed(file_of(forgotten_before_the_names()))
    assert loaded.users.all_names() == []
    assert [loaded.viewed_by.nbr[s] for s in loaded.viewed_by.slots_of(0)] == [-1]
    assert [loaded.viewed_by.flag[s] for s in loaded.viewed_by.slots_of(0)] == [1]
    assert canonical(loaded) == canonical(graph)


def test_a_row_that_begins_within_its_ring_is_copied_from_there() -> None:
    graph = graph_of([View(event_id=f"v{t}", user_id="ann", product_id=f"p{t}", timestamp=t) for t in (5, 7)])
    graph.apply(decode_events([Profile(user_id="ann", timestamp=6, forgotten=True)]))
    assert graph.viewed.head[0] == 1
    loaded = absorbed(file_of(parts(graph, everything, everything)))
    assert canonical(loaded) == canonical(graph)
    assert [loaded.products.name(int(loaded.viewed.nbr[s])) for s in loaded.viewed.slots_of(0)] == ["p7"]
