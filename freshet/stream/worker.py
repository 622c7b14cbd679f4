"""The process around the updater: gain partitions, catch up, then step, ripple and commit for ever.

Memory is a cache of the topics. A partition that is gained is brought up to date without showing readers the past:
from a snapshot if there is one, then from what the broker holds after it. When it stands where the topics ended, its
users are written with every step, and all of them once more behind the fresh ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from freshet.store.columns import EventColumns
from freshet.store.embeddings import ServingState
from freshet.store.graph import GraphStore
from freshet.store.popular import PopularSettings, popular
from freshet.store.ranker import dump_weights
from freshet.stream.deadletter import to_deadletter
from freshet.stream.decode import Decoded
from freshet.stream.freshness import Freshness
from freshet.stream.kafka_errors import KafkaError, OffsetGap
from freshet.stream.membership import Membership, TopicPartition
from freshet.stream.placement import Placement
from freshet.stream.records import Outgoing, Record
from freshet.stream.rewriting import ITEMS, Rewrites, partition_in, says_whole, users_scope
from freshet.stream.sink import Fenced, Sink, Stopped
from freshet.stream.topics import TopicSettings
from freshet.stream.updater import Updater

if TYPE_CHECKING:
    from freshet.stream.snapshots import Snapshots

logger = logging.getLogger("freshet.worker")


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker polls, commits and reports."""

    poll_records_max: int = 2_000
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
    rewrite_turn_ms: float = 15.0
    """Of writing everything again, what goes between two polls, at most (and one chunk at least)."""
    rewrite_chunk: int = 256
    """Nodes written again at a time."""
    flush_timeout_s: float = 30.0
    grace_s: float = 10.0
    """After being asked to stop: how long a last round of snapshots may take."""


@dataclass
class Origin:
    """Where a worker's state comes from, for the status and for `freshet verify`."""

    bundle: str = ""
    backfill: str | None = None
    backfill_until_ms: int | None = None
    started_ms: int = 0


