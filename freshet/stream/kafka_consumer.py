"""A consumer of given partitions, from given offsets.

Partitions are assigned by hand; the group's offsets are written for lag monitoring and never decide where reading
begins. A connection that breaks is waited out; an offset that the broker no longer has and a topic that is gone are
raised as a `KafkaError` that says what to do.

A client of librdkafka can lose sight of a partition's leader when brokers come and go, and then reads no more of it
without an error, or takes it for gone (its issues 5401, 5430 and 5593). So another client is asked now and then how far
the partitions reach, and takes over where one of them stands still; and none is gone before a new client says so.

The embedded broker looks through all batches of a partition for each answer. Where that takes longer than it may hold
an answer back, it answers with nothing; so it is given more time when it says that there is more and nothing comes.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import confluent_kafka as ck

from freshet.stream.kafka import NO_TOPIC, Weather, closing, made, to_ask, translated
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

FETCH_WAIT_MS_MAX = 500
"""The most time that the embedded broker is given for an answer."""
STARVED_AFTER_S = 0.5
"""So long it may say that there is more and not come to an end before it is given more time."""
STARVED_CHECK_S = 0.1

_NO_LEADER = {
    ck.KafkaError.NOT_LEADER_FOR_PARTITION,
    ck.KafkaError.LEADER_NOT_AVAILABLE,
    ck.KafkaError.FENCED_LEADER_EPOCH,
    ck.KafkaError.UNKNOWN_LEADER_EPOCH,
}
_OUT_OF_RANGE = {ck.KafkaError._AUTO_OFFSET_RESET, ck.KafkaError.OFFSET_OUT_OF_RANGE}


class _Reach(NamedTuple):
    """How far the partitions of an assignment reached `at` a time, and where we stood before that was asked."""

    at: float
    assigned: Mapping[TopicPartition, int]
    positions: Mapping[TopicPartition, int]
    ends: Mapping[TopicPartition, int]


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
        self._ask_at = monotonic() + settings.stall_check_interval_ms / 1e3
        self._reach: _Reach | None = None
        self._fetch_wait_ms = settings.fetch_wait_ms
        self._behind_since: float | None = None
        self._look_at = 0.0
        self._consumer = self._open()

    @property
    def transport_errors(self) -> int:
        """Connection errors so far; they pass by themselves."""
        return self._weather.errors

    @property
    def trouble(self) -> str | None:
        """What was heard last of a connection that is not well again; None while all is well."""
        return self._weather.last if self._weather.disturbed else None

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
        self._watch(drained=len(messages) < records_max)
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
        closing(self._consumer).join(self.settings.close_timeout_ms / 1e3)

    # --- parts ----------------------------------------------------------------------------------

    def _open(self) -> ck.Consumer:
        properties: dict[str, object] = {
            "group.id": self.settings.group_id,
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "allow.auto.create.topics": False,
            "fetch.wait.max.ms": self._fetch_wait_ms,
            "fetch.queue.backoff.ms": self.settings.fetch_queue_backoff_ms,
            "queued.max.messages.kbytes": self.settings.fetch_queue_kbytes_max,
            "error_cb": self._weather,
            "on_commit": self._committed,
        }
        return made(ck.Consumer, self.settings.client(properties))

    def _renew(self) -> None:
        """Read on with a new client, from where the former stands."""
        positions = self._positions() if self._assigned else {}
        former, self._consumer = self._consumer, self._open()
        closing(former)
        if positions:
            self._assign(positions)

    def _watch(self, drained: bool) -> None:
        """Take over from a client that stands still before the end of a partition; `drained`: it has no more records.
        """
        now, reach = self._monotonic(), self._reach
        if self._embedded and self._starves(now, drained):
            self._fetch_wait_ms = min(3 * self._fetch_wait_ms, FETCH_WAIT_MS_MAX)
            logger.info("the embedded broker holds many batches: it is given %d ms for an answer", self._fetch_wait_ms)
            self._renew()
        if reach is not None and drained and now - reach.at >= self.settings.stall_after_ms / 1e3:
            self._reach, self._ask_at = None, now + self.settings.stall_check_interval_ms / 1e3
            still = self._standing_still(reach) if reach.assigned is self._assigned else {}
            if still:
                logger.warning("nothing comes of %s, though there is more: another client reads on", still)
                self._renew()
        if now >= self._ask_at and self._assigned:
            self._ask_at = math.inf  # until this answer has been judged
            threading.Thread(target=self._ask, args=(self._assigned, self._positions()), daemon=True).start()

    def _standing_still(self, reach: _Reach) -> dict[TopicPartition, int]:
        """Partitions of which nothing came since they were asked for, with their ends beyond it."""
        positions = self._positions()
        return {tp: end for tp, end in reach.ends.items() if reach.positions[tp] == positions[tp] < end}

    def _starves(self, now: float, drained: bool) -> bool:
        """Whether nothing is left to be read for some time, though answers said that there is more."""
        if not drained:
            self._behind_since = None
        if now < self._look_at or not drained or self._fetch_wait_ms >= FETCH_WAIT_MS_MAX:
            return False
        self._look_at = now + STARVED_CHECK_S
        if all(self._said_to_reach(tp) <= at for tp, at in self._positions().items()):
            self._behind_since = None
            return False
        since = self._behind_since = now if self._behind_since is None else self._behind_since
        if now - since < STARVED_AFTER_S:
            return False
        self._behind_since = None
        return True

    def _said_to_reach(self, tp: TopicPartition) -> int:
        """The end of a partition by the last answer; negative before there is one."""
        try:
            return int(self._consumer.get_watermark_offsets(ck.TopicPartition(*tp), cached=True)[1])
        except ck.KafkaException:  # the client knows of no such partition, or not any more
            return -1

    def _ask(self, assigned: Mapping[TopicPartition, int], positions: Mapping[TopicPartition, int]) -> None:
        """In a thread of its own: how far a client that was just made says the partitions reach."""
        ends: dict[TopicPartition, int] = {}
        try:
            client = to_ask(self.settings)
            for topic, partition in positions:
                with suppress(ck.KafkaException):
                    asked = ck.TopicPartition(topic, partition)
                    found = client.get_watermark_offsets(asked, self._timeout_s, cached=False)
                    if found is not None:
                        ends[topic, partition] = int(found[1])
            client.close()
        finally:
            self._reach = _Reach(self._monotonic(), assigned, positions, ends)

    def _watermarks(
        self, partitions: Iterable[TopicPartition], timeout_s: float
    ) -> dict[TopicPartition, tuple[int, int]]:
        end = self._monotonic() + timeout_s
        marks = {tp: self._watermark(tp, end, timeout_s) for tp in partitions}
        return self._last_fetched(marks) if marks and self._underreports() else marks

    def _watermark(self, tp: TopicPartition, end: float, timeout_s: float) -> tuple[int, int]:
        name = f"topic {tp[0]}, partition {tp[1]}"
        renewed = False
        while True:
            try:
                found = self._consumer.get_watermark_offsets(ck.TopicPartition(*tp), timeout=timeout_s, cached=False)
            except ck.KafkaException as error:
                # A topic made just now has partitions before the one that is asked knows that it leads them.
                if error.args[0].code() in _NO_LEADER and self._monotonic() < end:
                    time.sleep(LEADER_WAIT_S)
                    continue
                if error.args[0].code() in NO_TOPIC and not renewed:
                    renewed = True
                    self._renew()
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
        patient = {"group.id": "freshet-probe", "fetch.wait.max.ms": FETCH_WAIT_MS_MAX}  # there is something to read
        probe = ck.Consumer(self.settings.client(patient))
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
        self._assign(positions)
        self._weather.cleared()
        self._doubt_since = None

    def _assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._assigned = dict(positions)
        self._consumer.assign([ck.TopicPartition(t, p, offset) for (t, p), offset in positions.items()])

    def _committed(self, error: ck.KafkaError | None, offsets: list[ck.TopicPartition]) -> None:
        if error is not None and error.code() != ck.KafkaError._NO_OFFSET:
            self.commit_failures += 1
            logger.warning("commit of group %s failed: %s", self.settings.group_id, error.str())
