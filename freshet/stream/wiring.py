"""Where the parts are put together: the only place that knows which store, index and broker is behind an interface."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from freshet.errors import FreshetError
from freshet.store.credentials import warn_of_password
from freshet.store.embeddings import StoreUnavailable
from freshet.stream import topics
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Kind
from freshet.stream.follower import IndexFollower
from freshet.stream.kafka import KafkaUnavailable, PartitionConsumer, RecordProducer, TopicAdmin
from freshet.stream.modelling import day_ms
from freshet.stream.placement import Placement
from freshet.stream.producer import Producer
from freshet.stream.progress import Bars
from freshet.stream.replay import Pace, Replayed
from freshet.stream.replay import replay as publish
from freshet.stream.settings import Settings, from_environment

if TYPE_CHECKING:
    from freshet.model.bundle import Bundle
    from freshet.reader import Reader
    from freshet.store.redis_store import RedisStore
    from freshet.stream.verify import Report

SETTLE_S = 0.3
"""After connecting, librdkafka still fetches its producer id; an event sent meanwhile would wait for it."""
START_WAIT_S_MAX = 10.0
"""Longest pause between two attempts to reach a server at start."""


def settings_of(environment: Mapping[str, str], bootstrap: str | None, redis: str | None) -> Settings:
    """Settings from the environment, with what the command line overrides."""
    settings = from_environment(environment)
    if bootstrap:
        settings = replace(settings, kafka=replace(settings.kafka, bootstrap=bootstrap))
    if redis:
        warn_of_password(redis, "--redis")
        settings = replace(settings, redis=replace(settings.redis, url=redis))
    return settings


@contextmanager
def admin(settings: Settings) -> Iterator[TopicAdmin]:
    """An admin client."""
    yield TopicAdmin(settings.kafka)


def open_store(settings: Settings) -> RedisStore:
    """The embedding store and serving state in Redis."""
    from freshet.store.redis_store import RedisStore

    return RedisStore(settings.redis)


def wait_for(what: str, attempt: Callable[[], Any], bars: Bars, should_stop: Callable[[], bool]) -> Any:
    """Repeat `attempt` with growing pauses until its server answers."""
    wait_s = 0.2
    while True:
        try:
            return attempt()
        except (KafkaUnavailable, StoreUnavailable) as e:
            if should_stop():
                raise
            bars.say(f"waiting for {what}: {e}")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, START_WAIT_S_MAX)


def run_worker(
    settings: Settings, bundle_path: Path, backfill: Path | None, backfill_until: str | None,
    index_dir: Path | None, bars: Bars, should_stop: Callable[[], bool],
) -> None:  # fmt: skip
    """The process `freshet worker`: returns when it was asked to stop and has finished its batch."""
    from freshet.model.bundle import Bundle
    from freshet.model.frozen import FrozenTowers, encode_fixture
    from freshet.store.faiss_index import make_index
    from freshet.store.graph import GraphStore
    from freshet.stream.sink import Sink, Stopped
    from freshet.stream.updater import Updater
    from freshet.stream.worker import Origin, Worker, partitions_of

    bundle = Bundle.load(bundle_path, check_parity=encode_fixture)
    warm_up(bundle)
    until_ms = day_ms(backfill_until, "--backfill-until")
    log = EventLog(backfill) if backfill else None
    with suppress(Stopped):
        counts = wait_for(
            "Kafka", lambda: topics.verify_topics(TopicAdmin(settings.kafka), settings.topics), bars, should_stop
        )
        store = open_store(settings)
        fence = wait_for("Redis", lambda: store.next_fence("worker", int(time.time() * 1e3)), bars, should_stop)
        graph = GraphStore(settings.graph)
        producer = RecordProducer(settings.kafka)
        index = make_index(settings.index, bundle.config.dim)
        sink = Sink(
            graph, store, index, producer, settings.topics.embeddings_products,
            bundle.model_version,
            bundle.config.dim, fence, settings.sink, should_stop=should_stop,
            users_topic=settings.topics.embeddings_users if settings.topics.publish_users else None,
        )  # fmt: skip
        kinds = topics.kinds(settings.topics)
        updater = Updater(graph, FrozenTowers(bundle, graph), sink, kinds, settings.decode, settings.ripple)
        origin = Origin(
            bundle=str(bundle_path.resolve()),
            backfill=str(backfill.resolve()) if backfill else None,
            backfill_until_ms=until_ms,
            started_ms=int(time.time() * 1e3),
        )
        consumer = PartitionConsumer(settings.kafka)
        worker = Worker(
            graph, updater, sink, store, consumer, producer, settings.topics.deadletter,
            Placement(counts), origin, settings.worker, settings.popular,
        )  # fmt: skip
        try:
            if log is not None:
                worker.backfill(log.columns(until_ms=until_ms), sum(log.counts.values()), should_stop, bars.update)
            worker.catch_up(partitions_of(counts), should_stop, bars.update)
            bars.say(f"live: {len(graph.users)} users, {len(graph.products)} products, fence {fence}")
            gc.collect()
            gc.freeze()  # the state is long-lived: a collection that walked it would hold up events
            worker.run(should_stop)
            if index_dir is not None:
                index.snapshot(index_dir, bundle.model_version)
        finally:
            consumer.close()
            producer.close()


def warm_up(bundle: Bundle) -> None:
    """Take a few events through every stage once, over state of their own.

    The compiled loops are read from their cache when they are first called; the first real event should
    not wait for that.
    """
    from freshet.model.frozen import FrozenTowers
    from freshet.store.graph import GraphStore
    from freshet.store.index import MemoryItemIndex
    from freshet.store.memory_store import MemoryEmbeddingStore
    from freshet.stream.codec import encode, encode_record_key
    from freshet.stream.events import Event, Line, Product, Profile, Purchase, Session, SessionItem, View
    from freshet.stream.records import Record
    from freshet.stream.sink import Sink
    from freshet.stream.updater import Updater

    at = 1_500_000_000_000
    events: tuple[Event, ...] = (
        Product("p1", at, ("a",), "b", 1.0, "a thing"),
        Profile("u1", at),
        View("v1", "u1", "p1", at),
        Purchase("o1", "u1", at, items=(Line("p1"), Line("p2"))),
        Session("s1", "u1", "s1", at, items=(SessionItem("p1"),)),
        Profile("u1", at + 1, forgotten=True),
    )
    kinds = (Kind.PRODUCT, Kind.PROFILE, Kind.VIEW, Kind.PURCHASE, Kind.SESSION, Kind.PROFILE)
    graph = GraphStore()
    thin = bundle.thin(["p1", "p2"])
    sink = Sink(graph, MemoryEmbeddingStore(), MemoryItemIndex(bundle.config.dim), None, "", "", bundle.config.dim, 1)
    updater = Updater(graph, FrozenTowers(thin, graph), sink, {kind.value: kind for kind in Kind})
    for kind, event in zip(kinds, events, strict=True):
        updater.step([Record(kind.value, 0, 0, at, encode_record_key(event), encode(event))])
        updater.drain()


def run_replay(
    settings: Settings, log: Path, pace: Pace, since: str | None, until: str | None, bars: Bars,
    should_stop: Callable[[], bool],
) -> Replayed:  # fmt: skip
    """Publish (part of) an event log."""
    since_ms, until_ms = day_ms(since, "--since"), day_ms(until, "--until")
    source = EventLog(log)
    topics.verify_topics(TopicAdmin(settings.kafka), settings.topics)
    topic_of = {kind: topic for topic, kind in topics.kinds(settings.topics).items()}
    producer = RecordProducer(settings.kafka)
    total = sum(source.counts.values())
    producer.connect(settings.kafka.request_timeout_ms / 1e3)
    time.sleep(SETTLE_S)
    try:
        return publish(
            source.raw(since_ms=since_ms, until_ms=until_ms), producer, topic_of, pace, should_stop,
            lambda done: bars.update("replay", done, total),
        )  # fmt: skip
    finally:
        producer.close()


def read_status(settings: Settings) -> dict[str, Any]:
    """The status that the worker of the current version wrote last."""
    store = open_store(settings)
    version = store.current()
    blob = store.get_blob(f"{version}:status") if version else None
    if blob is None:
        raise FreshetError(f"no worker has gone live on {settings.redis.url_shown} yet: start `freshet worker`")
    found: dict[str, Any] = msgspec.json.decode(blob)
    return found


def open_follower(settings: Settings, version: str, dim: int) -> IndexFollower:
    """An index that has caught up with the changelog of product embeddings."""
    from freshet.store.faiss_index import make_index

    topic = settings.topics.embeddings_products
    count = TopicAdmin(settings.kafka).describe([topic])[topic]
    if count is None:
        raise FreshetError(f"{topic} does not exist: create the topics with `{topics.CREATE_COMMAND}`")
    consumer = PartitionConsumer(replace(settings.kafka, group_id=f"{settings.kafka.group_id}-reader"))
    follower = IndexFollower(consumer, topic, count, version, make_index(settings.index, dim))
    follower.catch_up()
    return follower


@contextmanager
def open_reader(settings: Settings) -> Iterator[Reader]:
    """A reader of the live system, its index read from the changelog."""
    from freshet.reader import Reader

    status = read_status(settings)
    store = open_store(settings)
    follower = open_follower(settings, status["model_version"], status["dim"])
    try:
        yield Reader.over(store, store, follower)
    finally:
        follower.close()


def open_producer(settings: Settings) -> Producer:
    """A producer of events that is connected and settled: its first event goes out at once."""
    producer = Producer(settings.kafka.bootstrap, topics=settings.topics, kafka=settings.kafka)
    producer.connect()
    time.sleep(SETTLE_S)
    return producer


BEHIND_MS = 86_400_000
"""A stream whose newest event is older than this is a replayed log."""


def next_event_ms(status: dict[str, Any], now_ms: int) -> int:
    """When something that happens now stands in the stream: the clock, but just behind the newest event where that is
    over a day old. So a try on a replayed log does not move event time by years, past which nothing is popular."""
    newest = int(status["event_time_max"])
    return newest + 1 if 0 <= newest < now_ms - BEHIND_MS else now_ms


def one_click(settings: Settings, user: str, product: str, timeout_s: float = 10.0) -> dict[str, Any]:
    """Publish a view and wait until the user's embedding shows it; milliseconds from send to readable."""
    from freshet.store.value import decode_value

    store = open_store(settings)
    status = read_status(settings)
    version = status["model_version"]
    before = store.get(version, [user])[0]
    with open_producer(settings) as producer:
        start = time.perf_counter()
        at_ms = producer.view(user, product, timestamp=next_event_ms(status, int(time.time() * 1e3))).timestamp
        producer.flush(timeout_s)
        while time.perf_counter() - start < timeout_s:
            raw = store.get(version, [user])[0]
            if raw is not None and raw != before:
                value = decode_value(raw)
                if (product, "view", at_ms) in value.recent:
                    taken = (time.perf_counter() - start) * 1e3
                    moved = 0.0 if before is None else float(np.abs(value.vector - decode_value(before).vector).max())
                    return {"user": user, "product": product, "click_ms": taken, "moved": moved}
            time.sleep(0.0005)
    raise FreshetError(
        f"the view of {product!r} by {user!r} is not in Redis after {timeout_s:g} s: "
        "is the worker running (`freshet status`), and was the event refused (`freshet deadletter list`)?"
    )


