"""Workers killed, paused and cut off while events keep coming: at the end all is as if nothing had been.

A short version; `python -m tests.integration.chaos` (`make chaos`) is the long one.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freshet.stream import topics
from freshet.stream.backfilling import backfill
from freshet.stream.embedded import EmbeddedRedis, free_port
from freshet.stream.eventlog_writer import EventLogWriter
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.settings import Settings
from freshet.stream.wiring import open_store
from tests.integration.apache_kafka import ApacheKafka
from tests.integration.fleet import Fleet
from tests.integration.load import USERS, Load, accounted, some_events
from tests.integration.test_many_workers import shared_out
from tests.random_bundle import random_bundle

pytestmark = pytest.mark.integration

FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
"""No file grows past a page: what a full disk does to a snapshot (and to the process's log, which it survives)."""
A_DAY_AHEAD = "import time; real = time.time; time.time = lambda: real() + 86_400"


@pytest.fixture
def fleet(
    apache_kafka: ApacheKafka, fresh_topics: Callable[[int], topics.TopicSettings], fresh_name: Callable[[str], str],
    tmp_path: Path,
) -> Iterator[Fleet]:  # fmt: skip
    """No worker yet, on Apache Kafka and a Redis of its own, which a test may stop."""
    bundle = random_bundle(products=("p1", "p2"))
    bundle.save(tmp_path / "bundle")
    settings = Settings(topics=fresh_topics(4))
    port = free_port()
    with EmbeddedRedis(port=port) as redis:
        settings = replace(
            settings,
            kafka=replace(
                settings.kafka,
                bootstrap=apache_kafka.bootstrap,
                group_id=fresh_name("group"),
                session_timeout_ms=6_000,
            ),
            redis=replace(settings.redis, url=redis.url),
            snapshot=replace(settings.snapshot, place=str(tmp_path / "snapshots"), interval_s=2.0),
        )
        with Fleet(tmp_path / "run", tmp_path / "bundle", bundle.model_version, settings) as made:
            made.redis = redis
            yield made
            made.redis.stop()


def all_is_well(fleet: Fleet) -> None:
    report = fleet.verify()
    assert report.passed, (report, fleet.last_words())
    assert report.users.compared == USERS
    account = accounted(fleet)
    assert account.rejected > 0
    assert not account.missing
    assert not account.unfounded


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


def redis_again(fleet: Fleet) -> None:
    """The same address, with nothing in it."""
    port = int(fleet.settings.redis.url.rsplit(":", 1)[1].split("/")[0])
    fleet.redis = EmbeddedRedis(port=port).start()


def test_a_store_that_is_lost_and_a_broker_that_goes_away(fleet: Fleet, apache_kafka: ApacheKafka) -> None:
    """Redis emptied, stopped for longer than its timeout and back empty; the broker restarted; a full disk; a clock
    that jumped a day ahead on one worker."""
    fleet.publish(some_events(0, 200))
    fleet.start("items", "items")
    fleet.start("a", "users", "--snapshots", str(fleet.work / "full"), first=FULL_DISK)
    fleet.start("b", "users", first=A_DAY_AHEAD)
    fleet.wait("a and b", lambda: shared_out(fleet, "a", "b"))
    with Load(fleet):
        assert fleet.redis.ask("FLUSHALL") == b"+OK"
        fleet.wait("current", lambda: open_store(fleet.settings).current() == fleet.version)
        fleet.redis.stop()
        time.sleep(3.0)
        redis_again(fleet)
        fleet.wait("current", lambda: open_store(fleet.settings).current() == fleet.version)
    fleet.wait_quiet()
    apache_kafka.stop()
    time.sleep(2.0)
    apache_kafka.start()
    with Load(fleet):
        time.sleep(3.0)
    all_is_well(fleet)
    assert fleet.status("a")["snapshots"]["error"]
    assert fleet.status("items")["snapshots"]["taken"]


def test_a_gap_is_named_and_closed_from_an_event_log(fleet: Fleet, tmp_path: Path) -> None:
    """Retention passed over the snapshots' offsets: an error with both offsets and the remedy, which works."""
    admin = TopicAdmin(fleet.settings.kafka)
    first, rest = some_events(0, 150), some_events(150, 150)
    fleet.start("w1", "all")
    fleet.publish(first)
    fleet.wait("w1", lambda: fleet.status("w1").get("state") == "live")
    fleet.wait("snapshots", lambda: fleet.status("w1")["snapshots"]["taken"] >= 5)
    assert fleet.kill("w1") < 0
    fleet.publish(rest)
    with EventLogWriter(tmp_path / "log", "test") as log:
        log.write_many([*first, *rest])
    events = fleet.settings.topics
    places = [(topic, p) for topic in (events.view, events.purchase, events.session) for p in range(4)]
    consumer = PartitionConsumer(fleet.settings.kafka)
    ends = {tp: high for tp, (_, high) in consumer.watermarks(places).items()}
    consumer.close()
    admin.delete_records(ends)
    fleet.start("w1", "all")
    assert fleet.processes["w1"].wait(60) == 2
    said = fleet.log("w1").read_text()
    assert re.search(r"partition \d: offset \d+ was asked for.*\d+ as the oldest.*`freshet backfill LOG`", said, re.S)
    counts = topics.verify_topics(admin, fleet.settings.topics)
    made = backfill(fleet.settings, counts, tmp_path / "log", None, lambda what, done, total: None)
    assert made["snapshots"] == 5
    fleet.start("w1", "all")
    fleet.wait("w1 again", lambda: fleet.status("w1").get("state") == "live")
    fleet.publish(some_events(300, 50))
    report = fleet.verify()  # which reads the log that the snapshots name
    assert report.passed, report
    assert report.users.compared == USERS
