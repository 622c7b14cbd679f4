"""The updater over stores in memory: stages, waves and what happens when a store is away."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from freshet.model.config import LayerReads, TowerConfig
from freshet.model.frozen import FrozenTowers
from freshet.store.embeddings import Landing, StoreUnavailable
from freshet.store.graph import GraphStore
from freshet.store.index import MemoryItemIndex
from freshet.store.lists import Gather
from freshet.store.memory_store import MemoryEmbeddingStore
from freshet.store.value import Seq, decode_value
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.events import Event, Kind, Line, Product, Profile, Purchase, View
from freshet.stream.ownership import Ownership
from freshet.stream.records import Outgoing, Record
from freshet.stream.sink import Sink, Stopped
from freshet.stream.updater import RippleSettings, Updater
from tests.random_bundle import random_bundle

NOW = 1_700_000_000_000
READS = TowerConfig(
    dim=8,
    user=LayerReads(
        outer={"purchased": Gather(4), "viewed": Gather(4)}, inner={"purchased": Gather(4), "co_purchased": Gather(4)}
    ),
    item=LayerReads(outer={"purchased_by": Gather(4), "co_purchased": Gather(4)}, inner={"purchased": Gather(4)}),
)
KIND_OF = {Profile: Kind.PROFILE, View: Kind.VIEW, Purchase: Kind.PURCHASE, Product: Kind.PRODUCT}


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def updater(clock: Clock, store: object | None = None, fence: int = 5, **sink: object) -> Updater:
    bundle = random_bundle(config=READS, products=("p1", "p2", "p3"))
    graph = GraphStore()
    made = Sink(
        graph, store or MemoryEmbeddingStore(), MemoryItemIndex(READS.dim), None, "", bundle.model_version, READS.dim,
        Ownership.of_all(graph.users, fence), fence, sleep=lambda s: None, **sink,
    )  # type: ignore[arg-type]  # fmt: skip
    kinds = {kind.value: kind for kind in Kind}
    return Updater(graph, FrozenTowers(bundle, graph), made, kinds, settings=RippleSettings(), monotonic=clock)


def records(*events: Event) -> list[Record]:
    return [
        Record(KIND_OF[type(e)].value, 0, i, NOW + 1000, encode_record_key(e), encode(e)) for i, e in enumerate(events)
    ]


def order(number: int, user: str, *products: str) -> Purchase:
    return Purchase(f"o{number}", user, NOW + number, items=tuple(Line(p, quantity=1.0) for p in products))


def vector(made: Updater, user: str) -> np.ndarray:
    raw = made.sink.store.get(made.sink.model_version, [user])[0]
    assert raw is not None
    return decode_value(raw).vector


def test_a_step_writes_its_users_and_new_products_at_once(clock: Clock) -> None:
    made = updater(clock)
    made.step(records(Product("p1", NOW, brand="b"), View("v1", "u1", "p1", NOW)))
    value = decode_value(made.sink.store.get(made.sink.model_version, ["u1"])[0] or b"")
    assert value.event_ts == NOW
    assert value.src == ("view", 0, 1)
    assert value.recent == [("p1", "view", NOW)]
    assert value.seq.fence == 5
    assert made.sink.index.ids() == ["p1"]  # type: ignore[attr-defined]


def test_a_user_can_come_before_any_product(clock: Clock) -> None:
    made = updater(clock)
    made.step(records(Profile("u1", NOW, age_bucket="25-34")))
    value = decode_value(made.sink.store.get(made.sink.model_version, ["u1"])[0] or b"")
    assert value.recent == []
    assert value.event_ts == -1


def test_recent_is_newest_first_and_each_user_has_their_own(clock: Clock) -> None:
    made = updater(clock)
    made.step(records(View("v1", "u1", "p1", NOW), View("v2", "u2", "p2", NOW + 5), order(9, "u1", "p3")))
    recent = {u: decode_value(made.sink.store.get(made.sink.model_version, [u])[0] or b"").recent for u in ("u1", "u2")}
    assert recent == {"u1": [("p3", "purchase", NOW + 9), ("p1", "view", NOW)], "u2": [("p2", "view", NOW + 5)]}


def test_what_was_bought_is_counted_and_a_cancelled_line_is_not(clock: Clock) -> None:
    made = updater(clock)
    made.step(records(order(1, "u1", "p1", "p2"), order(5, "u1", "p1"), View("v1", "u1", "p3", NOW + 9)))
    made.step(records(Purchase("o1", "u1", NOW + 1, items=(Line("p2", quantity=1.0, cancelled=True),))))
    value = decode_value(made.sink.store.get(made.sink.model_version, ["u1"])[0] or b"")
    assert value.bought == [("p1", 2, NOW + 5, pytest.approx(2.0))]


def test_an_event_that_is_there_already_writes_nothing(clock: Clock) -> None:
    made = updater(clock)
    made.step(records(View("v1", "u1", "p1", NOW)))
    written = made.totals.users_written
    made.step(records(View("v1", "u1", "p1", NOW)))
    assert made.totals.users_written == written


def test_ripples_come_in_waves_and_the_staleness_is_reported(clock: Clock) -> None:
    made = updater(clock)
    made.step(records(order(1, "u1", "p1", "p2"), order(2, "u2", "p1")))
    made.drain()
    assert made.staleness_ms() == 0
    before = vector(made, "u2")
    made.ripple(1.0)
    clock.now += 1.0
    made.step(records(order(3, "u1", "p1", "p3")))
    np.testing.assert_array_equal(vector(made, "u2"), before)
    clock.now += 0.2
    assert made.staleness_ms() == pytest.approx(200.0)
    made.drain()
    assert np.abs(vector(made, "u2") - before).max() > 1e-4
    assert made.staleness_ms() == 0
    assert made.ripples.waiting == 0


def test_a_second_wave_of_items_waits_for_its_interval(clock: Clock) -> None:
    made = updater(clock)
    made.step(records(order(1, "u1", "p1", "p2")))
    while made.ripple(1.0):
        pass
    waves = made.totals.waves
    made.step(records(order(2, "u2", "p2", "p3")))
    assert not made.ripple(1.0) or made.totals.waves == waves
    assert made.ripples.waiting
    clock.now += made.settings.ripple_items_ms / 1e3
    while made.ripple(1.0):
        pass
    assert made.totals.waves > waves
    assert made.ripples.waiting == 0


class Slow(MemoryEmbeddingStore):
    """A store in which values land when they are waited for."""

    def begin_upsert(self, *args: object) -> Landing:  # type: ignore[override]
        return lambda: self.upsert(*args)  # type: ignore[arg-type]


class Away(Slow):
    """A store that is away for its first calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def upsert(self, *args: object) -> np.ndarray:  # type: ignore[override]
        if self.left:
            self.left -= 1
            raise StoreUnavailable("away")
        return super().upsert(*args)  # type: ignore[arg-type]


