"""Kafka in memory: logs with retention, a group's offsets, and clients that know only what a client can know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from freshet.stream.kafka_errors import KafkaUnavailable, OffsetGap
from freshet.stream.membership import TopicPartition
from freshet.stream.records import Outgoing, Record
from freshet.stream.topics import partition_of
from tests.simulation.world import START_MS, Process, World


class Broker:
    """Topics (name -> partitions), what they hold, and the committed offsets."""

    def __init__(self, world: World, topics: Mapping[str, int]) -> None:
        self.world = world
        self.partitions = dict(topics)
        self.log: dict[TopicPartition, list[Record]] = {(t, p): [] for t, n in topics.items() for p in range(n)}
        """Every record ever written; those below `low` are deleted."""
        self.low = dict.fromkeys(self.log, 0)
        self.offsets: dict[str, dict[TopicPartition, int]] = {}
        """What each group has committed."""
        self.down_until = 0.0
        self.watch: Callable[[Process, Mapping[TopicPartition, int]], None] = lambda process, offsets: None

    @property
    def down(self) -> bool:
        return self.world.now_s < self.down_until and not self.world.calm

    def high(self, tp: TopicPartition) -> int:
        """The next offset."""
        return len(self.log[tp])

    def append(self, record: Outgoing, partition: int | None = None) -> Record:
        """Write a record; its key chooses the partition unless one is given."""
        if partition is None:
            partition = partition_of(record.key or b"", self.partitions[record.topic])
        tp = record.topic, partition
        stamp = record.timestamp_ms or START_MS + int(self.world.now_s * 1e3)
        stored = Record(record.topic, partition, self.high(tp), stamp, record.key, record.value, record.headers)
        self.log[tp].append(stored)
        return stored

    def marks(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """Oldest and next offsets."""
        return {tp: (self.low[tp], self.high(tp)) for tp in partitions}

    def check(self, positions: Mapping[TopicPartition, int]) -> None:
        """Raises OffsetGap."""
        for (topic, partition), at in positions.items():
            low, high = self.low[topic, partition], self.high((topic, partition))
            if not low <= at <= high:
                raise OffsetGap(topic, partition, at, low, high)


class Source:
    """A `worker.Source` and its `membership.Commits`, of one process. Without a process it meets no faults."""

    grace_s = 60.0

    def __init__(self, broker: Broker, process: Process, group: str, batch_max: int = 8) -> None:
        self.broker = broker
        self._offsets = broker.offsets.setdefault(group, {})
        self._process = process
        self._batch_max = batch_max
        self._at: dict[TopicPartition, int] = {}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """See `worker.Source`."""
        with self.broker.world.effect(self._process, "assign"):
            self._reachable()
            self.broker.check(positions)
            self._at = dict(positions)

    def poll(self, records_max: int, timeout_s: float | None = None) -> list[Record]:
        """Records of partitions in any order, of each partition in its own."""
        world = self.broker.world
        with world.effect(self._process, "poll"):
            if self.broker.down:
                world.now_s += 0.02
                return []
            self.broker.check(self._at)
            left = min(records_max, world.rng.randint(1, self._batch_max))
            found: list[Record] = []
            tps = sorted(tp for tp in self._at if self.broker.high(tp) > self._at[tp])
            world.rng.shuffle(tps)
            for tp in tps:
                n = min(left, world.rng.randint(0, self._batch_max))
                part = self.broker.log[tp][self._at[tp] : self._at[tp] + n]
                self._at[tp] += len(part)
                left -= len(part)
                found += part
            if not found:
                world.now_s += 0.02 if world.calm else 0.005
            return found

    def watermarks(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """See `worker.Source`."""
        with self.broker.world.effect(self._process, "watermarks"):
            self._reachable()
            return self.broker.marks(partitions)

    def commit(self, offsets: Mapping[TopicPartition, int], taken: bool = True) -> None:
        """Without waiting: while no broker answers, or where the group does not take it, it is lost."""
        with self.broker.world.effect(self._process, "commit"):
            self.broker.watch(self._process, offsets)
            if taken and not self.broker.down:
                self._offsets.update(offsets)

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """See `Commits`."""
        with self.broker.world.effect(self._process, "committed"):
            self._reachable()
            return {tp: self._offsets[tp] for tp in partitions if tp in self._offsets}

    def _reachable(self) -> None:
        if self.broker.down:
            self.broker.world.now_s += 0.05
            raise KafkaUnavailable("simulated", "down")


class Outbox:
    """A `worker.Outbox`: what is sent arrives later, or not at all, and the process learns of it later still."""

    def __init__(self, broker: Broker, process: Process) -> None:
        self.broker = broker
        self.failures = 0
        self.last_failure: str | None = None
        self.fail_next = 0
        self._process = process
        self._queue: list[Outgoing] = []
        self._unreported: list[bool] = []
        """Fates that the process has not been told: whether delivered."""

    def send(self, record: Outgoing) -> None:
        """See `worker.Outbox`."""
        with self.broker.world.effect(self._process, "send", ms=0.1):
            self._queue.append(record)

    def poll(self) -> int:
        """See `worker.Outbox`."""
        with self.broker.world.effect(self._process, "report", ms=0.1):
            return self._report()

    def flush(self, timeout_s: float) -> int:
        """See `worker.Outbox`."""
        with self.broker.world.effect(self._process, "flush"):
            if self.broker.down:
                self.broker.world.now_s += min(timeout_s, max(0.0, self.broker.down_until - self.broker.world.now_s))
            while self._queue and not self.broker.down:
                self.deliver_one()
            self._report()
            return len(self)

    def __len__(self) -> int:
        return len(self._queue) + len(self._unreported)

    def undelivered(self, topic: str) -> int:
        """Records of a topic that have not arrived, and may yet, or never will."""
        return sum(record.topic == topic for record in self._queue)

    def deliver_some(self) -> None:
        """One of the surroundings: the client's own thread goes on, whatever its process does."""
        if self._queue and not self.broker.down and self.broker.world.rng.random() < 0.5:
            for _ in range(self.broker.world.rng.randint(1, 6)):
                if self._queue:
                    self.deliver_one()

    def deliver_one(self) -> None:
        """The fate of the oldest record."""
        record = self._queue.pop(0)
        failed = self.fail_next > 0 and not self.broker.world.calm
        if failed:
            self.fail_next -= 1
        if not failed or self.broker.world.rng.random() < 0.3:  # what timed out may have been written all the same
            self.broker.append(record)
        self._unreported.append(not failed)

    def crash(self) -> None:
        """The process is gone: some of what was on its way arrives, the rest never will."""
        for _ in range(self.broker.world.rng.randint(0, len(self._queue))):
            self.deliver_one()
        self._queue.clear()

    def _report(self) -> int:
        told, self._unreported = self._unreported, []
        failed = told.count(False)
        if failed:
            self.failures += failed
            self.last_failure = "topic: simulated failure"
        return len(told)
