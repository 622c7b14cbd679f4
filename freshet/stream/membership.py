"""Who owns which partitions of users: a worker alone owns all, several share them by Kafka's group protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

TopicPartition = tuple[str, int]


class Listener(Protocol):
    """What is told of changes, from within `Membership.poll`."""

    def gained(self, partitions: Sequence[int]) -> None:
        """These are this worker's now, and nobody else's once their former owner has been fenced."""
        ...

    def revoked(self, partitions: Sequence[int]) -> None:
        """These go to another worker when this returns: the last moment to commit."""
        ...

    def lost(self, partitions: Sequence[int]) -> None:
        """These are another worker's already: nothing of them may be written or committed."""
        ...


class Membership(Protocol):
    """A place in the group of workers; for one thread. `shares`: whether partitions may go to others."""

    shares: bool

    def poll(self, listener: Listener) -> None:
        """Tell of what has changed since the last call. Call it often: who does not is taken for dead."""
        ...

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit next offsets to read, without waiting."""
        ...

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The committed next offsets of those that have one. Raises KafkaUnavailable."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


class Commits(Protocol):
    """The group's offsets, by a client that is in no group, such as `kafka_consumer.PartitionConsumer`."""

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None: ...

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]: ...


class Alone:
    """A worker that owns all partitions from the start and for good, and asks nobody."""

    shares = False

    def __init__(self, partitions: int, commits: Commits) -> None:
        self._gained: tuple[int, ...] = tuple(range(partitions))
        self._commits = commits

    def poll(self, listener: Listener) -> None:
        """See `Membership.poll`."""
        gained, self._gained = self._gained, ()
        if gained:
            listener.gained(gained)

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """See `Membership.commit`."""
        self._commits.commit(offsets)

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """See `Membership.committed`."""
        return self._commits.committed(partitions)

    def close(self) -> None:
        """See `Membership.close`."""
