"""What an operator reads at three in the morning."""

from __future__ import annotations

from typing import Any

from freshet.stream.status_text import status_lines
from freshet.stream.worker_status import combined

NOW = 1_700_000_000_000


def worker(name: str = "worker", **changed: Any) -> dict[str, Any]:
    return {
        "name": name, "role": "all", "state": "live", "model_version": "trained-1", "written_ms": NOW - 400,
        "users": 1_234_567, "products": 10, "event_time_max": NOW - 86_400_000, "records": 98_765, "rejected": 0,
        "purchase_lines": 0, "users_written": 0, "users_rippled": 0, "products_written": 0, "ripples_waiting": 3,
        "rewrites_waiting": 1_000, "undelivered": 0, "ripple_staleness_ms": 0.0, "positions": {"v/0": 5},
        "freshness_ms": {"p50": 11.6, "p99": 40.2}, "serves": ["items", "users-0", "users-1", "users-2", "users-10"],
        "partitions": 0, "stopped": {}, "snapshots": {"taken": 1, "due": 0, "error": None, "pause_ms_max": 1.0},
        **changed,
    }  # fmt: skip


def test_a_worker_that_is_well_is_one_line() -> None:
    lines = status_lines(combined([worker()]), NOW)
    assert lines[0] == "trained-1: live, events up to 2023-11-13 22:13:20 UTC"
    assert lines[3].split("  ")[0] == "worker"
    for said in ("live", "0 s ago", "1,234,567", "98,765", "12/40 ms", "1,003", "items, users 0-2, 10"):
        assert said in lines[3]
    assert [line for line in lines if line != line.rstrip()] == []
    assert lines[-1] == "nothing is wrong"


def test_of_several_each_has_its_line_and_what_is_wrong_is_said_below() -> None:
    users = worker("u1", role="users", freshness_ms={}, serves=[], snapshots=None, written_ms=NOW - 65_000)
    gap = worker("u2", role="users", stopped={"users-3": "no offset 7 any more"}, rejected=1_200)
    full = worker("items", role="items", snapshots={"error": "the disk is full"})
    lines = status_lines(combined([users, gap, full]), NOW)
    assert [line.split()[0] for line in lines[3:6]] == ["u1", "u2", "items"]
    assert lines[7:] == [
        "u1 has said nothing for 65 s: it has ended or hangs; see its log",
        "u2 does not serve users-3: no offset 7 any more",
        "u2 has rejected 1,200 records: `freshet deadletter list` shows them",
        "items: the disk is full",
    ]


def test_a_worker_that_was_stopped_is_not_called_silent_and_columns_line_up() -> None:
    ended = worker("a-rather-long-name", state="stopped", written_ms=NOW - 3_600_000)
    lines = status_lines(combined([ended, worker("b")]), NOW)
    assert [line for line in lines if "a-rather" in line][1:] == [
        "a-rather-long-name was asked to stop, and nobody has taken over what it served: start a worker"
    ]
    assert len({line.index("all") for line in lines[3:5]} | {lines[2].index("role")}) == 1
    assert "events up to none yet" in status_lines(combined([worker(event_time_max=-(2**63))]), NOW)[0]


def test_what_nobody_serves_is_said() -> None:
    first = worker("items-0-of-3", role="items", serves=["items-0-of-3"], partitions=4)
    users = worker("u1", role="users", serves=["users-0", "users-3"], partitions=4)
    lines = status_lines(combined([first, users]), NOW)
    assert lines[-1] == "nobody serves items-1-of-3, items-2-of-3, users 1-2: start workers for that"
    alone = worker(serves=["items", "users-0"], partitions=1)
    assert status_lines(combined([alone]), NOW)[-1] == "nothing is wrong"
