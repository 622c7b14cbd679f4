"""The serving path against the plain layers: the same numbers at rest, and after any way of getting there."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.model.affected import Ripples, direct
from freshet.model.bundle import FrozenPairs
from freshet.model.config import LayerReads, TowerConfig
from freshet.model.frozen import FrozenTowers
from freshet.model.offline import OfflineTowers
from freshet.store.graph import GraphStore
from freshet.store.lists import Gather
from freshet.stream.decode import decode_events
from freshet.stream.events import Line, Purchase
from tests.property.logs import LIMITS, logs
from tests.random_bundle import ALL_READS, random_bundle

ATOL = 1e-5
PAIRS = FrozenPairs(
    ["p1", "p2", "p9"],
    np.array([0, 2, 3, 3]),
    np.array([1, 2, 0], dtype=np.int32),
    np.array([3.0, 1.0, 2.0], dtype=np.float32),
    np.array([9.0, 4.0, 1.0], dtype=np.float32),
)
BUNDLE = random_bundle(products=("p1", "p2", "p3", "p4"), pairs=PAIRS, cut_ms=4)
NARROW = random_bundle(
    seed=1,
    config=TowerConfig(
        dim=8,
        activation="none",
        user=LayerReads(outer={"purchased": Gather(3), "has_session": Gather(1)}, inner={"purchased": Gather(3)}),
        item=LayerReads(outer={"purchased_by": Gather(3)}, inner={"viewed": Gather(2)}),
    ),
)


def offline(events: list[Any], bundle: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Embeddings by id, from the whole log at once, by the plain layers."""
    graph = GraphStore(LIMITS)
    graph.apply(decode_events(events))
    towers = OfflineTowers(bundle, graph)
    users = np.array([graph.users.get(u) for u in graph.users.all_names()], dtype=np.int32)
    products = np.arange(len(graph.products), dtype=np.int32)
    offered = products[~graph.is_withdrawn(products)]
    return (
        dict(zip(graph.users.names(users), towers.encode_users(users), strict=True)),
        dict(zip(graph.products.names(offered), towers.encode_products(offered), strict=True)),
    )


class Live:
    """The updater's steps over in-memory tables, with no waiting and no batching of ripples."""

    def __init__(self, bundle: Any) -> None:
        self.graph = GraphStore(LIMITS)
        self.towers = FrozenTowers(bundle, self.graph)
        self.ripples = Ripples(self.graph, bundle.config)
        self.users: dict[str, np.ndarray] = {}
        self.products: dict[str, np.ndarray] = {}
        self.write_products(np.arange(len(self.graph.products), dtype=np.int32))

    def step(self, events: list[Any]) -> None:
        touched = self.graph.apply(decode_events(events))
        due = direct(touched, self.towers.config, self.graph)
        self.towers.refresh_features(due.x_users, due.x_products)
        self.towers.refresh_inner(due.inner_users, due.inner_products)
        self.write_users(due.users)
        for name in touched.forgotten_ids:
            self.users.pop(name, None)
        self.write_products(due.new_products)
        self.ripples.note(due, touched, 0.0)
        self.ripples.note_moved(self.towers.levels.move(), 0.0)

    def write_users(self, users: np.ndarray) -> None:
        for name, vector in zip(self.graph.users.names(users), self.towers.encode_users(users), strict=True):
            if name is not None:
                self.users[name] = vector

    def write_products(self, products: np.ndarray) -> None:
        gone = self.graph.is_withdrawn(products)
        for name in self.graph.products.names(products[gone]):
            self.products.pop(name, None)  # type: ignore[arg-type]
        vectors = self.towers.encode_products(products[~gone])
        self.products.update(zip(self.graph.products.names(products[~gone]), vectors, strict=True))  # type: ignore[arg-type]

    def drain(self) -> None:
        r = self.ripples
        while r.waiting:
            r.expand_users()
            users, products = r.due_inner_users.take(), r.due_inner_products.take()
            self.towers.refresh_inner(users, products)
            r.note_inner(users, products, 0.0)
            self.write_users(r.user.due.take())
            r.user.finish()
            r.expand_items()
            self.write_products(r.item.due.take())
            r.item.finish()
        assert r.since_ms is None


def close(live: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> None:
    assert sorted(live) == sorted(truth)
    for name in truth:
        np.testing.assert_allclose(live[name], truth[name], atol=ATOL, rtol=0, err_msg=name)


@pytest.mark.parametrize("bundle", [BUNDLE, NARROW], ids=["all relations", "few relations"])
@settings(max_examples=60, deadline=None)
@given(events=logs, cuts=st.lists(st.integers(0, 60), max_size=8), drains=st.sets(st.integers(0, 8)))
def test_streaming_ends_where_the_plain_layers_do(
    bundle: Any, events: list[Any], cuts: list[int], drains: set[int]
) -> None:
    """Events in batches, ripples worked off now and then: parity once the stream is quiet."""
    live = Live(bundle)
    edges = [0, *sorted({min(c, len(events)) for c in cuts}), len(events)]
    for i, (start, end) in enumerate(pairwise(edges)):
        live.step(events[start:end])
        if i in drains:
            live.drain()
    live.drain()
    users, products = offline(events, bundle)
    if bundle is BUNDLE:  # the bundle's own products are known from the start
        products |= {p: live.products[p] for p in PAIRS.product if p in live.products and p not in products}
    close(live.users, users)
    close(live.products, products)


@settings(max_examples=60, deadline=None)
@given(events=logs)
def test_the_users_of_a_batch_are_exact_at_once(events: list[Any]) -> None:
    """Direct means exact: with everything else quiet, a batch's users need no ripple."""
    live = Live(BUNDLE)
    live.step(events[:-1])
    live.drain()
    live.step(events[-1:])
    users, _ = offline(events, BUNDLE)
    owner = getattr(events[-1], "user_id", None)
    if owner in users:
        np.testing.assert_allclose(live.users[owner], users[owner], atol=ATOL, rtol=0)


def test_an_empty_graph_encodes_nothing_and_a_cold_product_encodes_from_features() -> None:
    graph = GraphStore(LIMITS)
    towers = FrozenTowers(random_bundle(config=ALL_READS), graph)
    assert towers.encode_users(np.zeros(0, dtype=np.int32)).shape == (0, ALL_READS.dim)
    a, b = graph.intern_products(["a", "b"]).tolist()
    towers.refresh_features(np.zeros(0, dtype=np.int32), np.array([a, b], dtype=np.int32))
    towers.refresh_inner(np.zeros(0, dtype=np.int32), np.array([a, b], dtype=np.int32))
    vectors = towers.encode_products(np.array([a, b], dtype=np.int32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_a_user_is_rippled_when_another_buys_one_of_their_products_with_something_else() -> None:
    """Only the ripple brings the first user's embedding up to date: nothing of their own has changed."""
    first = Purchase("a", "u1", 10, items=(Line("p1"), Line("p2")))
    second = Purchase("b", "u2", 11, items=(Line("p1"), Line("p3")))
    live = Live(BUNDLE)
    live.step([first])
    live.drain()
    before = live.users["u1"]
    live.step([second])
    live.drain()
    users, _ = offline([first, second], BUNDLE)
    assert np.abs(users["u1"] - before).max() > 1e-3
    close(live.users, users)
