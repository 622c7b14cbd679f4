"""Workers killed, paused and cut off from their store while events keep coming: at the end all is as if nothing had been.

A short version; `python -m tests.integration.chaos` (`make chaos`) is the long one.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freshet.stream import topics
from freshet.stream.embedded import EmbeddedRedis, free_port
from freshet.stream.settings import Settings
from tests.integration.fleet import Fleet
from tests.integration.test_many_workers import USERS, shared_out, some_events
from tests.random_bundle import random_bundle

pytestmark = pytest.mark.integration


class Load:
    """Events at a steady rate from a thread, until the block ends."""

    def __init__(self, fleet: Fleet, per_s: int = 100) -> None:
        self.fleet, self.per_s = fleet, per_s
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        batch = max(1, self.per_s // 5)
        while not self._stop.wait(0.2):
            self.fleet.publish(some_events(1_000 + self.sent, batch))
            self.sent += batch


@pytest.fixture
def fleet(
    apache_kafka: object, fresh_topics: Callable[[int], topics.TopicSettings], fresh_name: Callable[[str], str],
    tmp_path: Path,
) -> Iterator[Fleet]:  # fmt: skip
    """No worker yet, on Apache Kafka and a Redis of its own, which a test may stop."""
    bundle = random_bundle(products=("p1", "p2"))
    bundle.save(tmp_path / "bundle")
    settings = Settings(topics=fresh_topics(4))
    with EmbeddedRedis(port=free_port()) as redis:
        settings = replace(
            settings,
            kafka=replace(
                settings.kafka,
                bootstrap=apache_kafka.bootstrap,  # type: ignore[attr-defined]
                group_id=fresh_name("group"),
                session_timeout_ms=6_000,
            ),
            redis=replace(settings.redis, url=redis.url),
            snapshot=replace(settings.snapshot, place=str(tmp_path / "snapshots"), interval_s=2.0),
        )
        with Fleet(tmp_path / "run", tmp_path / "bundle", bundle.model_version, settings) as made:
            yield made


def all_is_well(fleet: Fleet) -> None:
    report = fleet.verify()
    assert report.passed, (report, fleet.last_words())
    assert report.users.compared == USERS


def test_workers_that_are_killed_and_paused(fleet: Fleet) -> None:
    """kill -9 of each kind; SIGSTOP past the session timeout and SIGCONT: a zombie with the old tokens."""
    fleet.publish(some_events(0, 200))
    fleet.start("items", "items")
    fleet.start("a", "users")
    fleet.start("b", "users", "--standby")
    fleet.wait("a and b", lambda: shared_out(fleet, "a", "b"))
    with Load(fleet):
        fleet.kill("a")
        fleet.wait("b alone", lambda: shared_out(fleet, "b"))
        fleet.start("a", "users")
        fleet.wait("a and b", lambda: shared_out(fleet, "a", "b"))
        fleet.kill("items")
        fleet.start("items", "items")
        fleet.signal("a", signal.SIGSTOP)
        fleet.wait("b alone", lambda: shared_out(fleet, "b"))
        fleet.signal("a", signal.SIGCONT)
        fleet.wait("a and b", lambda: shared_out(fleet, "a", "b"))
        time.sleep(1.0)
    all_is_well(fleet)