def run_verify(
    settings: Settings, bundle_path: Path | None, backfill: Path | None, backfill_until: str | None,
    timeout_s: float, bars: Bars,
) -> Report:  # fmt: skip
    """Compare the live system with the offline path over the same log."""
    from freshet.model.bundle import Bundle
    from freshet.store.graph import GraphStore
    from freshet.stream import verify
    from freshet.stream.worker import partitions_of

    status = read_status(settings)
    origin = status["origin"]
    bundle = Bundle.load(bundle_path or Path(origin["bundle"]))
    _same_version(bundle, status)
    counts = topics.verify_topics(TopicAdmin(settings.kafka), settings.topics)
    inputs = partitions_of(counts)
    store = open_store(settings)
    consumer = PartitionConsumer(replace(settings.kafka, group_id=f"{settings.kafka.group_id}-verify"))
    try:
        verify.wait_until_quiet(store, bundle.model_version, consumer, inputs, timeout_s)
        log = backfill or (Path(origin["backfill"]) if origin["backfill"] else None)
        until_ms = day_ms(backfill_until, "--backfill-until") or origin["backfill_until_ms"]
        history = EventLog(log).columns(until_ms=until_ms) if log else iter(())
        graph = GraphStore(settings.graph)
        kinds: dict[str, Kind] = topics.kinds(settings.topics)
        events = verify.rebuild(
            history, consumer, inputs, kinds, Placement(counts), settings.decode, graph, bars.update
        )
        follower = open_follower(settings, bundle.model_version, bundle.config.dim)
        try:
            ids = follower.index.ids()
            vectors, _ = follower.index.get(ids)
        finally:
            follower.close()
        users, products = verify.compare(bundle, graph, store, (ids, vectors), bars.update)
        return verify.Report(bundle.model_version, events, users, products)
    finally:
        consumer.close()