def test_a_store_that_is_away_is_waited_for_and_nothing_is_lost(clock: Clock) -> None:
    made = updater(clock, Away(5))
    made.step(records(View("v1", "u1", "p1", NOW)))
    assert vector(made, "u1").shape == (8,)
    assert made.sink.unavailable_since is None


def test_waiting_for_a_store_ends_when_the_worker_is_to_stop(clock: Clock) -> None:
    answers: Iterator[bool] = iter([False, False, True])
    made = updater(clock, Away(100), should_stop=lambda: next(answers))
    with pytest.raises(Stopped):
        made.step(records(View("v1", "u1", "p1", NOW)))


def seen(made: Updater, *users: str) -> list[bool]:
    return [raw is not None for raw in made.sink.store.get(made.sink.model_version, users)]


def test_with_more_to_be_done_a_batch_travels_while_the_next_is_worked_on(clock: Clock) -> None:
    made = updater(clock, Slow())
    landed: list[str] = []
    made.sink.when_settled(lambda: landed.append("nothing is on its way"))
    made.step(records(View("v1", "u1", "p1", NOW)), more=True)
    made.sink.when_settled(lambda: landed.append("u1"))
    assert (seen(made, "u1"), landed) == ([False], ["nothing is on its way"])
    made.step(records(View("v2", "u2", "p1", NOW + 1)), more=True)
    assert (seen(made, "u1", "u2"), landed) == ([True, False], ["nothing is on its way", "u1"])
    made.step(records(View("v3", "u3", "p1", NOW + 2)))
    assert seen(made, "u1", "u2", "u3") == [True] * 3


def test_who_is_on_the_way_and_then_forgotten_is_gone(clock: Clock) -> None:
    made = updater(clock, Slow())
    made.step(records(View("v1", "u1", "p1", NOW), View("v2", "u2", "p1", NOW)), more=True)
    made.step(records(Profile("u1", NOW + 1, forgotten=True)), more=True)
    made.sink.settle()
    assert seen(made, "u1", "u2") == [False, True]
    assert made.sink.refused == {}


