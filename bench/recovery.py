"""What ops wait for: a restart with snapshots, the loss of Redis, and fresh events meanwhile.

    python -m bench.recovery --users 250000 --products 25000 --edges 5000000
    python -m bench.recovery --purchased-max 32 --viewed-max 16      # a million users; 100,000 products; 20 M edges

The shop is that of `bench.snapshot`. Its snapshots are written first; then a worker starts with them on the embedded
broker and Redis while events come at `--rate`. Measured from the start of the process to the first of these events
readable in Redis; then Redis is killed and comes back empty: how fast everything is written again from then on, and how
old events are meanwhile. Of two cores the broker, Redis and the load take one.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from bench.report import result, table
from bench.snapshot import filled, shop_arguments
from bench.synthetic import Shop, catalogue
from bench.train_scale import Large
from freshet.model.dayzero import dayzero
from freshet.store.embeddings import StoreUnavailable
from freshet.store.graph import GraphLimits, GraphStore
from freshet.store.history import History
from freshet.store.redis_store import RedisStore
from freshet.store.snapshot_places import open_place
from freshet.store.value import decode_value
from freshet.stream import topics
from freshet.stream.codec import encode
from freshet.stream.decode import decode_events
from freshet.stream.embedded import EmbeddedRedis
from freshet.stream.events import View
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.local import LocalSystem
from freshet.stream.ownership import Ownership
from freshet.stream.records import Outgoing
from freshet.stream.rewriting import ITEMS, users_scope
from freshet.stream.settings import Settings
from freshet.stream.snapshots import InTurn, Snapshots
from freshet.stream.wiring import open_store, read_status
from freshet.stream.worker import partitions_of

CATALOGUE = 2_000
"""Products the bundle knows; the others come from the snapshots."""
SAMPLE_EVERY_S = 0.02
LOOK_EVERY_S = 0.005
LOOKED_FOR_MAX = 20
"""Events looked for at a time, the oldest first: whoever measures should not need a core of two."""
GIB = 2**30


class Probe:
    """Views at a steady rate, of users in turn; every so often one is looked for until it can be read."""

    def __init__(self, system: LocalSystem, version: str, users: int, rate: float) -> None:
        self.system, self.version, self.users, self.rate = system, version, users, rate
        self.seen: list[tuple[float, float]] = []
        """When an event was readable (perf_counter), and its age in ms."""
        self._stop = threading.Event()
        self._waiting: list[tuple[str, int, float]] = []
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._look)]

    def __enter__(self) -> Probe:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def ages(self, since: float, until: float) -> np.ndarray:
        """Ages in ms of the events that became readable in a span of time."""
        return np.array([age for at, age in self.seen if since <= at < until])

    def _send(self) -> None:
        producer = RecordProducer(self.system.settings.kafka)
        topic = self.system.settings.topics.view
        rng = np.random.default_rng(3)
        start, sent, sampled = time.perf_counter(), 0, 0.0
        while not self._stop.is_set():
            due = int((time.perf_counter() - start) * self.rate)
            for _ in range(min(due - sent, 100)):
                user, at = f"u{rng.integers(self.users)}", int(time.time() * 1e3)
                event = View(f"probe-{sent}", user, f"p{rng.integers(CATALOGUE)}", at)
                producer.send(Outgoing(topic, user.encode(), encode(event)))
                now = time.perf_counter()
                if now - sampled > SAMPLE_EVERY_S:
                    sampled = now
                    self._waiting.append((user, at, now))
                sent += 1
            producer.poll()
            time.sleep(0.001)
        producer.close(5.0)

    def _look(self) -> None:
        store = open_store(self.system.settings)
        while not self._stop.is_set():
            waiting = self._waiting[:LOOKED_FOR_MAX]
            if waiting:
                try:
                    values = store.get(self.version, [user for user, _, _ in waiting])
                except StoreUnavailable:
                    continue
                now = time.perf_counter()
                for item, raw in zip(waiting, values, strict=True):
                    if raw is not None and decode_value(raw).event_ts >= item[1]:
                        self.seen.append((now, (now - item[2]) * 1e3))
                        self._waiting.remove(item)
            time.sleep(LOOK_EVERY_S)


def write_snapshots(graph: GraphStore, settings: Settings) -> None:
    """A snapshot of every scope, complete up to where the empty topics begin."""
    counts = topics.verify_topics(TopicAdmin(settings.kafka), settings.topics)
    consumer = PartitionConsumer(settings.kafka)
    lows = {tp: low for tp, (low, _) in consumer.watermarks(partitions_of(counts)).items()}
    consumer.close()
    partitions = counts[settings.topics.view]
    scopes = {ITEMS: lows} | {
        users_scope(p): {tp: low for tp, low in lows.items() if tp[1] == p and tp[0] in settings.topics.by_user}
        for p in range(partitions)
    }
    place = open_place(settings.snapshot.place or "")
    writing = Snapshots(graph, Ownership(graph.users, partitions), place, settings.snapshot, "", {}, begin=InTurn)
    writing.all_now()
    while not writing.idle:
        writing.turn(scopes, lows)


def wait_for_state(system: LocalSystem, state: str) -> float:
    """When the worker said so, by perf_counter."""
    while True:
        try:
            if read_status(system.settings)["state"] == state:
                return time.perf_counter()
        except Exception:
            system.check_alive()
        time.sleep(0.05)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shop_arguments(parser, 1_000_000, 100_000, 20_000_000)
    parser.add_argument("--rate", type=float, default=1_000.0, help="events a second")
    parser.add_argument("--bootstrap", help="a running Kafka without events in its topics (default: the embedded one)")
    args = parser.parse_args()
    limits = replace(GraphLimits(), purchased_max=args.purchased_max, viewed_max=args.viewed_max)
    bundle = dayzero(History.of([decode_events(catalogue(Shop(products=CATALOGUE)))]))
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(graph=limits)
        settings = replace(settings, snapshot=replace(settings.snapshot, place=f"{folder}/snapshots", interval_s=1e6))
        bundle.save(Path(folder) / "bundle")
        run = Path(folder) / "run"
        with (
            EmbeddedRedis() as server,
            LocalSystem(run, settings, bootstrap=args.bootstrap, redis=server.url) as system,
        ):
            graph = filled(Large(args.users, args.products, args.edges), limits)
            write_snapshots(graph, system.settings)
            del graph
            with Probe(system, bundle.model_version, args.users, args.rate) as probe:
                figures = measure(system, server, Path(folder) / "bundle", probe)
    users = figures["users"]
    table(
        ("", ""),
        [
            ("process started to first fresh event readable, s", figures["first_fresh_s"]),
            ("process started to all written again, s", figures["live_s"]),
            ("written again after the loss of Redis, users/s", figures["rewritten_per_s"]),
            ("and for each CPU second of the worker", figures["rewritten_per_cpu_s"]),
            ("cores that the worker had", figures["worker_cores"]),
            ("age of events meanwhile, p50 ms", figures["fresh_ms_p50"]),
            ("age of events meanwhile, p99 ms", figures["fresh_ms_p99"]),
            ("memory of the worker, GiB", figures["memory_gib"]),
            ("of which a user and what is theirs, bytes", figures["memory_gib"] * GIB / max(1.0, users)),
        ],
    )
    result({name: round(value, 3) for name, value in figures.items()})


def current(store: RedisStore) -> str | None:
    """The version that readers are pointed to; None also while Redis does not answer."""
    try:
        return store.current()
    except StoreUnavailable:
        return None


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(system: LocalSystem, server: EmbeddedRedis, bundle: Path, probe: Probe) -> dict[str, float]:
    """Start, wait, lose Redis, wait."""
    start = time.perf_counter()
    system.start_worker(bundle)
    while not probe.seen:
        system.check_alive()
        time.sleep(0.01)
    first = probe.seen[0][0] - start
    live = wait_for_state(system, "live") - start
    time.sleep(3.0)
    before = read_status(system.settings)
    store = open_store(system.settings)
    assert system.worker is not None
    worker = psutil.Process(system.worker.pid)
    server.kill()
    server.start()
    lost_at, used = time.perf_counter(), cpu_s(worker)
    while current(store) is None:
        time.sleep(0.02)
    whole_at = time.perf_counter()
    used = cpu_s(worker) - used
    ages = probe.ages(lost_at, whole_at)
    memory = worker.memory_info().rss
    return {
        "users": float(before["users"]),
        "first_fresh_s": first,
        "live_s": live,
        "rewritten_per_s": before["users"] / (whole_at - lost_at),
        "rewritten_per_cpu_s": before["users"] / used,
        "worker_cores": used / (whole_at - lost_at),
        "fresh_ms_p50": float(np.percentile(ages, 50)) if ages.size else float("nan"),
        "fresh_ms_p99": float(np.percentile(ages, 99)) if ages.size else float("nan"),
        "memory_gib": memory / GIB,
    }


if __name__ == "__main__":
    main()
