"""`freshet.Producer`: what a shop's own code uses to publish events.

An event is validated before it is sent, goes to the topic of its kind, and is keyed and placed so that all
that concerns one user is on one partition number. `docs/producers.md` shows it, and how to do without it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from freshet.errors import FreshetError
from freshet.stream.codec import JSON, encode, encode_record_key, validate
from freshet.stream.events import Event, Line, Product, Profile, Purchase, Session, SessionItem, View
from freshet.stream.kafka import OnDelivery, RecordProducer, TopicAdmin
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.records import Outgoing
from freshet.stream.rejection import DecodeLimits, Reason, Rejection, reject
from freshet.stream.topics import TopicSettings, kinds, verify_topics
from freshet.stream.validate import KIND_OF

E = TypeVar("E", View, Purchase, Session, Product, Profile)

FLUSH_TIMEOUT_S = 30.0
"""How long leaving the `with` block waits for what is still on its way."""


class InvalidEvent(FreshetError):
    """An event that Freshet would not accept and that was not sent; the message names the field.

    `rejection` holds the machine-readable reason.
    """

    def __init__(self, event: Event, rejection: Rejection) -> None:
        super().__init__(f"{type(event).__name__} was not sent: {rejection.message}")
        self.event, self.rejection = event, rejection


class DeliveryFailed(FreshetError):
    """Events that Kafka did not take (`failed`), or has not taken yet (`waiting`)."""

    def __init__(self, failed: int, waiting: int, first: str | None) -> None:
        super().__init__(
            f"{failed} events were not delivered and {waiting} are still waiting"
            + (f"; the first error: {first}" if first else "")
            + ". Check the broker and send them again: an event that arrives twice counts once"
        )
        self.failed, self.waiting, self.first = failed, waiting, first


class Producer:
    """Publishes events; threads may share one.

    Sending does not wait for the broker. `flush`, or leaving the `with` block, does, and raises DeliveryFailed
    if anything was not delivered; `on_delivery` of `send` tells the fate of a single event. `sent`, `delivered`
    and `failed` count events since the start.

    Raises KafkaUnavailable when no broker answers at `bootstrap`, TopicMismatch when topics are missing.
    `clock` gives seconds since 1970 UTC, `entropy(n)` n random bytes for event ids.
    """

    def __init__(
        self,
        bootstrap: str,
        content_type: str = JSON,
        *,
        topics: TopicSettings | None = None,
        kafka: KafkaSettings | None = None,
        limits: DecodeLimits | None = None,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        settings = replace(kafka or KafkaSettings(), bootstrap=bootstrap)
        names = topics or TopicSettings()
        # Asked first: many brokers make a topic that is written to, with a number of partitions of their own.
        verify_topics(TopicAdmin(settings), names)
        self.sent = self.delivered = self.failed = 0
        self._topic = {kind: topic for topic, kind in kinds(names).items()}
        self._content_type = content_type
        self._headers = () if content_type == JSON else (("content-type", content_type.encode()),)
        self._limits = limits or DecodeLimits()
        self._clock = clock
        self._entropy = entropy
        self._counting = threading.Lock()
        self._failed_before = 0
        self._first_error: str | None = None
        self._producer = RecordProducer(settings)

    def connect(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Reach a broker now, so that the first event does not wait for it. Raises KafkaUnavailable."""
        self._producer.connect(timeout_s)

    # --- any event --------------------------------------------------------------------------------

    def send(self, event: Event, on_delivery: OnDelivery | None = None) -> None:
        """Validate an event and send it; `on_delivery(error, offset)` is called once its fate is known.

        Raises InvalidEvent, naming the field, for an event that would become a dead letter; KafkaUnavailable when
        the queue of unsent events stays full.
        """
        rejection = validate(event, self._limits, self._now_ms())
        value = b"" if rejection else encode(event, self._content_type)
        if len(value) > self._limits.value_bytes_max:
            rejection = reject(
                Reason.VALUE_TOO_LARGE,
                f"the value has {len(value)} bytes, value_bytes_max is {self._limits.value_bytes_max}: send less",
            )
        if rejection:
            raise InvalidEvent(event, rejection)
        topic = self._topic[KIND_OF[type(event)]]
        self._publish(Outgoing(topic, encode_record_key(event), value, self._headers), on_delivery)

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Wait until every event sent so far is delivered, at most `timeout_s`.

        Raises DeliveryFailed with the number that were not delivered since the last flush, and the first error.
        """
        waiting = self._producer.flush(timeout_s)
        with self._counting:
            failed, first = self.failed - self._failed_before, self._first_error
            self._failed_before, self._first_error = self.failed, None
        if failed or waiting:
            raise DeliveryFailed(failed, waiting, first)

    def close(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Flush and end; raises DeliveryFailed as `flush` does."""
        try:
            self.flush(timeout_s)
        finally:
            self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        self._producer.close(FLUSH_TIMEOUT_S)  # what failed inside the block is the error to be seen

    # --- one kind each: made with an id and the current time unless given, sent, and returned -----------

    def view(
        self,
        user_id: str,
        product_id: str,
        *,
        dwell_time_s: float | None = None,
        event_id: str | None = None,
        timestamp: int | None = None,
    ) -> View:
        """A user looked at a product."""
        event_id, timestamp = self._stamp(event_id, timestamp)
        return self._sent(View(event_id, user_id, product_id, timestamp, dwell_time_s))

    def purchase(
        self,
        user_id: str,
        product_id: str | None = None,
        *,
        quantity: float | None = None,
        price: float | None = None,
        items: Iterable[Line] | None = None,
        order_id: str | None = None,
        event_id: str | None = None,
        timestamp: int | None = None,
    ) -> Purchase:
        """A user bought one product, or an order of several lines (`items`). Keep the event to `cancel` it."""
        event_id, timestamp = self._stamp(event_id, timestamp)
        lines = None if items is None else tuple(items)
        return self._sent(Purchase(event_id, user_id, timestamp, product_id, quantity, price, lines, order_id))

    def cancel(self, purchase: Purchase) -> Purchase:
        """Take a purchase back, all its lines; the event is the same but for its flag."""
        return self._sent(msgspec.structs.replace(purchase, cancelled=True))

    def session(
        self,
        user_id: str,
        session_id: str,
        items: Iterable[SessionItem] = (),
        *,
        device: str | None = None,
        duration_s: float | None = None,
        event_id: str | None = None,
        timestamp: int | None = None,
    ) -> Session:
        """A user's session with all its items so far; sending it again later replaces it."""
        event_id, timestamp = self._stamp(event_id, timestamp)
        return self._sent(Session(event_id, user_id, session_id, timestamp, device, duration_s, tuple(items)))

    def product(
        self,
        product_id: str,
        *,
        category: Iterable[str] | None = None,
        brand: str | None = None,
        price: float | None = None,
        description: str | None = None,
        description_emb: Iterable[float] | None = None,
        timestamp: int | None = None,
    ) -> Product:
        """A product's place in the catalogue; the newest by `timestamp` replaces all its attributes."""
        path = None if category is None else tuple(category)
        vector = None if description_emb is None else tuple(description_emb)
        time_ms = self._now_ms() if timestamp is None else timestamp
        return self._sent(Product(product_id, time_ms, path, brand, price, description, vector))

    def profile(
        self,
        user_id: str,
        *,
        age_bucket: str | None = None,
        geo: str | None = None,
        signup_date: str | None = None,
        timestamp: int | None = None,
    ) -> Profile:
        """A user's profile; the newest by `timestamp` replaces all its attributes. `signup_date`: 2017-03-01."""
        time_ms = self._now_ms() if timestamp is None else timestamp
        return self._sent(Profile(user_id, time_ms, age_bucket, geo, signup_date))

    def withdraw(self, product_id: str) -> Product:
        """Take a product off the catalogue: an empty record, which outlives compaction."""
        return self._empty(Product(product_id, self._now_ms(), withdrawn=True))

    def forget_user(self, user_id: str) -> Profile:
        """Drop everything about a user up to now: an empty record, which outlives compaction."""
        return self._empty(Profile(user_id, self._now_ms(), forgotten=True))

    # --- parts ------------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return int(self._clock() * 1e3)

    def _stamp(self, event_id: str | None, timestamp: int | None) -> tuple[str, int]:
        now_ms = self._now_ms()
        return (
            new_event_id(now_ms, self._entropy(10)) if event_id is None else event_id,
            now_ms if timestamp is None else timestamp,
        )

    def _sent(self, event: E) -> E:
        self.send(event)
        return event

    def _empty(self, event: E) -> E:
        """Send the empty record that `event` stands for; its time is the record's own."""
        rejection = validate(event, self._limits)
        if rejection:
            raise InvalidEvent(event, rejection)
        topic = self._topic[KIND_OF[type(event)]]
        self._publish(Outgoing(topic, encode_record_key(event), None, (), event.timestamp), None)
        return event

    def _publish(self, record: Outgoing, on_delivery: OnDelivery | None) -> None:
        def report(error: str | None, offset: int | None) -> None:
            with self._counting:
                if error is None:
                    self.delivered += 1
                else:
                    self.failed += 1
                    self._first_error = self._first_error or f"topic {record.topic}: {error}"
            if on_delivery is not None:
                on_delivery(error, offset)

        self._producer.send(record, report)
        with self._counting:
            self.sent += 1


def new_event_id(now_ms: int, entropy: bytes) -> str:
    """A UUID of version 7: `now_ms` in front, so that ids sort by time, then 74 bits of `entropy` (10 bytes)."""
    random = int.from_bytes(entropy[:10], "big")
    value = (now_ms & (1 << 48) - 1) << 80 | 7 << 76 | (random >> 62 & 0xFFF) << 64 | 2 << 62 | random & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
