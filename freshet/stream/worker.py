"""The process around the updater: gain partitions, catch up, then step, ripple and commit for ever.

Memory is a cache of the topics. A partition that is gained is brought up to date without showing readers the past:
from a snapshot if there is one, then from what the broker holds after it. When it stands where the topics ended, its
users are written with every step, and all of them once more behind the fresh ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import numpy as np

from freshet.store.columns import EventColumns
from freshet.store.embeddings import ServingState
from freshet.store.graph import GraphStore, Touched
from freshet.store.popular import PopularSettings
from freshet.store.ranker import dump_ranker
from freshet.store.snapshot import LogPart
from freshet.stream.completeness import Completeness
from freshet.stream.deadletter import DeadLetterLimits, to_deadletter
from freshet.stream.freshness import Freshness
from freshet.stream.kafka_errors import KafkaError
from freshet.stream.membership import Membership, TopicPartition
from freshet.stream.placement import Placement
from freshet.stream.popular_list import PopularList
from freshet.stream.reading import Reading, Source
from freshet.stream.records import Outgoing, Record
from freshet.stream.rewriting import STATES, is_items, place_of, users_scope
from freshet.stream.roles import Role
from freshet.stream.sharding import Cut, Shard
from freshet.stream.sink import Fenced, Sink, Stopped
from freshet.stream.topics import TopicSettings
from freshet.stream.updater import Updater
from freshet.stream.worker_status import status_blob, status_of

if TYPE_CHECKING:
    from freshet.stream.snapshots import Snapshots

logger = logging.getLogger("freshet.worker")


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker polls, commits, rewrites and reports."""

    poll_records_max: int = 4_000
    """Records of one micro-batch."""
    commit_interval_ms: float = 500.0
    commit_wait_ms: float = 10_000.0
    """Without a moment at which all that was sent is acknowledged, a commit waits for one after this."""
    status_interval_ms: float = 500.0
    sentinel_interval_ms: float = 1_000.0
    """How often the worker asks whether Redis still has its data."""
    idle_after_ms: float = 200.0
    """Without a record for so long, the stream counts as idle."""
    ripple_turn_ms: float = 3.0
    """Ripple work between two polls, at most (and one chunk at least)."""
    rewrite_turn_ms: float = 40.0
    """Of writing everything again, what goes between two polls, at most (and one chunk at least)."""
    rewrite_chunk: int = 1_024
    """Nodes written again at a time."""
    flush_timeout_s: float = 30.0
    grace_s: float = 10.0
    """After being asked to stop: how long a last round of snapshots may take."""
    role: Literal["all", "users", "items"] = "all"
    """`all` is a worker alone; `users` share the partitions of users, and `items` computes products for them."""
    name: str = ""
    """What the worker is called in the status; of a worker of users also its place in the group: started again within
    `session_timeout_ms` under the same name, it keeps its partitions."""
    shard: str = "0/1"
    """Of a worker of items, which part of the products it holds, NUMBER/OF: `0/3`, `1/3` and `2/3` are three that
    hold all."""
    follow: bool = False
    """Whether a worker that shares partitions follows those of others as well, to take one over within seconds; it
    then holds all users in memory."""


@dataclass
class Origin:
    """Where a worker's state comes from, for the status and for `freshet verify`."""

    bundle: str = ""
    logs: list[LogPart] = field(default_factory=list)
    """What was read beside the topics, by this worker or before a snapshot that it began with."""
    started_ms: int = 0


class Outbox(Protocol):
    """Records on their way to the broker; `kafka.RecordProducer` is one."""

    failures: int
    last_failure: str | None

    def send(self, record: Outgoing) -> None: ...

    def poll(self) -> int: ...

    def flush(self, timeout_s: float) -> int: ...

    def __len__(self) -> int: ...


@dataclass
class Gained:
    """A scope on its way to being served: its token, and the next offsets at which it has caught up."""

    fence: int
    goal: dict[TopicPartition, int]


