"""`freshet-sim`, or `python -m tests.simulation`: run seeds, and say what breaks a promise and how to see it again."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

REGRESSIONS = Path(__file__).with_name("regressions.jsonl")
"""Schedules that once broke a promise, a line each."""
SEEDS_A_TASK = 20


class Schedule(msgspec.Struct, omit_defaults=True):
    """A run that can be had again: the seed, and what differs from what it draws by itself."""

    seed: int
    why: str = ""
    faults: list[tuple[str, int, str, int]] | None = None
    records: int | None = None
    published_first: int | None = None


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
    from tests.simulation import schedule as schedules
    from tests.simulation.cluster import Shape
    from tests.simulation.world import Fault

    logging.disable(logging.CRITICAL)
    shape = Shape.of(schedule.seed)
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
        again = Schedule(found.seed, "", kept, shape.records, shape.published_first)
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
    return [play(schedule, shrink_it) for schedule in schedules]


def regressions() -> list[Schedule]:
    """The schedules that are kept."""
    return [msgspec.json.decode(line, type=Schedule) for line in REGRESSIONS.read_bytes().splitlines() if line]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every promise held."""
    parser = argparse.ArgumentParser("freshet-sim", description="Run the deterministic simulator over seeds.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", action="store_true", help="one line of JSON at the end, and nothing else")
    parser.add_argument("--again", metavar="SCHEDULE", help="run one schedule, as a failing seed printed it")
    parser.add_argument("--regressions", action="store_true", help=f"run those of {REGRESSIONS.name} in place of seeds")
    parser.add_argument("--first-failure", action="store_true", help="end at the first, as it is")
    asked = parser.parse_args(arguments)
    if asked.again:
        schedules = [msgspec.json.decode(asked.again, type=Schedule)]
    elif asked.regressions:
        schedules = regressions()
    else:
        schedules = [Schedule(seed) for seed in range(asked.first_seed, asked.first_seed + asked.seeds)]
    start, reports = time.monotonic(), []
    for report in play_all(schedules, max(1, asked.jobs), shrink_it=not asked.again and not asked.first_failure):
        reports.append(report)
        if not asked.json:
            _show(report, bool(asked.again))
        if report.violation is not None and asked.first_failure:
            break
    summary = _summary(reports, time.monotonic() - start)
    print(msgspec.json.encode(summary).decode() if asked.json else _in_words(summary))
    return int(bool(summary["failed"]))


def _show(report: Report, whole: bool) -> None:
    if report.violation is None and not whole:
        return
    print(f"seed {report.seed}: {report.violation or 'every promise held'}")
    if report.shrunk is not None:
        print(f"  as few faults and records as were found to break a promise ({report.shrunk}):")
    for line in report.trace or ():
        print(f"  {line}")
    if report.schedule:
        print(f"  again: freshet-sim --again '{report.schedule}'\n")


def _summary(reports: Iterable[Report], seconds: float) -> dict[str, Any]:
    reports = list(reports)
    fired = Counter(what for report in reports for what in report.fired)
    return {
        "runs": len(reports),
        "failed": [{"seed": r.seed, "violation": r.violation, "schedule": r.schedule} for r in reports if r.violation],
        "gaps_refused": sum(r.gap for r in reports),
        "effects": sum(r.effects for r in reports),
        "worker_starts": sum(r.starts for r in reports),
        "faults": dict(fired.most_common()),
        "seconds": round(seconds, 1),
    }


def _in_words(summary: dict[str, Any]) -> str:
    faults = ", ".join(f"{what} {n}" for what, n in summary["faults"].items())
    return (
        f"{summary['runs']} runs in {summary['seconds']:.0f} s, {len(summary['failed'])} broke a promise\n"
        f"{summary['effects']} effects, {summary['worker_starts']} starts of workers, {summary['gaps_refused']} gaps "
        f"refused\nfaults: {faults}"
    )


if __name__ == "__main__":
    sys.exit(main())
