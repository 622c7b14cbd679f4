"""Replay through Kafka into Redis by one live worker, both planes, exact: events/s, and where the time goes.

    python -m bench.replay                        synthetic shop (90 % views)
    python -m bench.replay --log LOG --since D    part of an event log; what is before D is the worker's history

From the first record sent to the moment at which every record is applied and every ripple worked off,
on the embedded broker and Redis, everything on this machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.report import result, table
from bench.synthetic import KIND_OF, Shop, catalogue, events
from freshet.model.dayzero import dayzero
from freshet.store.history import History
from freshet.stream import topics
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.decode import decode_events
from freshet.stream.eventlog import EventLog
from freshet.stream.kafka import RecordProducer
from freshet.stream.local import LocalSystem
from freshet.stream.modelling import day_ms
from freshet.stream.replay import Pace, replay


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--since", help="date: earlier events are history, later ones are replayed")
    parser.add_argument("--until", help="date to stop before")
    parser.add_argument("--bundle", type=Path, help="default: a day-zero bundle of the history")
    parser.add_argument("--bootstrap", help="a running Kafka without events in its topics (default: the embedded one)")
    parser.add_argument("--redis", help="a running Redis (default: the embedded one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    """Set up, replay, print."""
    if args.log:
        log = EventLog(args.log)
        history = list(log.columns(until_ms=day_ms(args.since, "--since")))
        lines = list(log.raw(since_ms=day_ms(args.since, "--since"), until_ms=day_ms(args.until, "--until")))
    else:
        shop = Shop()
        history = [decode_events(catalogue(shop))]
        made = events(shop, args.events)
        lines = [(KIND_OF[type(e)], e.timestamp or 0, encode_record_key(e).decode(), encode(e)) for e in made]
    bundle = args.bundle or folder / "bundle"
    if not args.bundle:
        dayzero(History.of(history)).save(bundle)
    with LocalSystem(folder / "run", bootstrap=args.bootstrap, redis=args.redis) as system:
        system.start_worker(bundle, args.log, args.since)
        system.wait_live()
        producer = RecordProducer(system.settings.kafka)
        topic_of = {kind: topic for topic, kind in topics.kinds(system.settings.topics).items()}
        if not args.log:  # the catalogue is the synthetic shop's history
            first = ((KIND_OF[type(p)], p.timestamp or 0, p.product_id, encode(p)) for p in catalogue(Shop()))
            replay(first, producer, topic_of, Pace())
            _warm_up(system, producer, topic_of, lines[:2_000])
        before = system.wait_quiet()
        start = time.perf_counter()
        replay(iter(lines), producer, topic_of, Pace())
        sent = time.perf_counter() - start
        after = system.wait_quiet(300.0)
        seconds = time.perf_counter() - start
        producer.close()
    show(before, after, len(lines), sent, seconds)


def _warm_up(system: LocalSystem, producer: RecordProducer, topic_of: Any, lines: list[Any]) -> None:
    """Compile and touch everything once, so that the run measures the steady state."""
    replay(iter(lines), producer, topic_of, Pace())
    system.wait_quiet()


def show(before: dict[str, Any], after: dict[str, Any], count: int, sent: float, seconds: float) -> None:
    """Print the share of time by stage, and the line of JSON."""
    stages = {k: v - before["seconds"].get(k, 0.0) for k, v in after["seconds"].items()}
    busy = sum(stages.values())
    rows = [(k, v, 100 * v / seconds) for k, v in sorted(stages.items(), key=lambda kv: -kv[1]) if v > 0]
    table(("stage", "seconds", "% of wall"), [*rows, ("everything else", seconds - busy, 100 * (1 - busy / seconds))])
    lines = after["purchase_lines"] - before["purchase_lines"]
    result(
        {
            "events": count,
            "purchase_lines": lines,
            "seconds": round(seconds, 2),
            "sent_seconds": round(sent, 2),
            "events_per_s": round(count / seconds),
            "users_written": after["users_written"] - before["users_written"],
            "products_written": after["products_written"] - before["products_written"],
            "waves": after["ripple_waves"] - before["ripple_waves"],
            "stages": {k: round(v / seconds, 4) for k, v in stages.items()},
        }
    )


if __name__ == "__main__":
    main()
