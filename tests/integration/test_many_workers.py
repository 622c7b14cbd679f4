"""Workers that share the work: partitions move, one worker computes items for all, and verify stays green."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from freshet.stream import topics
from freshet.stream.settings import Settings
from tests.integration.apache_kafka import ApacheKafka
from tests.integration.fleet import Fleet
from tests.integration.load import USERS, some_events
from tests.random_bundle import OF_SHARDS, random_bundle

pytestmark = pytest.mark.integration


@pytest.fixture
def fleet(
    apache_kafka: ApacheKafka, valkey: str, fresh_topics: Callable[[int], topics.TopicSettings],
    fresh_name: Callable[[str], str], tmp_path: Path,
) -> Iterator[Fleet]:  # fmt: skip
    """No worker yet; every relation is read, so that users depend on the worker of items. Not on the embedded broker,
    which is slow to notice a static member that is gone."""
    bundle = random_bundle(products=("p1", "p2"))
    bundle.save(tmp_path / "bundle")
    settings = Settings(topics=fresh_topics(4))
    settings = replace(
        settings,
        kafka=replace(
            settings.kafka, bootstrap=apache_kafka.bootstrap, group_id=fresh_name("group"), session_timeout_ms=6_000
        ),
        redis=replace(settings.redis, url=valkey),
        snapshot=replace(settings.snapshot, place=str(tmp_path / "snapshots"), interval_s=1.0),
    )
    with Fleet(tmp_path / "run", tmp_path / "bundle", bundle.model_version, settings) as made:
        yield made


def shared_out(fleet: Fleet, *names: str) -> bool:
    """Whether these workers serve every partition, each at least one and none twice."""
    served = [fleet.serves(name) for name in names]
    return all(served) and sum(map(len, served)) == 4 and len(set().union(*served)) == 4


def test_one_worker_becomes_three_and_one_again(fleet: Fleet) -> None:
    fleet.start("w1", "all")
    fleet.publish(some_events(0, 150))
    fleet.wait("w1", lambda: fleet.status("w1").get("state") == "live")
    fleet.wait("snapshots", lambda: fleet.status("w1")["snapshots"]["taken"] >= 5)
    assert fleet.kill("w1", signal.SIGTERM) == 0
    fleet.start("items", "items")
    fleet.start("a", "users")
    fleet.start("b", "users")
    fleet.wait("a and b", lambda: shared_out(fleet, "a", "b"))
    fleet.publish(some_events(150, 150))
    assert (report := fleet.verify()).passed, report
    assert report.users.compared == USERS
    assert fleet.kill("b", signal.SIGTERM) == 0
    fleet.wait("a alone", lambda: shared_out(fleet, "a"))
    fleet.publish(some_events(300, 150))
    assert (report := fleet.verify()).passed, report
    for name in ("a", "items"):
        assert fleet.kill(name, signal.SIGTERM) == 0
    fleet.start("w1", "all")
    fleet.publish(some_events(450, 150))
    fleet.wait("w1 again", lambda: fleet.status("w1").get("state") == "live")
    assert (report := fleet.verify()).passed, report


def test_a_named_worker_that_comes_back_quickly_moves_nothing(fleet: Fleet) -> None:
    """Within the session timeout a static member finds its partitions as it left them: no token is taken anew."""
    fleet.settings = replace(fleet.settings, kafka=replace(fleet.settings.kafka, session_timeout_ms=60_000))
    fleet.start("items", "items")
    fleet.start("a", "users")
    fleet.start("b", "users")
    fleet.publish(some_events(0, 100))
    fleet.wait("a and b", lambda: shared_out(fleet, "a", "b"))
    mine, others = fleet.serves("a"), fleet.serves("b")
    tokens = {scope: fleet.sentinel(scope).fence for scope in mine | others}
    fleet.kill("a")
    fleet.publish(some_events(100, 100))
    fleet.start("a", "users")
    fleet.wait("a again", lambda: all(fleet.sentinel(scope).fence > tokens[scope] for scope in mine))
    fleet.wait("a and b", lambda: shared_out(fleet, "a", "b"))
    assert fleet.serves("a") == mine
    assert {scope: fleet.sentinel(scope).fence for scope in others} == {scope: tokens[scope] for scope in others}
    assert (report := fleet.verify()).passed, report


def test_products_are_cut_into_shards_and_put_together_again(fleet: Fleet, tmp_path: Path) -> None:
    bundle = random_bundle(config=OF_SHARDS, products=("p1", "p2"))
    bundle.save(tmp_path / "of-shards")
    fleet.bundle, fleet.version = tmp_path / "of-shards", bundle.model_version
    fleet.start("a", "users")
    fleet.start("items", "items")
    fleet.publish(some_events(0, 150))
    fleet.wait("snapshots", lambda: fleet.status("items").get("snapshots", {}).get("taken", 0) >= 1)
    assert fleet.verify().passed
    assert fleet.kill("items", signal.SIGTERM) == 0
    fleet.start("first", "items", "--shard", "0/2")
    fleet.start("second", "items", "--shard", "1/2")
    fleet.publish(some_events(150, 150))
    assert (report := fleet.verify()).passed, report
    assert report.products.compared > 2
    assert [fleet.serves(name) for name in ("first", "second")] == [{"items-0-of-2"}, {"items-1-of-2"}]
    assert "-items-" in fleet.log("second").read_text(), "it began with what was snapshotted of all products"
    fleet.wait("snapshots", lambda: fleet.status("second")["snapshots"]["taken"] >= 1)
    fleet.kill("second")
    fleet.publish(some_events(300, 150))
    fleet.start("second", "items", "--shard", "1/2")
    assert (report := fleet.verify()).passed, report
    for name in ("first", "second"):
        assert fleet.kill(name, signal.SIGTERM) == 0
    assert "-items-1-of-2-" in fleet.log("second").read_text()
    fleet.start("items", "items")
    fleet.publish(some_events(450, 150))
    fleet.wait("all products again", lambda: fleet.serves("items") == {"items"})
    assert (report := fleet.verify()).passed, report
    begun = fleet.log("items").read_text()
    assert "-items-0-of-2-" in begun and "-items-1-of-2-" in begun
