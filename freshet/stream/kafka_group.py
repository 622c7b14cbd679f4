"""A place in a Kafka consumer group, for the partitions it gives alone: records are read by `kafka.PartitionConsumer`.

The group shares out one topic, and a worker reads the partitions of the same numbers of every topic keyed by user: no
assignor of the cooperative protocol would keep several topics together. The member reads nothing itself (what it is
given is paused), so it can be polled at every turn, and commits offsets that the group accepts from members alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import confluent_kafka as ck

from freshet.stream.kafka import Weather, made, translated
from freshet.stream.kafka_errors import KafkaError, KafkaRefused, NameTaken
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.membership import Listener, TopicPartition

logger = logging.getLogger("freshet.group")


class GroupMember:
    """A `Membership` of the group `settings.group_id`, by the partitions of `topic`.

    With `instance_id` it is a static member: one that comes back within the session timeout finds its partitions
    as it left them, and nothing moves.
    """

    shares = True

    def __init__(self, settings: KafkaSettings, topic: str, instance_id: str | None = None) -> None:
        self.settings = settings
        self.commit_failures = 0
        self._topic = topic
        self._weather = Weather("group member")
        self._gained: list[int] = []
        self._listener: Listener | None = None
        properties: dict[str, object] = {
            "group.id": settings.group_id,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": settings.session_timeout_ms,
            "heartbeat.interval.ms": max(1, settings.session_timeout_ms // 5),
            "max.poll.interval.ms": max(settings.max_poll_interval_ms, settings.session_timeout_ms),
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "allow.auto.create.topics": False,
            "error_cb": self._weather,
            "on_commit": self._committed,
            **({"group.instance.id": instance_id} if instance_id else {}),
        }
        self._consumer = made(ck.Consumer, settings.client(properties))
        self._consumer.subscribe([topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)

    def poll(self, listener: Listener) -> None:
        """See `Membership.poll`. Raises KafkaError where the group refuses this member for good."""
        self._listener = listener
        message = self._consumer.poll(0)
        if message is not None and (error := message.error()) is not None:
            self._weather(error)
        if self._weather.final is not None:
            raise self._refused(self._weather.final)
        if self._gained:  # told here and not in the callback, where the group would wait for a snapshot to be read
            gained, self._gained = self._gained, []
            listener.gained(gained)

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """See `Membership.commit`."""
        if not offsets:
            return
        try:
            self._consumer.commit(
                offsets=[ck.TopicPartition(t, p, offset) for (t, p), offset in offsets.items()], asynchronous=True
            )
        except ck.KafkaException as error:
            self._committed(error.args[0], [])

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """See `Membership.committed`."""
        asked = [ck.TopicPartition(t, p) for t, p in partitions]
        if not asked:
            return {}
        try:
            answer = self._consumer.committed(asked, timeout=self.settings.request_timeout_ms / 1e3)
        except ck.KafkaException as error:
            doing = f"offsets of group {self.settings.group_id}"
            raise translated(error, self.settings, self._weather, doing) from error
        return {(tp.topic, tp.partition): tp.offset for tp in answer if tp.offset >= 0}

    def close(self) -> None:
        """See `Membership.close`. What is owned goes to others; of a static member after its session timeout."""
        self._listener = None
        closing = threading.Thread(target=self._consumer.close, daemon=True)
        closing.start()
        closing.join(self.settings.close_timeout_ms / 1e3)

    def _refused(self, why: str) -> KafkaError:
        if "instance" in why.lower():
            return NameTaken(self.settings.group_id, why)
        return KafkaRefused(self.settings.bootstrap, why)

    # --- called from within poll and close ------------------------------------------------------

    def _assign(self, consumer: Any, partitions: list[ck.TopicPartition]) -> None:
        for tp in partitions:
            tp.offset = 0  # any: it is paused before it could be read
        consumer.incremental_assign(partitions)
        consumer.pause(partitions)
        self._gained.extend(tp.partition for tp in partitions)

    def _revoke(self, consumer: Any, partitions: list[ck.TopicPartition]) -> None:
        numbers = self._told(partitions)
        if numbers and self._listener is not None:
            self._listener.revoked(numbers)
        consumer.incremental_unassign(partitions)

    def _lose(self, consumer: Any, partitions: list[ck.TopicPartition]) -> None:
        numbers = self._told(partitions)
        if numbers and self._listener is not None:
            self._listener.lost(numbers)
        consumer.incremental_unassign(partitions)

    def _told(self, partitions: list[ck.TopicPartition]) -> list[int]:
        """Of these, the partitions that the listener knows it has gained."""
        numbers = [tp.partition for tp in partitions]
        told = [p for p in numbers if p not in self._gained]
        self._gained = [p for p in self._gained if p not in numbers]
        return told

    def _committed(self, error: ck.KafkaError | None, offsets: list[ck.TopicPartition]) -> None:
        if error is not None and error.code() != ck.KafkaError._NO_OFFSET:
            self.commit_failures += 1
            logger.warning("commit of group %s failed: %s", self.settings.group_id, error.str())
