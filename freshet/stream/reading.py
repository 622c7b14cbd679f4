"""Where a worker reads: which partitions, from which offsets, and up to where they are done with.

Reading begins where the state of a scope stands, from a snapshot or from the oldest the broker has, and never where
the group's offsets stand: those are committed after the writes they cover, for monitoring, and say what has been
dead-lettered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from freshet.stream.kafka_errors import KafkaUnavailable, OffsetGap, UnknownTopic
from freshet.stream.membership import Membership, TopicPartition
from freshet.stream.records import Record
from freshet.stream.rewriting import STATES
from freshet.stream.sink import Stopped

logger = logging.getLogger("freshet.reading")

T = TypeVar("T")
ASK_AGAIN_S = 0.5


class Source(Protocol):
    """Records of given partitions from given offsets; `kafka_consumer.PartitionConsumer` is one.

    `grace_s`: so long a broker has to say that a topic is gone before it is believed.
    """

    grace_s: float

    def assign(self, positions: Mapping[TopicPartition, int]) -> None: ...

    def poll(self, records_max: int, timeout_s: float | None = None) -> list[Record]: ...

    def watermarks(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]: ...


class Snapshotted(Protocol):
    """State that was kept; `snapshots.Snapshots` is one."""

    def load(self, scope: str) -> dict[TopicPartition, int] | None:
        """Merge the newest usable snapshot of a scope into the state; the offsets it is complete up to. None where
        there never was one, empty where none can be used."""
        ...


class Reading:
    """Positions of the partitions that are read, and of what they were committed."""

    def __init__(
        self, source: Source, membership: Membership, snapshots: Snapshotted | None,
        should_stop: Callable[[], bool] = lambda: False, monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.source = source
        self.membership = membership
        self.snapshots = snapshots
        self._should_stop, self._monotonic, self._sleep = should_stop, monotonic, sleep
        self.positions: dict[TopicPartition, int] = {}
        """Next offset of each partition that is read; all before it is in the state."""
        self.committed: dict[TopicPartition, int] = {}
        self.scopes: dict[str, tuple[TopicPartition, ...]] = {}
        """Scopes whose state stands at the positions of their partitions."""
        self.stopped: dict[str, str] = {}
        """Scopes that cannot be read, and why."""

    def read(self, scope: str, tps: Sequence[TopicPartition]) -> bool:
        """Read the partitions of a scope from where its state stands, once `begin` is called.

        False, with the reason in `stopped`, where the broker has not kept what comes after that and others can go
        on; raises OffsetGap where nobody else is there.
        """
        marks = self._insist(lambda: self.source.watermarks(tps))
        if scope != STATES:
            new = [tp for tp in tps if tp not in self.committed]
            self.committed.update(self._insist(lambda: self.membership.committed(new)))
        starts = self._followed_from(tps, marks) if scope in self.scopes else self._loaded_to(scope, tps, marks)
        for tp, at in starts.items():
            low, high = marks[tp]
            if not low <= at <= high:
                gap = OffsetGap(*tp, at, low, high)
                if not self.membership.shares:
                    raise gap
                logger.error("%s is not served: %s", scope, gap)
                self.stopped[scope] = str(gap)
                return False
        self.stopped.pop(scope, None)
        self.scopes[scope] = tuple(tps)
        self.positions.update({tp: min(at, self.positions.get(tp, at)) for tp, at in starts.items()})
        return True

    def begin(self) -> None:
        """Go on from the positions, of just these partitions."""
        self._insist(lambda: self.source.assign(self.positions))

    def drop(self, scope: str) -> None:
        """Read the partitions of a scope no more."""
        for tp in self.scopes.pop(scope, ()):
            self.positions.pop(tp, None)
            self.committed.pop(tp, None)

    def ends(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where partitions end now."""
        return {tp: high for tp, (_, high) in self._insist(lambda: self.source.watermarks(tps)).items()}

    def poll(self, records_max: int) -> list[Record]:
        """What has come, moving the positions past it. A client may still return records of partitions that are not
        read any more; those are dropped."""
        polled = [r for r in self.source.poll(records_max) if (r.topic, r.partition) in self.positions]
        for record in polled:
            self.positions[record.topic, record.partition] = record.offset + 1
        return polled

    def uncommitted(self, scopes: Iterable[str]) -> dict[TopicPartition, int]:
        """The positions of the partitions of these scopes that have not been committed."""
        tps = {tp for scope in scopes if scope != STATES for tp in self.scopes.get(scope, ())}
        return {tp: self.positions[tp] for tp in tps if self.committed.get(tp) != self.positions[tp]}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit these next offsets: what they cover has been written and delivered."""
        self.membership.commit(offsets)
        self.committed.update(offsets)

    # --- parts ----------------------------------------------------------------------------------

    def _insist(self, ask: Callable[[], T]) -> T:
        """Ask the broker until it answers. One that has just come back may not know its topics yet, so that they are
        gone is believed only when it still says so after `grace_s`. Raises Stopped."""
        doubted_until: float | None = None
        while True:
            try:
                return ask()
            except KafkaUnavailable as e:
                logger.warning("%s", e)
                doubted_until = None
            except UnknownTopic:
                now = self._monotonic()
                doubted_until = now + self.source.grace_s if doubted_until is None else doubted_until
                if now >= doubted_until:
                    raise
            if self._should_stop():
                raise Stopped
            self._sleep(ASK_AGAIN_S)

    def _loaded_to(
        self, scope: str, tps: Sequence[TopicPartition], marks: Mapping[TopicPartition, tuple[int, int]]
    ) -> dict[TopicPartition, int]:
        """What a scope's newest snapshot is complete up to; the oldest that the broker has where there never was one.

        Where there are some and none can be used, state is missing that the broker may not have any more: it has to
        have everything from the first record on.
        """
        known = self.snapshots.load(scope) if self.snapshots is not None and scope != STATES else None
        return {tp: marks[tp][0] if known is None else known.get(tp, 0) for tp in tps}

    def _followed_from(
        self, tps: Sequence[TopicPartition], marks: Mapping[TopicPartition, tuple[int, int]]
    ) -> dict[TopicPartition, int]:
        """Where this worker stands that has followed a scope, but not past what its former owner had committed: of
        what came after that, dead letters may not have been delivered."""
        committed = self._insist(lambda: self.membership.committed(tps))
        self.committed.update(committed)
        return {tp: min(self.positions[tp], max(marks[tp][0], committed.get(tp, marks[tp][0]))) for tp in tps}
