"""What must hold at every effect: what readers may see, and what may be committed or kept."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from freshet.store.snapshot_file import SnapshotReader
from freshet.store.value import ValueCorrupt, decode_value
from freshet.stream.completeness import read_sentinel, sentinel_blob
from freshet.stream.deadletter import OFFSET, PARTITION, TOPIC
from freshet.stream.membership import TopicPartition
from freshet.stream.records import Record
from freshet.stream.rewriting import is_items, users_scope
from freshet.stream.roles import Role
from tests.simulation.broker_twin import Broker, Outbox
from tests.simulation.disk_twin import Disk
from tests.simulation.redis_twin import RedisClient, RedisServer
from tests.simulation.shop import TOPICS
from tests.simulation.world import Process, World


def answered(process: Process, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Of these, the offsets of topics whose dead letters a process sends."""
    of_items = (TOPICS.products,) if process.shard.is_first else ()
    topics = {Role.ALL: TOPICS.inputs, Role.USERS: TOPICS.by_user, Role.ITEMS: of_items}[process.role]
    return {tp: at for tp, at in offsets.items() if tp[0] in topics}


class Monitor:
    """Watches the stores; every broken promise ends the run."""

    def __init__(
        self, world: World, broker: Broker, redis: RedisServer, disk: Disk, version: str, scopes: Sequence[str]
    ) -> None:
        self.world, self.broker, self.redis, self.disk = world, broker, redis, disk
        self.version = version
        self.scopes = scopes
        self.rejected: set[tuple[str, int, int]] = set()
        """Records that are no events, as they are published."""
        self.forgotten: set[str] = set()
        """Users whom some record forgets."""
        self.shared = False
        """Whether two workers were there at once: what an older one wrote late, the newer one may not have read yet."""
        self.served_from: dict[str, dict[TopicPartition, int]] = {}
        """Of each process, the next offsets from which it wrote what it read."""
        self.committed: dict[TopicPartition, int] = {}
        """The greatest next offsets that any process has committed, whether the broker heard of it or not."""
        self._once_whole: set[tuple[int, str]] = set()
        """Scopes that were whole since the store lost what it held, or some of it; one that moves to another worker is
        not, for a while."""
        self._letters = 0
        self._delivered: set[tuple[str, int, int]] = set()
        broker.watch = self.commit
        disk.renamed = self.snapshot

    # --- the store ------------------------------------------------------------------------------

    def store(self, what: str, process: Process, *args: Any) -> None:
        """Called at every write to the store."""
        getattr(self, f"_{what}")(process, *args)

    def _upsert(
        self, process: Process, version: str, users: Sequence[str], before: Sequence[bytes | None],
        after: Sequence[bytes | None],
    ) -> None:  # fmt: skip
        for user, old, new in zip(users, before, after, strict=True):
            if new is None or old == new:  # a deletion guards against it, or the same write came again
                continue
            try:
                value = decode_value(new)
            except ValueCorrupt as e:
                self.world.violate(f"{process.name} wrote half a value of {user!r}: {e}")
            if value.model != version:
                self.world.violate(f"{process.name} wrote a value of {value.model} under {version}")
            if old is None:
                continue
            held = decode_value(old)
            if value.seq <= held.seq:
                self.world.violate(f"{process.name}: the seq of {user!r} went from {held.seq} to {value.seq}")
            back = value.event_ts < held.event_ts and (value.seq.fence == held.seq.fence or not self.shared)
            if back and user not in self.forgotten:
                self.world.violate(f"{process.name}: {user!r} went back from {held.event_ts} to {value.event_ts}")

    def _delete(self, process: Process, version: str, users: Sequence[str], stale: Any) -> None:
        for user, refused in zip(users, stale.tolist(), strict=True):
            if user not in self.forgotten and not refused and not self.shared:
                self.world.violate(f"{process.name} deleted {user!r}, whom nobody asked to forget")

    def _current(self, process: Process, version: str) -> None:
        """Readers are pointed to a version: all of it has to be there, unless it was lost since anybody looked."""
        client = process.parts["store"]
        assert isinstance(client, RedisClient)
        if version != self.version or self.redis.losses != client.incarnation_at:
            return
        for scope in self.scopes:
            if (self.redis.losses, scope) not in self._once_whole and not self._came_back_whole(scope):
                self.world.violate(f"{process.name} pointed readers to {version}, and {scope} never was whole")
        worker: Any = process.parts["worker"]
        graph = worker.graph
        known = list(graph.users.all_names())
        held = self.redis.values.get(version, known)
        missing = [u for u, value in zip(known, held, strict=True) if value is None and u not in self.forgotten]
        if missing and worker.role is Role.ALL:
            self.world.violate(f"{process.name} pointed readers to {version}, and it lacks {missing}")

    def _came_back_whole(self, scope: str) -> bool:
        """Whether the copy of its past that the store has come back with held all of a scope."""
        _, blob = self.redis.began_with.get(f"{self.version}:{sentinel_blob(scope)}", ("", None))
        sentinel = read_sentinel(blob)
        return sentinel is not None and sentinel.whole and sentinel.scope == scope

    def _blob(self, process: Process, name: str, blob: bytes) -> None:
        """Items are whole when readers' own indexes can be."""
        sentinel = read_sentinel(blob) if name.startswith(f"{self.version}:{sentinel_blob('')}") else None
        if sentinel is None or not sentinel.whole:
            return
        self._once_whole.add((self.redis.losses, sentinel.scope))
        outbox = process.parts["outbox"]
        assert isinstance(outbox, Outbox)
        if is_items(sentinel.scope) and outbox.undelivered(TOPICS.embeddings_products):
            self.world.violate(f"{process.name} says that items are whole, and some are not delivered to readers yet")

    # --- offsets --------------------------------------------------------------------------------

    def commit(self, process: Process, offsets: Mapping[TopicPartition, int]) -> None:
        """What is committed has been written, and its dead letters delivered."""
        self.check_delivered(answered(process, offsets), f"{process.name} committed")
        served = self.served_from.get(process.name, {})
        for tp, end in offsets.items():
            for record in self.broker.log[tp][served.get(tp, end) : end]:
                self._check_written(process, record)
            self.committed[tp] = max(self.committed.get(tp, 0), end)

    def _check_written(self, process: Process, record: Record) -> None:
        """A view that was read while its user was served is covered by the user's value."""
        user = (record.key or b"").decode()
        place = record.topic, record.partition, record.offset
        if record.topic != TOPICS.view or place in self.rejected or user in self.forgotten:
            return
        client = process.parts["store"]
        assert isinstance(client, RedisClient)
        worker: Any = process.parts["worker"]
        if self.redis.losses != client.incarnation_at or users_scope(record.partition) not in worker.completeness.whole:
            return
        time = msgspec.json.decode(record.value or b"")["timestamp"]
        value = self.redis.values.get(self.version, [user])[0]
        if value is None or decode_value(value).event_ts < time:
            self.world.violate(f"{process.name} committed {place}, which the value of {user!r} does not hold")

    def check_delivered(self, offsets: Mapping[TopicPartition, int], what: str) -> None:
        """Every record that is no event and lies below these offsets has a dead letter."""
        self.read_letters()
        missing = [r for r in self.rejected if r[2] < offsets.get((r[0], r[1]), 0) and r not in self._delivered]
        if missing:
            self.world.violate(f"{what} past {sorted(missing)[0]}, whose dead letter has not been delivered")

    def read_letters(self) -> set[tuple[str, int, int]]:
        """The places of the records that have dead letters."""
        log = self.broker.log[TOPICS.deadletter, 0]
        for record in log[self._letters :]:
            headers = dict(record.headers)
            place = headers[TOPIC] or b"", headers[PARTITION] or b"", headers[OFFSET] or b""
            self._delivered.add((place[0].decode(), int(place[1]), int(place[2])))
        self._letters = len(log)
        return self._delivered

    # --- snapshots ------------------------------------------------------------------------------

    def snapshot(self, process: Process, name: str, data: bytes) -> None:
        """A snapshot is put in its place: whole, and committed up to where it begins to be read from."""
        if not name.endswith(".snapshot"):
            return
        reader = SnapshotReader(io.BytesIO(data), name)
        reader.verify()
        head = reader.head
        self.check_delivered(answered(process, head.positions), f"{process.name} put {name} in place")
        ahead = {tp: at for tp, at in head.positions.items() if self.committed.get(tp, 0) < at}
        if ahead:
            self.world.violate(f"{process.name} put {name} in place, and its offsets are not committed: {ahead}")

    def check_disk(self) -> None:
        """After a crash, and at the end: what stands under the name of a snapshot is one."""
        for name, data in self.disk.whole().items():
            if name.endswith(".snapshot") and name not in self.disk.damaged:
                try:
                    SnapshotReader(io.BytesIO(data), name).verify()
                except Exception as e:
                    self.world.violate(f"{name} is not whole: {e}")
