"""A producer and an admin client, and what all clients share: their making, and which errors pass by themselves.

What passes by itself (a broker that is down, a broken connection) is counted, logged and waited out. What does not (a
topic that is gone, a refused login) is raised as a `KafkaError` that says what to do. `confluent_kafka` is imported
here, in `kafka_consumer.py` and in `kafka_group.py`, and nowhere else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from freshet.stream.kafka_errors import KafkaError, KafkaRefused, KafkaUnavailable, UnknownTopic
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.membership import TopicPartition
from freshet.stream.records import Outgoing
from freshet.stream.topics import TopicSpec

T = TypeVar("T")
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
NO_TOPIC = {
    ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
    ck.KafkaError._UNKNOWN_TOPIC,
    ck.KafkaError._UNKNOWN_PARTITION,
    ck.KafkaError.UNKNOWN_TOPIC_ID,
}
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

    def __init__(self, who: str, level: int = logging.WARNING) -> None:
        self.errors = 0
        self.last = ""
        self.disturbed = False
        self.final: str | None = None
        self._who, self._level = who, level
        self._shown: set[int] = set()

    def __call__(self, error: ck.KafkaError) -> None:
        self.errors += 1
        self.disturbed = True
        self.last = error.str()
        if error.fatal() or error.code() in _FINAL or any(text in error.str() for text in _UNTRUSTED):
            self.final = error.str()
        if error.code() not in self._shown:
            logger.log(self._level, "%s: %s", self._who, error.str())
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


def to_ask(settings: KafkaSettings) -> ck.Consumer:
    """A client that reads nothing and was told nothing before, to ask the brokers with."""
    return made(ck.Consumer, settings.client({"group.id": settings.group_id}))


def closing(consumer: ck.Consumer) -> threading.Thread:
    """A thread that closes a consumer, which may wait for a broker."""
    thread = threading.Thread(target=consumer.close, daemon=True)
    thread.start()
    return thread


def translated(
    error: ck.KafkaException, settings: KafkaSettings, weather: Weather, doing: str, name: str = ""
) -> KafkaError:
    reason: ck.KafkaError = error.args[0]
    if reason.code() in _NO_ANSWER and weather.final is not None:
        return KafkaRefused(settings.bootstrap, weather.final)
    if reason.code() in _NO_ANSWER:
        return KafkaUnavailable(settings.bootstrap, reason.str())
    if reason.code() in NO_TOPIC:
        return UnknownTopic(name or doing)
    return KafkaError(f"{doing}: {reason.str()}")


class RecordProducer:
    """Sends records; Kafka's own placement of keys, all in-sync replicas acknowledge, repetitions are dropped.

    Sending is asynchronous: `poll` or a later `send` delivers the reports, `flush` waits for all of them. A
    record whose sender gave no `on_delivery` and that could not be delivered is counted in `failures`.

    A client may lose sight of a partition's leader for good when brokers come and go (librdkafka issues 5401, 5430
    and 5593). So a record that was not delivered within `delivery_attempt_ms` is sent again by a new client, and all
    that wait with it in their order: it may then be there twice.
    """

    def __init__(self, settings: KafkaSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.failures = 0
        self.last_failure: str | None = None
        self._monotonic = monotonic
        self._weather = Weather("producer")
        self._again: deque[_Sent] = deque()
        self._clients = [self._open()]

    def connect(self, timeout_s: float) -> None:
        """Reach a broker now, and not when the first record is sent. Raises KafkaUnavailable."""
        try:
            self._clients[-1].list_topics(timeout=timeout_s)
        except ck.KafkaException as error:
            self._clients[-1].poll(0)  # what the connection has to say is told when it is asked for
            raise translated(error, self.settings, self._weather, "connecting") from error

    def __len__(self) -> int:
        """Records whose fate is not known yet."""
        return sum(map(len, self._clients)) + len(self._again)

    def send(self, record: Outgoing, on_delivery: OnDelivery | None = None) -> None:
        """Queue a record; waits while the queue is full.

        Raises KafkaUnavailable when it stays full for `delivery_timeout_ms`, KafkaError for a record that is
        too large.
        """
        self._queue(_Sent(record, on_delivery, self._monotonic() + self.settings.delivery_timeout_ms / 1e3))

    def poll(self) -> int:
        """Deliver the reports that have come; returns how many."""
        told = sum(client.poll(0) for client in self._clients)
        if self._again:
            self._send_again()
        return told

    def flush(self, timeout_s: float) -> int:
        """Wait until the fate of every record is known, at most `timeout_s`; returns how many are still open."""
        end = self._monotonic() + timeout_s
        while True:
            left_s = end - self._monotonic()
            self._clients[-1].flush(max(0.0, min(left_s, FLUSH_TURN_S)))
            self.poll()
            if not len(self) or left_s <= 0:
                return len(self)

    def close(self, timeout_s: float = 0.0) -> int:
        """Flush and give up what is left; returns how many records that were."""
        left = self.flush(timeout_s)
        for client in self._clients:
            client.purge()
            client.flush(timeout_s)
        self._again.clear()
        return left

    # --- parts ----------------------------------------------------------------------------------

    def _open(self) -> ck.Producer:
        settings = self.settings
        properties: dict[str, object] = {
            "partitioner": "murmur2_random",
            "enable.idempotence": settings.idempotence,
            "acks": "all",
            "linger.ms": settings.linger_ms,
            "delivery.timeout.ms": min(settings.delivery_attempt_ms, settings.delivery_timeout_ms),
            "queue.buffering.max.messages": settings.send_queue_records_max,
            "queue.buffering.max.kbytes": settings.send_queue_kbytes_max,
            "message.max.bytes": settings.message_bytes_max,
            "error_cb": self._weather,
        }
        return made(ck.Producer, settings.client(properties))

    def _queue(self, sent: _Sent) -> None:
        record, client = sent.record, self._clients[-1]
        give_up: float | None = None
        while True:
            try:
                client.produce(
                    record.topic,
                    record.value,
                    record.key,
                    on_delivery=partial(self._settle, sent),
                    timestamp=record.timestamp_ms or 0,
                    headers=list(record.headers) or None,
                )
                client.poll(0)
                return
            except BufferError:
                now = self._monotonic()
                give_up = give_up or now + self.settings.delivery_timeout_ms / 1e3
                if now >= give_up:
                    client.poll(0)  # its length counts events that wait to be told, too
                    reason = f"{len(client)} records wait to be sent"
                    raise KafkaUnavailable(self.settings.bootstrap, reason) from None
                client.poll(0.05)
            except ck.KafkaException as error:
                raise self._refused(error, record) from error

    def _settle(self, sent: _Sent, error: ck.KafkaError | None, message: ck.Message) -> None:
        if error is None:
            if sent.on_delivery is not None:
                sent.on_delivery(None, message.offset())
        elif error.code() in _SEND_AGAIN and self._monotonic() < sent.give_up:
            self._again.append(sent)
        elif sent.on_delivery is not None:
            sent.on_delivery(error.str(), None)
        else:
            self.failures += 1
            self.last_failure = f"topic {message.topic()}: {error.str()}"
            logger.warning("a record was not delivered: %s", self.last_failure)

    def _send_again(self) -> None:
        """By a new client. What the former has not delivered yet follows in order: what is on its way before the rest;
        a record that it cannot give back at once is waited for."""
        former = self._clients[-1]
        logger.warning("records were not delivered in time: another client sends the %d that wait", len(self))
        self._clients.append(self._open())
        former.purge(in_queue=False)
        former.poll(0)
        former.purge(in_flight=False)
        former.flush(FLUSH_TURN_S)
        self._clients = [client for client in self._clients[:-1] if len(client)] + self._clients[-1:]
        for _ in range(len(self._again)):
            self._queue(self._again[0])
            self._again.popleft()

    def _refused(self, error: ck.KafkaException, record: Outgoing) -> KafkaError:
        if error.args[0].code() == ck.KafkaError.MSG_SIZE_TOO_LARGE:
            size = len(record.value or b"") + len(record.key or b"")
            return KafkaError(
                f"topic {record.topic}: a record of {size} bytes is too large, message_bytes_max is "
                f"{self.settings.message_bytes_max}: send less in one record"
            )
        name = f"topic {record.topic}"
        return translated(error, self.settings, self._weather, f"sending to {name}", name)


class _Sent(NamedTuple):
    record: Outgoing
    on_delivery: OnDelivery | None
    give_up: float
    """When, by the monotonic clock, it counts as failed."""


FLUSH_TURN_S = 1.0
"""How long a flush waits before it looks whether records have to be sent again."""
_SEND_AGAIN = {ck.KafkaError._MSG_TIMED_OUT, ck.KafkaError._PURGE_QUEUE, ck.KafkaError._PURGE_INFLIGHT}


class TopicAdmin:
    """Asks for, makes and deletes topics. Every method raises KafkaUnavailable when no broker answers."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._weather = Weather("admin", logging.DEBUG)  # it is asked once, and says in its error what it heard
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
                if error.args[0].code() not in NO_TOPIC:
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