def _same_version(bundle: Bundle, status: dict[str, Any]) -> None:
    if bundle.model_version != status["model_version"]:
        raise FreshetError(
            f"the bundle is version {bundle.model_version}, but readers are served {status['model_version']}: "
            "name the worker's bundle with --bundle"
        )


def read_dead_letters(settings: Settings, limit: int) -> list[dict[str, Any]]:
    """The newest dead letters, newest last."""
    from freshet.stream.deadletter import DeadLetterError, from_deadletter

    topic = settings.topics.deadletter
    count = TopicAdmin(settings.kafka).describe([topic])[topic]
    if count is None:
        raise FreshetError(f"{topic} does not exist: create the topics with `{topics.CREATE_COMMAND}`")
    consumer = PartitionConsumer(replace(settings.kafka, group_id=f"{settings.kafka.group_id}-deadletter"))
    try:
        marks = consumer.watermarks([(topic, p) for p in range(count)])
        positions = {tp: max(low, high - limit) for tp, (low, high) in marks.items()}
        consumer.assign(positions)
        found: list[dict[str, Any]] = []
        while any(positions[tp] < high for tp, (_, high) in marks.items()):
            for record in consumer.poll(limit, 0.1):
                positions[record.topic, record.partition] = record.offset + 1
                try:
                    letter = from_deadletter(record)
                except DeadLetterError:
                    continue
                found.append(
                    {
                        "topic": letter.topic, "partition": letter.partition, "offset": letter.offset,
                        "reason": letter.reason, "message": letter.message, "value_bytes": letter.value_bytes,
                        "dead_lettered_ms": record.timestamp_ms,
                    }
                )  # fmt: skip
        return sorted(found, key=lambda letter: letter["dead_lettered_ms"])[-limit:]
    finally:
        consumer.close()
