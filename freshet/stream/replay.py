"""Publish an event log to Kafka, as fast as asked: its lines become the records' values unchanged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from freshet.errors import FreshetError
from freshet.stream.events import Kind
from freshet.stream.records import Outgoing

PACE_RECORDS = 4
"""Records between two looks at the clock when a rate is kept; more would come in bursts."""
PROGRESS_RECORDS = 1_024
"""Records between two reports of progress."""


class Sender(Protocol):
    """What a replay needs of a producer."""

    def send(self, record: Outgoing) -> None: ...

    def flush(self, timeout_s: float) -> int: ...


@dataclass(frozen=True)
class Pace:
    """`rate` events a second, or `speed` times the pace of the log; neither: as fast as the broker takes them."""

    rate: float | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.speed is not None:
            raise FreshetError("--rate and --speed exclude each other: give one of them")
        for name, value in (("--rate", self.rate), ("--speed", self.speed)):
            if value is not None and value <= 0:
                raise FreshetError(f"{name} must be greater than 0, not {value:g}")


@dataclass
class Replayed:
    """What was published, and how long it took."""

    events: int = 0
    seconds: float = 0.0
    first_ms: int | None = None
    last_ms: int | None = None


def replay(
    lines: Iterable[tuple[Kind, int, str, bytes]],
    sender: Sender,
    topic_of: Mapping[Kind, str],
    pace: Pace,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Replayed], None] = lambda done: None,
    flush_timeout_s: float = 30.0,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Replayed:
    """Publish `lines` (kind, timestamp ms, key, value) in their order.

    Open loop: with a rate, each record has a time at which it is due, and being late does not move the
    next ones. Raises FreshetError when records are not acknowledged within `flush_timeout_s` at the end.
    """
    done = Replayed()
    start = monotonic()
    for kind, timestamp_ms, key, value in lines:
        if done.first_ms is None:
            done.first_ms = timestamp_ms
        if done.events % PACE_RECORDS == 0 or pace.speed is not None:
            due = _due(pace, done.events, timestamp_ms - done.first_ms)
            _wait(start + due, monotonic, sleep, should_stop)
            if should_stop():
                break
        sender.send(Outgoing(topic_of[kind], key.encode(), value))
        done.events += 1
        done.last_ms = timestamp_ms
        if done.events % PROGRESS_RECORDS == 0:
            progress(done)
    left = sender.flush(flush_timeout_s)
    if left:
        raise FreshetError(
            f"{left} of {done.events} events were not acknowledged in {flush_timeout_s:g} s; replay again"
        )
    done.seconds = monotonic() - start
    progress(done)
    return done


def _due(pace: Pace, events: int, log_ms: int) -> float:
    """Seconds after the start at which the next record is due."""
    if pace.rate is not None:
        return events / pace.rate
    if pace.speed is not None:
        return log_ms / 1e3 / pace.speed
    return 0.0


def _wait(
    until: float, monotonic: Callable[[], float], sleep: Callable[[float], None], should_stop: Callable[[], bool]
) -> None:
    while (left := until - monotonic()) > 0 and not should_stop():
        sleep(min(left, 0.2))
