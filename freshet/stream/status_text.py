"""What workers are doing, for a person at a terminal: one line a worker, and below them what is not as it should be.

A worker writes its status twice a second (`FRESHET_WORKER_STATUS_INTERVAL_MS`), so one that has said nothing for
`SILENT_AFTER_S` has ended or hangs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from freshet.stream.worker_status import unserved

SILENT_AFTER_S = 10.0
"""Age of a status from which on its worker is called silent."""

HEADS: tuple[str, ...] = (
    "worker", "role", "state", "said", "users", "records", "fresh p50/p99", "waiting", "serves",
)  # fmt: skip

Status = Mapping[str, Any]


def status_lines(status: Status, now_ms: int) -> list[str]:
    """The lines for a status as `combined` makes it; `now_ms` is the time of whoever looks."""
    workers: Sequence[Status] = status.get("workers", [status])
    rows = [HEADS, *(_row(worker, now_ms) for worker in workers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"{status['model_version']}: {status['state']}, events up to {_date(status['event_time_max'])}", ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    troubles = [line for worker in workers for line in _troubles(worker, now_ms)]
    if nobodys := unserved(dict(status)):
        troubles.append(f"nobody serves {_scopes(nobodys)}: start workers for that")
    return [*lines, "", *(troubles or ["nothing is wrong"])]


def _row(worker: Status, now_ms: int) -> tuple[str, ...]:
    fresh = worker["freshness_ms"]
    return (
        worker["name"], worker["role"], worker["state"], f"{_age_s(worker, now_ms):.0f} s ago", f"{worker['users']:,}",
        f"{worker['records']:,}", f"{fresh['p50']:.0f}/{fresh['p99']:.0f} ms" if fresh else "-",
        f"{worker['rewrites_waiting'] + worker['ripples_waiting']:,}", _scopes(worker["serves"]),
    )  # fmt: skip


def _troubles(worker: Status, now_ms: int) -> list[str]:
    """What somebody should look at."""
    name = worker["name"]
    found = [f"{said}; see its log" for said in silent([worker], now_ms)]
    if worker["state"] == "stopped":
        found.append(f"{name} was asked to stop, and nobody has taken over what it served: start a worker")
    found += [f"{name} does not serve {scope}: {why}" for scope, why in worker["stopped"].items()]
    snapshots = worker["snapshots"] or {}
    if snapshots.get("error"):
        found.append(f"{name}: {snapshots['error']}")
    if worker["rejected"]:
        found.append(f"{name} has rejected {worker['rejected']:,} records: `freshet deadletter list` shows them")
    return found


def silent(workers: Sequence[Status], now_ms: int) -> list[str]:
    """Which of these workers have stopped talking, in words."""
    return [
        f"{worker['name']} has said nothing for {_age_s(worker, now_ms):.0f} s: it has ended or hangs"
        for worker in workers
        if _age_s(worker, now_ms) > SILENT_AFTER_S and worker["state"] != "stopped"
    ]


def _age_s(worker: Status, now_ms: int) -> float:
    written_ms: int = worker["written_ms"]
    return max(0.0, (now_ms - written_ms) / 1e3)


def _scopes(serves: Sequence[str]) -> str:
    """`items, users 0-2, 5`"""
    partitions = sorted(int(scope.removeprefix("users-")) for scope in serves if scope.startswith("users-"))
    runs: list[list[int]] = []
    for p in partitions:
        if runs and runs[-1][-1] == p - 1:
            runs[-1].append(p)
        else:
            runs.append([p])
    users = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    others = [scope for scope in serves if not scope.startswith("users-")]
    return ", ".join([*others, *([f"users {users}"] if users else [])]) or "-"


def _date(time_ms: int) -> str:
    if time_ms <= 0:
        return "none yet"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
