"""Schedules: a run that can be written down, and playing many of them in processes of their own."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tests.simulation import schedule as schedules
from tests.simulation.shape import Shape
from tests.simulation.world import Fault

REGRESSIONS = Path(__file__).with_name("regressions.jsonl")
"""Schedules that once broke a promise, a line each."""
SEEDS_A_TASK = 10


class Schedule(msgspec.Struct, omit_defaults=True):
    """A run that can be had again: the seed, and what differs from what it draws by itself."""

    seed: int
    why: str = ""
    faults: list[tuple[str, int, str, int]] | None = None
    records: int | None = None
    published_first: int | None = None
    shards: int = 1


@dataclass
class Report:
    """What a run came to, small enough to travel between processes."""

    seed: int
    violation: str | None
    gap: bool
    effects: int
    starts: int
    fired: list[str]
    schedule: str = ""
    trace: list[str] | None = None
    shrunk: str | None = None


def play(schedule: Schedule, shrink_it: bool = True) -> Report:
    """Run a schedule; of one that breaks a promise find the smallest that still does."""
    logging.disable(logging.CRITICAL)
    shape = Shape.of(schedule.seed).sharded(schedule.shards)
    if schedule.records is not None:
        first = schedule.records if schedule.published_first is None else schedule.published_first
        shape = replace(shape, records=schedule.records, published_first=first)
    faults = None if schedule.faults is None else [Fault(*fault) for fault in schedule.faults]
    found = schedules.run(schedule.seed, faults, shape)
    report = Report(
        found.seed, found.violation, found.gap, found.effects, found.starts, [f.what for f in found.fired],
        trace=found.trace,
    )  # fmt: skip
    if found.violation is not None and shrink_it:
        least, shape = schedules.shrink(found, shape)
        kept = [(f.on, f.nth, f.what, f.size) for f in least.faults]
        again = Schedule(found.seed, "", kept, shape.records, shape.published_first, shape.shards)
        report.schedule, report.trace = msgspec.json.encode(again).decode(), least.trace
        report.shrunk = least.violation
    return report


def play_all(schedules: Sequence[Schedule], jobs: int, shrink_it: bool = True) -> Iterator[Report]:
    """Run many, in processes of their own: the order of a set of texts has to be the same in each.

    Where the caller stops taking reports, those that wait are not run.
    """
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        parts = [schedules[i : i + SEEDS_A_TASK] for i in range(0, len(schedules), SEEDS_A_TASK)]
        try:
            for reports in pool.map(_play_part, parts, [shrink_it] * len(parts)):
                yield from reports
        finally:
            pool.shutdown(cancel_futures=True)


def _play_part(schedules: Sequence[Schedule], shrink_it: bool) -> list[Report]:
    reports = [play(schedule, shrink_it) for schedule in schedules]
    gc.collect()  # workers stand in circles, and the arrays in them are large
    return reports


def regressions() -> list[Schedule]:
    """The schedules that are kept."""
    return [msgspec.json.decode(line, type=Schedule) for line in REGRESSIONS.read_bytes().splitlines() if line]