class Worker:
    """One process that owns some partitions of users, or the items, or all. Its parts are made in `wiring.py`."""

    def __init__(
        self,
        graph: GraphStore,
        updater: Updater,
        sink: Sink,
        serving: ServingState,
        consumer: Source,
        producer: Outbox,
        membership: Membership,
        topics: TopicSettings,
        counts: Mapping[str, int],
        origin: Origin,
        settings: WorkerSettings | None = None,
        popular_settings: PopularSettings | None = None,
        snapshots: Snapshots | None = None,
        name: str = "worker",
        letter_limits: DeadLetterLimits | None = None,
        incarnation: str | None = None,
        shard: Shard | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        """`counts`: partitions of each topic that is read; `incarnation`: the store's before the sink had its token;
        `shard`: of the products, for a worker of items that holds a part of them."""
        self.graph = graph
        self.updater = updater
        self.sink = sink
        self.serving, self.producer, self.membership = serving, producer, membership
        self.topics, self.counts = topics, dict(counts)
        self.placement = Placement(counts)
        self.origin = origin
        self.settings = settings or WorkerSettings()
        self.letter_limits = letter_limits or DeadLetterLimits()
        self.snapshots = snapshots
        if snapshots is not None:
            snapshots.on_loaded = self._loaded
            snapshots.add_logs(origin.logs)
            origin.logs = snapshots.logs
        self.role, self.name = updater.role, name
        self.shard = shard or Shard()
        graph.keeps = self.shard.judge(graph.products)
        self.popular_list = PopularList(graph, updater.towers.levels, sink, serving, self.shard, popular_settings)
        self.freshness = Freshness()
        self.reading = Reading(consumer, membership, snapshots, sink.should_stop, monotonic, sink.sleep)
        self.completeness = Completeness(
            updater, sink, serving, name, self._before_whole, self.settings.rewrite_chunk, progress,
            self._take_token, not membership.shares, incarnation, self._may_write_again,
        )  # fmt: skip
        self.cut = Cut(self.shard, self.completeness.first_of_items)
        self.gaining: dict[str, Gained] = {}
        self.rejected = 0  # of the records that this worker answers for, those that were no events
        self.ended = self._begun = self._built = False
        self._wall, self._monotonic, self._progress = wall, monotonic, progress
        self._ripple_at = self._busy_at = 0.0
        self._committed_at = monotonic()
        self._failures_seen = producer.failures
        self._next: dict[str, float] = {}

    # --- the loop -------------------------------------------------------------------------------

    def backfill(self, history: Iterable[EventColumns], total: int, should_stop: Callable[[], bool]) -> None:
        """Take history from an event log of `total` events; the topics may hold the same events again.

        It is put into snapshots first thing, so that the log need not be read a second time."""
        done = 0
        for columns in history:
            if should_stop():
                raise Stopped
            self.updater.absorb(columns)
            done += columns.event_count
            self._progress("backfill", min(done, total), total)
        if self.snapshots is not None:
            self.snapshots.all_now()

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Step until asked to stop; then commit what was done, and leave a snapshot if there is time."""
        while not should_stop():
            self.turn()
        self.stop()

    def turn(self) -> int:
        """One turn of the loop: poll, step, ripple, and whatever is due; returns how many records came.

        Raises Fenced when another worker has taken over what this one cannot give away.
        """
        if not self._begun:
            self._begin()
        self.membership.poll(self)
        polled = self.reading.poll(self.settings.poll_records_max)
        records = self._well_placed(self._take_states(polled))
        if records:
            self._step(records, len(polled) >= self.settings.poll_records_max)
        if self.gaining:
            self._serve_who_caught_up()
        if self._built:
            self._ripple()
            self._rewrite()
            if not polled and not self.completeness.rewrites:
                self.sink.settle()  # there is nothing to be done meanwhile
        self.producer.poll()
        self._give_up_refused()
        self._maybe("commit", self.settings.commit_interval_ms, self._commit_if_delivered)
        if self._built:
            if self.sink.interrupted:
                self._next["store"] = 0.0
            self._maybe("store", self.settings.sentinel_interval_ms, self._check_store)
            self._maybe("popular", self.settings.status_interval_ms, self.publish_popular)
        self._maybe("status", self.settings.status_interval_ms, self.publish_status)
        if self.snapshots is not None:
            self.snapshots.turn(self._snapshot_scopes(), self.reading.committed)
        return len(polled)

    def stop(self) -> None:
        """Commit what was done, write a last round of snapshots within the grace period, and leave the group."""
        self.commit()
        if self.snapshots is not None and (scopes := self._snapshot_scopes()):
            self.snapshots.all_now()
            end = self._monotonic() + self.settings.grace_s
            while not self.snapshots.idle and self._monotonic() < end:
                self.snapshots.turn(scopes, self.reading.committed)
            self.snapshots.abandon()
        self.ended = True
        self.publish_status()
        self.membership.close()

    def _step(self, records: list[Record], more: bool) -> None:
        self._busy_at = self._monotonic()
        if not self._built:
            decoded = self.updater.absorb_records(records)
        else:
            decoded = self.updater.step(records, more)
            sent = np.array([r.timestamp_ms for r in records], dtype=np.float64)
            self.sink.when_settled(lambda: self.freshness.add(self._wall() * 1e3 - sent))
        for record, rejection in decoded.rejections:
            self._send_dead_letter(record, rejection)

    # --- gaining and losing partitions ----------------------------------------------------------

    def _begin(self) -> None:
        """Gain what does not depend on who else is there: the items, or what is told of them. Read who is followed."""
        self._begun = True
        if self.role.writes_items:
            self._gain({self.shard.scope: [(topic, p) for topic, n in sorted(self.counts.items()) for p in range(n)]})
        else:
            states = self.topics.state_products
            self._gain({STATES: [(states, p) for p in range(self.counts[states])]})
        if self.settings.follow or self.role is Role.ITEMS:  # products read their users' states
            for p in range(self.sink.ownership.partitions):
                self.reading.read(users_scope(p), self._of_users(p))
            self.reading.begin()

    def gained(self, partitions: Sequence[int]) -> None:
        """See `Listener.gained`: take a token for each partition and read it from where its state stands."""
        self._gain({users_scope(p): self._of_users(p) for p in partitions})

    def _gain(self, scopes: Mapping[str, Sequence[TopicPartition]]) -> None:
        for scope, tps in scopes.items():
            fence = self.sink.fence if scope == STATES or is_items(scope) else self._take_token(scope)
            if self.reading.read(scope, tps):
                # The end is asked for after the token was taken: what the former owner wrote is behind it.
                self.gaining[scope] = Gained(fence, self.reading.ends(tps))
        self.reading.begin()

    def _take_token(self, scope: str, floor: int = 0) -> int:
        """A token for a scope; a store that was emptied forgets the last one, so none is below the wall clock."""
        floor = max(floor, int(self._wall() * 1e3))
        return self.sink.insist(lambda: self.serving.next_fence(scope, floor))

    def revoked(self, partitions: Sequence[int]) -> None:
        """See `Listener.revoked`."""
        self.commit()
        self.lost(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """See `Listener.lost`: what is held of these users is dropped, unless they are followed."""
        for p in partitions:
            scope = users_scope(p)
            self._drop(scope)
            if not self.settings.follow:
                self.reading.drop(scope)
                self.graph.release(self.sink.ownership.members(p))
        self.reading.begin()

    def _drop(self, scope: str) -> None:
        self.gaining.pop(scope, None)
        self.completeness.drop(scope)

    def _loaded(self, touched: Touched) -> None:
        if self._built:
            self.updater.take_in(touched)

    def _of_users(self, partition: int) -> list[TopicPartition]:
        return [(topic, partition) for topic in self.topics.by_user]

    def _serve_who_caught_up(self) -> None:
        """Serve the scopes that stand where the topics ended when they were gained; the first ones all together."""
        positions = self.reading.positions
        ready = [s for s, g in self.gaining.items() if all(positions[tp] >= end for tp, end in g.goal.items())]
        ready = [scope for scope in ready if self._may_serve(scope)]
        if not self._built:
            self._show_catching_up()
            if len(ready) < len(self.gaining):
                return
            self.updater.rebuild()
            self._built = True
        fences = {scope: self.gaining.pop(scope).fence for scope in ready}
        fences.pop(STATES, None)
        if self.shard.of > 1 and self.shard.is_first and self.shard.scope in fences:
            self.completeness.begin_cut(self.shard.of)
        if fences:
            self.completeness.serve(fences)

    def _may_serve(self, scope: str) -> bool:
        """A shard of products waits for the first one. Its token is taken then, not when it began to wait, and it looks
        once more afterwards: of two cuts the one whose first worker came later has the later tokens."""
        if self.shard.is_first or not is_items(scope):
            return True
        if self._monotonic() < self._next.get("first shard", 0.0):
            return False
        self._next["first shard"] = self._monotonic() + self.settings.sentinel_interval_ms / 1e3
        if not self.cut.check():
            return False
        floor = self.sink.insist(lambda: self.serving.fence(place_of(self.shard.first)))
        self.sink.fence = self._take_token(scope, floor)
        if not self.cut.check():
            return False
        self.cut.serve()
        return True

    def _may_write_again(self, scope: str) -> bool:
        """After a loss, too, a shard waits for the first one, whose sentinel is lost as well."""
        return not is_items(scope) or self.cut.check()

    def _check_store(self) -> None:
        if self.shard.scope in self.completeness.serves:
            self.cut.check()
        self.completeness.check_store()

    def _show_catching_up(self) -> None:
        goals = {tp: end for g in self.gaining.values() for tp, end in g.goal.items()}
        left = sum(max(0, end - self.reading.positions[tp]) for tp, end in goals.items())
        done = self.updater.totals.records
        self._progress("records to catch up", done, done + left)

    def _give_up_refused(self) -> None:
        """What the store refused is another worker's."""
        if self.sink.refused_own:
            raise Fenced(f"the worker {self.name!r}", self.sink.fence)
        while self.sink.refused:
            partition, fence = self.sink.refused.popitem()
            self._drop(users_scope(partition))
            if not self.membership.shares:
                raise Fenced(f"users of partition {partition}", fence)
            logger.warning("partition %d is another worker's: nothing of it is written any more", partition)

    # --- behind fresh updates -------------------------------------------------------------------

    def _ripple(self) -> None:
        """Work off ripples for a moment, then leave them alone until they have had no more than their share.

        An idle stream leaves them all of the time.
        """
        start = self._monotonic()
        idle = (start - self._busy_at) * 1e3 > self.settings.idle_after_ms
        if start < self._ripple_at and not idle:
            return
        self.updater.ripple(self.settings.ripple_turn_ms, idle)
        end = self._monotonic()
        share = self.updater.settings.ripple_share
        self._ripple_at = end + (end - start) * (1 - share) / share

    def _rewrite(self) -> None:
        """Write again for a moment what waits for it."""
        end = self._monotonic() + self.settings.rewrite_turn_ms / 1e3
        while self.completeness.rewrites:
            self.completeness.rewrite_once()
            if self._monotonic() >= end:
                return

    def _before_whole(self, scope: str) -> bool:
        """Items are whole when the changelog has been delivered, and what readers rank with is there."""
        if is_items(scope):
            if not self._flush():
                return False
            if self.shard.is_first:
                self.publish_ranker()
            self.popular_list.lost()
            self.publish_popular()
        return True

    # --- committing -----------------------------------------------------------------------------

    def commit(self) -> None:
        """Flush what the steps so far sent, then commit their offsets."""
        self.sink.settle()
        offsets = self._uncommitted()
        if offsets and self._flush():
            self._commit_now(offsets)

    def _uncommitted(self) -> dict[TopicPartition, int]:
        """Of what this worker answers for: a partition that is only followed is committed by its owner."""
        return self.reading.uncommitted([*self.completeness.serves, *self.gaining])

    def _commit_if_delivered(self) -> None:
        """Commit without waiting, when all that was sent has been acknowledged; wait only if it never is."""
        self._check_deliveries()
        offsets = self._uncommitted()
        if not offsets:
            return
        now = self._monotonic()
        if not len(self.producer):
            self.sink.settle()  # which may send the changelog of users
        if not len(self.producer):
            self._commit_now(offsets)
        elif now - self._committed_at > self.settings.commit_wait_ms / 1e3:
            self.commit()
        else:
            self._next["commit"] = now  # at the next turn

    def _commit_now(self, offsets: Mapping[TopicPartition, int]) -> None:
        self.reading.commit(offsets)
        self._committed_at = self._monotonic()

    def _flush(self) -> bool:
        """Whether everything sent so far has been acknowledged."""
        left = self.producer.flush(self.settings.flush_timeout_s)
        self._check_deliveries()
        return left == 0

    def _check_deliveries(self) -> None:
        if self.producer.failures > self._failures_seen:
            raise KafkaError(
                f"{self.producer.failures} records (dead letters or product embeddings) could not be delivered: "
                f"{self.producer.last_failure}. Their offsets are not committed; start the worker again"
            )

    # --- what readers and operators see ---------------------------------------------------------

    def publish_ranker(self) -> None:
        """Write the ranker that readers rank with."""
        self.sink.write_blob("ranker", dump_ranker(self.updater.towers.bundle.ranker), self.serving)

    def publish_popular(self) -> None:
        """Keep the list of popular products up to date, where products are served."""
        if self.shard.scope in self.completeness.serves:
            self.popular_list.publish()

    def publish_status(self) -> None:
        """Write what the worker is doing where `freshet status` and `verify` find it."""
        self.sink.settle()
        self.sink.write_blob(status_blob(self.name), msgspec.json.encode(self.status()), self.serving)

    @property
    def state(self) -> str:
        """`starting`, `catching up`, `rewriting` (fresh updates are served), `live`, or `stopped`."""
        if self.ended:
            return "stopped"
        if not self._built:
            return "catching up" if self.gaining else "starting"
        return "rewriting" if self.completeness.rewrites or self.gaining else "live"

    def status(self) -> dict[str, Any]:
        """What the worker is doing, as one JSON object."""
        return status_of(self, int(self._wall() * 1e3))

    # --- records --------------------------------------------------------------------------------

    def _take_states(self, records: list[Record]) -> list[Record]:
        """Take the states of products among these records; returns the others."""
        if self.role.writes_items:
            return records
        states = [r for r in records if r.topic == self.topics.state_products]
        if states:
            self.updater.take_states(states)
        return [r for r in records if r.topic != self.topics.state_products] if states else records

    def _well_placed(self, records: list[Record]) -> list[Record]:
        """Those on the partition of their key; the others are dead-lettered."""
        misplaced = self.placement.misplaced(records)
        if not misplaced:
            return records
        for place, rejection in misplaced.items():
            self._send_dead_letter(records[place], rejection)
        return [r for i, r in enumerate(records) if i not in misplaced]

    def _send_dead_letter(self, record: Record, rejection: Any) -> None:
        """Once: by the worker that owns its partition, and not what had been committed, and so delivered, before."""
        if not self._answers_for(record):
            return
        self.rejected += 1
        if record.offset >= self.reading.committed.get((record.topic, record.partition), 0):
            self.producer.send(to_deadletter(record, rejection, self.topics.deadletter, self.letter_limits))

    def _answers_for(self, record: Record) -> bool:
        if self.role is Role.ALL:
            return True
        if record.topic not in self.topics.by_user:
            return self.role is Role.ITEMS and self.shard.is_first
        scope = users_scope(record.partition)
        return self.role is Role.USERS and (scope in self.completeness.serves or scope in self.gaining)

    def _snapshot_scopes(self) -> dict[str, dict[TopicPartition, int]]:
        """The scopes that a snapshot may be taken of, with their next offsets."""
        reading = self.reading
        return {s: {tp: reading.positions[tp] for tp in reading.scopes[s]} for s in self.completeness.serves}

    def _maybe(self, name: str, interval_ms: float, act: Callable[[], None]) -> None:
        now = self._monotonic()
        if now >= self._next.get(name, 0.0):
            self._next[name] = now + interval_ms / 1e3
            act()


def partitions_of(described: Mapping[str, int]) -> list[TopicPartition]:
    """Every partition of these topics (topic -> number of partitions)."""
    return [(topic, p) for topic, n in sorted(described.items()) for p in range(n)]
