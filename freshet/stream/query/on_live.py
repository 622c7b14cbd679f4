"""Answering a query from the live system: the served model through the Reader, the catalogue as the worker has it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from freshet.reader import Reader
from freshet.store.columns import ProductColumns
from freshet.stream import topics
from freshet.stream.decode import decode
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Kind
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.query.catalogue import Catalogue
from freshet.stream.query.encoded import Prediction
from freshet.stream.query.language import Condition, Query
from freshet.stream.settings import Settings
from freshet.stream.wiring import open_reader, open_store, read_status
from freshet.stream.worker_status import logs_of


@dataclass(frozen=True)
class Live:
    """A live system: its reader, what its worker says of itself, every user it has, and its catalogue (read when it
    is first asked for)."""

    reader: Reader
    status: dict[str, Any]
    settings: Settings

    def users(self) -> Iterator[str]:
        """Ids of all users that have an embedding."""
        return open_store(self.settings).user_ids(self.status["model_version"])

    def catalogue(self) -> Catalogue:
        """Products with their attributes, from the worker's event logs (where they are here) and the topic."""
        here = [part for part in logs_of(self.status) if Path(part.path).is_dir()]
        parts = [c.products for part in here for c in EventLog(part.path).columns(until_ms=part.until_ms)]
        return Catalogue.read([*parts, *_published(self.settings)])

    def matching(self, condition: Condition) -> tuple[frozenset[str], list[str]]:
        """The products that a condition holds for, and notes on what a person may have meant otherwise."""
        catalogue = self.catalogue()
        found = frozenset(catalogue.product[i] for i in np.flatnonzero(catalogue.matching(condition)).tolist())
        return found, catalogue.notes(condition)


@contextmanager
def open_live(settings: Settings) -> Iterator[Live]:
    """The live system of these settings. Raises what `open_reader` raises."""
    status = read_status(settings)
    with open_reader(settings) as reader:
        yield Live(reader, status, settings)


def refuse(query: Query) -> None:
    """Raises QueryError for what a live system cannot do."""
    if query.within_s is not None:
        raise query.refuse("the live system serves a frozen model: none is chosen", "within", "no WITHIN, or a LOG")
    if query.as_of_ms is not None:
        raise query.refuse("the live system holds the present alone", "as_of", "no AS OF, or a LOG")


def predict(
    query: Query, reader: Reader, users: Iterable[str], allowed: Collection[str] | None
) -> Iterator[Prediction]:
    """The best products for each user, of those in `allowed` (None: of all).

    What is excluded is what the user's `recent` in Redis still lists.
    """
    for user in users:
        out: set[str] = set()
        if query.excluding == {"bought"}:
            known = reader.embedding(user)
            out = {product for product, kind, _ in known.recent if kind == "purchase"} if known else out
        found = reader.recommend(user, query.top + len(out), "seen" in query.excluding, allowed)
        items = [item for item in found.items if item[0] not in out][: query.top]
        yield Prediction(user, found.user_known, items)


def _published(settings: Settings) -> list[ProductColumns]:
    """What the catalogue's topic holds now."""
    topic = settings.topics.products
    count = TopicAdmin(settings.kafka).describe([topic])[topic] or 0
    consumer = PartitionConsumer(replace(settings.kafka, group_id=f"{settings.kafka.group_id}-query"))
    parts = []
    try:
        marks = consumer.watermarks([(topic, p) for p in range(count)])
        positions = {tp: low for tp, (low, _) in marks.items()}
        consumer.assign(positions)
        kinds: dict[str, Kind] = topics.kinds(settings.topics)
        while any(positions[tp] < high for tp, (_, high) in marks.items()):
            records = consumer.poll(5_000, 0.1)
            for record in records:
                positions[record.topic, record.partition] = record.offset + 1
            parts.append(decode(records, kinds, settings.decode).columns.products)
    finally:
        consumer.close()
    return parts
