"""When training starts to pay: quality against the amount of history, for popularity, day zero and trained towers.

    python -m bench.amount LOG --before 2011-08-01 --until 2011-09-01 --weeks 1,2,4,8,16,32

For each amount the log is cut to the weeks before `--before` (catalogue and profiles stay) and the whole catalogue is
ranked for the users that are known then, on what they bought until `--until`. With fewer weeks there are fewer of
them: compare within a row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from bench.ablation import quality_of
from bench.report import result, table
from freshet.model.config import DAY_MS
from freshet.model.dayzero import dayzero
from freshet.model.evaluation.embeddings import TwoTower
from freshet.model.evaluation.systems import Popularity
from freshet.model.train import train
from freshet.model.train_config import TrainConfig
from freshet.store.columns import EventColumns
from freshet.store.history import History
from freshet.stream.eventlog import EventLog
from freshet.stream.modelling import day_ms


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--before", required=True)
    parser.add_argument("--until", required=True)
    parser.add_argument("--weeks", default="1,2,4,8,16,32")
    args = parser.parse_args()
    log, cut_ms, until_ms = EventLog(args.log), day_ms(args.before, "--before"), day_ms(args.until, "--until")
    assert cut_ms is not None and until_ms is not None
    rows = []
    for weeks in map(int, args.weeks.split(",")):
        history = History.of(recent(log, cut_ms - weeks * 7 * DAY_MS, until_ms))
        lines = history.purchases
        orders = len({*lines.event[lines.time < cut_ms].tolist()})
        found: list[float] = []
        start = time.perf_counter()
        zero = dayzero(history, cut_ms=cut_ms - 1)
        zero_s = time.perf_counter() - start
        start = time.perf_counter()
        trained = train(history, TrainConfig(validate=False), split_ms=cut_ms)
        trained_s = time.perf_counter() - start
        for system in (Popularity("popular", 30.0), TwoTower("day_zero", zero), TwoTower("two_tower", trained)):
            found += quality_of(history, system, cut_ms, until_ms)
        rows.append([weeks, orders, *found, trained_s / zero_s])
        print(rows[-1], flush=True)
    systems = [f"{name}: {what}" for name in ("popular", "day_zero", "two_tower") for what in WHAT]
    table(["weeks", "orders", *systems, "time of training / day zero"],
          [[str(r[0]), str(r[1]), *(f"{v:.4f}" for v in r[2:-1]), f"{r[-1]:.0f}"] for r in rows])  # fmt: skip
    result({str(row[0]): [round(v, 4) for v in row[1:]] for row in rows})


WHAT = ("novel recall@20", "novel MAP@12", "all recall@20", "all MAP@12")


def recent(log: EventLog, since_ms: int, until_ms: int) -> Iterator[EventColumns]:
    """The events of a time, and everything that is known of products and users until then."""
    for columns in log.columns(until_ms=until_ms):
        yield EventColumns(products=columns.products, profiles=columns.profiles)
    for columns in log.columns(since_ms=since_ms, until_ms=until_ms):
        yield EventColumns(columns.views, columns.purchases, columns.sessions)


if __name__ == "__main__":
    main()
