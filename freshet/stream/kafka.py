"""The only file that imports confluent_kafka: a consumer of given partitions, a producer, an admin client.

Partitions are assigned by hand and read from given offsets; the group's offsets are written for lag
monitoring and never decide where reading begins. What passes by itself (a broker that is down, a broken
connection) is counted, logged and waited out. What does not (an offset that the broker no longer has, a
topic that is gone, a refused login) is raised as a `KafkaError` that says what to do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from freshet.stream.kafka_errors import KafkaError, KafkaRefused, KafkaUnavailable, OffsetGap, UnknownTopic
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.records import Outgoing, Record
from freshet.stream.topics import TopicSpec

__all__ = [
    "KafkaError",
    "KafkaRefused",
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
T = TypeVar("T")
OnDelivery = Callable[[str | None, int | None], None]
"""Called with (error, None) or (None, offset) once the fate of a record is known."""

EMBEDDED_CLUSTER_ID = "freshet-embedded"
"""By which a client knows the embedded broker, one of whose answers has to be corrected."""

logger = logging.getLogger("freshet.kafka")

_NO_ANSWER = {
    ck.KafkaError._TRANSPORT,
    ck.KafkaError._ALL_BROKERS_DOWN,
    ck.KafkaError._TIMED_OUT,
    ck.KafkaError._RESOLVE,
    ck.KafkaError.REQUEST_TIMED_OUT,
    ck.KafkaError.BROKER_NOT_AVAILABLE,
    ck.KafkaError.LEADER_NOT_AVAILABLE,
    ck.KafkaError.NOT_LEADER_FOR_PARTITION,
    ck.KafkaError._WAIT_COORD,
    ck.KafkaError.COORDINATOR_NOT_AVAILABLE,
    ck.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    ck.KafkaError.NOT_COORDINATOR,
    # While brokers of a cluster come and go: one that is asked is taken off the list, or has not caught up yet.
    ck.KafkaError._DESTROY_BROKER,
    ck.KafkaError._UNKNOWN_BROKER,
    ck.KafkaError._TIMED_OUT_QUEUE,
    ck.KafkaError.NETWORK_EXCEPTION,
    ck.KafkaError.REPLICA_NOT_AVAILABLE,
    ck.KafkaError.OFFSET_NOT_AVAILABLE,
    ck.KafkaError.FENCED_LEADER_EPOCH,
    ck.KafkaError.UNKNOWN_LEADER_EPOCH,
    ck.KafkaError.KAFKA_STORAGE_ERROR,
    ck.KafkaError.NOT_ENOUGH_REPLICAS,
    ck.KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
}
_NO_TOPIC = {
    ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
    ck.KafkaError._UNKNOWN_TOPIC,
    ck.KafkaError._UNKNOWN_PARTITION,
    ck.KafkaError.UNKNOWN_TOPIC_ID,
}
_NO_LEADER = {
    ck.KafkaError.NOT_LEADER_FOR_PARTITION,
    ck.KafkaError.LEADER_NOT_AVAILABLE,
    ck.KafkaError.FENCED_LEADER_EPOCH,
    ck.KafkaError.UNKNOWN_LEADER_EPOCH,
}
_OUT_OF_RANGE = {ck.KafkaError._AUTO_OFFSET_RESET, ck.KafkaError.OFFSET_OUT_OF_RANGE}
_FINAL = {
    ck.KafkaError._AUTHENTICATION,
    ck.KafkaError.SASL_AUTHENTICATION_FAILED,
    ck.KafkaError.TOPIC_AUTHORIZATION_FAILED,
    ck.KafkaError.GROUP_AUTHORIZATION_FAILED,
    ck.KafkaError._FATAL,
}


_UNTRUSTED = ("certificate verify failed", "bad certificate", "certificate required", "unknown ca")
"""What TLS says when one side does not trust the other; it comes under codes that otherwise pass."""


class Weather:
    """Errors of the connection: counted, and each kind logged once until all is well again."""

    def __init__(self, who: str) -> None:
        self.errors = 0
        self.last = ""
        self.disturbed = False
        self.final: str | None = None
        self._who = who
        self._shown: set[int] = set()

    def __call__(self, error: ck.KafkaError) -> None:
        self.errors += 1
        self.disturbed = True
        self.last = error.str()
        if error.fatal() or error.code() in _FINAL or any(text in error.str() for text in _UNTRUSTED):
            self.final = error.str()
        if error.code() not in self._shown:
            logger.warning("%s: %s", self._who, error.str())
            self._shown.add(error.code())

    def cleared(self) -> None:
        self.disturbed = False
        self._shown.clear()


def made(make: Callable[[dict[str, Any]], T], properties: dict[str, Any]) -> T:
    """A client; raises KafkaError naming what is wrong with its properties."""
    try:
        return make(properties)
    except ck.KafkaException as error:
        raise KafkaError(f"Kafka settings: {error.args[0].str()}") from error


def translated(
    error: ck.KafkaException, settings: KafkaSettings, weather: Weather, doing: str, name: str = ""
) -> KafkaError:
    reason: ck.KafkaError = error.args[0]
    if reason.code() in _NO_ANSWER and weather.final is not None:
        return KafkaRefused(settings.bootstrap, weather.final)
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
        self._weather = Weather("consumer")
        self._monotonic = monotonic
        self._timeout_s = settings.request_timeout_ms / 1e3
        self.grace_s = settings.recheck_grace_ms / 1e3
        self._embedded: bool | None = None
        self._assigned: dict[TopicPartition, int] = {}
        self._recheck_at = 0.0
        self._doubt_since: float | None = None
        properties: dict[str, object] = {
            "group.id": settings.group_id,
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "allow.auto.create.topics": False,
            "fetch.wait.max.ms": settings.fetch_wait_ms,
            "fetch.queue.backoff.ms": settings.fetch_queue_backoff_ms,
            "queued.max.messages.kbytes": settings.fetch_queue_kbytes_max,
            "error_cb": self._weather,
            "on_commit": self._committed,
        }
        self._consumer = made(ck.Consumer, settings.client(properties))

    @property
    def transport_errors(self) -> int:
        """Connection errors so far; they pass by themselves."""
        return self._weather.errors

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read these partitions, each from its offset, and nothing else; replaces what was assigned before.

        Raises OffsetGap where the broker does not have an offset, UnknownTopic, KafkaUnavailable.
        """
        self._compare(positions)
        self._read_from(positions)

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
        if not messages:
            return []
        good: list[Any] = [m for m in messages if m.error() is None]  # Any: with no error, nothing is None
        records = [
            Record(m.topic(), m.partition(), m.offset(), m.timestamp()[1], m.key(), m.value(), tuple(m.headers() or ()))
            for m in good
        ]
        if len(records) < len(messages):
            for m in messages:
                if m.error() is not None:
                    self._judge(m)
        return records

    def watermarks(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """The oldest offset and the next one to be written of each partition.

        Raises UnknownTopic, KafkaUnavailable.
        """
        return self._watermarks(partitions, self._timeout_s)

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's offsets, without the partitions that have none. Raises KafkaUnavailable."""
        asked = [ck.TopicPartition(t, p) for t, p in partitions]
        if not asked:
            return {}
        try:
            answer = self._consumer.committed(asked, timeout=self._timeout_s)
        except ck.KafkaException as error:
            doing = f"offsets of group {self.settings.group_id}"
            raise translated(error, self.settings, self._weather, doing) from error
        return {(tp.topic, tp.partition): tp.offset for tp in answer if tp.offset >= 0}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the group's offsets (the next to be read), without waiting; failures are counted and logged."""
        if not offsets:
            return
        try:
            self._consumer.commit(
                offsets=[ck.TopicPartition(t, p, offset) for (t, p), offset in offsets.items()],
                asynchronous=True,
            )
        except ck.KafkaException as error:
            self._committed(error.args[0], [])

    def close(self) -> None:
        """Stop reading; commits under way are finished, unless no broker answers within `close_timeout_ms`."""
        closing = threading.Thread(target=self._consumer.close, daemon=True)
        closing.start()
        closing.join(self.settings.close_timeout_ms / 1e3)

    # --- parts ----------------------------------------------------------------------------------

    def _watermarks(
        self, partitions: Iterable[TopicPartition], timeout_s: float
    ) -> dict[TopicPartition, tuple[int, int]]:
        end = self._monotonic() + timeout_s
        marks = {tp: self._watermark(tp, end, timeout_s) for tp in partitions}
        return self._last_fetched(marks) if marks and self._underreports() else marks

    def _watermark(self, tp: TopicPartition, end: float, timeout_s: float) -> tuple[int, int]:
        name = f"topic {tp[0]}, partition {tp[1]}"
        relisted = False
        while True:
            try:
                found = self._consumer.get_watermark_offsets(ck.TopicPartition(*tp), timeout=timeout_s, cached=False)
            except ck.KafkaException as error:
                # A topic made just now has partitions before the one that is asked knows that it leads them.
                if error.args[0].code() in _NO_LEADER and self._monotonic() < end:
                    time.sleep(LEADER_WAIT_S)
                    continue
                if error.args[0].code() in _NO_TOPIC and not relisted:
                    relisted = True
                    self._relist_topics(timeout_s)
                    continue
                if not self._assigned:  # else this could swallow a record, and a poll has just been made
                    self._consumer.poll(0)
                raise translated(error, self.settings, self._weather, f"watermarks of {name}", name) from error
            if found is None:
                raise KafkaUnavailable(self.settings.bootstrap, f"no watermarks of {name} within {timeout_s:g} s")
            return int(found[0]), int(found[1])

    def _underreports(self) -> bool:
        if self._embedded is None:
            try:
                self._embedded = self._consumer.list_topics(timeout=self._timeout_s).cluster_id == EMBEDDED_CLUSTER_ID
            except ck.KafkaException as error:
                raise translated(error, self.settings, self._weather, "listing topics") from error
        return self._embedded

    def _last_fetched(self, marks: dict[TopicPartition, tuple[int, int]]) -> dict[TopicPartition, tuple[int, int]]:
        """The embedded broker counts the last batch as one record when asked, and rightly when it is read."""
        waiting = {tp: high - 1 for tp, (low, high) in marks.items() if high > low}
        probe = ck.Consumer(self.settings.client({"group.id": "freshet-probe", "fetch.wait.max.ms": 1}))
        probe.assign([ck.TopicPartition(t, p, offset) for (t, p), offset in waiting.items()])
        end = self._monotonic() + self._timeout_s
        while waiting and self._monotonic() < end:
            for m in probe.consume(1000, 0.01):
                tp: Any = m.topic(), m.partition()
                if m.error() is None and waiting.pop(tp, None) is not None:
                    marks[tp] = probe.get_watermark_offsets(ck.TopicPartition(*tp), cached=True)
        probe.close()
        return marks

    def _compare(self, positions: Mapping[TopicPartition, int], timeout_s: float | None = None) -> None:
        """Not every broker refuses an offset it does not have, so this is asked and not waited for."""
        marks = self._watermarks(positions, timeout_s or self._timeout_s)
        for (topic, partition), (low, high) in marks.items():
            asked = positions[topic, partition]
            if not low <= asked <= high:
                raise OffsetGap(topic, partition, asked, low, high)

    def _relist_topics(self, timeout_s: float) -> None:
        """Have the client ask anew what topics there are: the answer of a broker that was going or coming may lack
        partitions, and the client keeps it for minutes."""
        with suppress(ck.KafkaException):
            self._consumer.list_topics(timeout=timeout_s)

    def _find_topics(self, timeout_s: float) -> None:
        try:
            there = self._consumer.list_topics(timeout=timeout_s).topics
        except ck.KafkaException as error:
            raise translated(error, self.settings, self._weather, "listing topics") from error
        for topic, _ in self._assigned:
            if topic not in there:
                raise UnknownTopic(f"topic {topic}")

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
            raise KafkaRefused(self.settings.bootstrap, self._weather.final)
        now = self._monotonic()
        if now < self._recheck_at:
            return
        self._recheck_at = now + self.settings.recheck_interval_ms / 1e3
        positions = self._positions()
        try:
            self._find_topics(RECHECK_TIMEOUT_S)
            self._compare(positions, RECHECK_TIMEOUT_S)
        except (OffsetGap, UnknownTopic):
            self._doubt_since = now if self._doubt_since is None else self._doubt_since
            if now - self._doubt_since >= self.grace_s:
                raise
        except KafkaError:  # still no answer, or none yet that means anything
            self._doubt_since = None
        else:
            logger.info("consumer: connected again")
            self._read_from(positions)  # an error may have ended the reading of a partition for good

    def _judge(self, message: ck.Message) -> None:
        error = message.error()
        assert error is not None
        if error.code() in _OUT_OF_RANGE:
            with suppress(KafkaUnavailable):
                self._compare(self._positions())
        self._weather(error)

    def _read_from(self, positions: Mapping[TopicPartition, int]) -> None:
        self._assigned = dict(positions)
        self._consumer.assign([ck.TopicPartition(t, p, offset) for (t, p), offset in positions.items()])
        self._weather.cleared()
        self._doubt_since = None

    def _committed(self, error: ck.KafkaError | None, offsets: list[ck.TopicPartition]) -> None:
        if error is not None and error.code() != ck.KafkaError._NO_OFFSET:
            self.commit_failures += 1
            logger.warning("commit of group %s failed: %s", self.settings.group_id, error.str())


LEADER_WAIT_S = 0.1
"""Pause between two questions to a broker that does not yet know who leads a partition."""
RECHECK_TIMEOUT_S = 0.5
"""Of one comparison after a connection broke; a poll may take so much longer while the broker is down."""


class RecordProducer:
    """Sends records; Kafka's own placement of keys, all in-sync replicas acknowledge, repetitions are dropped.

    Sending is asynchronous: `poll` or a later `send` delivers the reports, `flush` waits for all of them. A
    record whose sender gave no `on_delivery` and that could not be delivered is counted in `failures`.
    """

    def __init__(self, settings: KafkaSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.failures = 0
        self.last_failure: str | None = None
        self._monotonic = monotonic
        self._weather = Weather("producer")
        properties: dict[str, object] = {
            "partitioner": "murmur2_random",
            "enable.idempotence": settings.idempotence,
            "acks": "all",
            "linger.ms": settings.linger_ms,
            "delivery.timeout.ms": settings.delivery_timeout_ms,
            "queue.buffering.max.messages": settings.send_queue_records_max,
            "queue.buffering.max.kbytes": settings.send_queue_kbytes_max,
            "message.max.bytes": settings.message_bytes_max,
            "error_cb": self._weather,
        }
        self._producer = made(ck.Producer, settings.client(properties))

    def connect(self, timeout_s: float) -> None:
        """Reach a broker now, and not when the first record is sent. Raises KafkaUnavailable."""
        try:
            self._producer.list_topics(timeout=timeout_s)
        except ck.KafkaException as error:
            self._producer.poll(0)  # what the connection has to say is told when it is asked for
            raise translated(error, self.settings, self._weather, "connecting") from error

    def __len__(self) -> int:
        """Records whose fate is not known yet."""
        return len(self._producer)

    def send(self, record: Outgoing, on_delivery: OnDelivery | None = None) -> None:
        """Queue a record; waits while the queue is full.

        Raises KafkaUnavailable when it stays full for `delivery_timeout_ms`, KafkaError for a record that is
        too large.
        """
        report = self._count if on_delivery is None else _reporting(on_delivery)
        give_up: float | None = None
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    on_delivery=report,
                    timestamp=record.timestamp_ms or 0,
                    headers=list(record.headers) or None,
                )
                self._producer.poll(0)
                return
            except BufferError:
                now = self._monotonic()
                give_up = give_up or now + self.settings.delivery_timeout_ms / 1e3
                if now >= give_up:
                    self._producer.poll(0)  # its length counts events that wait to be told, too
                    reason = f"{len(self._producer)} records wait to be sent"
                    raise KafkaUnavailable(self.settings.bootstrap, reason) from None
                self._producer.poll(0.05)
            except ck.KafkaException as error:
                raise self._refused(error, record) from error

    def poll(self) -> int:
        """Deliver the reports that have come; returns how many."""
        return self._producer.poll(0)

    def flush(self, timeout_s: float) -> int:
        """Wait until the fate of every record is known, at most `timeout_s`; returns how many are still open."""
        return self._producer.flush(timeout_s)

    def close(self, timeout_s: float = 0.0) -> int:
        """Flush and give up what is left; returns how many records that were."""
        left = self._producer.flush(timeout_s)
        self._producer.purge()
        self._producer.flush(timeout_s)
        return left

    # --- parts ----------------------------------------------------------------------------------

    def _count(self, error: ck.KafkaError | None, message: ck.Message) -> None:
        if error is not None:
            self.failures += 1
            self.last_failure = f"topic {message.topic()}: {error.str()}"
            logger.warning("a record was not delivered: %s", self.last_failure)

    def _refused(self, error: ck.KafkaException, record: Outgoing) -> KafkaError:
        if error.args[0].code() == ck.KafkaError.MSG_SIZE_TOO_LARGE:
            size = len(record.value or b"") + len(record.key or b"")
            return KafkaError(
                f"topic {record.topic}: a record of {size} bytes is too large, message_bytes_max is "
                f"{self.settings.message_bytes_max}: send less in one record"
            )
        name = f"topic {record.topic}"
        return translated(error, self.settings, self._weather, f"sending to {name}", name)


def _reporting(on_delivery: OnDelivery) -> Callable[[ck.KafkaError | None, ck.Message], None]:
    def report(error: ck.KafkaError | None, message: ck.Message) -> None:
        if error is None:
            on_delivery(None, message.offset())
        else:
            on_delivery(error.str(), None)

    return report


class TopicAdmin:
    """Asks for, makes and deletes topics. Every method raises KafkaUnavailable when no broker answers."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._weather = Weather("admin")
        self._timeout_s = settings.request_timeout_ms / 1e3
        self._admin = made(AdminClient, settings.client({"error_cb": self._weather}))

    def ping(self, timeout_s: float | None = None) -> list[str]:
        """The names of all topics, once a broker answers."""
        try:
            found = self._admin.list_topics(timeout=timeout_s or self._timeout_s)
        except ck.KafkaException as error:
            raise self._failed(error, "listing topics") from error
        return sorted(found.topics)

    def describe(self, topics: Iterable[str]) -> dict[str, int | None]:
        """The number of partitions of each topic, None where it does not exist."""
        found = self._describe(topics)
        return {name: None if topic is None else len(topic.partitions) for name, topic in found.items()}

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str | None]:
        """The id of each topic, None where it does not exist: a topic that was made anew has another one."""
        found = self._describe(topics)
        return {name: None if topic is None else str(topic.topic_id) for name, topic in found.items()}

    def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create the topics that do not exist; returns their names once the broker shows them.

        Raises KafkaError with the broker's reason for one that it refuses.
        """
        new = [NewTopic(s.name, s.partitions, s.replication_factor, config=dict(s.config)) for s in specs]
        try:
            answers = self._admin.create_topics(new, request_timeout=self._timeout_s) if new else {}
        except ValueError as error:
            raise KafkaError(f"creating topics: {error}") from error
        created = []
        for name, answer in answers.items():
            try:
                answer.result()
                created.append(name)
            except ck.KafkaException as error:
                if error.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._failed(error, f"creating topic {name}") from error
        self._wait_until(lambda: None not in self.describe(created).values())
        return created

    def delete(self, topics: Sequence[str]) -> None:
        """Delete topics with all their records; returns once the broker shows them no more.

        Raises UnknownTopic for one that does not exist. Not while an embedded broker's topic is being read: the
        client library crashes on the answer it then gets.
        """
        answers = self._admin.delete_topics(list(topics), request_timeout=self._timeout_s) if topics else {}
        for name, answer in answers.items():
            try:
                answer.result()
            except ck.KafkaException as error:
                raise self._failed(error, f"topic {name}") from error
        self._wait_until(lambda: not any(self.describe(topics).values()))

    def delete_records(self, before: Mapping[TopicPartition, int]) -> None:
        """Delete the records before an offset of each partition, as retention does. Not on the embedded broker."""
        asked = [ck.TopicPartition(t, p, offset) for (t, p), offset in before.items()]
        for tp, answer in self._admin.delete_records(asked, request_timeout=self._timeout_s).items():
            try:
                answer.result()
            except ck.KafkaException as error:
                raise self._failed(error, f"topic {tp.topic}, partition {tp.partition}") from error

    # --- parts ----------------------------------------------------------------------------------

    def _describe(self, topics: Iterable[str]) -> dict[str, Any]:
        asked = list(dict.fromkeys(topics))
        if not asked:
            return {}
        # Not list_topics(name), which makes a missing topic on a broker that creates topics when asked for them.
        answers = self._admin.describe_topics(ck.TopicCollection(asked), request_timeout=self._timeout_s)
        found: dict[str, Any] = {}
        for name, answer in answers.items():
            try:
                found[name] = answer.result()
            except ck.KafkaException as error:
                if error.args[0].code() not in _NO_TOPIC:
                    raise self._failed(error, f"topic {name}") from error
                found[name] = None
        return found

    def _wait_until(self, shown: Callable[[], bool]) -> None:
        """A broker says that a change is made before all of it answers by it."""
        end = time.monotonic() + self._timeout_s
        while not shown() and time.monotonic() < end:
            time.sleep(0.02)

    def _failed(self, error: ck.KafkaException, doing: str) -> KafkaError:
        self._admin.poll(0)
        if error.args[0].code() in _NO_ANSWER and self._weather.last and self._weather.final is None:
            return KafkaUnavailable(self.settings.bootstrap, self._weather.last)
        return translated(error, self.settings, self._weather, doing, doing)
