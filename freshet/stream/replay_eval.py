"""What streaming buys, on an event log: what `freshet replay-eval` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.config import DAY_MS
from freshet.model.evaluation.freshness import POLICIES, replay
from freshet.model.evaluation.freshness_ranker import RankerAt
from freshet.model.evaluation.freshness_report import Group, report
from freshet.store.columns import EventColumns
from freshet.store.graph import GraphStore
from freshet.stream.decode import decode_events
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Event
from freshet.stream.modelling import day_ms, read_history
from freshet.stream.progress import Bars
from freshet.stream.replay_asks import read_asks

TARGETS = ("orders", "views")


@dataclass(frozen=True)
class ReplaySettings:
    """`since` and `until` are ISO dates (UTC); `until` None is the log's end. `k`: length of the ranking. `asks_max`:
    orders (or views) asked for at most, drawn with `seed`. `targets`: see `TARGETS`. `ranker`: rank as
    `Reader.recommend` does, not by inner product alone."""

    since: str
    until: str | None = None
    targets: str = "orders"
    k: int = 20
    asks_max: int = 20_000
    seed: int = 0
    ranker: bool = False


@dataclass(frozen=True)
class ReplayResult:
    """Figures by group, and what they were measured on."""

    model: str
    asks: int
    settings: ReplaySettings
    groups: tuple[Group, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for one line of JSON."""
        return asdict(self)


def replay_eval(log_path: Path, bundle_path: Path | None, settings: ReplaySettings, bars: Bars) -> ReplayResult:
    """Play the log from `since` to `until` and ask before each order. Without a bundle, day zero is made of what was
    before, with a ranker where that is asked. Raises FreshetError for what a user can mend."""
    log = EventLog(log_path)
    from_ms, until_ms = _period(log, settings)
    asks = read_asks(log, from_ms, until_ms, settings.targets == "views", settings.asks_max, settings.seed)
    bundle = _bundle(log, bundle_path, from_ms, settings.ranker, bars)
    ranker = RankerAt(bundle.ranker, read_history(log, until_ms, bars)) if settings.ranker else None
    graph = GraphStore()
    for columns in log.columns(until_ms=from_ms):
        graph.apply(columns)
    feed = _Feed(log, from_ms, until_ms)
    answers = replay(bundle, graph, feed, asks, from_ms, settings.k, bars.counts("replay"), ranker)
    return ReplayResult(bundle.kind, len(asks), settings, report(answers, settings.seed))


def plot(result: ReplayResult, path: Path) -> None:
    """Write recall by group and policy as SVG. Raises FreshetError for a path that cannot be written."""
    from freshet.model.evaluation.plots import bars  # matplotlib is loaded when it is needed

    if path.suffix.lower() != ".svg":
        raise FreshetError(f"--plot {path}: plots are SVG, name the file .svg")
    metric = f"recall@{result.settings.k}"
    figures = [group.of(metric) for group in result.groups]
    mean, low, high = (np.array([[getattr(f, n) for f in row] for row in figures]) for n in ("mean", "low", "high"))
    names = [f"{group.name}\n({group.asks})" for group in result.groups]
    what = "order" if result.settings.targets == "orders" else "view in a visit"
    of = "values" if result.settings.ranker else "embeddings"
    title = f"Next {what}: {metric} by age of the {of} (95 % intervals)"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bars(names, list(POLICIES), mean, low, high, title, metric))
    except OSError as e:
        raise FreshetError(f"--plot {path}: cannot be written: {e.strerror}") from e


class _Feed:
    """The events of a period, handed out up to one time after another."""

    def __init__(self, log: EventLog, from_ms: int, until_ms: int) -> None:
        self._events: Iterator[Event] = log.stream(since_ms=from_ms, until_ms=until_ms)
        self._next: Event | None = next(self._events, None)

    def __call__(self, before_ms: int) -> EventColumns:
        part: list[Event] = []
        while self._next is not None and (self._next.timestamp or 0) < before_ms:
            part.append(self._next)
            self._next = next(self._events, None)
        return decode_events(part) if part else EventColumns()


def _period(log: EventLog, settings: ReplaySettings) -> tuple[int, int]:
    if settings.targets not in TARGETS:
        raise FreshetError(f"--targets {settings.targets!r} is not known: orders or views")
    if settings.k < 1 or settings.asks_max < 1:
        raise FreshetError("--k and --max-asks have to be at least 1")
    times = log.time_range
    if times is None:
        raise FreshetError(f"{log.path}: the log has no events: there is nothing to replay")
    from_ms = day_ms(settings.since, "--from")
    until_ms = day_ms(settings.until, "--until")
    assert from_ms is not None
    first, last = (str(np.datetime64(t, "ms").astype("datetime64[s]")) for t in times)
    if from_ms > times[1]:
        raise FreshetError(f"--from {settings.since} is after the log's end: its events go from {first} to {last}")
    if from_ms <= times[0]:
        raise FreshetError(f"--from {settings.since}: nothing is before it: the log's events go from {first} to {last}")
    until_ms = times[1] + 1 if until_ms is None else until_ms
    if until_ms <= from_ms:
        raise FreshetError(f"--until {settings.until} is not after --from {settings.since}: the period is empty")
    return from_ms, until_ms


def _bundle(log: EventLog, path: Path | None, from_ms: int, ranker: bool, bars: Bars) -> Bundle:
    if path is None:
        from freshet.model.dayzero import dayzero
        from freshet.stream.modelling import ranked_dayzero

        history = read_history(log, from_ms, bars)
        try:
            return ranked_dayzero(history, from_ms - 1)[0] if ranker else dayzero(history, cut_ms=from_ms - 1)
        except ValueError as e:
            raise FreshetError(f"{log.path}: no bundle can be made of what is before --from: {e}") from e
    bundle = Bundle.load(path)
    known_ms = bundle.cut_ms
    training = bundle.card.get("training", {})
    if training.get("settings", {}).get("validate"):  # its weights and its ranker were chosen by these days
        known_ms += int(training["settings"]["validation_days"] * DAY_MS)
    if known_ms >= from_ms:
        cut, since = (str(np.datetime64(int(t), "ms").astype("datetime64[s]")) for t in (known_ms, from_ms))
        raise FreshetError(
            f"the bundle {path} was made of, or chosen by, events up to {cut}, and the replay begins at {since}: "
            "make it anew with an earlier --before, or move --from"
        )
    return bundle
