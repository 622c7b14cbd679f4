"""A place in a Kafka consumer group, for the partitions it gives alone: others read their records.

The group shares out one topic, and a worker reads the partitions of the same numbers of every topic keyed by user: no
assignor of the cooperative protocol would keep several topics together. The member reads nothing itself (what it is
given is paused), so it can be polled at every turn, and commits offsets that the group accepts from members alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import confluent_kafka as ck

from freshet.stream.kafka import Weather, closing, made, to_ask
from freshet.stream.kafka_errors import KafkaRefused, NameTaken
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.membership import Commits, Listener, TopicPartition

logger = logging.getLogger("freshet.group")


class GroupMember:
    """A `Membership` of the group `settings.group_id`, by the partitions of `topic`.

    With `instance_id` it is a static member: one that comes back within the session timeout finds its partitions
    as it left them, and nothing moves. Where the group gives its name to another member it counts its partitions as
    lost and joins again under the same name, as the other may be nobody: a broker that was lost while this one joined
    had let it in, and could not say so. Two workers of one name take it from each other by turns, and the one that has
    lost it more than `name_losses_max` times gives up.
    """

    shares = True

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        offsets: Commits,
        instance_id: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`offsets` answers what the group has committed: a member whose name is taken could not ask."""
        self.settings = settings
        self.commit_failures = 0
        self._topic = topic
        self._offsets = offsets
        self._monotonic = monotonic
        self._gained: list[int] = []
        self._told: set[int] = set()
        self._listener: Listener | None = None
        self._losses: deque[float] = deque()
        self._check_at = monotonic() + settings.stall_check_interval_ms / 1e3
        self._cut_off: ck.Consumer | None = None
        self._properties: dict[str, object] = {
            "group.id": settings.group_id,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": settings.session_timeout_ms,
            "heartbeat.interval.ms": max(1, settings.session_timeout_ms // 5),
            "max.poll.interval.ms": max(settings.max_poll_interval_ms, settings.session_timeout_ms),
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "allow.auto.create.topics": False,
            "on_commit": self._committed,
            **({"group.instance.id": instance_id} if instance_id else {}),
        }
        self._join()

    def poll(self, listener: Listener) -> None:
        """See `Membership.poll`.

        Raises NameTaken where another member takes the name again and again, and KafkaRefused where the group refuses
        this one for good.
        """
        self._listener = listener
        message = self._consumer.poll(0)
        if message is not None and (error := message.error()) is not None:
            self._weather(error)
        if (why := self._weather.final) is not None:
            if "instance" not in why.lower():
                raise KafkaRefused(self.settings.bootstrap, why)
            self._count_loss(why)
            logger.warning("the group %s gave this worker's name to another: joining again", self.settings.group_id)
            self._join_again(listener)
        elif self._cut_off is self._consumer:
            logger.warning("the member of the group %s finds no broker any more: joining again", self.settings.group_id)
            self._join_again(listener)
        self._check()
        if self._gained:  # told here and not in the callback, where the group would wait for a snapshot to be read
            gained, self._gained = self._gained, []
            self._told.update(gained)
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
        return self._offsets.committed(partitions)

    def close(self) -> None:
        """See `Membership.close`. What is owned goes to others; of a static member after its session timeout."""
        self._listener = None
        closing(self._consumer).join(self.settings.close_timeout_ms / 1e3)

    def _join(self) -> None:
        self._weather = Weather("group member")
        self._consumer = made(ck.Consumer, self.settings.client({**self._properties, "error_cb": self._weather}))
        self._consumer.subscribe([self._topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)

    def _count_loss(self, why: str) -> None:
        now, window_s = self._monotonic(), self.settings.name_loss_window_ms / 1e3
        while self._losses and now - self._losses[0] > window_s:
            self._losses.popleft()
        self._losses.append(now)
        if len(self._losses) > self.settings.name_losses_max:
            raise NameTaken(self.settings.group_id, why)

    def _join_again(self, listener: Listener) -> None:
        former = self._consumer
        lost, self._told, self._gained = sorted(self._told), set(), []
        self._join()
        closing(former)
        if lost:
            listener.lost(lost)

    def _check(self) -> None:
        """Now and then, in a thread: a client may be left without any broker when all of them were away (librdkafka
        issue 5301), and would wait for ever."""
        if self._monotonic() >= self._check_at:
            self._check_at = self._monotonic() + self.settings.stall_check_interval_ms / 1e3
            threading.Thread(target=self._compare, args=(self._consumer,), daemon=True).start()

    def _compare(self, consumer: ck.Consumer) -> None:
        if not self._answered(consumer):
            other = to_ask(self.settings)
            if self._answered(other) and not self._answered(consumer):
                self._cut_off = consumer
            other.close()

    def _answered(self, consumer: ck.Consumer) -> bool:
        try:
            consumer.list_topics(self._topic, timeout=self.settings.request_timeout_ms / 1e3)
        except ck.KafkaException:
            return False
        return True

    # --- called from within poll and close ------------------------------------------------------

    def _assign(self, consumer: Any, partitions: list[ck.TopicPartition]) -> None:
        if consumer is not self._consumer:
            return
        for tp in partitions:
            tp.offset = 0  # any: it is paused before it could be read
        consumer.incremental_assign(partitions)
        consumer.pause(partitions)
        self._gained.extend(tp.partition for tp in partitions)

    def _revoke(self, consumer: Any, partitions: list[ck.TopicPartition]) -> None:
        numbers = self._gone(consumer, partitions)
        if numbers and self._listener is not None:
            self._listener.revoked(numbers)
        consumer.incremental_unassign(partitions)

    def _lose(self, consumer: Any, partitions: list[ck.TopicPartition]) -> None:
        numbers = self._gone(consumer, partitions)
        if numbers and self._listener is not None:
            self._listener.lost(numbers)
        consumer.incremental_unassign(partitions)

    def _gone(self, consumer: Any, partitions: list[ck.TopicPartition]) -> list[int]:
        """Of these, what the listener has to hear of: what it was told it had gained, by the member that is one still.
        """
        if consumer is not self._consumer:
            return []
        numbers = {tp.partition for tp in partitions}
        told = sorted(numbers & self._told)
        self._told -= numbers
        self._gained = [p for p in self._gained if p not in numbers]
        return told

    def _committed(self, error: ck.KafkaError | None, offsets: list[ck.TopicPartition]) -> None:
        if error is not None and error.code() != ck.KafkaError._NO_OFFSET:
            self.commit_failures += 1
            logger.warning("commit of group %s failed: %s", self.settings.group_id, error.str())
