"""The long chaos: faults drawn at random on real servers, under load, for as long as asked; then a report.

    python -m tests.integration.chaos --minutes 20 --seed 7

Apache Kafka (three brokers) and Valkey, three worker processes of users (one of them a standby) and one of items.
Each fault is followed by a wait until all partitions are served again; no worker may end by itself. Then
`freshet verify`, and every record is accounted for.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from freshet.stream.embedded import EmbeddedRedis, free_port
from freshet.stream.settings import Settings
from freshet.stream.topics import TopicSettings
from tests.integration.apache_kafka import KafkaCluster, fetch_jars
from tests.integration.fleet import Fleet
from tests.integration.load import Load, accounted, some_events
from tests.random_bundle import random_bundle

NAMES = ("a", "b", "c")
PARTITIONS = 6
SERVED_WITHIN_S = 120.0
JOINED_AGAIN = "gave this worker's name to another: joining again"


class Chaos:
    """The faults, each of which leaves all processes running again."""

    def __init__(self, fleet: Fleet, kafka: KafkaCluster, chance: random.Random) -> None:
        self.fleet, self.kafka, self.chance = fleet, kafka, chance
        self.done: Counter[str] = Counter()
        self.recovered_s: dict[str, list[float]] = {}

    def start(self) -> None:
        """Every worker."""
        self.fleet.start("items", "items")
        for name in NAMES:
            self._start(name)
        self._wait_served()

    def once(self) -> None:
        """One fault, and the wait until everything is served."""
        faults: list[Callable[[], None]] = [
            self.killed, self.killed, self.terminated, self.paused, self.items_killed, self.redis_emptied,
            self.redis_restarted, self.kafka_restarted, self.broker_killed, self.broker_killed,
        ]  # fmt: skip
        fault = self.chance.choice(faults)
        start = time.monotonic()
        fault()
        self._wait_served()
        self.done[fault.__name__] += 1
        self.recovered_s.setdefault(fault.__name__, []).append(time.monotonic() - start)

    def killed(self) -> None:
        name = self.chance.choice(NAMES)
        self.fleet.kill(name)
        time.sleep(self.chance.choice([0.0, 8.0]))  # back within the session timeout, or after it
        self._start(name)

    def terminated(self) -> None:
        name = self.chance.choice(NAMES)
        code = self.fleet.kill(name, signal.SIGTERM)
        assert code == 0, f"{name} ended with {code}\n{self.fleet.last_words()}"
        self._start(name)

    def paused(self) -> None:
        """Past the session timeout: a zombie with the old tokens when it goes on."""
        name = self.chance.choice(NAMES)
        self.fleet.signal(name, signal.SIGSTOP)
        time.sleep(9.0)
        self.fleet.signal(name, signal.SIGCONT)

    def items_killed(self) -> None:
        self.fleet.kill("items")
        self.fleet.start("items", "items")

    def redis_emptied(self) -> None:
        assert self.fleet.redis.ask("FLUSHALL") == b"+OK"

    def redis_restarted(self) -> None:
        port = self.fleet.redis.port
        self.fleet.redis.stop()
        time.sleep(self.chance.choice([0.0, 4.0]))  # shorter and longer than the socket timeout
        self.fleet.redis = EmbeddedRedis(port=port).start()

    def broker_killed(self) -> None:
        """One of three: others lead what it led."""
        node = self.chance.choice(self.kafka.nodes)
        node.kill()
        time.sleep(self.chance.choice([4.0, 10.0]))  # its session with the controllers ends after 3 s
        node.start()

    def kafka_restarted(self) -> None:
        self.kafka.stop()
        self.kafka.start()

    def _start(self, name: str) -> None:
        self.fleet.start(name, "users", *(("--standby",) if name == "c" else ()))

    def joined_again(self) -> int:
        """How often a worker lost its name and joined again."""
        return sum(self.fleet.log(name).read_text().count(JOINED_AGAIN) for name in NAMES)

    def _none_ended(self) -> None:
        for name, process in self.fleet.processes.items():
            code = process.poll()
            assert code is None, f"{name} ended by itself with {code}\n{self.fleet.last_words()}"

    def _wait_served(self) -> None:
        """By what workers say from now on: what stands there is of before the fault."""
        since_ms = int(time.time() * 1e3)

        def served() -> bool:
            self._none_ended()
            scopes = [self.fleet.serves(name, since_ms) for name in NAMES]
            served_once = sum(map(len, scopes)) == PARTITIONS == len(set().union(*scopes))
            return served_once and bool(self.fleet.serves("items", since_ms))

        self.fleet.wait("all partitions", served, SERVED_WITHIN_S)


def main() -> int:
    """See the module; 0 where every promise held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rate", type=int, default=200, help="events a second")
    args = parser.parse_args()
    bundle = random_bundle(products=("p1", "p2"))
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(port=free_port()) as redis:
        bundle.save(Path(folder) / "bundle")
        kafka = KafkaCluster(fetch_jars()).start()
        settings = Settings(topics=TopicSettings(partitions=PARTITIONS, replication_factor=len(kafka.nodes)))
        settings = replace(
            settings,
            kafka=replace(settings.kafka, bootstrap=kafka.bootstrap, session_timeout_ms=6_000),
            redis=replace(settings.redis, url=redis.url),
            snapshot=replace(settings.snapshot, place=f"{folder}/snapshots", interval_s=5.0),
        )
        try:
            with Fleet(Path(folder) / "run", Path(folder) / "bundle", bundle.model_version, settings) as fleet:
                fleet.redis = redis
                return report(fleet, kafka, args)
        finally:
            kafka.discard()


def report(fleet: Fleet, kafka: KafkaCluster, args: argparse.Namespace) -> int:
    """Run, check, and print what was done; the last line is one JSON object."""
    chaos = Chaos(fleet, kafka, random.Random(args.seed))
    fleet.publish(some_events(0, 300))
    chaos.start()
    end = time.monotonic() + args.minutes * 60
    with Load(fleet, args.rate) as load:
        while time.monotonic() < end:
            chaos.once()
            left = max(0, int(end - time.monotonic()))
            print(f"{left:5d} s left, {sum(chaos.done.values())} faults, {load.sent} events", flush=True)
    verified = fleet.verify(timeout_s=300.0)
    account = accounted(fleet)
    fleet.redis.stop()
    passed = verified.passed and not account.missing and not account.unfounded
    for name, count in chaos.done.most_common():
        times = sorted(chaos.recovered_s.get(name, []))
        served = f", served again after {times[0]:.1f} to {times[-1]:.1f} s" if times else ""
        print(f"{name:16s} {count:3d} times{served}")
    print(f"names lost to another member and taken again: {chaos.joined_again()}")
    print(f"{account.records} records, {account.rejected} of them rejected, {account.letters} dead letters")
    print("every promise held" if passed else f"BROKEN: {verified} {account}")
    print(json.dumps({
        "passed": passed, "seed": args.seed, "faults": dict(chaos.done), "names_lost": chaos.joined_again(),
        "records": account.records,
        "users_compared": verified.users.compared, "products_compared": verified.products.compared,
        "parity_max_abs_error": max(verified.users.max_abs_error, verified.products.max_abs_error),
    }))  # fmt: skip
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
