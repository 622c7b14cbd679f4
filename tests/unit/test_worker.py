"""The loop around the updater, for faults that a real broker does not produce on demand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from freshet.model.frozen import FrozenTowers
from freshet.store.graph import GraphStore
from freshet.store.index import MemoryItemIndex
from freshet.store.memory_store import MemoryEmbeddingStore, MemoryServingState
from freshet.stream import topics
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.events import View
from freshet.stream.freshness import Freshness
from freshet.stream.kafka_errors import KafkaError
from freshet.stream.membership import Alone
from freshet.stream.ownership import Ownership
from freshet.stream.records import Outgoing, Record
from freshet.stream.sink import Sink
from freshet.stream.topics import TopicSettings
from freshet.stream.updater import Updater
from freshet.stream.worker import Origin, Worker, WorkerSettings
from tests.random_bundle import random_bundle
from tests.unit.test_updater import Slow

NOW = 1_700_000_000_000
PLACE = ("view", 0)


class Broker:
    """A consumer and a producer in one; deliveries can be made to fail or to stay open."""

    grace_s = 60.0

    def __init__(self) -> None:
        self.log: list[Record] = []
        self.at = 0
        self.commits: list[dict[tuple[str, int], int]] = []
        self.sent: list[Outgoing] = []
        self.failures = 0
        self.last_failure = "no leader"
        self.open = 0

    def watermarks(self, places: list[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        return {place: (0, len(self.log) if place == PLACE else 0) for place in places}

    def committed(self, places: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return dict(self.commits[-1]) if self.commits else {}

    def assign(self, positions: Mapping[tuple[str, int], int]) -> None:
        self.at = positions[PLACE]
        self.assigned = dict(positions)

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


TOPICS = TopicSettings(view="view", purchase="purchase", session="session", products="product", profiles="profile")
COUNTS = dict.fromkeys(TOPICS.inputs, 1)


def worker(broker: Broker, store: MemoryEmbeddingStore | None = None, batch: int = 2_000) -> Worker:
    bundle = random_bundle()
    graph, state = GraphStore(), MemoryServingState()
    producer = Producer(broker)
    owned = Ownership(graph.users, 1)
    sink = Sink(
        graph, store or MemoryEmbeddingStore(), MemoryItemIndex(16), producer, "items", bundle.model_version, 16,
        owned, 1,
    )  # fmt: skip
    updater = Updater(graph, FrozenTowers(bundle, graph), sink, topics.kinds(TOPICS))
    return Worker(
        graph, updater, sink, state, broker, producer, Alone(1, broker), TOPICS, COUNTS, Origin(),  # type: ignore[arg-type]
        WorkerSettings(poll_records_max=batch),
    )  # fmt: skip


def live(made: Worker) -> Worker:
    """The worker once it has caught up and written everything."""
    for _ in range(20):
        made.turn()
        if made.state == "live":
            return made
    raise AssertionError(made.state)


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
    live(made)
    assert made.serving.current() == made.sink.model_version
    assert made.state == "live"
    assert made.sink.store.get(made.sink.model_version, ["u1"]) != [None]
    assert made.reading.positions[PLACE] == 2


def test_offsets_are_committed_after_what_they_cover_was_delivered() -> None:
    broker = Broker()
    made = worker(broker)
    live(made)
    broker.view("u1", "p1")
    broker.open = 2
    made.turn()
    assert not any(commit[PLACE] for commit in broker.commits)
    broker.open = 0
    made._next.clear()
    made.turn()
    assert [commit[PLACE] for commit in broker.commits][-1] == 1


def test_a_dead_letter_that_could_not_be_delivered_stops_the_worker_before_the_commit() -> None:
    broker = Broker()
    made = worker(broker)
    live(made)
    broker.view("u1", "p1", value=b"{")
    broker.open = 1
    made.turn()
    assert [record.topic for record in broker.sent if record.topic != "items"] == [TOPICS.deadletter]
    broker.failures, broker.open = 1, 0
    with pytest.raises(KafkaError, match=r"1 records .* could not be delivered: no leader"):
        made.commit()
    assert not any(commit[PLACE] for commit in broker.commits)


def test_what_an_earlier_run_dead_lettered_is_not_dead_lettered_again() -> None:
    broker = Broker()
    broker.view("u1", "p1", value=b"{")
    broker.view("u1", "p1", value=b"[")
    broker.commits.append({PLACE: 1})
    made = worker(broker)
    live(made)
    letters = [record for record in broker.sent if record.topic == TOPICS.deadletter]
    assert [record.value for record in letters] == [b"["]


def test_lost_redis_is_written_again_and_pointed_to() -> None:
    broker = Broker()
    broker.view("u1", "p1")
    made = worker(broker)
    live(made)
    made.sink.store, made.serving = MemoryEmbeddingStore(), MemoryServingState()
    made.completeness.serving = made.serving
    made.completeness.check_store()
    live(made)
    assert made.serving.current() == made.sink.model_version
    assert made.sink.store.get(made.sink.model_version, ["u1"]) != [None]


def test_freshness_keeps_the_newest_ages() -> None:
    fresh = Freshness(size=4)
    assert fresh.percentiles() == {}
    fresh.add(np.array([100.0, 100.0, 1.0]))
    fresh.add(np.array([1.0, 1.0, 1.0]))
    assert fresh.percentiles() == {"p50": 1.0, "p99": 1.0}


@pytest.mark.parametrize("what", ["commit", "status", "sentinel"])
def test_what_says_that_values_are_there_waits_for_them(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One view a batch, so that every batch leaves its user's value on the way."""
    broker, store = Broker(), Slow()
    made = live(worker(broker, store, batch=1))
    looked: list[bool] = []

    def look(scope: object, *args: object) -> bytes | None:
        looked.append(store.get(made.sink.model_version, [f"u{len(broker.log)}"]) != [None])
        return made.completeness._left.get(str(scope))

    if what == "commit":
        monkeypatch.setattr(made.reading, "commit", look)
    elif what == "status":
        monkeypatch.setattr(made.sink, "write_blob", look)
    else:
        monkeypatch.setattr(made.completeness, "_sentinel", look)
    turns = 0
    for _ in range(3):
        broker.view(f"u{len(broker.log) + 1}", "p1")
        made._next = dict.fromkeys(("commit", "status", "store", "popular"), np.inf)
        made._ripple_at = np.inf  # a ripple's write would settle the batch's
        made.turn()
        turns += store.get(made.sink.model_version, [f"u{len(broker.log)}"]) == [None]
        {"commit": made._commit_if_delivered, "status": made.publish_status}.get(
            what, lambda: made.completeness._note_whole("users-0")
        )()
    assert turns == 3, "a full batch leaves its values on the way"
    assert looked[:3] == [True] * 3
