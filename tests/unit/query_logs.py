"""Small event logs for the tests of queries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from freshet.stream.eventlog import EventLogWriter
from freshet.stream.events import Event, Line, Product, Purchase, View

DAY_MS = 86_400_000
START_MS = 1_750_000_000_000
TASTES = 4
SHELF = 12
"""Products of one taste."""


def write_log(path: Path, events: Iterable[Event]) -> Path:
    """A log of these events, sorted by time."""
    with EventLogWriter(path, "test") as writer:
        for event in sorted(events, key=lambda e: e.timestamp or 0):
            writer.write(event)
    return path


def shop(days: int = 40, users: int = 40, seed: int = 0, views: bool = True) -> list[Event]:
    """Users of four tastes who buy, and view, products of the own taste now and then."""
    rng = np.random.default_rng(seed)
    events: list[Event] = [
        Product(f"p{i}", START_MS, ("shop", f"taste{i // SHELF}"), f"brand{i % 3}", float(1 + i % 10))
        for i in range(TASTES * SHELF)
    ]
    for day in range(days):
        for u in range(users):
            at = START_MS + day * DAY_MS + u * 1000 + 1
            shelf = [f"p{(u % TASTES) * SHELF + int(p)}" for p in rng.choice(SHELF, 3, replace=False)]
            if rng.random() < 0.4:
                events.append(Purchase(f"o{day}-{u}", f"u{u}", at, items=tuple(Line(p) for p in shelf[:2])))
            if views and rng.random() < 0.3:
                events.append(View(f"v{day}-{u}", f"u{u}", shelf[2], at + 500))
    return events
