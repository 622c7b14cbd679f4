"""Sending rejected records again.

Applying an event twice changes nothing, so a letter may be replayed that was used after all, and as often as one likes.
What must not happen in silence is a letter that comes back for ever: it carries its count, a receipt keeps it from
being chosen again until it does come back, and after `deadletter_replays_max` times it has to be named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Protocol

from freshet.stream import topics
from freshet.stream.deadletter import (
    Address,
    DeadLetter,
    DeadLetterError,
    DeadLetterLimits,
    Receipt,
    replay,
    to_receipt,
)
from freshet.stream.deadletter_repair import Repaired, Repairs, repair
from freshet.stream.deadletter_topic import Entry
from freshet.stream.events import Kind
from freshet.stream.kafka import RecordProducer
from freshet.stream.kafka_errors import KafkaError, KafkaUnavailable
from freshet.stream.records import Outgoing
from freshet.stream.rejection import DecodeLimits
from freshet.stream.settings import Settings

BATCH_LETTERS = 1_000
"""Letters that are sent before their delivery is waited for and their receipts are written."""
SLACK_S = 5.0
"""How much longer than the client itself may need the fate of a record is waited for."""


class Sender(Protocol):
    """What sending again needs of a producer; `kafka.RecordProducer` is one."""

    def send(self, record: Outgoing, on_delivery: Callable[[str | None, int | None], None] | None = None) -> None:
        """Queue a record; `on_delivery` is told (error, None) or (None, offset)."""
        ...

    def flush(self, timeout_s: float) -> int:
        """Wait for the fate of every record; how many are still open."""
        ...


class Outcome(NamedTuple):
    """What became of one letter: `sent`, `would be sent`, `skipped` or `failed`; what was repaired; why it was not
    sent."""

    origin: Address
    outcome: str
    repairs: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Order:
    """What to do with the letters: `repairs`; `named` says that they were named one by one, which sends those that
    came back too often, too. `kinds` of the topics that are read; `wait_s` for the fate of a record."""

    kinds: Mapping[str, Kind]
    deadletter_topic: str
    repairs: Repairs = field(default_factory=Repairs)
    named: bool = False
    decode: DecodeLimits = field(default_factory=DecodeLimits)
    limits: DeadLetterLimits = field(default_factory=DeadLetterLimits)
    wait_s: float = 150.0 + SLACK_S

    @staticmethod
    def of(settings: Settings, repairs: Repairs, named: bool) -> Order:
        """The order of a system with these settings."""
        wait_s = (settings.kafka.delivery_timeout_ms + settings.kafka.delivery_attempt_ms) / 1e3 + SLACK_S
        kinds, topic = topics.kinds(settings.topics), settings.topics.deadletter
        return Order(kinds, topic, repairs, named, settings.decode, settings.deadletter, wait_s)


def send_again(letters: Iterable[tuple[Entry, DeadLetter]], order: Order, sender: Sender | None) -> Iterator[Outcome]:
    """Send letters again and say what became of each, once the broker has acknowledged it; without `sender`, what
    would. A letter that was sent gets a receipt. Raises KafkaUnavailable."""
    rest = iter(letters)
    while batch := list(islice(rest, BATCH_LETTERS)):
        yield from _send_batch(batch, order, sender)


@contextmanager
def open_sender(settings: Settings) -> Iterator[RecordProducer]:
    """A producer that has reached its broker. Raises KafkaUnavailable."""
    producer = RecordProducer(settings.kafka)
    producer.connect(settings.kafka.request_timeout_ms / 1e3)
    try:
        yield producer
    finally:
        producer.close()


def prepared(entry: Entry, letter: DeadLetter, order: Order) -> Repaired:
    """The record to be sent. Raises DeadLetterError, which says why there is none: a part of it is missing, its topic
    is not read, it came back too often and was not named, or it would be rejected again, where it was to be
    repaired. A record that nothing is to be changed in is not judged: the worker may have other limits by now."""
    kind, most = order.kinds.get(letter.topic), order.limits.deadletter_replays_max
    if kind is None:
        raise DeadLetterError(f"{letter.topic} is none of the topics that the worker reads (settings of the topics)")
    if entry.replays >= most and not order.named:
        raise DeadLetterError(
            f"it came back {entry.replays} times (deadletter_replays_max is {most}): name it to send it once more"
        )
    if order.repairs.fix or order.repairs.changes:
        return repair(letter, kind, order.repairs, order.decode)
    return Repaired(replay(letter), ())


def _send_batch(letters: list[tuple[Entry, DeadLetter]], order: Order, sender: Sender | None) -> list[Outcome]:
    outcomes: list[Outcome] = []
    errors: dict[Address, str | None] = {}
    receipts: list[Receipt] = []
    for entry, letter in letters:
        try:
            record, done = prepared(entry, letter, order)
        except DeadLetterError as error:
            outcomes.append(Outcome(entry.origin, "skipped", (), str(error)))
            continue
        outcomes.append(Outcome(entry.origin, "would be sent" if sender is None else "sent", done))
        if sender is not None:
            receipts.append(Receipt(entry.origin, entry.replays + 1, "; ".join(done)))
            _send(sender, record, entry.origin, errors)
    if sender is None:
        return outcomes
    sender.flush(order.wait_s)
    for receipt in receipts:
        if errors.get(receipt.origin, "") is None:
            sender.send(to_receipt(receipt, order.deadletter_topic))
    sender.flush(order.wait_s)
    return [_confirmed(outcome, errors) for outcome in outcomes]


def _send(sender: Sender, record: Outgoing, origin: Address, errors: dict[Address, str | None]) -> None:
    def told(error: str | None, offset: int | None) -> None:
        errors[origin] = error

    try:
        sender.send(record, told)
    except KafkaUnavailable:
        raise
    except KafkaError as error:
        errors[origin] = str(error)


def _confirmed(outcome: Outcome, errors: Mapping[Address, str | None]) -> Outcome:
    if outcome.outcome != "sent":
        return outcome
    error = errors.get(outcome.origin, "the broker did not acknowledge it in time")
    return outcome if error is None else outcome._replace(outcome="failed", why=error)