class Source(Protocol):
    """Records of given partitions from given offsets; `kafka.PartitionConsumer` is one."""

    def assign(self, positions: Mapping[TopicPartition, int]) -> None: ...

    def poll(self, records_max: int, timeout_s: float | None = None) -> list[Record]: ...

    def watermarks(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]: ...


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
    """One process that owns some partitions of users, and the items. Its parts are made in `wiring.py`."""

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
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        self.graph = graph
        self.updater = updater
        self.sink = sink
        self.serving = serving
        self.consumer = consumer
        self.producer = producer
        self.membership = membership
        self.topics = topics
        self.counts = dict(counts)
        self.placement = Placement(counts)
        self.origin = origin
        self.settings = settings or WorkerSettings()
        self.popular_settings = popular_settings or PopularSettings()
        self.snapshots = snapshots
        self.freshness = Freshness()
        self.rewrites = Rewrites()
        self.positions: dict[TopicPartition, int] = {}
        self.gaining: dict[str, Gained] = {}
        self.serves: set[str] = set()
        """Scopes that have caught up and are written with every step."""
        self.whole: set[str] = set()
        """Scopes all of whose embeddings are in the store."""
        self._sentinels: dict[str, bytes] = {}
        """What this worker left in the store beside the values of each scope: gone or other, so may the values be."""
        self.ended = False
        self._built = False
        self._wall, self._monotonic, self._progress = wall, monotonic, progress
        self._popular_tick: int | None = None
        self._incarnation: str | None = None
        self._ripple_at = 0.0
        self._busy_at = 0.0
        self._committed_at = monotonic()
        self._failures_seen = producer.failures
        self._next: dict[str, float] = {}
        self._committed: dict[TopicPartition, int] = {}

    # --- the loop -------------------------------------------------------------------------------

    def backfill(
        self, history: Iterable[EventColumns], total: int, should_stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Take history from an event log of `total` events; the topics may hold the same events again."""
        done = 0
        for columns in history:
            if should_stop():
                raise Stopped
            self.updater.absorb(columns)
            done += columns.event_count
            self._progress("backfill", min(done, total), total)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Step until asked to stop; then commit what was done, and leave a snapshot if there is time."""
        while not should_stop():
            self.turn()
        self.stop()

    def turn(self) -> int:
        """One turn of the loop: poll, step, ripple, and whatever is due; returns how many records came.

        Raises Fenced when another worker has taken over what this one cannot give away.
        """
        self.membership.poll(self)
        polled = self.consumer.poll(self.settings.poll_records_max)
        records = self._accept(polled)
        if records:
            self._busy_at = self._monotonic()
            self._dead_letter(self.updater.step(records) if self._built else self.updater.absorb_records(records))
            if self._built:
                ages = self._wall() * 1e3 - np.array([r.timestamp_ms for r in polled], dtype=np.float64)
                self.freshness.add(ages)
        if self.gaining:
            self._serve_who_caught_up()
        if self._built:
            self._ripple()
            self._rewrite()
        self.producer.poll()
        self._give_up_refused()
        self._maybe("commit", self.settings.commit_interval_ms, self._commit_if_delivered)
        if self._built:
            self._maybe("sentinel", self.settings.sentinel_interval_ms, self.check_store)
            self._maybe("popular", self.settings.status_interval_ms, self.publish_popular)
        self._maybe("status", self.settings.status_interval_ms, self.publish_status)
        if self.snapshots is not None:
            self.snapshots.turn(self._snapshot_scopes(), self._committed)
        return len(polled)

    def stop(self) -> None:
        """Commit what was done, write a last round of snapshots within the grace period, and leave the group."""
        self.commit()
        if self.snapshots is not None and self._built:
            self.snapshots.all_now()
            end = self._monotonic() + self.settings.grace_s
            while not self.snapshots.idle and self._monotonic() < end:
                self.snapshots.turn(self._snapshot_scopes(), self._committed)
            self.snapshots.abandon()
        self.ended = True
        self.publish_status()
        self.membership.close()

    # --- gaining and losing partitions ----------------------------------------------------------

    def gained(self, partitions: Sequence[int]) -> None:
        """See `Listener.gained`: take a token for each partition and read it from where its state stands."""
        scopes = {users_scope(p): self._of_users(p) for p in partitions}
        if ITEMS not in self.serves and ITEMS not in self.gaining:
            scopes[ITEMS] = [(topic, p) for topic, n in sorted(self.counts.items()) for p in range(n)]
        floor = int(self._wall() * 1e3)
        fences = {
            scope: self.sink.fence if scope == ITEMS else self.sink.insist(lambda s=scope: self.serving.next_fence(s, floor))
            for scope in scopes
        }  # fmt: skip
        starts = self._starts(scopes)
        self._committed.update(self.membership.committed([tp for tp in starts if tp not in self._committed]))
        marks = self.consumer.watermarks(starts)
        for (topic, partition), at in starts.items():
            low, high = marks[topic, partition]
            if not low <= at <= high:
                raise OffsetGap(topic, partition, at, low, high)
        self.positions.update(starts)
        self.consumer.assign(self.positions)
        for scope, tps in scopes.items():
            self.gaining[scope] = Gained(fences[scope], {tp: marks[tp][1] for tp in tps})

    def _starts(self, scopes: Mapping[str, Sequence[TopicPartition]]) -> dict[TopicPartition, int]:
        """Where reading begins: for each partition the least offset that one of its scopes is complete up to."""
        lows = {tp: low for tp, (low, _) in self.consumer.watermarks({tp for tps in scopes.values() for tp in tps}).items()}
        starts: dict[TopicPartition, int] = {}
        for scope, tps in scopes.items():
            known = self.snapshots.load(scope) if self.snapshots is not None else {}
            for tp in tps:
                starts[tp] = min(known.get(tp, lows[tp]), starts.get(tp, known.get(tp, lows[tp])))
        return {tp: min(at, self.positions.get(tp, at)) for tp, at in starts.items()}

    def revoked(self, partitions: Sequence[int]) -> None:
        """See `Listener.revoked`."""
        self.commit()
        self.lost(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """See `Listener.lost`."""
        for p in partitions:
            self.sink.ownership.drop(p)
            self._forget_scope(users_scope(p))

    def _forget_scope(self, scope: str) -> None:
        self.serves.discard(scope)
        self.whole.discard(scope)
        self._sentinels.pop(scope, None)
        self.gaining.pop(scope, None)
        self.rewrites.drop(scope)

    def _of_users(self, partition: int) -> list[TopicPartition]:
        return [(topic, partition) for topic in self.topics.by_user]

    def _serve_who_caught_up(self) -> None:
        """Serve the scopes that stand where the topics ended when they were gained; the first ones all together."""
        ready = [s for s, g in self.gaining.items() if all(self.positions[tp] >= high for tp, high in g.goal.items())]
        if not self._built:
            self._show_catching_up()
            if len(ready) < len(self.gaining):
                return
            self.updater.rebuild()
            self._built = True
        for scope in ready:
            gained = self.gaining.pop(scope)
            self.serves.add(scope)
            if scope != ITEMS:
                self.sink.ownership.grant(partition_in(scope), gained.fence)
            self._write_again(scope)
        if ready:
            self.rewrites.compare(self.sink.held_users())

    def _show_catching_up(self) -> None:
        goals = {tp: high for g in self.gaining.values() for tp, high in g.goal.items()}
        left = sum(max(0, high - self.positions[tp]) for tp, high in goals.items())
        self._progress("records to catch up", self.updater.totals.records, self.updater.totals.records + left)

    def _give_up_refused(self) -> None:
        """What the store refused is another worker's."""
        if self.sink.refused_own:
            raise Fenced("the worker itself", self.sink.fence)
        while self.sink.refused:
            partition, fence = self.sink.refused.popitem()
            self._forget_scope(users_scope(partition))
            if not self.membership.shares:
                raise Fenced(f"users of partition {partition}", fence)
            logger.warning("partition %d is another worker's: nothing of it is written any more", partition)

    # --- writing again --------------------------------------------------------------------------

    def _rewrite(self) -> None:
        """Write again for a moment what waits for it; then note the scopes that are whole."""
        end = self._monotonic() + self.settings.rewrite_turn_ms / 1e3
        while self.rewrites:
            self._rewrite_once()
            if self._monotonic() >= end:
                return

    def _rewrite_once(self) -> None:
        rewrites = self.rewrites
        taken = rewrites.take(self.settings.rewrite_chunk)
        if taken is None:
            self.sink.forget_strangers(rewrites.take_names(self.settings.rewrite_chunk))
            return
        scope, nodes, last = taken
        if scope == ITEMS:
            self.updater.write_products(nodes)
        else:
            self.updater.write_users(nodes)
        self._progress("written", rewrites.total - rewrites.waiting, rewrites.total)
        if last and scope in self.serves:
            self._note_whole(scope)

    def _write_again(self, scope: str) -> None:
        """Have all of a scope written behind fresh updates; until then a sentinel says that it is not whole."""
        self.whole.discard(scope)
        self._leave_sentinel(scope, whole=False)
        if scope == ITEMS:
            self.rewrites.add(scope, np.arange(len(self.graph.products), dtype=np.int32))
        else:
            self.rewrites.add(scope, self.sink.ownership.members(partition_in(scope)))

    def _note_whole(self, scope: str) -> None:
        """All of a scope is written, if the store has not lost it meanwhile: say so beside its values.

        When all scopes are whole, those of other workers too, readers are pointed to this version.
        """
        if self._sentinel(scope) != self._sentinels.get(scope):
            self._write_again(scope)
            return
        if scope == ITEMS:
            self._flush()
            self.publish_ranker()
            self._popular_tick = None
            self.publish_popular()
        if not self._leave_sentinel(scope, whole=True):
            return
        self.whole.add(scope)
        every = [ITEMS, *(users_scope(p) for p in range(self.sink.ownership.partitions))]
        if all(s in self.whole or says_whole(self._sentinel(s)) for s in every):
            self.sink.insist(lambda: self.serving.set_current(self.sink.model_version))

    def _leave_sentinel(self, scope: str, whole: bool) -> bool:
        fence = None if scope == ITEMS else self.sink.ownership.fences.get(partition_in(scope))
        text = msgspec.json.encode({"scope": scope, "fence": fence or self.sink.fence, "whole": whole})
        self._sentinels[scope] = text
        return self.sink.write_blob(f"sentinel:{scope}", text, self.serving, fence)

    def _sentinel(self, scope: str) -> bytes | None:
        return self.sink.insist(lambda: self.serving.get_blob(f"{self.sink.model_version}:sentinel:{scope}"))

    def check_store(self) -> None:
        """Where the store has lost what was written, or may have, write it again behind fresh updates."""
        incarnation = self.sink.insist(self.serving.incarnation)
        changed = self._incarnation is not None and incarnation != self._incarnation
        self._incarnation = incarnation
        for scope in sorted(self.serves):
            if changed or self._sentinel(scope) != self._sentinels.get(scope):
                logger.warning("%s: the store has lost its data or may have; all of it is written again", scope)
                self._write_again(scope)

    # --- committing -----------------------------------------------------------------------------

    def commit(self) -> None:
        """Flush what the steps so far sent, then commit their offsets."""
        if self.positions != self._committed and self._flush():
            self._commit_now()

    def _commit_if_delivered(self) -> None:
        """Commit without waiting, when all that was sent has been acknowledged; wait only if it never is."""
        if self.positions == self._committed:
            return
        now = self._monotonic()
        if not len(self.producer):
            self._check_deliveries()
            self._commit_now()
        elif now - self._committed_at > self.settings.commit_wait_ms / 1e3:
            self.commit()
        else:
            self._next["commit"] = now  # at the next turn

    def _commit_now(self) -> None:
        self.membership.commit(self.positions)
        self._committed = dict(self.positions)
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
        """Write the coefficients of the ranker, which readers rank with."""
        self.sink.write_blob("ranker", dump_weights(self.updater.towers.bundle.ranker), self.serving)

    def publish_popular(self) -> None:
        """Write the list of popular products when event time has passed a tick."""
        levels = self.updater.towers.levels
        if ITEMS not in self.serves or levels.at_ms == self._popular_tick:
            return
        numbers, found = popular(self.graph, levels.values(), self.popular_settings)
        names = self.graph.products.names(numbers)
        blob = msgspec.msgpack.encode(list(zip(names, found.round(4).tolist(), strict=True)))
        self.sink.write_blob("popular", blob, self.serving)
        self._popular_tick = levels.at_ms

    def publish_status(self) -> None:
        """Write what the worker is doing where `freshet status` and `verify` find it."""
        self.sink.write_blob("status", msgspec.json.encode(self.status()), self.serving)

    @property
    def state(self) -> str:
        """`starting`, `catching up`, `rewriting` (fresh updates are served), `live`, or `stopped`."""
        if self.ended:
            return "stopped"
        if not self._built:
            return "catching up" if self.gaining else "starting"
        return "rewriting" if self.rewrites or self.gaining else "live"

    def status(self) -> dict[str, Any]:
        """What the worker is doing, as one JSON object."""
        totals = self.updater.totals
        return {
            "state": self.state,
            "model_version": self.sink.model_version,
            "dim": self.sink.dim,
            "fence": self.sink.fence,
            "origin": msgspec.to_builtins(self.origin),
            "written_ms": int(self._wall() * 1e3),
            "users": len(self.graph.users),
            "products": len(self.graph.products),
            "event_time_max": self.graph.event_time_max,
            "records": totals.records,
            "events": totals.events,
            "purchase_lines": totals.lines,
            "rejected": totals.rejected,
            "users_written": totals.users_written,
            "users_rippled": totals.users_rippled,
            "products_written": totals.products_written,
            "ripple_waves": totals.waves,
            "ripples_waiting": self.updater.ripples.waiting,
            "rewrites_waiting": self.rewrites.waiting,
            "undelivered": len(self.producer),
            "ripple_staleness_ms": round(self.updater.staleness_ms(), 1),
            "freshness_ms": self.freshness.percentiles(),
            "seconds": {k: round(v, 3) for k, v in totals.seconds.items()},
            "positions": {f"{t}/{p}": offset for (t, p), offset in sorted(self.positions.items())},
            "serves": sorted(self.serves),
            "snapshots": self._snapshot_status(),
        }

    def _snapshot_status(self) -> dict[str, Any] | None:
        if self.snapshots is None:
            return None
        s = self.snapshots
        return {"taken": s.taken, "error": s.error, "pause_ms_max": round(s.pause_ms_max, 2)}

    # --- parts ----------------------------------------------------------------------------------

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

    def _accept(self, polled: list[Record]) -> list[Record]:
        """Move the positions past these records; those on a wrong partition are dead-lettered, and those of
        partitions that are not read any more dropped."""
        polled = [r for r in polled if (r.topic, r.partition) in self.positions]
        for record in polled:
            self.positions[record.topic, record.partition] = record.offset + 1
        misplaced = self.placement.misplaced(polled)
        if not misplaced:
            return polled
        self.updater.totals.rejected += len(misplaced)
        for place, rejection in misplaced.items():
            self._send_dead_letter(polled[place], rejection)
        return [r for i, r in enumerate(polled) if i not in misplaced]

    def _dead_letter(self, decoded: Decoded) -> None:
        for record, rejection in decoded.rejections:
            self._send_dead_letter(record, rejection)

    def _send_dead_letter(self, record: Record, rejection: Any) -> None:
        """Not twice: what an earlier run had committed, it had also dead-lettered."""
        if record.offset >= self._committed.get((record.topic, record.partition), 0):
            self.producer.send(to_deadletter(record, rejection, self.topics.deadletter))

    def _snapshot_scopes(self) -> dict[str, dict[TopicPartition, int]]:
        """The scopes that a snapshot may be taken of, with their next offsets."""
        found = {}
        for scope in self.serves:
            if scope == ITEMS:
                found[scope] = dict(self.positions)
            else:
                tps = self._of_users(partition_in(scope))
                found[scope] = {tp: self.positions[tp] for tp in tps}
        return found

    def _maybe(self, name: str, interval_ms: float, act: Callable[[], None]) -> None:
        now = self._monotonic()
        if now >= self._next.get(name, 0.0):
            self._next[name] = now + interval_ms / 1e3
            act()


def partitions_of(described: Mapping[str, int]) -> list[TopicPartition]:
    """Every partition of these topics (topic -> number of partitions)."""
    return [(topic, p) for topic, n in sorted(described.items()) for p in range(n)]