def test_what_was_refused_on_its_way_takes_no_partition_that_was_gained_anew(clock: Clock) -> None:
    store = Slow()
    newer, older = updater(clock, store, fence=6), updater(clock, store, fence=5)
    older.step(records(View("v1", "u1", "p1", NOW)), more=True)
    newer.step(records(View("v1", "u1", "p1", NOW)))
    older.sink.ownership.drop(0)
    older.sink.ownership.grant(0, 7)
    older.step(records(View("v2", "u1", "p2", NOW + 1)))
    assert older.sink.refused == {}
    value = decode_value(store.get(newer.sink.model_version, ["u1"])[0] or b"")
    assert (value.seq.fence, value.event_ts) == (7, NOW + 1)


def two_workers(clock: Clock) -> tuple[MemoryEmbeddingStore, Updater, Updater]:
    """A store, a worker that owns its partition, and one that has lost it without knowing."""
    store = MemoryEmbeddingStore()
    return store, updater(clock, store, fence=6), updater(clock, store)


def test_a_worker_with_an_older_token_is_refused_and_writes_there_no_more(clock: Clock) -> None:
    store, newer, older = two_workers(clock)
    newer.step(records(View("v1", "u1", "p1", NOW)))
    mine = store.get(newer.sink.model_version, ["u1"])
    older.step(records(View("v2", "u1", "p2", NOW)))
    assert older.sink.refused == {0: 5}
    older.step(records(View("v3", "u9", "p2", NOW)))
    assert store.get(newer.sink.model_version, ["u1", "u9"]) == [*mine, None]


def test_a_worker_with_an_older_token_does_not_bring_a_forgotten_user_back(clock: Clock) -> None:
    store, newer, older = two_workers(clock)
    for each in (older, newer):
        each.step(records(View("v1", "u1", "p1", NOW)))
    newer.step(records(Profile("u1", NOW + 1, forgotten=True)))
    older.step(records(View("v2", "u1", "p2", NOW)))
    assert older.sink.refused == {0: 5}
    assert store.get(newer.sink.model_version, ["u1"]) == [None]


def test_a_worker_with_an_older_token_does_not_forget_a_user_who_came_back(clock: Clock) -> None:
    _, newer, older = two_workers(clock)
    newer.step(records(View("v1", "u1", "p1", NOW + 2)))
    older.step(records(Profile("u1", NOW + 1, forgotten=True)))
    assert older.sink.refused == {0: 5}
    assert vector(newer, "u1").shape == (8,)


def test_users_of_partitions_that_are_not_owned_are_kept_up_to_date_and_not_written(clock: Clock) -> None:
    made = updater(clock)
    made.sink.ownership.drop(0)
    made.step(records(View("v1", "u1", "p1", NOW)))
    made.drain()
    assert made.sink.store.get(made.sink.model_version, ["u1"]) == [None]
    made.sink.ownership.grant(0, 7)
    made.write_users(made.sink.ownership.members(0))
    assert decode_value(made.sink.store.get(made.sink.model_version, ["u1"])[0] or b"").seq.fence == 7


def test_a_rejected_record_does_not_hold_up_the_others(clock: Clock) -> None:
    made = updater(clock)
    bad = Record("view", 0, 7, NOW, b"u9", b"{")
    decoded = made.step([bad, *records(View("v1", "u1", "p1", NOW))])
    assert [r.offset for r, _ in decoded.rejections] == [7]
    assert vector(made, "u1").shape == (8,)


class Sent:
    """A changelog that keeps what it is sent."""

    def __init__(self) -> None:
        self.records: list[Outgoing] = []

    def send(self, record: Outgoing) -> None:
        self.records.append(record)


def test_changelogs_carry_what_readers_can_see(clock: Clock) -> None:
    made = updater(clock)
    sent = Sent()
    made.sink.changelog, made.sink.changelog_topic, made.sink.users_topic = sent, "products", "users"
    made.step(records(Product("p1", NOW, brand="b"), View("v1", "u1", "p1", NOW)))
    made.step(records(Product("p1", NOW + 1, withdrawn=True), Profile("u1", NOW + 1, forgotten=True)))
    by_topic = {t: [(r.key, r.value) for r in sent.records if r.topic == t] for t in ("products", "users")}
    assert [key for key, _ in by_topic["products"]] == [b"p1", b"p1"]
    assert by_topic["products"][1][1] is None
    value, withdrawal = (r for r in sent.records if r.topic == "products")
    headers = {h: v.decode() for h, v in withdrawal.headers if v is not None}
    assert headers["freshet-model"] == decode_value(value.value or b"").model
    assert Seq.parse(headers["freshet-seq"]) > decode_value(value.value or b"").seq
    assert [key for key, _ in by_topic["users"]] == [b"u1", b"u1"]
    assert by_topic["users"][1][1] is None
    assert decode_value(by_topic["users"][0][1] or b"").recent == [("p1", "view", NOW)]
