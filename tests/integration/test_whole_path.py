"""The whole path with real parts: a worker process, Kafka over TCP, Redis over TCP, verify at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freshet.errors import FreshetError
from freshet.store.value import decode_value
from freshet.stream import topics
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.convert import convert
from freshet.stream.deadletter_topic import Entry, open_dead_letters
from freshet.stream.embedded import EmbeddedRedis, free_port
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Kind, Line, Product, Profile, Purchase, View
from freshet.stream.kafka import RecordProducer
from freshet.stream.local import LocalSystem
from freshet.stream.records import Outgoing
from freshet.stream.replay import Pace, replay
from freshet.stream.settings import Settings, as_environment
from freshet.stream.verify import Report
from freshet.stream.wiring import open_live_index, open_store, run_verify
from tests.commands import freshet
from tests.integration.apache_kafka import ApacheKafka
from tests.random_bundle import random_bundle

DATA = Path(__file__).parents[3] / "shared" / "data"
NOW_MS = int(time.time() * 1e3)


class Quiet:
    """Progress nobody looks at."""

    def update(self, what: str, done: int, total: int) -> None: ...

    def say(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that reads every relation, with random weights: nothing cancels out."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    random_bundle(products=("p1", "p2")).save(path)
    return path


@pytest.fixture
def system(
    broker: str, valkey: str, fresh_topics: Callable[[int], topics.TopicSettings], tmp_path: Path
) -> Iterator[LocalSystem]:
    """A system on either broker, with topics of its own."""
    with LocalSystem(tmp_path / "run", Settings(topics=fresh_topics(3)), broker, valkey) as made:
        yield made


def publish(system: LocalSystem, events: list[object]) -> None:
    producer = RecordProducer(system.settings.kafka)
    topic_of = {kind: topic for topic, kind in topics.kinds(system.settings.topics).items()}
    kind_of = {View: Kind.VIEW, Purchase: Kind.PURCHASE, Product: Kind.PRODUCT, Profile: Kind.PROFILE}
    for event in events:
        producer.send(Outgoing(topic_of[kind_of[type(event)]], encode_record_key(event), encode(event)))  # type: ignore[arg-type]
    assert producer.flush(30.0) == 0
    producer.close()


def verified(system: LocalSystem) -> Report:
    return run_verify(system.settings, None, None, None, 60.0, Quiet())  # type: ignore[arg-type]


def some_events(users: int = 8, products: int = 12, count: int = 120) -> list[object]:
    rng = np.random.default_rng(5)
    events: list[object] = [
        Product(f"p{i}", NOW_MS, category=("a", f"c{i % 3}"), price=float(i)) for i in range(products)
    ]
    for i in range(count):
        user, at = f"u{rng.integers(users)}", NOW_MS + i
        if i % 4:
            events.append(View(f"v{i}", user, f"p{rng.integers(products)}", at))
        else:
            lines = tuple(Line(f"p{p}", quantity=1.0) for p in rng.choice(products, 3, replace=False))
            events.append(Purchase(f"o{i}", user, at, items=lines))
    return events


@pytest.mark.parametrize("kind", ["rees46", "jd"])
def test_real_clickstreams_end_in_parity(
    system: LocalSystem, bundle: Path, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every event of the set, duplicates included, as fast as the broker takes them, on both brokers."""
    if not (DATA / kind).exists():
        pytest.skip(f"{DATA / kind} is not on this machine")
    log = converted(kind, DATA / kind, tmp_path_factory)
    system.start_worker(bundle)
    system.wait_live()
    producer = RecordProducer(system.settings.kafka)
    topic_of = {kind: topic for topic, kind in topics.kinds(system.settings.topics).items()}
    done = replay(log.raw(), producer, topic_of, Pace())
    producer.close()
    status = system.wait_quiet(120.0)
    assert status["records"] == done.events == sum(log.counts.values())
    assert status["rejected"] == 0
    report = verified(system)
    assert report.passed, report
    assert report.users.compared > 3000
    assert report.products.compared > 3000


