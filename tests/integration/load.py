"""Events at a steady rate, good and bad ones, and where each of them ended."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np

from freshet.stream import topics
from freshet.stream.deadletter import from_deadletter
from freshet.stream.decode import decode
from freshet.stream.events import Event, Line, Product, Profile, Purchase, View
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.records import Outgoing, Record
from freshet.stream.worker import partitions_of
from tests.integration.fleet import PUBLISH_TIMEOUT_MS, Fleet

NOW_MS = int(time.time() * 1e3)
USERS = 24
PRODUCTS = 14
BAD_EVERY = 20
"""One in so many records cannot be used."""


def some_events(start: int, count: int, users: int = USERS, products: int = PRODUCTS) -> list[Event]:
    """Events `start` to `start + count` of one endless log."""
    rng = np.random.default_rng(start)
    events: list[Event] = []
    for i in range(start, start + count):
        user, at = f"u{rng.integers(users)}", NOW_MS + i
        if i % 17 == 0:
            events.append(Product(f"p{rng.integers(products)}", at, category=("a", f"c{i % 3}"), price=float(i % 9)))
        elif i % 23 == 0:
            events.append(Profile(user, at, age_bucket=f"{i % 5}0-{i % 5}9"))
        elif i % 4:
            events.append(View(f"v{i}", user, f"p{rng.integers(products)}", at))
        else:
            lines = tuple(Line(f"p{p}", quantity=1.0) for p in rng.choice(products, 3, replace=False))
            events.append(Purchase(f"o{i}", user, at, items=lines))
    return events


class Load:
    """Publishes from a thread until the block ends; every event twice now and then, as producers do."""

    def __init__(self, fleet: Fleet, per_s: int = 100) -> None:
        self.fleet, self.per_s = fleet, per_s
        self.sent = 0
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._publish()
        except BaseException as e:  # without a load nothing would be shown
            self._error = e

    def _publish(self) -> None:
        batch = max(1, self.per_s // 5)
        bad = RecordProducer(replace(self.fleet.settings.kafka, delivery_timeout_ms=PUBLISH_TIMEOUT_MS))
        while not self._stop.wait(0.2):
            events = some_events(1_000 + self.sent, batch)
            self.fleet.publish(events + events[: batch // 10])
            for i in range(max(1, batch // BAD_EVERY)):
                user = f"u{(self.sent + i) % USERS}".encode()
                bad.send(Outgoing(self.fleet.settings.topics.view, user, b'{"event_id": "x"'))
            assert bad.flush(PUBLISH_TIMEOUT_MS / 1e3) == 0
            self.sent += batch
        bad.close()


@dataclass
class Account:
    """Where every record of the input topics ended. `missing`: rejected, and in no dead letter; `unfounded`: dead
    letters of records that are good; each as (topic, partition, offset)."""

    records: int = 0
    accepted: int = 0
    rejected: int = 0
    letters: int = 0
    missing: set[tuple[str, int, int]] = field(default_factory=set)
    unfounded: set[tuple[str, int, int]] = field(default_factory=set)


def accounted(fleet: Fleet) -> Account:
    """Every record, held against the dead letters. That what is accepted has been applied is what `verify` shows."""
    names = fleet.settings.topics
    counts = topics.verify_topics(TopicAdmin(fleet.settings.kafka), names)
    letters = TopicAdmin(fleet.settings.kafka).describe([names.deadletter])[names.deadletter] or 0
    records = _everything(fleet, partitions_of(counts))
    decoded = decode(records, topics.kinds(names), fleet.settings.decode)
    rejected = {(r.topic, r.partition, r.offset) for r, _ in decoded.rejections}
    told = {
        (letter.topic, letter.partition, letter.offset)
        for letter in map(from_deadletter, _everything(fleet, partitions_of({names.deadletter: letters})))
    }
    return Account(
        len(records), len(records) - len(rejected), len(rejected), len(told), rejected - told, told - rejected
    )


def _everything(fleet: Fleet, places: list[tuple[str, int]]) -> list[Record]:
    consumer = PartitionConsumer(replace(fleet.settings.kafka, group_id="freshet-account"))
    try:
        marks = consumer.watermarks(places)
        positions = {tp: low for tp, (low, _) in marks.items()}
        consumer.assign(positions)
        found: list[Record] = []
        while any(positions[tp] < high for tp, (_, high) in marks.items()):
            for record in consumer.poll(5_000, 0.1):
                positions[record.topic, record.partition] = record.offset + 1
                found.append(record)
        return found
    finally:
        consumer.close()
