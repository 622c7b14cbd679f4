"""The loop around the updater, for faults that a real broker does not produce on demand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from freshet.model.frozen import FrozenTowers
from freshet.store.graph import GraphStore
from freshet.store.index import MemoryItemIndex
from freshet.store.memory_store import MemoryEmbeddingStore, MemoryServingState
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.events import Kind, View
from freshet.stream.kafka import KafkaError
from freshet.stream.placement import Placement
from freshet.stream.records import Outgoing, Record
from freshet.stream.sink import Sink
from freshet.stream.updater import Updater
from freshet.stream.worker import Freshness, Origin, Worker
from tests.random_bundle import random_bundle

NOW = 1_700_000_000_000
PLACE = ("view", 0)


class Broker:
    """A consumer and a producer in one; deliveries can be made to fail or to stay open."""

    def __init__(self) -> None:
        self.log: list[Record] = []
        self.at = 0
        self.commits: list[dict[tuple[str, int], int]] = []
        self.sent: list[Outgoing] = []
        self.failures = 0
        self.last_failure = "no leader"
        self.open = 0

    def watermarks(self, places: list[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        return {PLACE: (0, len(self.log))}

    def committed(self, places: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return dict(self.commits[-1]) if self.commits else {}

    def assign(self, positions: Mapping[tuple[str, int], int]) -> None:
        self.at = positions[PLACE]

    def poll(self, records_max: int = 0, timeout_s: float | None = None) -> list[Record]:
        part = self.log[self.at :]
        self.at = len(self.log)
        return part

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        self.commits.append(dict(offsets))

    def send(self, record: Outgoing) -> None:
        self.sent.append(record)

    def flush(self, timeout_s: float) -> int:
        return self.open

    def __len__(self) -> int:
        return self.open

    def view(self, user: str, product: str, value: bytes | None = None) -> None:
        event = View(f"v{len(self.log)}", user, product, NOW + len(self.log))
        raw = encode(event) if value is None else value
        self.log.append(Record("view", 0, len(self.log), NOW + 10, encode_record_key(event), raw))


def worker(broker: Broker) -> Worker:
    bundle = random_bundle()
    graph, state = GraphStore(), MemoryServingState()
    producer = Producer(broker)
    sink = Sink(graph, MemoryEmbeddingStore(), MemoryItemIndex(16), producer, "items", bundle.model_version, 16, 1)
    updater = Updater(graph, FrozenTowers(bundle, graph), sink, {kind.value: kind for kind in Kind})
    return Worker(
        graph, updater, sink, state, broker, producer, "dead", Placement({"view": 1}), Origin(),  # type: ignore[arg-type]
    )  # fmt: skip


class Producer:
    """The producing side of the broker."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.last_failure = broker.last_failure

    @property
    def failures(self) -> int:
        return self.broker.failures

    def send(self, record: Outgoing) -> None:
        self.broker.send(record)

    def flush(self, timeout_s: float) -> int:
        return self.broker.open

    def poll(self) -> int:
        return 0

    def __len__(self) -> int:
        return self.broker.open


def test_what_is_there_at_the_start_is_served_only_when_all_of_it_is_known() -> None:
    broker = Broker()
    broker.view("u1", "p1")
    broker.view("u1", "p2")
    made = worker(broker)
    assert made.serving.current() is None
    made.catch_up([PLACE], lambda: False)
    assert made.serving.current() == made.sink.model_version
    assert made.state == "live"
    assert made.sink.store.get(made.sink.model_version, ["u1"]) != [None]
    assert made.positions == {PLACE: 2}


def test_offsets_are_committed_after_what_they_cover_was_delivered() -> None:
    broker = Broker()
    made = worker(broker)
    made.catch_up([PLACE], lambda: False)
    broker.view("u1", "p1")
    broker.open = 2
    made.turn()
    assert broker.commits == []
    broker.open = 0
    made._next.clear()
    made.turn()
    assert broker.commits == [{PLACE: 1}]


def test_a_dead_letter_that_could_not_be_delivered_stops_the_worker_before_the_commit() -> None:
    broker = Broker()
    made = worker(broker)
    made.catch_up([PLACE], lambda: False)
    broker.view("u1", "p1", value=b"{")
    broker.open = 1
    made.turn()
    assert [record.topic for record in broker.sent] == ["dead"]
    broker.failures, broker.open = 1, 0
    with pytest.raises(KafkaError, match=r"1 records .* could not be delivered: no leader"):
        made.commit()
    assert broker.commits == []


def test_what_an_earlier_run_dead_lettered_is_not_dead_lettered_again() -> None:
    broker = Broker()
    broker.view("u1", "p1", value=b"{")
    broker.view("u1", "p1", value=b"[")
    broker.commits.append({PLACE: 1})
    made = worker(broker)
    made.catch_up([PLACE], lambda: False)
    letters = [record for record in broker.sent if record.topic == "dead"]
    assert [record.value for record in letters] == [b"["]


def test_lost_redis_is_written_again_and_pointed_to() -> None:
    broker = Broker()
    broker.view("u1", "p1")
    made = worker(broker)
    made.catch_up([PLACE], lambda: False)
    made.sink.store, made.serving = MemoryEmbeddingStore(), MemoryServingState()
    made.check_sentinel()
    assert made.serving.current() == made.sink.model_version
    assert made.sink.store.get(made.sink.model_version, ["u1"]) != [None]


def test_freshness_keeps_the_newest_ages() -> None:
    fresh = Freshness(size=4)
    assert fresh.percentiles() == {}
    fresh.add(np.array([100.0, 100.0, 1.0]))
    fresh.add(np.array([1.0, 1.0, 1.0]))
    assert fresh.percentiles() == {"p50": 1.0, "p99": 1.0}
