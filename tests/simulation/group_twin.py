"""A consumer group in memory: who owns which partition, as Kafka's cooperative protocol tells its members.

A partition is given to a member when its former owner has said that it is revoked, or has been taken for dead. A
member that was taken for dead learns of it at its next poll, and may write until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from freshet.stream.membership import Listener, TopicPartition
from tests.simulation.broker_twin import Source
from tests.simulation.world import Process, World


class Group:
    """The coordinator. A member that is not heard of for `session_s` is taken for dead."""

    def __init__(self, world: World, partitions: int, session_s: float) -> None:
        self.world = world
        self.partitions = partitions
        self.session_s = session_s
        self.members: list[Member] = []
        self.owner: dict[int, Member] = {}

    def wanted(self, member: Member) -> set[int]:
        """What a member should own, as many as the others."""
        place, n = self.members.index(member), len(self.members)
        return {p for p in range(self.partitions) if p % n == place}

    def hear(self) -> None:
        """One of the surroundings: clients send heartbeats by themselves; who sends none is taken for dead."""
        for member in list(self.members):
            process = member.process
            if not process.dead and process.asleep_until <= self.world.now_s:
                member.heard_s = self.world.now_s
            elif self.world.now_s - member.heard_s > self.session_s:
                self.expel(member)

    def expel(self, member: Member) -> None:
        """Take a member for dead: what it owned is anybody's."""
        if member in self.members:
            self.members.remove(member)
        self.owner = {p: m for p, m in self.owner.items() if m is not member}


class Member:
    """A `Membership` of one process."""

    shares = True

    def __init__(self, group: Group, process: Process, commits: Source) -> None:
        self.group = group
        self.process = process
        self.heard_s = group.world.now_s
        self._commits = commits
        self._owned: set[int] = set()

    def poll(self, listener: Listener) -> None:
        """See `Membership.poll`."""
        group = self.group
        with group.world.effect(self.process, "group"):
            if self._commits.broker.down:
                return
            out = self not in group.members
        if out:
            lost, self._owned = sorted(self._owned), set()
            if lost:
                listener.lost(lost)
            group.members.append(self)
            return
        wanted = group.wanted(self)
        if revoked := sorted(self._owned - wanted):
            listener.revoked(revoked)
            self._owned -= set(revoked)
            for p in revoked:
                if group.owner.get(p) is self:
                    del group.owner[p]
        elif gained := sorted(p for p in wanted - self._owned if p not in group.owner):
            group.owner.update(dict.fromkeys(gained, self))
            self._owned |= set(gained)
            listener.gained(gained)

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """See `Membership.commit`; the group does not take what comes from no member."""
        self._commits.commit(offsets, taken=self in self.group.members)

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """See `Membership.committed`."""
        return self._commits.committed(partitions)

    def close(self) -> None:
        """See `Membership.close`."""
        with self.group.world.effect(self.process, "leave"):
            self.group.expel(self)
