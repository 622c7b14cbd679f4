"""`freshet-sim`, or `python -m tests.simulation`: run seeds, and say what breaks a promise and how to see it again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tests.simulation.play import REGRESSIONS, Report, Schedule, play_all, regressions


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every promise held."""
    parser = argparse.ArgumentParser("freshet-sim", description="Run the deterministic simulator over seeds.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1, help="of the products, each with a worker of its own")
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
        schedules = [Schedule(asked.first_seed + i, shards=asked.shards) for i in range(asked.seeds)]
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
