"""What workers are doing, as JSON objects: what `freshet status` shows and `freshet verify` waits for.

A worker is found by what it serves: the sentinel of each scope names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from freshet.store.embeddings import NamedBlobs
from freshet.store.snapshot import LogPart
from freshet.stream.completeness import Sentinel, read_sentinel, sentinel_blob
from freshet.stream.rewriting import ITEMS, every_scope, is_items, shards_in, users_scope

if TYPE_CHECKING:
    from freshet.stream.worker import Worker


def status_blob(name: str) -> str:
    """The blob of a version that holds the status of the worker with this name."""
    return f"status:{name}"


def status_of(worker: Worker, now_ms: int) -> dict[str, Any]:
    """The status of a worker."""
    updater, reading, sink = worker.updater, worker.reading, worker.sink
    totals, graph, snapshots = updater.totals, worker.graph, worker.snapshots
    return {
        "name": worker.name,
        "role": worker.role.value,
        "state": worker.state,
        "model_version": sink.model_version,
        "dim": sink.dim,
        "fence": sink.fence,
        "origin": msgspec.to_builtins(worker.origin),
        "written_ms": now_ms,
        "users": graph.users.known,
        "products": len(graph.products),
        "event_time_max": graph.event_time_max,
        "records": totals.records,
        "events": totals.events,
        "purchase_lines": totals.lines,
        "rejected": worker.rejected,
        "users_written": totals.users_written,
        "users_rippled": totals.users_rippled,
        "products_written": totals.products_written,
        "ripple_waves": totals.waves,
        "ripples_waiting": updater.ripples.waiting,
        "rewrites_waiting": worker.completeness.rewrites.waiting,
        "undelivered": len(worker.producer),
        "ripple_staleness_ms": round(updater.staleness_ms(), 1),
        "freshness_ms": worker.freshness.percentiles(),
        "seconds": {k: round(v, 3) for k, v in totals.seconds.items()},
        "positions": {f"{t}/{p}": offset for (t, p), offset in sorted(reading.positions.items())},
        "serves": sorted(worker.completeness.serves),
        "partitions": sink.ownership.partitions,
        "stopped": reading.stopped,
        "snapshots": None if snapshots is None else snapshots.status(),
    }


STATES = ("stopped", "live", "rewriting", "catching up", "starting")
"""From the best to the worst, `stopped` aside: of several workers the worst is what all are in."""
SUMMED = (
    "records", "purchase_lines", "rejected", "users_written", "users_rippled", "products_written", "ripples_waiting",
    "rewrites_waiting", "undelivered",
)  # fmt: skip


def read_statuses(blobs: NamedBlobs, version: str) -> list[dict[str, Any]]:
    """The status of every worker that serves something of a version, by name."""

    def sentinel(scope: str) -> Sentinel | None:
        return read_sentinel(blobs.get_blob(f"{version}:{sentinel_blob(scope)}"))

    items, users = sentinel(ITEMS), sentinel(users_scope(0))
    partitions = max((s.partitions for s in (items, users) if s is not None), default=0)
    every = every_scope(partitions, shards_in(items.scope) if items is not None else 1)
    known = {every[0]: items, users_scope(0): users}
    some = [known[scope] if scope in known else sentinel(scope) for scope in every]
    names = {s.worker for s in some if s is not None}
    found = []
    for name in sorted(names):
        blob = blobs.get_blob(f"{version}:{status_blob(name)}")
        if blob is not None:
            found.append(msgspec.json.decode(blob))
    return found


def logs_of(status: dict[str, Any]) -> list[LogPart]:
    """The event logs that the state of these workers was read from, beside the topics."""
    each = status.get("workers", [status])
    return list(dict.fromkeys(msgspec.convert(log, LogPart) for one in each for log in one["origin"]["logs"]))


def unserved(status: dict[str, Any]) -> list[str]:
    """What nobody says that they serve, of all that the products' cut and the users' partitions call for."""
    shards = max((shards_in(scope) for scope in status["serves"] if is_items(scope)), default=1)
    return [scope for scope in every_scope(status["partitions"], shards) if scope not in status["serves"]]


def combined(statuses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One status for several workers, of which `workers` lists each; that of a worker alone as it is.

    What says where a partition stands is the least of those who read it; users and products are the most that one of
    them knows, other counts are sums.
    """
    if len(statuses) == 1:
        return statuses[0]
    first = next((s for s in statuses if s["role"] != "users"), statuses[0])
    positions: dict[str, int] = {}
    for status in statuses:
        for place, offset in status["positions"].items():
            positions[place] = min(offset, positions.get(place, offset))
    return {
        **first,
        "name": ", ".join(s["name"] for s in statuses),
        "state": max((s["state"] for s in statuses), key=STATES.index),
        "written_ms": min(s["written_ms"] for s in statuses),
        "users": max(s["users"] for s in statuses),
        "products": max(s["products"] for s in statuses),
        "event_time_max": max(s["event_time_max"] for s in statuses),
        **{name: sum(s[name] for s in statuses) for name in SUMMED},
        "ripple_staleness_ms": max(s["ripple_staleness_ms"] for s in statuses),
        "positions": positions,
        "serves": sorted({scope for s in statuses for scope in s["serves"]}),
        "stopped": {scope: why for s in statuses for scope, why in s["stopped"].items()},
        "workers": list(statuses),
    }
