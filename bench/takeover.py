"""A worker of users ends, and a standby serves its partitions: how long their events wait, by how it ended.

    python -m tests.integration.apache_kafka python -m bench.takeover
    python -m tests.integration.apache_kafka python -m bench.takeover --users 1000000 --purchased-max 32 --viewed-max 16

On a Kafka without events in its topics (the embedded broker is slow to notice that a worker is gone). One worker of
items and two of users, each of which follows the other's partitions, begin with snapshots of the shop of
`bench.snapshot`; events come at `--rate`. Then one worker of users is asked to end (SIGTERM), is started again, and is
killed (SIGKILL). Measured is the greatest age at which an event became readable after that. Who is killed is missed by
the group after `session_timeout_ms` only, so that wait is told apart.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.recovery import CATALOGUE, Probe, write_snapshots
from bench.report import result, table
from bench.snapshot import filled, shop_arguments
from bench.synthetic import Shop, catalogue
from bench.train_scale import Large
from freshet.errors import FreshetError
from freshet.model.dayzero import dayzero
from freshet.store.graph import GraphLimits
from freshet.store.history import History
from freshet.stream.decode import decode_events
from freshet.stream.local import LocalSystem
from freshet.stream.settings import Settings, as_environment
from freshet.stream.wiring import read_status

LIVE_WITHIN_S = 600.0
WATCHED_S = 30.0
"""How long events are watched after a worker has ended."""


class Workers:
    """Workers of one system, by name; they end with it."""

    def __init__(self, settings: Settings, bundle: Path, folder: Path) -> None:
        self.settings, self.bundle, self.folder = settings, bundle, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *options: str) -> None:
        """Start a worker; of users unless the options say otherwise."""
        environment = {
            **os.environ, **as_environment(self.settings), "FRESHET_KAFKA_BOOTSTRAP": self.settings.kafka.bootstrap,
            "FRESHET_REDIS_URL": self.settings.redis.url,
        }  # fmt: skip
        command = [sys.executable, "-m", "freshet.stream.cli", "worker", "--bundle", str(self.bundle), *options]
        with (self.folder / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def end(self, name: str, how: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        process = self.processes.pop(name)
        process.send_signal(how)
        process.wait(60.0)

    def wait_live(self, count: int) -> None:
        """Wait until `count` workers serve something and all is written."""
        end = time.monotonic() + LIVE_WITHIN_S
        while time.monotonic() < end:
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            if ended:
                log = (self.folder / f"{ended[0]}.log").read_text()[-1_500:]
                raise FreshetError(f"{ended[0]} has ended:\n{log}")
            try:
                found = read_status(self.settings)
            except FreshetError:
                found = {}
            workers = found.get("workers", ())
            if found.get("state") == "live" and len(workers) == count:
                return
            time.sleep(0.2)
        raise FreshetError(f"{count} workers were not live within {LIVE_WITHIN_S:.0f} s")


@contextmanager
def workers_of(system: LocalSystem, bundle: Path, folder: Path) -> Iterator[Workers]:
    """Workers that are killed at the end."""
    found = Workers(system.settings, bundle, folder)
    try:
        yield found
    finally:
        for process in found.processes.values():
            process.kill()
            process.wait()


def oldest_s(probe: Probe, since: float) -> float:
    """The greatest age in s at which an event became readable within `WATCHED_S`."""
    time.sleep(WATCHED_S)
    return float(probe.ages(since, since + WATCHED_S).max()) / 1e3


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shop_arguments(parser, 100_000, 10_000, 2_000_000)
    parser.add_argument("--rate", type=float, default=500.0, help="events a second")
    parser.add_argument("--bootstrap", required=True, help="a running Kafka without events in its topics")
    args = parser.parse_args()
    limits = replace(GraphLimits(), purchased_max=args.purchased_max, viewed_max=args.viewed_max)
    bundle = dayzero(History.of([decode_events(catalogue(Shop(products=CATALOGUE)))]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(graph=limits)
        settings = replace(
            settings, snapshot=replace(settings.snapshot, place=f"{folder}/snapshots", interval_s=1e6),
            kafka=replace(settings.kafka, session_timeout_ms=6_000), worker=replace(settings.worker, grace_s=0.0),
        )  # fmt: skip
        bundle.save(folder / "bundle")
        with LocalSystem(folder / "run", settings, bootstrap=args.bootstrap) as system:
            write_snapshots(filled(Large(args.users, args.products, args.edges), limits), system.settings)
            with workers_of(system, folder / "bundle", folder) as workers:
                workers.start("items", "--role", "items")
                for each in ("u1", "u2"):
                    workers.start(each, "--role", "users", "--standby")
                workers.wait_live(3)
                with Probe(system, bundle.model_version, args.users, args.rate) as probe:
                    time.sleep(5.0)
                    steady = float(probe.ages(0.0, time.perf_counter()).max()) / 1e3
                    since = time.perf_counter()
                    workers.end("u2", signal.SIGTERM)
                    asked = oldest_s(probe, since)
                    workers.start("u2", "--role", "users", "--standby")
                    workers.wait_live(3)
                    time.sleep(5.0)
                    since = time.perf_counter()
                    workers.end("u2", signal.SIGKILL)
                    killed = oldest_s(probe, since)
    missed = settings.kafka.session_timeout_ms / 1e3
    table(
        ("greatest age of an event, s", ""),
        [
            ("with both workers there", steady),
            ("after one was asked to end", asked),
            (f"after one was killed, of which the group waits {missed:g} before it misses it", killed),
        ],
    )
    figures = {"steady_s": steady, "asked_s": asked, "killed_s": killed, "takeover_s": killed - missed}
    result({name: round(value, 3) for name, value in figures.items()})


if __name__ == "__main__":
    main()
