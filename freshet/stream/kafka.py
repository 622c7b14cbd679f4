"""The only file that imports confluent_kafka: a consumer of given partitions, a producer, an admin client.

Partitions are assigned by hand and read from given offsets; the group's offsets are written for lag
monitoring and never decide where reading begins. What passes by itself (a broker that is down, a broken
connection) is counted, logged and waited out. What does not (an offset that the broker no longer has, a
topic that is gone, a refused login) is raised as a `KafkaError` that says what to do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, NewTopic

from freshet.stream.kafka_errors import KafkaError, KafkaUnavailable, OffsetGap, UnknownTopic
from freshet.stream.records import Outgoing, Record
from freshet.stream.topics import TopicSpec

__all__ = [
    "KafkaError",
    "KafkaSettings",
    "KafkaUnavailable",
    "OffsetGap",
    "PartitionConsumer",
    "RecordProducer",
    "TopicAdmin",
    "TopicPartition",
    "UnknownTopic",
]

TopicPartition = tuple[str, int]
OnDelivery = Callable[[str | None, int | None], None]
"""Called with (error, None) or (None, offset) once the fate of a record is known."""

logger = logging.getLogger("freshet.kafka")

_NO_ANSWER = {
    ck.KafkaError._TRANSPORT,
    ck.KafkaError._ALL_BROKERS_DOWN,
    ck.KafkaError._TIMED_OUT,
    ck.KafkaError._RESOLVE,
    ck.KafkaError.REQUEST_TIMED_OUT,
    ck.KafkaError.BROKER_NOT_AVAILABLE,
}
_NO_TOPIC = {
    ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
    ck.KafkaError._UNKNOWN_TOPIC,
    ck.KafkaError._UNKNOWN_PARTITION,
    ck.KafkaError.UNKNOWN_TOPIC_ID,
}
_OUT_OF_RANGE = {ck.KafkaError._AUTO_OFFSET_RESET, ck.KafkaError.OFFSET_OUT_OF_RANGE}
_FINAL = {
    ck.KafkaError._AUTHENTICATION,
    ck.KafkaError.SASL_AUTHENTICATION_FAILED,
    ck.KafkaError.TOPIC_AUTHORIZATION_FAILED,
    ck.KafkaError.GROUP_AUTHORIZATION_FAILED,
    ck.KafkaError._FATAL,
}


@dataclass(frozen=True)
class KafkaSettings:
    """How brokers are reached, read and written."""

    bootstrap: str = "127.0.0.1:9092"
    """Comma-separated host:port of one or more brokers."""
    group_id: str = "freshet"
    """The group whose offsets are committed, for lag monitoring."""
    request_timeout_ms: int = 10_000
    """How long a question to the broker (topics, watermarks, committed offsets) may take."""
    consume_timeout_ms: float = 2.0
    """How long a poll waits for its records; the floor of latency."""
    fetch_wait_ms: int = 10
    """How long the broker may hold back an answer while it has no records."""
    fetch_queue_backoff_ms: int = 5
    """Pause before fetching on when the client's queue is full; the library's own 1,000 ms would be felt."""
    fetch_queue_kbytes_max: int = 65_536
    """Records fetched ahead of being polled, per partition."""
    reconnect_ms_max: int = 1_000
    """Longest pause between two attempts to reach a broker that is down."""
    recheck_interval_ms: float = 1_000.0
    """After a connection broke: how often offsets are compared with what the broker has, until they agree."""
    recheck_grace_ms: float = 5_000.0
    """How long such a comparison has to disagree before it is believed: a broker that starts knows little at first."""
    linger_ms: float = 1.0
    """How long the producer waits for a batch to fill."""
    idempotence: bool = True
    """Whether the broker drops the producer's own repetitions and keeps their order."""
    delivery_timeout_ms: int = 120_000
    """How long the producer tries to deliver a record before it reports it as failed."""
    send_queue_records_max: int = 100_000
    send_queue_kbytes_max: int = 262_144
    """Records waiting to be sent; `send` waits while there are more."""
    message_bytes_max: int = 8 * 1024 * 1024
    """Largest record the producer hands to the broker, which has a limit of its own for each topic."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """Further librdkafka properties, such as `security.protocol`; they go before all others."""

    def client(self, **properties: object) -> dict[str, Any]:
        """The librdkafka properties of a client."""
        return {
            "bootstrap.servers": self.bootstrap,
            "client.id": "freshet",
            "reconnect.backoff.max.ms": self.reconnect_ms_max,
            "log_level": 2,  # its warnings come through error_cb as well, once and not per attempt
            **{name.replace("_", "."): value for name, value in properties.items()},
            **self.properties,
        }


class _Weather:
    """Errors of the connection: counted, and logged when they begin and when another kind comes."""

    def __init__(self, who: str) -> None:
        self.errors = 0
        self.last = ""
        self.disturbed = False
        self.final: str | None = None
        self._who = who
        self._shown: object = None

    def __call__(self, error: ck.KafkaError) -> None:
        self.errors += 1
        self.disturbed = True
        self.last = error.str()
        if error.fatal() or error.code() in _FINAL:
            self.final = error.str()
        if error.code() != self._shown:
            logger.warning("%s: %s", self._who, error.str())
            self._shown = error.code()

    def cleared(self) -> None:
        self.disturbed = False
        self._shown = None


def _made[T](make: Callable[[dict[str, Any]], T], properties: dict[str, Any]) -> T:
    """A client; raises KafkaError naming what is wrong with its properties."""
    try:
        return make(properties)
    except ck.KafkaException as error:
        raise KafkaError(f"Kafka settings: {error.args[0].str()}") from error


def _translated(error: ck.KafkaException, settings: KafkaSettings, doing: str, name: str = "") -> KafkaError:
    reason: ck.KafkaError = error.args[0]
    if reason.code() in _NO_ANSWER:
        return KafkaUnavailable(settings.bootstrap, reason.str())
    if reason.code() in _NO_TOPIC:
        return UnknownTopic(name or doing)
    return KafkaError(f"{doing}: {reason.str()}")


class PartitionConsumer:
    """Reads the partitions it is given, from the offsets it is given. For one thread."""

    def __init__(self, settings: KafkaSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.commit_failures = 0
        self._weather = _Weather("consumer")
        self._monotonic = monotonic
        self._assigned: dict[TopicPartition, int] = {}
        self._recheck_at = 0.0
        self._doubt_since: float | None = None
        properties = settings.client(
            group_id=settings.group_id,
            auto_offset_reset="error",
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            allow_auto_create_topics=False,
            fetch_wait_max_ms=settings.fetch_wait_ms,
            fetch_queue_backoff_ms=settings.fetch_queue_backoff_ms,
            queued_max_messages_kbytes=settings.fetch_queue_kbytes_max,
            error_cb=self._weather,
            on_commit=self._committed,
        )
        # Callbacks are Python's, not librdkafka's: their names keep the underscore.
        properties["error_cb"], properties["on_commit"] = properties.pop("error.cb"), properties.pop("on.commit")
        self._consumer = _made(ck.Consumer, properties)

    @property
    def transport_errors(self) -> int:
        """Connection errors so far; they pass by themselves."""
        return self._weather.errors

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read these partitions, each from its offset, and nothing else; replaces what was assigned before.

        Raises OffsetGap where the broker does not have an offset, UnknownTopic, KafkaUnavailable.
        """
        self._compare(positions)
        self._assigned = dict(positions)
        self._consumer.assign([ck.TopicPartition(t, p, offset) for (t, p), offset in positions.items()])
        self._weather.cleared()
        self._doubt_since = None

    def poll(self, records_max: int, timeout_s: float | None = None) -> list[Record]:
        """At most `records_max` records: as soon as there are so many, or what there is after `timeout_s`.

        `timeout_s` None stands for `consume_timeout_ms`. While no broker answers the list is empty. Raises
        OffsetGap and UnknownTopic when what is to be read is gone; records that came along are not returned,
        so reading on after such an error begins with `assign`.
        """
        wait_s = self.settings.consume_timeout_ms / 1e3 if timeout_s is None else timeout_s
        messages = self._consumer.consume(records_max, wait_s)
        if self._weather.disturbed:
            self._recheck()
        records = [
            Record(m.topic(), m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value(), tuple(m.headers() or ()))
            for m in messages
            if m.error() is None
        ]  # type: ignore[arg-type]  # a message without an error has a topic and an offset
        if len(records) < len(messages):
            for m in messages:
                if m.error() is not None:
                    self._judge(m)
        return records

    def watermarks(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """The oldest offset and the next one to be written of each partition.

        Raises UnknownTopic, KafkaUnavailable.
        """
        return self._watermarks(partitions, self.settings.request_timeout_ms / 1e3)

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's offsets, without the partitions that have none. Raises KafkaUnavailable."""
        asked = [ck.TopicPartition(t, p) for t, p in partitions]
        if not asked:
            return {}
        try:
            answer = self._consumer.committed(asked, timeout=self.settings.request_timeout_ms / 1e3)
        except ck.KafkaException as error:
            raise _translated(error, self.settings, f"offsets of group {self.settings.group_id}") from error
        return {(tp.topic, tp.partition): tp.offset for tp in answer if tp.offset >= 0}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the group's offsets (the next to be read), without waiting; failures are counted and logged."""
        if not offsets:
            return
        try:
            self._consumer.commit(
                offsets=[ck.TopicPartition(t, p, offset) for (t, p), offset in offsets.items()], asynchronous=True
            )
        except ck.KafkaException as error:
            self._committed(error.args[0], [])

    def close(self) -> None:
        """Stop reading; commits under way are finished."""
        self._consumer.close()

    # --- parts ----------------------------------------------------------------------------------

    def _watermarks(self, partitions: Iterable[TopicPartition], timeout_s: float) -> dict[TopicPartition, tuple[int, int]]:
        marks = {}
        for topic, partition in partitions:
            asked = ck.TopicPartition(topic, partition)
            name = f"topic {topic}, partition {partition}"
            try:
                found = self._consumer.get_watermark_offsets(asked, timeout=timeout_s, cached=False)
            except ck.KafkaException as error:
                raise _translated(error, self.settings, f"watermarks of {name}", name) from error
            if found is None:
                raise KafkaUnavailable(self.settings.bootstrap, f"no watermarks of {name} within {timeout_s:g} s")
            marks[topic, partition] = found
        return marks

    def _compare(self, positions: Mapping[TopicPartition, int], timeout_s: float | None = None) -> None:
        """Not every broker refuses an offset it does not have, so this is asked and not waited for."""
        timeout_s = timeout_s or self.settings.request_timeout_ms / 1e3
        for (topic, partition), (low, high) in self._watermarks(positions, timeout_s).items():
            asked = positions[topic, partition]
            if not low <= asked <= high:
                raise OffsetGap(topic, partition, asked, low, high)

    def _positions(self) -> dict[TopicPartition, int]:
        where = self._consumer.position([ck.TopicPartition(t, p) for t, p in self._assigned])
        return {
            (tp.topic, tp.partition): tp.offset if tp.offset >= 0 else self._assigned[tp.topic, tp.partition]
            for tp in where
        }

    def _recheck(self) -> None:
        """A connection broke: is the broker that answers now the one with our records?

        It may have lost its topics, or have them anew and empty; neither is reported by itself.
        """
        if self._weather.final is not None:
            raise KafkaError(f"Kafka at {self.settings.bootstrap}: {self._weather.final}")
        now = self._monotonic()
        if now < self._recheck_at:
            return
        self._recheck_at = now + self.settings.recheck_interval_ms / 1e3
        try:
            self._compare(self._positions(), RECHECK_TIMEOUT_S)
        except KafkaUnavailable:
            self._doubt_since = None
        except (OffsetGap, UnknownTopic):
            self._doubt_since = now if self._doubt_since is None else self._doubt_since
            if (now - self._doubt_since) * 1e3 >= self.settings.recheck_grace_ms:
                raise
        else:
            logger.info("consumer: connected again")
            self._weather.cleared()
            self._doubt_since = None

    def _judge(self, message: ck.Message) -> None:
        error = message.error()
        assert error is not None
        topic, partition = message.topic() or "", message.partition()
        if error.code() in _OUT_OF_RANGE and (topic, partition) in self._assigned:
            asked = self._positions()[topic, partition] if partition is not None else -1
            low, high = self.watermarks([(topic, partition)])[topic, partition]  # type: ignore[list-item]
            raise OffsetGap(topic, partition or 0, asked, low, high)
        if error.code() in _FINAL:
            raise KafkaError(f"reading topic {topic}: {error.str()}")
        # Also a topic that is said not to exist: the comparison that follows tells whether that lasts.
        self._weather(error)

    def _committed(self, error: ck.KafkaError | None, offsets: list[ck.TopicPartition]) -> None:
        if error is not None and error.code() != ck.KafkaError._NO_OFFSET:
            self.commit_failures += 1
            logger.warning("commit of group %s failed: %s", self.settings.group_id, error.str())


RECHECK_TIMEOUT_S = 0.5
"""Of one comparison after a connection broke; a poll may take so much longer while the broker is down."""