def test_the_last_month_of_completejourney_ends_in_parity(
    system: LocalSystem, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Eleven months from the event log, December through Kafka, then every user and 92,000 products."""
    log = converted("completejourney", None, tmp_path_factory)
    system.start_worker(bundle, log.path, "2017-12-01")
    before = system.wait_live()
    since = int(np.datetime64("2017-12-01", "ms").astype(np.int64))
    producer = RecordProducer(system.settings.kafka)
    topic_of = {kind: topic for topic, kind in topics.kinds(system.settings.topics).items()}
    done = replay(log.raw(since_ms=since), producer, topic_of, Pace())
    producer.close()
    status = system.wait_quiet(180.0)
    assert status["records"] - before["records"] == done.events > 25_000
    report = verified(system)
    assert report.passed, report
    assert report.users.compared == 2469
    assert report.products.compared > 92_000


def converted(kind: str, source: Path | None, factory: pytest.TempPathFactory) -> EventLog:
    """The event log of a data set, made once in a test session."""
    path = factory.getbasetemp() / f"log-{kind}"
    if not path.exists():
        convert(kind, source, path)
    return EventLog(path)


def test_a_broker_that_goes_away_in_the_middle_is_waited_for(
    apache_kafka: ApacheKafka,
    valkey: str,
    bundle: Path,
    tmp_path: Path,
    fresh_topics: Callable[[int], topics.TopicSettings],
) -> None:
    with LocalSystem(tmp_path / "run", Settings(topics=fresh_topics(2)), apache_kafka.bootstrap, valkey) as system:
        system.start_worker(bundle)
        system.wait_live()
        publish(system, some_events()[:60])
        system.wait_quiet()
        apache_kafka.stop()
        time.sleep(3.0)
        assert system.worker is not None
        assert system.worker.poll() is None
        apache_kafka.start()
        publish(system, some_events()[60:])
        report = verified(system)
        assert report.passed, report
        assert report.users.compared == 8
        assert system.stop_worker() == 0


def test_a_killed_worker_comes_back_without_loss(system: LocalSystem, bundle: Path, tmp_path: Path) -> None:
    events = some_events()
    system.start_worker(bundle)
    first = system.wait_live()
    publish(system, events[:60])
    system.wait_quiet()
    system.kill_worker()
    publish(system, events[60:])
    system.restart_worker()
    second = system.wait_live()
    assert second["fence"] > first["fence"]
    report = verified(system)
    assert report.passed, report
    assert report.users.compared == 8
    assert report.products.compared >= 12
    assert system.stop_worker() == 0


def test_the_reading_commands_read_the_live_system(system: LocalSystem, bundle: Path) -> None:
    system.start_worker(bundle)
    version = system.wait_live()["model_version"]
    publish(system, some_events())
    system.wait_quiet()

    def said(*words: str) -> dict[str, Any]:
        done = freshet(*words, "--json", env=as_environment(system.settings))
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    every = said("recommend", "u3", "--top", "12", "--include-seen")
    assert (every["source"], every["model_version"], len(every["items"])) == ("personal", version, 12)
    some = said("recommend", "u3", "--top", "12", "--include-seen", "--category", "c1")
    assert sorted(item[0] for item in some["items"]) == ["p1", "p10", "p4", "p7"]
    assert said("recommend", "u3", "--category", "nothing of the kind")["items"] == []
    assert said("recommend", "nobody")["source"] == "popular"
    similar = said("similar", "p1", "--top", "3")
    assert len(similar["items"]) == 3 and "p1" not in [item[0] for item in similar["items"]]


def test_verify_names_what_is_wrong(system: LocalSystem, bundle: Path) -> None:
    """One float in Redis and one vector in the index are changed, one key is deleted: all are named."""
    system.start_worker(bundle)
    version = system.wait_live()["model_version"]
    publish(system, some_events())
    system.wait_quiet()
    store = open_store(system.settings)
    raw = store.get(version, ["u3"])[0]
    assert raw is not None
    value = decode_value(raw)
    wrong = value.vector.copy()
    wrong[4] += 1e-3
    place = raw.index(value.vector.tobytes())
    damaged = raw[:place] + wrong.tobytes() + raw[place + wrong.nbytes :]
    poke(system, f"freshet:{version}:user:u3", damaged)
    poke(system, f"freshet:{version}:user:u5", None)
    topic = system.settings.topics.embeddings_products
    with open_live_index(system.settings) as live:
        vector = live.pair()[0].get(["p7"])[0][0]
    forged = raw[:place] + (-vector).astype("<f4").tobytes() + raw[place + wrong.nbytes :]
    later = forged.replace(value.seq.text().encode(), value.seq._replace(step=10**9).text().encode())
    producer = RecordProducer(system.settings.kafka)
    producer.send(Outgoing(topic, b"p7", later))
    assert producer.flush(30.0) == 0
    producer.close()
    report = verified(system)
    assert not report.passed
    assert [key for key, _ in report.users.worst] == ["u3"]
    assert report.users.worst[0][1] == pytest.approx(1e-3, rel=1e-2)
    assert report.users.missing == ["u5"]
    assert [key for key, _ in report.products.worst] == ["p7"]


def poke(system: LocalSystem, key: str, value: bytes | None) -> None:
    """Write or delete a key behind Freshet's back."""
    import redis

    client = redis.Redis.from_url(system.settings.redis.url)
    if value is None:
        client.delete(key)
    else:
        client.set(key, value)
    client.close()


def dead_letters(system: LocalSystem) -> list[Entry]:
    with open_dead_letters(system.settings) as letters:
        return letters.entries()


def test_bad_events_are_dead_lettered_and_the_stream_goes_on(system: LocalSystem, bundle: Path) -> None:
    names = system.settings.topics
    good = encode(View("v1", "u1", "p1", NOW_MS))
    bad = {
        "undecodable": Outgoing(names.view, b"u1", b'{"event_id": "x"'),
        "missing_field": Outgoing(names.view, b"u1", b'{"event_id":"x","user_id":"u1","timestamp":1700000000000}'),
        "wrong_type": Outgoing(names.view, b"u1", good.replace(b'"p1"', b"7")),
        "unknown_field": Outgoing(names.view, b"u1", good[:-1] + b',"dwel_time_s":3}'),
        "negative_number": Outgoing(names.view, b"u1", good[:-1] + b',"dwell_time_s":-3}'),
        "timestamp_in_future": Outgoing(names.view, b"u1", encode(View("v", "u1", "p1", NOW_MS + 10**10))),
        "value_too_large": Outgoing(names.view, b"u1", b" " * (1024 * 1024) + good),
        "key_mismatch": Outgoing(names.view, b"u2", good),
        "unsupported_content_type": Outgoing(names.view, b"u1", good, (("content-type", b"text/csv"),)),
        "unknown_event_type": Outgoing(names.view, b"u1", good, (("ce_type", b"freshet.wink"),)),
        "empty_value": Outgoing(names.purchase, b"u1", None),
    }
    system.start_worker(bundle)
    system.wait_live()
    producer = RecordProducer(system.settings.kafka)
    for record in bad.values():
        producer.send(record)
    assert producer.flush(30.0) == 0
    producer.close()
    publish(system, [View("v2", "u1", "p2", NOW_MS + 1), View("v2", "u1", "p2", NOW_MS + 1)])
    status = system.wait_quiet()
    assert status["rejected"] == len(bad)
    assert status["events"]["view"] == 2
    deadline = time.monotonic() + 10
    while len(entries := dead_letters(system)) < len(bad) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sorted(entry.reason for entry in entries) == sorted(bad)
    assert verified(system).passed


def test_a_forgotten_user_and_a_withdrawn_product_are_gone(system: LocalSystem, bundle: Path) -> None:
    system.start_worker(bundle)
    version = system.wait_live()["model_version"]
    publish(system, some_events())
    names = system.settings.topics
    producer = RecordProducer(system.settings.kafka)
    time.sleep(0.2)  # the empty records' own time is what counts: later than the events
    producer.send(Outgoing(names.profiles, b"u2", None))
    producer.send(Outgoing(names.products, b"p4", None))
    assert producer.flush(30.0) == 0
    producer.close()
    system.wait_quiet()
    store = open_store(system.settings)
    assert store.get(version, ["u2"]) == [None]
    assert "u2" not in set(store.user_ids(version))
    report = verified(system)
    assert report.passed, report
    assert report.users.compared == 7
    with open_live_index(system.settings) as live:
        ids = live.pair()[0].ids()
        assert ids and "p4" not in ids


def test_a_user_forgotten_while_no_worker_ran_is_gone_afterwards(system: LocalSystem, bundle: Path) -> None:
    system.start_worker(bundle)
    version = system.wait_live()["model_version"]
    publish(system, some_events())
    system.wait_quiet()
    system.kill_worker()
    time.sleep(0.2)
    producer = RecordProducer(system.settings.kafka)
    producer.send(Outgoing(system.settings.topics.profiles, b"u2", None))
    assert producer.flush(30.0) == 0
    producer.close()
    store = open_store(system.settings)
    assert store.get(version, ["u2"]) != [None]
    system.restart_worker()
    system.wait_live()
    assert store.get(version, ["u2"]) == [None]
    poke(system, f"freshet:{version}:user:stranger", store.get(version, ["u1"])[0])
    report = verified(system)
    assert report.users.unexpected == ["stranger"]
    assert not report.passed


def test_redis_that_lost_everything_is_filled_again(
    broker: str, bundle: Path, tmp_path: Path, fresh_topics: Callable[[int], topics.TopicSettings]
) -> None:
    port = free_port()
    redis = EmbeddedRedis(port=port).start()
    settings = Settings(topics=fresh_topics(2))
    try:
        with LocalSystem(tmp_path / "run", settings, broker, redis.url) as system:
            system.start_worker(bundle)
            system.wait_live()
            publish(system, some_events()[:80])
            system.wait_quiet()
            redis.stop()
            publish(system, some_events()[80:])
            time.sleep(1.0)
            redis = EmbeddedRedis(port=port).start()
            deadline = time.monotonic() + 30
            while open_store(system.settings).current() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            report = verified(system)
            assert report.passed, report
            assert report.users.compared == 8
            assert system.stop_worker() == 0
    finally:
        redis.stop()


def test_the_older_of_two_workers_is_fenced(system: LocalSystem, bundle: Path, tmp_path: Path) -> None:
    system.start_worker(bundle)
    system.wait_live()
    older = system.worker
    assert older is not None
    try:
        system.restart_worker()
        system.wait_live()
        publish(system, some_events())
        assert older.wait(30) == 4
        assert "a worker with a newer token" in system.worker_log.read_text()
        assert verified(system).passed
    finally:
        if older.poll() is None:
            older.kill()


def test_topics_that_do_not_fit_are_refused_by_name(
    broker: str, valkey: str, bundle: Path, tmp_path: Path, fresh_topics: Callable[[int], topics.TopicSettings]
) -> None:
    settings = Settings(topics=fresh_topics(2))
    with LocalSystem(tmp_path / "run", settings, broker, valkey) as system:
        system.settings = Settings(
            topics=type(settings.topics)(**{**vars(settings.topics), "view": "nowhere.view"}),
            kafka=system.settings.kafka,
            redis=system.settings.redis,
        )
        system.start_worker(bundle)
        with pytest.raises(FreshetError, match=r"ended with 2(.|\n)*nowhere.view(.|\n)*freshet topics create"):
            system.wait_live()


def said(system: LocalSystem, text: str, timeout_s: float = 40.0) -> None:
    """Wait until the worker, still running, has printed this."""
    deadline = time.monotonic() + timeout_s
    while text not in system.worker_log.read_text():
        assert system.worker is not None
        assert system.worker.poll() is None
        assert time.monotonic() < deadline, f"the worker never said {text!r}"
        time.sleep(0.1)


def test_servers_that_come_up_later_are_waited_for(
    apache_kafka: ApacheKafka, bundle: Path, tmp_path: Path, fresh_topics: Callable[[int], topics.TopicSettings]
) -> None:
    redis_port = free_port()
    settings = Settings(topics=fresh_topics(2))
    with LocalSystem(tmp_path / "run", settings, apache_kafka.bootstrap, f"redis://127.0.0.1:{redis_port}/0") as system:
        apache_kafka.stop()
        try:
            system.start_worker(bundle)
            said(system, "waiting for Kafka")
        finally:
            apache_kafka.start()
        said(system, "waiting for Redis")
        with EmbeddedRedis(port=redis_port):
            system.wait_live(60.0)
            publish(system, some_events())
            assert verified(system).passed
            assert system.stop_worker() == 0
