"""A consumer of given partitions, from given offsets.

Partitions are assigned by hand; the group's offsets are written for lag monitoring and never decide where reading
begins. A connection that breaks is waited out; an offset that the broker no longer has and a topic that is gone are
raised as a `KafkaError` that says what to do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import confluent_kafka as ck

from freshet.stream.kafka import NO_TOPIC, Weather, made, translated
from freshet.stream.kafka_errors import KafkaError, KafkaRefused, KafkaUnavailable, OffsetGap, UnknownTopic
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.membership import TopicPartition
from freshet.stream.records import Record

logger = logging.getLogger("freshet.kafka")

EMBEDDED_CLUSTER_ID = "freshet-embedded"
"""By which a client knows the embedded broker, one of whose answers has to be corrected."""

LEADER_WAIT_S = 0.1
"""Pause between two questions to a broker that does not yet know who leads a partition."""
RECHECK_TIMEOUT_S = 0.5
"""Of one comparison after a connection broke; a poll may take so much longer while the broker is down."""

_NO_LEADER = {
    ck.KafkaError.NOT_LEADER_FOR_PARTITION,
    ck.KafkaError.LEADER_NOT_AVAILABLE,
    ck.KafkaError.FENCED_LEADER_EPOCH,
    ck.KafkaError.UNKNOWN_LEADER_EPOCH,
}
_OUT_OF_RANGE = {ck.KafkaError._AUTO_OFFSET_RESET, ck.KafkaError.OFFSET_OUT_OF_RANGE}


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
                if error.args[0].code() in NO_TOPIC and not relisted:
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
