"""Which users a worker may write: the partitions it owns, each with the fencing token of its assignment."""

from __future__ import annotations

import numpy as np

from freshet.store.columns import I32, I64, Bool
from freshet.store.ids import IdMap
from freshet.store.lists import grown
from freshet.stream.placement import partitions_of
from freshet.stream.topics import partition_of

UNKNOWN = -1
"""Partition of a user whose name was dropped before anybody asked."""

NOT_OWNED = -1
"""In place of a token."""


class Ownership:
    """Partitions of users, and which of them are owned. A partition is owned from `grant` to `drop`."""

    def __init__(self, users: IdMap, partitions: int) -> None:
        self.partitions = partitions
        self.fences: dict[int, int] = {}
        self._users = users
        self._partition: I32 = np.zeros(0, dtype=np.int32)
        self._placed = 0
        self._fence: I64 = np.full(partitions + 1, NOT_OWNED, dtype=np.int64)  # one more, for UNKNOWN

    @classmethod
    def of_all(cls, users: IdMap, fence: int = 1) -> Ownership:
        """Of a single partition that holds every user, granted already."""
        alone = cls(users, 1)
        alone.grant(0, fence)
        return alone

    def grant(self, partition: int, fence: int) -> None:
        """Own a partition: its users are written with this token from now on."""
        self.fences[partition] = self._fence[partition] = fence

    def drop(self, partition: int) -> None:
        """Own a partition no more: nothing of its users is written."""
        self.fences.pop(partition, None)
        self._fence[partition] = NOT_OWNED

    def of(self, users: I32) -> I32:
        """The partition of each user, [n] int32."""
        if self._placed < len(self._users):
            self._place_new()
        return self._partition[users]

    def fences_of(self, users: I32) -> I64:
        """The token of each user's partition, [n] int64; negative where it is not owned."""
        return self._fence[self.of(users)]

    def of_name(self, user_id: str) -> int:
        """The partition of a user that need not be known."""
        return partition_of(user_id.encode(), self.partitions)

    def mine(self, users: I32) -> Bool:
        """[n] bool: who is on a partition that is owned."""
        owned: Bool = self.fences_of(users) != NOT_OWNED
        return owned

    def members(self, partition: int) -> I32:
        """Every user of a partition; some may have lost their names since. No loop over users: the stream waits."""
        if self._placed < len(self._users):
            self._place_new()
        found: I32 = np.flatnonzero(self._partition[: len(self._users)] == partition).astype(np.int32)
        return found

    def _place_new(self) -> None:
        new = np.arange(self._placed, len(self._users), dtype=np.int32)
        self._partition = grown(self._partition, len(self._users), UNKNOWN)
        names = self._users.names(new)
        keys = [b"" if name is None else name.encode() for name in names]
        self._partition[new] = partitions_of(keys, self.partitions)
        nameless = new[np.array([name is None for name in names], dtype=np.bool_)]
        self._partition[nameless] = UNKNOWN
        self._placed = len(self._users)
