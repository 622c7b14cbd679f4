"""What a shop publishes: a random log, rich in what can go wrong, and what an undisturbed run makes of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.model.bundle import Bundle
from freshet.model.frozen import FrozenTowers
from freshet.store.canonical import canonical
from freshet.store.graph import GraphStore
from freshet.store.index import MemoryItemIndex
from freshet.store.memory_store import MemoryEmbeddingStore
from freshet.store.value import EmbeddingValue, decode_value
from freshet.stream import topics
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.events import Event, Line, Product, Profile, Purchase, Session, SessionItem, View
from freshet.stream.ownership import Ownership
from freshet.stream.placement import Placement
from freshet.stream.records import Outgoing, Record
from freshet.stream.sink import Sink
from freshet.stream.topics import TopicSettings
from freshet.stream.updater import Updater
from tests.property.logs import LIMITS
from tests.random_bundle import OF_SHARDS, random_bundle
from tests.simulation.world import START_MS

TOPICS = TopicSettings()
DIM = 16
SPAN_MS = 60
"""Event times lie so far apart at most: a few ticks of the bundle's popularity."""
BUNDLE = random_bundle(products=("product-a", "product-b"), cut_ms=START_MS)
BUNDLE_OF_SHARDS = random_bundle(1, OF_SHARDS, products=("product-a", "product-b"), cut_ms=START_MS)
"""For products that are cut into shards: no state reads the list of a product that may be in another one."""
USERS = tuple(f"shopper-{n:02d}" for n in range(12))
PRODUCTS = tuple(f"product-{c}" for c in "abcdefg")
DAYS_MS = 86_400_000


@dataclass(frozen=True)
class Published:
    """A record as a producer sends it; `partition` where it does not follow the key."""

    record: Outgoing
    partition: int | None = None


class Shop:
    """Publishes a log of `size` records that is a function of the seed."""

    def __init__(self, seed: int, size: int, partitions: int) -> None:
        self._rng = random.Random(f"shop {seed}")
        self._partitions = partitions
        users = self._rng.randint(2, len(USERS))
        self._users = USERS[:users]
        self._products = PRODUCTS[: self._rng.randint(2, len(PRODUCTS))]
        self.log: list[Published] = []
        while len(self.log) < size:
            self.log += self._some()

    def _some(self) -> list[Published]:
        rng = self._rng
        kind = rng.random()
        if kind < 0.08 and self.log:
            return [rng.choice(self.log)]  # once more: a producer that repeats itself
        if kind < 0.16:
            return [self._bad()]
        event = self._event()
        found = [self._of(event)]
        if isinstance(event, Purchase) and rng.random() < 0.3:
            found.append(self._of(replace_event(event, cancelled=True)))
            rng.shuffle(found)  # a cancellation may come first
        return found

    def _of(self, event: Event) -> Published:
        stamp = START_MS + SPAN_MS + self._rng.randint(0, 40)
        topic = {
            View: TOPICS.view, Purchase: TOPICS.purchase, Session: TOPICS.session, Product: TOPICS.products,
            Profile: TOPICS.profiles,
        }[type(event)]  # fmt: skip
        value: bytes | None = encode(event)
        if getattr(event, "withdrawn", False) or getattr(event, "forgotten", False):
            if self._rng.random() < 0.5:
                value, stamp = None, event.timestamp or stamp  # a tombstone: its time is the record's
        return Published(Outgoing(topic, encode_record_key(event), value, timestamp_ms=stamp))

    def _event(self) -> Event:
        rng = self._rng
        number, at = rng.randint(0, 10**6), START_MS + rng.randint(1, SPAN_MS)
        user, product = rng.choice(self._users), rng.choice(self._products)
        if rng.random() < 0.04 and len(self._users) > 1:
            self._users = tuple(u for u in self._users if u != user)
            return Profile(user, START_MS + SPAN_MS, forgotten=True)  # and for good
        kind = rng.random()
        if kind < 0.35:
            return View(f"v{number}", user, product, at, rng.choice([None, 1.0, 2.5]))
        if kind < 0.60:
            lines = rng.sample(self._products, rng.randint(1, min(4, len(self._products))))
            items = tuple(Line(p, rng.choice([None, 1.0, 2.0])) for p in lines)
            return Purchase(f"o{number}", user, at, items=items)
        if kind < 0.72:
            items_seen = tuple(
                SessionItem(rng.choice(self._products), i, rng.choice([None, True])) for i in range(rng.randint(0, 3))
            )
            device = rng.choice([None, "phone"])
            return Session(f"s{number}", user, f"session{rng.randint(0, 3)}", at, device, 30.0, items_seen)
        if kind < 0.86:
            if rng.random() < 0.3:
                return Product(product, at, withdrawn=True)
            return Product(product, at, ("a", rng.choice("bc")), rng.choice([None, "b1"]), rng.choice([None, 2.5]))
        if rng.random() < 0.6:
            return Profile(user, at, forgotten=True)
        return Profile(user, at, rng.choice([None, "25-34"]), None, rng.choice([None, "2017-03-01"]))

    def _bad(self) -> Published:
        rng = self._rng
        user = rng.choice(self._users)
        good = self._of(View(f"b{rng.randint(0, 10**6)}", user, self._products[0], START_MS + 1))
        choice = rng.randint(0, 4)
        if choice == 0:
            return Published(good.record._replace(value=b"{"))
        if choice == 1:
            return Published(good.record._replace(value=None))
        if choice == 2:
            return Published(good.record._replace(key=b"somebody else"))
        if choice == 3:
            late = View("f1", user, self._products[0], START_MS + 3 * DAYS_MS)
            return Published(good.record._replace(value=encode(late)))
        home = topics.partition_of(user.encode(), self._partitions)
        return Published(good.record, (home + 1) % self._partitions if self._partitions > 1 else None)


