"""The dead-letter topic read as what is open: the newest state of each record that could not be used.

A letter is never deleted. Sending a record again leaves a receipt in the topic, and if the record is rejected once
more, its new letter carries one replay more than the last. So the state of an origin is the greatest of its letters
and receipts, in whatever order and however often they are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from freshet.errors import FreshetError
from freshet.stream import topics
from freshet.stream.deadletter import Address, DeadLetter, DeadLetterError, Receipt, from_deadletter, from_receipt
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_errors import KafkaUnavailable
from freshet.stream.records import Record
from freshet.stream.settings import Settings

POLL_RECORDS_MAX = 1_000

Place = tuple[int, int]
"""Partition and offset in the dead-letter topic."""


@dataclass(frozen=True)
class Entry:
    """The newest letter about what was rejected first at `origin`, without the record itself.

    `address`: where the record stood that was rejected last; `place`: where its letter stands; `rejected_ms`: when the
    letter was written; `replayed`: whether it was sent again since and has not come back, with what was repaired.
    """

    origin: Address
    address: Address
    place: Place
    reason: str
    message: str
    value_bytes: int
    truncated: tuple[str, ...]
    rejected_ms: int
    replays: int
    replayed: bool = False
    repairs: str = ""


@dataclass(frozen=True)
class Choice:
    """Which entries are meant; what is empty or None chooses nothing away. `topics`: where the record stood first."""

    reasons: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    since_ms: int | None = None
    replayed: bool = False
    """Also those that were sent again and have not come back."""

    def holds(self, entry: Entry) -> bool:
        """Whether the entry is chosen."""
        return (
            (not self.reasons or entry.reason in self.reasons)
            and (not self.topics or entry.origin.topic in self.topics)
            and (self.since_ms is None or entry.rejected_ms >= self.since_ms)
            and (self.replayed or not entry.replayed)
        )


def entries_of(records: Iterable[Record]) -> list[Entry]:
    """The state of each origin, the oldest rejection first. Records that are neither letters nor receipts are passed
    over; so is a receipt whose letter is gone."""
    newest: dict[Address, Entry] = {}
    receipts: dict[Address, Receipt] = {}
    for record in records:
        receipt = from_receipt(record)
        if receipt is not None:
            known = receipts.get(receipt.origin)
            if known is None or (receipt.replays, receipt.repairs) > (known.replays, known.repairs):
                receipts[receipt.origin] = receipt
            continue
        try:
            entry = _entry(record)
        except DeadLetterError:
            continue
        last = newest.get(entry.origin)
        if last is None or _age(entry) > _age(last):
            newest[entry.origin] = entry
    for origin, receipt in receipts.items():
        found = newest.get(origin)
        if found is not None and receipt.replays > found.replays:
            newest[origin] = replace(found, replayed=True, repairs=receipt.repairs)
    return sorted(newest.values(), key=lambda entry: (entry.rejected_ms, entry.place))


def find(entries: Iterable[Entry], address: Address) -> Entry:
    """The entry of a record, named by where it stood first or where it stood last. Raises DeadLetterError."""
    for entry in entries:
        if address in (entry.origin, entry.address):
            return entry
    raise DeadLetterError(f"no dead letter is about {address}: `freshet deadletter list` names those that are there")


@dataclass
class DeadLetters:
    """The letters of one system. Made by `open_dead_letters`."""

    settings: Settings
    consumer: PartitionConsumer
    partitions: int
    monotonic: Callable[[], float] = field(default=time.monotonic)

    def entries(self) -> list[Entry]:
        """Every origin with its newest state. Raises KafkaError."""
        topic = self.settings.topics.deadletter
        marks = self.consumer.watermarks([(topic, p) for p in range(self.partitions)])
        first = {p: low for (_, p), (low, _) in marks.items()}
        return entries_of(self._read(first, {p: high for (_, p), (_, high) in marks.items()}))

    def letters(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, DeadLetter]]:
        """The entries with their letters whole, in the order of the topic; one of them is held at a time."""
        wanted = {entry.place: entry for entry in entries}
        first: dict[int, int] = {}
        end: dict[int, int] = {}
        for partition, offset in wanted:
            first[partition] = min(offset, first.get(partition, offset))
            end[partition] = max(offset + 1, end.get(partition, 0))
        for record in self._read(first, end):
            entry = wanted.get((record.partition, record.offset))
            if entry is not None:
                yield entry, from_deadletter(record)

    # --- parts ----------------------------------------------------------------------------------

    def _read(self, first: dict[int, int], end: dict[int, int]) -> Iterator[Record]:
        """The records of the topic from `first` up to before `end`, by partition."""
        topic = self.settings.topics.deadletter
        at = {p: low for p, low in first.items() if low < end[p]}
        if not at:
            return
        self.consumer.assign({(topic, p): low for p, low in at.items()})
        patience_s = self.settings.kafka.request_timeout_ms / 1e3
        heard = self.monotonic()
        while any(at[p] < end[p] for p in at):
            records = self.consumer.poll(POLL_RECORDS_MAX, 0.1)
            if records:
                heard = self.monotonic()
            elif self.monotonic() - heard > patience_s:
                raise KafkaUnavailable(
                    self.settings.kafka.bootstrap, f"nothing of {topic} came within {patience_s:g} s"
                )
            for record in records:
                at[record.partition] = max(at[record.partition], record.offset + 1)
                if record.offset < end[record.partition]:
                    yield record


@contextmanager
def open_dead_letters(settings: Settings) -> Iterator[DeadLetters]:
    """The dead letters of a system. Raises FreshetError where their topic does not exist, KafkaUnavailable."""
    topic = settings.topics.deadletter
    count = TopicAdmin(settings.kafka).describe([topic])[topic]
    if count is None:
        raise FreshetError(f"{topic} does not exist: create the topics with `{topics.CREATE_COMMAND}`")
    consumer = PartitionConsumer(replace(settings.kafka, group_id=f"{settings.kafka.group_id}-deadletter"))
    try:
        yield DeadLetters(settings, consumer, count)
    finally:
        consumer.close()


def _entry(record: Record) -> Entry:
    letter = from_deadletter(record)
    return Entry(
        letter.origin,
        letter.address,
        (record.partition, record.offset),
        letter.reason,
        letter.message,
        letter.value_bytes,
        letter.truncated,
        record.timestamp_ms,
        letter.replays,
    )


def _age(entry: Entry) -> tuple[int, int, Place]:
    return entry.replays, entry.rejected_ms, entry.place
