"""State from an event log as snapshots that workers begin with: the remedy where the broker has not kept enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from freshet.errors import FreshetError
from freshet.store.graph import GraphStore
from freshet.store.snapshot import LogPart
from freshet.store.snapshot_places import open_place
from freshet.stream.eventlog import EventLog
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.membership import TopicPartition
from freshet.stream.ownership import Ownership
from freshet.stream.rewriting import ITEMS, users_scope
from freshet.stream.settings import Settings
from freshet.stream.snapshots import InTurn, Snapshots
from freshet.stream.worker import partitions_of


def backfill(
    settings: Settings, counts: Mapping[str, int], log: Path, until_ms: int | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, object]:  # fmt: skip
    """Write a snapshot of every scope: what the newest ones and the log come to, complete up to the oldest record the
    broker still has, or further where a snapshot was.

    The log has to hold everything between: nothing here can know whether it does. `counts`: partitions of the input
    topics. Raises FreshetError where no place is set or it cannot be written, LimitsDiffer, EventLogError.
    """
    if settings.snapshot.place is None:
        raise FreshetError("there is no place for snapshots: name one with --snapshots or FRESHET_SNAPSHOT_PLACE")
    source = EventLog(log)
    ids = {topic: there or "" for topic, there in TopicAdmin(settings.kafka).topic_ids(settings.topics.inputs).items()}
    consumer = PartitionConsumer(settings.kafka)
    try:
        lows = {tp: low for tp, (low, _) in consumer.watermarks(partitions_of(counts)).items()}
    finally:
        consumer.close()
    graph = GraphStore(settings.graph)
    partitions = counts[settings.topics.view]
    ownership = Ownership(graph.users, partitions)

    def snapshots() -> Snapshots:
        place = open_place(settings.snapshot.place or "")
        return Snapshots(graph, ownership, place, settings.snapshot, "", ids, begin=InTurn)

    tps_of = {ITEMS: sorted(lows)} | {
        users_scope(p): [(topic, p) for topic in settings.topics.by_user] for p in range(partitions)
    }
    scopes: dict[str, dict[TopicPartition, int]] = {}
    before = snapshots()
    for scope, tps in tps_of.items():
        known = before.load(scope) or {}
        scopes[scope] = {tp: max(known.get(tp, 0), lows[tp]) for tp in tps}
    done, total = 0, sum(source.counts.values())
    for columns in source.columns(until_ms=until_ms):
        graph.apply(columns)
        done += columns.event_count
        progress("backfill", min(done, total), total)
    writing = snapshots()
    writing.add_logs([*before.logs, LogPart(str(log.resolve()), until_ms)])
    writing.all_now()
    committed = {tp: at for positions in scopes.values() for tp, at in positions.items()}
    while not writing.idle:
        writing.turn(scopes, committed)
    if writing.error is not None:
        raise FreshetError(writing.error)
    return {"events": done, "snapshots": writing.taken, "users": len(graph.users), "products": len(graph.products)}
