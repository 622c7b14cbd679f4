"""The process around the updater: take a fence, catch up, go live, then step, ripple and commit for ever.

Memory is a cache of the topics. A worker starts empty, takes history from an event log if it is given
one, then everything the broker still holds, without showing readers the past; only when it stands where
the topics ended at its start does it write, and from then on with every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from freshet.store.columns import EventColumns
from freshet.store.embeddings import ServingState
from freshet.store.graph import GraphStore
from freshet.store.popular import PopularSettings, popular
from freshet.store.ranker import dump_weights
from freshet.stream.deadletter import to_deadletter
from freshet.stream.decode import Decoded
from freshet.stream.kafka import KafkaError, PartitionConsumer, RecordProducer
from freshet.stream.placement import Placement
from freshet.stream.records import Record
from freshet.stream.sink import Sink, Stopped
from freshet.stream.updater import Updater

TopicPartition = tuple[str, int]


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
    flush_timeout_s: float = 30.0


class Freshness:
    """Milliseconds from a record's timestamp in Kafka to its user's embedding being readable."""

    def __init__(self, size: int = 65_536) -> None:
        self._ring = np.zeros(size, dtype=np.float32)
        self._count = 0

    def add(self, ages_ms: np.ndarray) -> None:
        """Note n ages; the newest `size` are kept."""
        ages = ages_ms[-self._ring.shape[0] :]
        places = (self._count + np.arange(ages.shape[0])) % self._ring.shape[0]
        self._ring[places] = ages
        self._count += ages.shape[0]

    def percentiles(self) -> dict[str, float]:
        """p50 and p99 of the ages kept."""
        kept = self._ring[: min(self._count, self._ring.shape[0])]
        if not kept.shape[0]:
            return {}
        p50, p99 = np.percentile(kept, [50, 99])
        return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


@dataclass
class Origin:
    """Where a worker's state comes from, for the status and for `freshet verify`."""

    bundle: str = ""
    backfill: str | None = None
    backfill_until_ms: int | None = None
    started_ms: int = 0


