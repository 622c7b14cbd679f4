"""Which faults strike when: drawn from the seed, and shrunk where they break a promise."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from tests.simulation.cluster import Cluster, Outcome
from tests.simulation.shape import Shape
from tests.simulation.world import Fault

EFFECTS = (
    "any", "any", "any", "upsert", "delete", "scan", "current", "fence", "incarnation", "blob", "get blob", "send",
    "report", "flush", "commit", "committed", "watermarks", "assign", "poll", "sleep", "group", "open", "write", "sync",
    "rename", "remove", "sync folder", "list",
)  # fmt: skip
WEIGHTS = {
    "crash before": 5, "crash after": 5, "Redis is down": 2, "no answer": 3, "Redis is lost": 2, "Redis goes back": 3,
    "broker is down": 2, "a delivery fails": 1, "the disk fails": 2, "asked to stop": 2, "a second worker": 2,
    "the clock jumps": 1, "a snapshot is damaged": 1, "retention": 2, "retention leaves a gap": 0.3,
    "falls asleep": 2, "is taken for dead": 2,
}  # fmt: skip
SIZES: dict[str, Callable[[random.Random], int]] = {
    "crash before": lambda rng: int(rng.random() < 0.4),
    "crash after": lambda rng: int(rng.random() < 0.4),
    "the clock jumps": lambda rng: rng.choice([-3600, -5, 5, 3600]),
    "Redis goes back": lambda rng: rng.choice([0, 0, 1, 2, 5, 20, 63]),
    "broker is down": lambda rng: rng.choice([10, 100, 1000]),
    "retention": lambda rng: rng.choice([100, 100, 50]),
}


def draw(seed: int) -> list[Fault]:
    """The faults of a seed; some have none."""
    rng = random.Random(f"faults {seed}")
    whats = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=rng.choice([0, 1, 2, 3, 4, 6, 9]))
    if any(what in LOSSES for what in whats):
        whats = [what for what in whats if what != "the clock jumps"]
    return [_fault(what, rng) for what in whats]


LOSSES = ("Redis is lost", "Redis goes back")
"""A clock that was ahead when the store forgot its tokens refuses every later worker until time has caught up: not
wrong, but nothing settles (`docs/reliability.md`)."""


def _fault(what: str, rng: random.Random) -> Fault:
    on = rng.choice(EFFECTS)
    nth = rng.randint(1, 500) if on == "any" else int(rng.expovariate(1 / 5)) + 1
    return Fault(on, nth, what, SIZES[what](rng) if what in SIZES else rng.randint(0, 200))


def run(seed: int, faults: list[Fault] | None = None, shape: Shape | None = None) -> Outcome:
    """One run; the seed's own faults unless some are given."""
    return Cluster(seed, draw(seed) if faults is None else faults, shape).run()


def shrink(failed: Outcome, shape: Shape, runs_max: int = 200) -> tuple[Outcome, Shape]:
    """A run that breaks a promise with as few faults and records as were found."""
    best, runs = failed, 0

    def attempt(faults: list[Fault], size: Shape) -> bool:
        nonlocal best, shape, runs
        runs += 1
        found = run(failed.seed, faults, size)
        if found.violation is None:
            return False
        best, shape = found, size
        return True

    attempt(list(failed.fired), shape)
    smaller = True
    while smaller and runs < runs_max:
        smaller = False
        for i in range(len(best.faults) - 1, -1, -1):
            if i < len(best.faults):
                smaller |= attempt(best.faults[:i] + best.faults[i + 1 :], shape)
        for records in (shape.records // 2, shape.records - 5, shape.records - 1):
            if 0 < records < shape.records:
                first = min(shape.published_first, records)
                smaller |= attempt(best.faults, replace(shape, records=records, published_first=first))
    return best, shape
