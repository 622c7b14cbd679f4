"""When workers count as quiet, so that what they serve can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from freshet.stream.completeness import Sentinel, sentinel_blob
from freshet.stream.rewriting import ITEMS, every_scope, users_scope
from freshet.stream.verify import NotQuiet, NotWhole, rebuild, wait_until_quiet
from freshet.stream.worker_status import SUMMED, status_blob

PARTITIONS, END = 2, 111
INPUTS = [("view", p) for p in range(PARTITIONS)]


class Blobs:
    """Statuses and sentinels of workers as they left them."""

    def __init__(self, statuses: Sequence[dict[str, Any]]) -> None:
        self.blobs = {f"v:{status_blob(s['name'])}": msgspec.json.encode(s) for s in statuses}
        for scope in every_scope(PARTITIONS):
            worker = "items" if scope == ITEMS else "a"
            self.blobs[f"v:{sentinel_blob(scope)}"] = msgspec.json.encode(Sentinel(scope, worker, 1, True, PARTITIONS))

    def get_blob(self, name: str) -> bytes | None:
        return self.blobs.get(name)


class Ends:
    """A consumer that knows where partitions end."""

    def watermarks(self, tps: Sequence[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        return dict.fromkeys(tps, (0, END))


def status(name: str, role: str, serves: Sequence[str], reads: Sequence[int], **changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name, "role": role, "state": "live", "written_ms": 0, "users": 0, "products": 0, "event_time_max": 0,
        "ripple_staleness_ms": 0.0, "positions": {f"view/{p}": END for p in reads}, "serves": list(serves),
        "partitions": PARTITIONS, "stopped": {}, **dict.fromkeys(SUMMED, 0),
    }  # fmt: skip
    return found | changed


def quiet(*statuses: dict[str, Any], wall_s: float = 5.0) -> dict[str, Any]:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return wait_until_quiet(
        Blobs(statuses), "v", Ends(), INPUTS, 1.0, sleep, lambda: now[0], lambda: wall_s  # type: ignore[arg-type]
    )  # fmt: skip


ITEMS_READ_ALL = status("items", "items", [ITEMS], range(PARTITIONS))


def test_workers_that_read_everything_and_owe_nothing_are_quiet() -> None:
    users = status("a", "users", [users_scope(0), users_scope(1)], range(PARTITIONS))
    assert quiet(ITEMS_READ_ALL, users)["state"] == "live"


@pytest.mark.parametrize(
    ("users", "said"),
    [
        (status("a", "users", [users_scope(0)], [0]), "users-1 is served by nobody"),  # on its way to another worker
        (status("a", "users", every_scope(2)[1:], range(2), undelivered=1), "1 records on their way"),
        (status("a", "users", every_scope(2)[1:], range(2), state="rewriting"), "state 'rewriting'"),
        (status("a", "users", every_scope(2)[1:], range(2), positions={"view/0": 111, "view/1": 110}), "110 of 111"),
    ],
)
def test_what_is_still_to_come_is_waited_for(users: dict[str, Any], said: str) -> None:
    with pytest.raises(NotQuiet, match=said):
        quiet(ITEMS_READ_ALL, users)


def test_a_worker_that_is_gone_is_named_and_not_the_producers() -> None:
    users = status("a", "users", every_scope(2)[1:], range(2), positions={"view/0": 111, "view/1": 110})
    with pytest.raises(NotQuiet, match=r"a has said nothing for 14 s: it has ended or hangs; .*110 of 111.*start what"):
        quiet(ITEMS_READ_ALL | {"written_ms": 13_000}, users, wall_s=14.0)


class Holds:
    """A consumer of topics whose oldest records are gone, and whose others nobody reads here."""

    def __init__(self, low: int) -> None:
        self.low = low

    def watermarks(self, tps: Sequence[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        return {tp: (self.low if tp[1] else 0, self.low) for tp in tps}

    def assign(self, positions: dict[tuple[str, int], int]) -> None:
        raise Read


class Read(Exception):
    """Reading began."""


@pytest.mark.parametrize(("low", "logs"), [(0, 0), (7, 1)])
def test_state_is_rebuilt_where_all_of_it_may_be_had(low: int, logs: int) -> None:
    class Log:
        def columns(self, until_ms: int | None) -> list[Any]:
            assert until_ms == 5
            return []

    with pytest.raises(Read):
        rebuild([(Log(), 5)] * logs, Holds(low), INPUTS, {}, None, None, None)  # type: ignore[arg-type, list-item]


def test_state_is_not_rebuilt_from_topics_that_lack_its_beginning() -> None:
    with pytest.raises(NotWhole, match=r"view/1 begins at 7.*--backfill"):
        rebuild([], Holds(7), INPUTS, {}, None, None, None)  # type: ignore[arg-type]
