"""What each fault does to the process at whose effect it strikes, and to its surroundings."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from freshet.store.snapshot import SnapshotCorrupt
from freshet.store.snapshot_file import SnapshotReader
from tests.simulation.world import Fault, Process

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster


def _crash(cluster: Cluster, fault: Fault, process: Process) -> None:
    """The process dies; with size 1 its machine loses power, and with it every other process there."""
    process.dead = True
    if fault.size:
        for other in cluster.world.processes:
            other.dead = True
        cluster.disk.lose_power()


def _redis_down(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.redis.down_until = cluster.world.now_s + fault.size / 1e3


def _no_answer(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.redis.lose_answers = 1 + fault.size % 3


def _redis_lost(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.redis.empty()


def _redis_back(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.redis.back_to(fault.size)


def _broker_down(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.broker.down_until = cluster.world.now_s + fault.size / 1e3


def _delivery_fails(cluster: Cluster, fault: Fault, process: Process) -> None:
    outbox = cluster.outboxes.get(process.name)
    if outbox is not None:
        outbox.fail_next = 1 + fault.size % 2


def _disk_fails(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.disk.fail.append(("open", "write", "sync", "rename", "remove", "list")[fault.size % 6])


def _stop(cluster: Cluster, fault: Fault, process: Process) -> None:
    process.stopping = True


def _second(cluster: Cluster, fault: Fault, process: Process) -> None:
    """Another worker starts beside this one, which may fall asleep for a while."""
    cluster.start((process.role, process.shard), spare=True)
    process.asleep_until = cluster.world.now_s + fault.size / 1e3


def _falls_asleep(cluster: Cluster, fault: Fault, process: Process) -> None:
    process.asleep_until = cluster.world.now_s + fault.size / 1e3


def _taken_for_dead(cluster: Cluster, fault: Fault, process: Process) -> None:
    """The group gives its partitions to others while it goes on."""
    for member in list(cluster.group.members):
        if member.process is process:
            cluster.group.expel(member)


def _clock_jumps(cluster: Cluster, fault: Fault, process: Process) -> None:
    process.wall_ahead_s += fault.size


def _damage(cluster: Cluster, fault: Fault, process: Process) -> None:
    """A snapshot is damaged; while the topics hold everything, it is not needed."""
    names = sorted(n for n in cluster.disk.entries if n.endswith(".snapshot"))
    if names and not any(cluster.broker.low.values()) and not cluster.gap_made:
        name = names[-1 - fault.size % len(names)]
        if cluster.disk.entries[name].data:
            cluster.disk.damage(name)


def _needed(cluster: Cluster) -> dict[tuple[str, int], int] | None:
    """The oldest offsets that a worker which starts now may have to read; None where there is no snapshot of some
    scope, so that all of them are needed, or where several workers share what is read."""
    if cluster.shape.users_workers or cluster.disk.damaged:
        return None
    safe = {n: d for n, d in cluster.disk.safe().items() if n.endswith(".snapshot")}
    try:
        heads = [SnapshotReader(io.BytesIO(data), name).head for name, data in safe.items()]
    except SnapshotCorrupt:
        return None
    if {head.scope for head in heads} != set(cluster.monitor.scopes):
        return None
    needed: dict[tuple[str, int], int] = {}
    for head in heads:
        for tp, at in head.positions.items():
            needed[tp] = min(at, needed.get(tp, at))
    for process in cluster.world.processes:
        if process.alive:
            worker: Any = process.parts.get("worker")
            if worker is None or (not worker.gaining and not worker._built):
                return None  # it is about to start from somewhere
            for tp, at in worker.reading.positions.items():
                needed[tp] = min(at, needed.get(tp, at))
    return needed


def _retention(cluster: Cluster, fault: Fault, process: Process) -> None:
    """What no worker needs any more is deleted, or part of it."""
    for tp, at in (_needed(cluster) or {}).items():
        cluster.broker.low[tp] = max(cluster.broker.low[tp], at * (fault.size % 101) // 100)


def _retention_gap(cluster: Cluster, fault: Fault, process: Process) -> None:
    """As soon as all scopes have snapshots: what a worker that starts again will need is deleted."""
    cluster.gap_wanted = True


def make_gap(cluster: Cluster, process: Process) -> None:
    needed = _needed(cluster)
    if needed is None or cluster.gap_made:
        return
    for _ in range(min(5, len(cluster.to_publish))):
        cluster.publish()
    for tp, at in needed.items():
        if cluster.broker.high(tp) > at:
            cluster.broker.low[tp] = cluster.broker.high(tp)
            cluster.gap_made = True
    if cluster.gap_made:
        cluster.world.say(f"records that are needed are deleted, and {process.name} has to start again")
        process.kill()
        cluster.ended(process)


STRIKES: dict[str, Callable[[Cluster, Fault, Process], None]] = {
    "crash before": _crash,
    "crash after": _crash,
    "Redis is down": _redis_down,
    "no answer": _no_answer,
    "Redis is lost": _redis_lost,
    "Redis goes back": _redis_back,
    "broker is down": _broker_down,
    "a delivery fails": _delivery_fails,
    "the disk fails": _disk_fails,
    "asked to stop": _stop,
    "a second worker": _second,
    "falls asleep": _falls_asleep,
    "is taken for dead": _taken_for_dead,
    "the clock jumps": _clock_jumps,
    "a snapshot is damaged": _damage,
    "retention": _retention,
    "retention leaves a gap": _retention_gap,
}
"""What each fault does to the process at whose effect it strikes, and to its surroundings."""
