"""Freshness at an open loop: from a record's send to its user's new embedding being readable in Redis.

    python -m bench.freshness --rate 1000 --seconds 20

A record has a time at which it is due; a late one does not move the next. Sampled users are asked for in
Redis until the event shows in their value, by a thread of their own: what a reader sees, not what the
worker believes.
"""

from __future__ import annotations

import argparse
import queue
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from bench.report import result, table
from bench.synthetic import KIND_OF, START_MS, Shop, catalogue, events
from freshet.model.dayzero import dayzero
from freshet.store.history import History
from freshet.store.value import decode_value
from freshet.stream import topics
from freshet.stream.codec import encode
from freshet.stream.decode import decode_events
from freshet.stream.events import View
from freshet.stream.kafka import RecordProducer
from freshet.stream.local import LocalSystem
from freshet.stream.records import Outgoing
from freshet.stream.replay import Pace, replay
from freshet.stream.wiring import open_store

SAMPLE_EVERY = 20
LOOK_INTERVAL_S = 0.0005
GIVE_UP_S = 5.0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--bootstrap", help="a running Kafka without events in its topics (default: the embedded one)")
    parser.add_argument("--redis", help="a running Redis (default: the embedded one)")
    args = parser.parse_args()
    shop = Shop()
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder:
        bundle = Path(folder) / "bundle"
        dayzero(History.of([decode_events(catalogue(shop))])).save(bundle)
        with LocalSystem(Path(folder) / "run", bootstrap=args.bootstrap, redis=args.redis) as system:
            system.start_worker(bundle)
            version = system.wait_live()["model_version"]
            ages = measure(system, shop, version, args.rate, args.seconds)
            status = system.wait_quiet()
    lost = int(np.isnan(ages).sum())
    p50, p99 = np.nanpercentile(ages, [50, 99])
    table(
        ("", "p50 ms", "p99 ms", "max ms"),
        [
            ("seen by a reader", float(p50), float(p99), float(np.nanmax(ages))),
        ],
    )
    result(
        {
            "rate": args.rate,
            "sampled": int(ages.shape[0]),
            "not_seen": lost,
            "freshness_ms_p50": round(float(p50), 2),
            "freshness_ms_p99": round(float(p99), 2),
            "ripple_waves": status["ripple_waves"],
        }
    )


def measure(system: LocalSystem, shop: Shop, version: str, rate: float, seconds: float) -> np.ndarray:
    """Milliseconds of each sampled view; NaN for one not seen in time."""
    producer = RecordProducer(system.settings.kafka)
    topic_of = {kind: topic for topic, kind in topics.kinds(system.settings.topics).items()}
    first = ((KIND_OF[type(p)], p.timestamp or 0, p.product_id, encode(p)) for p in catalogue(shop))
    replay(first, producer, topic_of, Pace())
    warm = [(KIND_OF[type(e)], 0, e.user_id, encode(e)) for e in events(shop, 20_000)]
    replay(iter(warm), producer, topic_of, Pace())
    system.wait_quiet()
    count = int(rate * seconds)
    made = list(events(shop, count, START_MS + 1_000_000, first=1_000_000))
    ready = [Outgoing(topic_of[KIND_OF[type(e)]], e.user_id.encode(), encode(e)) for e in made]
    sampled: queue.Queue[tuple[str, int, float] | None] = queue.Queue()
    ages: list[float] = []
    looker = threading.Thread(target=look, args=(system, version, sampled, ages))
    looker.start()
    start = time.perf_counter()
    for i, (event, record) in enumerate(zip(made, ready, strict=True)):
        due = start + i / rate
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        producer.send(record)
        if i % SAMPLE_EVERY == 0 and isinstance(event, View):
            sampled.put((event.user_id, event.timestamp, time.perf_counter()))
    producer.flush(30.0)
    sampled.put(None)
    looker.join()
    producer.close()
    return np.array(ages)


def look(
    system: LocalSystem, version: str, sampled: queue.Queue[tuple[str, int, float] | None], ages: list[float]
) -> None:
    """Ask for every sampled user until their value shows the event."""
    store = open_store(system.settings)
    waiting: list[tuple[str, int, float]] = []
    ended = False
    while waiting or not ended:
        while True:
            try:
                item = sampled.get_nowait()
            except queue.Empty:
                break
            ended = ended or item is None
            if item is not None:
                waiting.append(item)
        if waiting:
            values = store.get(version, [user for user, _, _ in waiting])
            now, left = time.perf_counter(), []
            for item, raw in zip(waiting, values, strict=True):
                if raw is not None and decode_value(raw).event_ts >= item[1]:
                    ages.append((now - item[2]) * 1e3)
                elif now - item[2] > GIVE_UP_S:
                    ages.append(float("nan"))
                else:
                    left.append(item)
            waiting = left
        time.sleep(LOOK_INTERVAL_S)


if __name__ == "__main__":
    main()