def replace_event(event: Purchase, **changes: object) -> Purchase:
    """The event with other fields."""
    return msgspec.structs.replace(event, **changes)


@dataclass(frozen=True)
class Expected:
    """What an undisturbed run comes to: the state's bytes, values of users, vectors of products."""

    state: bytes
    users: dict[str, EmbeddingValue]
    products: dict[str, NDArray[np.float32]]
    rejected: set[tuple[str, int, int]]


def rejected(records: Sequence[Record], placement: Placement) -> set[int]:
    """The places of those that are no events."""
    wrong = set(placement.misplaced(records))
    return wrong | {i for i, r in enumerate(records) if i not in wrong and _decodes_not(r)}


@lru_cache(2**14)
def _decodes_not(record: Record) -> bool:
    """Of a record alone; it is asked when it is published, and again when all is compared."""
    from freshet.stream.decode import DecodeLimits, decode

    return bool(decode([record], topics.kinds(TOPICS), DecodeLimits()).rejections)


def undisturbed(records: Sequence[Record], partitions: int, seed: int, bundle: Bundle = BUNDLE) -> Expected:
    """Apply every good record once, in one batch and in an order of its own, and write everything."""
    placement = Placement(dict.fromkeys(TOPICS.inputs, partitions))
    bad = rejected(records, placement)
    good = [r for i, r in enumerate(records) if i not in bad]
    random.Random(seed).shuffle(good)
    graph, store, index = GraphStore(LIMITS), MemoryEmbeddingStore(), MemoryItemIndex(DIM)
    owned = Ownership.of_all(graph.users)
    sink = Sink(graph, store, index, None, "", "v", DIM, owned, 1)
    updater = Updater(graph, FrozenTowers(bundle, graph), sink, topics.kinds(TOPICS))
    updater.absorb_records(good)
    updater.write_all()
    names = list(store.user_ids("v"))
    values = store.get("v", names)
    products = index.ids()
    vectors, _ = index.get(products)
    return Expected(
        canonical(graph),
        {name: decode_value(value) for name, value in zip(names, values, strict=True) if value is not None},
        dict(zip(products, vectors, strict=True)),
        {(records[i].topic, records[i].partition, records[i].offset) for i in bad},
    )
