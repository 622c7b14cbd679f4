"""What a worker is doing, as one JSON object: what `freshet status` shows and `freshet verify` waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

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
        "users": len(graph.users),
        "products": len(graph.products),
        "event_time_max": graph.event_time_max,
        "records": totals.records,
        "events": totals.events,
        "purchase_lines": totals.lines,
        "rejected": totals.rejected,
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
        "stopped": reading.stopped,
        "snapshots": None if snapshots is None else snapshots.status(),
    }