class Worker:
    """One process that owns every partition. Its parts are made in `wiring.py`."""

    def __init__(
        self,
        graph: GraphStore,
        updater: Updater,
        sink: Sink,
        serving: ServingState,
        consumer: PartitionConsumer,
        producer: RecordProducer,
        deadletter_topic: str,
        placement: Placement,
        origin: Origin,
        settings: WorkerSettings | None = None,
        popular_settings: PopularSettings | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.graph = graph
        self.updater = updater
        self.sink = sink
        self.serving = serving
        self.consumer = consumer
        self.producer = producer
        self.deadletter_topic = deadletter_topic
        self.placement = placement
        self.origin = origin
        self.settings = settings or WorkerSettings()
        self.popular_settings = popular_settings or PopularSettings()
        self.freshness = Freshness()
        self.positions: dict[TopicPartition, int] = {}
        self.state = "starting"
        self._wall = wall
        self._monotonic = monotonic
        self._popular_tick: int | None = None
        self._ripple_at = 0.0
        self._busy_at = 0.0
        self._committed_at = 0.0
        self._failures_seen = producer.failures
        self._next: dict[str, float] = {}
        self._committed: dict[TopicPartition, int] = {}

    def backfill(
        self, history: Iterable[EventColumns], total: int, should_stop: Callable[[], bool],
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:  # fmt: skip
        """Take history from an event log of `total` events; the topics may hold the same events again."""
        done = 0
        for columns in history:
            if should_stop():
                raise Stopped
            self.updater.absorb(columns)
            done += columns.event_count
            progress("backfill", min(done, total), total)

    def catch_up(
        self, partitions: list[TopicPartition], should_stop: Callable[[], bool],
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:  # fmt: skip
        """Take everything the broker holds now, without writing; then write everything once."""
        self.state = "catching up"
        marks = self.consumer.watermarks(partitions)
        self._committed = self.consumer.committed(partitions)
        self.positions = {tp: low for tp, (low, _) in marks.items()}
        self.consumer.assign(self.positions)
        goal = {tp: high for tp, (_, high) in marks.items()}
        total = sum(high - low for low, high in marks.values())
        while any(self.positions[tp] < high for tp, high in goal.items()):
            if should_stop():
                raise Stopped
            records = self._accept(self.consumer.poll(self.settings.poll_records_max, 0.1))
            self._dead_letter(self.updater.absorb_records(records))
            self._maybe("status", self.settings.status_interval_ms, self.publish_status)
            if progress:
                left = sum(max(0, high - self.positions[tp]) for tp, high in goal.items())
                progress("records", total - left, total)
        self.updater.go_live(progress)
        self._flush()
        self.publish_ranker()
        self.publish_popular()
        self.serving.set_sentinel(self.sink.model_version, str(self.sink.fence))
        self.serving.set_current(self.sink.model_version)
        self.state = "live"
        self._committed_at = self._monotonic()
        self.publish_status()

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Step until asked to stop; then commit what was done."""
        try:
            while not should_stop():
                self.turn()
        finally:
            self.state = "stopped"
        self.commit()
        self.publish_status()

    def turn(self) -> int:
        """One turn of the loop: poll, step, ripple, and whatever is due; returns how many records came."""
        polled = self.consumer.poll(self.settings.poll_records_max)
        if polled:
            self._busy_at = self._monotonic()
            records = self._accept(polled)
            self._dead_letter(self.updater.step(records))
            ages = self._wall() * 1e3 - np.array([r.timestamp_ms for r in polled], dtype=np.float64)
            self.freshness.add(ages)
        self._ripple()
        self.producer.poll()
        self._maybe("commit", self.settings.commit_interval_ms, self._commit_if_delivered)
        self._maybe("popular", self.settings.status_interval_ms, self.publish_popular)
        self._maybe("sentinel", self.settings.sentinel_interval_ms, self.check_sentinel)
        self._maybe("status", self.settings.status_interval_ms, self.publish_status)
        return len(polled)

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
        self.consumer.commit(self.positions)
        self._committed = dict(self.positions)
        self._committed_at = self._monotonic()

    def check_sentinel(self) -> None:
        """Redis lost its data: write all of it again, then point readers to it."""
        if self.sink.insist(lambda: self.serving.sentinel(self.sink.model_version)) is not None:
            return
        self.state = "rewriting"
        self._popular_tick = None
        self.updater.rewrite()
        self.publish_ranker()
        self.publish_popular()
        version = self.sink.model_version
        self.sink.insist(lambda: self.serving.set_sentinel(version, str(self.sink.fence)))
        self.sink.insist(lambda: self.serving.set_current(version))
        self.state = "live"

    def publish_ranker(self) -> None:
        """Write the coefficients of the ranker, which readers rank with."""
        self.sink.write_blob("ranker", dump_weights(self.updater.towers.bundle.ranker), self.serving)

    def publish_popular(self) -> None:
        """Write the list of popular products when event time has passed a tick."""
        levels = self.updater.towers.levels
        if levels.at_ms == self._popular_tick:
            return
        numbers, found = popular(self.graph, levels.values(), self.popular_settings)
        names = self.graph.products.names(numbers)
        blob = msgspec.msgpack.encode(list(zip(names, found.round(4).tolist(), strict=True)))
        self.sink.write_blob("popular", blob, self.serving)
        self._popular_tick = levels.at_ms

    def publish_status(self) -> None:
        """Write what the worker is doing where `freshet status` and `verify` find it."""
        self.sink.write_blob("status", msgspec.json.encode(self.status()), self.serving)

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
            "undelivered": len(self.producer),
            "ripple_staleness_ms": round(self.updater.staleness_ms(), 1),
            "freshness_ms": self.freshness.percentiles(),
            "seconds": {k: round(v, 3) for k, v in totals.seconds.items()},
            "positions": {f"{t}/{p}": offset for (t, p), offset in sorted(self.positions.items())},
        }

    # --- parts ----------------------------------------------------------------------------------

    def _accept(self, polled: list[Record]) -> list[Record]:
        """Move the positions past these records; those on a wrong partition are dead-lettered."""
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
        if record.offset >= self._committed.get((record.topic, record.partition), 0) or self.state == "live":
            self.producer.send(to_deadletter(record, rejection, self.deadletter_topic))

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

    def _maybe(self, name: str, interval_ms: float, act: Callable[[], None]) -> None:
        now = self._monotonic()
        if now >= self._next.get(name, 0.0):
            self._next[name] = now + interval_ms / 1e3
            act()


def partitions_of(described: Mapping[str, int]) -> list[TopicPartition]:
    """Every partition of these topics (topic -> number of partitions)."""
    return [(topic, p) for topic, n in sorted(described.items()) for p in range(n)]
