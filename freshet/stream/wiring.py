"""What a command needs of a running system, put together: the store, a reader, a producer, a verification."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from freshet.errors import FreshetError
from freshet.store.columns import F32
from freshet.store.credentials import warn_of_password
from freshet.stream import topics
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Kind
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.live_index import LiveIndex, follow_products
from freshet.stream.modelling import day_ms
from freshet.stream.placement import Placement
from freshet.stream.producer import Producer
from freshet.stream.progress import Bars
from freshet.stream.replay import Pace, Replayed
from freshet.stream.replay import replay as publish
from freshet.stream.settings import Settings, from_environment
from freshet.stream.worker_status import combined, logs_of, read_statuses

if TYPE_CHECKING:
    from freshet.model.bundle import Bundle
    from freshet.reader import Reader
    from freshet.store.redis_store import RedisStore
    from freshet.stream.verify import Report

SETTLE_S = 0.3
"""After connecting, librdkafka still fetches its producer id; an event sent meanwhile would wait for it."""


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
    first_ms, last_ms = source.time_range or (0, 0)
    from_ms, to_ms = max(first_ms, since_ms or first_ms), min(last_ms, until_ms or last_ms)

    def show(done: Replayed) -> None:
        """How far it is in the log's time: how many events lie in a part of it is not known before they are read."""
        if done.last_ms is not None:
            bars.share(f"replay, {done.events} events", (done.last_ms - from_ms) / max(1, to_ms - from_ms))

    producer.connect(settings.kafka.request_timeout_ms / 1e3)
    time.sleep(SETTLE_S)
    try:
        return publish(
            source.raw(since_ms=since_ms, until_ms=until_ms), producer, topic_of, pace, should_stop, show,
        )  # fmt: skip
    finally:
        producer.close()


def read_status(settings: Settings) -> dict[str, Any]:
    """The status that the workers of the current version wrote last."""
    store = open_store(settings)
    version = store.current()
    statuses = read_statuses(store, version) if version else []
    if not statuses:
        raise FreshetError(
            f"no worker has gone live on {settings.redis.url_shown} yet: one that runs writes everything first, and "
            "its log says how far it is; where none runs, start `freshet worker`"
        )
    return combined(statuses)


@contextmanager
def open_reader(settings: Settings) -> Iterator[Reader]:
    """A reader of the live system, its index read from the changelog."""
    from freshet.reader import Reader

    read_status(settings)  # says what to start where nothing is served yet
    store = open_store(settings)
    with open_live_index(settings) as index:
        yield Reader.over(store, store, index)


def open_live_index(settings: Settings) -> LiveIndex:
    """An index of the changelog of products, as the settings have it."""
    kafka = settings.kafka
    return LiveIndex(kafka.bootstrap, topics=settings.topics, kafka=kafka, index=settings.index)


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
        # What a worker says of itself now: the first status may be one that it left before it was started again.
        status = verify.wait_until_quiet(store, bundle.model_version, consumer, inputs, timeout_s)
        logs = history_logs(status, backfill, day_ms(backfill_until, "--backfill-until"))
        graph = GraphStore(settings.graph)
        kinds: dict[str, Kind] = topics.kinds(settings.topics)
        events = verify.rebuild(
            logs, consumer, inputs, kinds, Placement(counts), settings.decode, graph, bars.update
        )
        followed = _followed_products(settings, bundle)
        users, products = verify.compare(bundle, graph, store, followed, bars.update)
        return verify.Report(bundle.model_version, events, users, products)
    finally:
        consumer.close()


def _followed_products(settings: Settings, bundle: Bundle) -> tuple[list[str], F32]:
    """What the changelog says of products in the bundle's version: ids [n], vectors [n, dim]."""
    follower = follow_products(settings.kafka, settings.topics, settings.index, bundle.model_version)
    follower.close()
    index = follower.indexes.of(bundle.model_version)
    if index is None:
        return [], np.empty((0, bundle.config.dim), np.float32)
    ids = index.ids()
    return ids, index.get(ids)[0]


def history_logs(
    status: dict[str, Any], backfill: Path | None, until_ms: int | None
) -> list[tuple[EventLog, int | None]]:
    """The event logs that the workers' state was read from, each with its end: `backfill`, else as they say."""
    if backfill is not None:
        return [(EventLog(backfill), until_ms)]
    found = []
    for part in logs_of(status):
        if not Path(part.path).is_dir():
            raise FreshetError(
                f"the worker's state began with the event log {part.path}, which is not here: name where it is with "
                "--backfill (and --backfill-until, if only its beginning was read)"
            )
        found.append((EventLog(part.path), part.until_ms if until_ms is None else until_ms))
    return found


def _same_version(bundle: Bundle, status: dict[str, Any]) -> None:
    if bundle.model_version != status["model_version"]:
        raise FreshetError(
            f"the bundle is version {bundle.model_version}, but readers are served {status['model_version']}: "
            "name the worker's bundle with --bundle"
        )
