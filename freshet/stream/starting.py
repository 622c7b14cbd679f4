"""The process `freshet worker`: waits for its servers, asks for its topics, puts its parts together and runs them."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from freshet.errors import FreshetError
from freshet.store.embeddings import StoreUnavailable
from freshet.store.snapshot import LogPart
from freshet.stream import topics
from freshet.stream.eventlog import EventLog
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_errors import KafkaUnavailable
from freshet.stream.membership import Alone, Membership
from freshet.stream.modelling import day_ms
from freshet.stream.progress import Bars
from freshet.stream.rewriting import place_of
from freshet.stream.roles import Role
from freshet.stream.settings import Settings
from freshet.stream.sharding import Shard
from freshet.stream.sink import Stopped
from freshet.stream.wiring import open_store
from freshet.stream.worker import Origin, Worker

if TYPE_CHECKING:
    from freshet.model.bundle import Bundle
    from freshet.store.graph import GraphStore
    from freshet.store.index import ItemIndex
    from freshet.stream.ownership import Ownership
    from freshet.stream.snapshots import Snapshots

START_WAIT_S_MAX = 10.0
"""Longest pause between two attempts to reach a server at start."""


def worker_settings(
    settings: Settings, role: str | None = None, name: str | None = None, standby: bool = False,
    snapshots: str | None = None, shard: str | None = None,
) -> Settings:  # fmt: skip
    """Settings with what `freshet worker` overrides. Raises FreshetError for what makes no worker."""
    if role is not None and role not in set(Role):
        raise FreshetError(f"--role {role} is no role of a worker: it is one of {', '.join(Role)}")
    chosen: dict[str, Any] = {"role": role, "name": name, "follow": standby or None, "shard": shard}
    worker = replace(settings.worker, **{field: value for field, value in chosen.items() if value is not None})
    if Shard.parse(worker.shard).of > 1 and worker.role != "items":
        raise FreshetError(f"--shard {worker.shard} is for a worker of items: with it goes --role items")
    if snapshots is not None:
        settings = replace(settings, snapshot=replace(settings.snapshot, place=snapshots))
    return replace(settings, worker=worker)


def wait_for(what: str, attempt: Callable[[], Any], bars: Bars, should_stop: Callable[[], bool]) -> Any:
    """Repeat `attempt` with growing pauses until its server answers.

    Raises Stopped when asked to stop: what is asked for then may be a token, which would end another worker.
    """
    wait_s = 0.2
    while not should_stop():
        try:
            return attempt()
        except (KafkaUnavailable, StoreUnavailable) as e:
            bars.say(f"waiting for {what}: {e}")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, START_WAIT_S_MAX)
    raise Stopped


def run_worker(
    settings: Settings, bundle_path: Path, backfill: Path | None, backfill_until: str | None,
    index_dir: Path | None, bars: Bars, should_stop: Callable[[], bool],
) -> None:  # fmt: skip
    """The process `freshet worker`: returns when it was asked to stop and has finished its batch."""
    if settings.worker.role == "items":  # it commits beside the workers of users, not among them
        shard = Shard.parse(settings.worker.shard)
        group_id = f"{settings.kafka.group_id}-{place_of(shard.scope)}"
        settings = replace(settings, kafka=replace(settings.kafka, group_id=group_id))
    from freshet.model.bundle import Bundle
    from freshet.model.frozen import encode_fixture
    from freshet.store.faiss_index import make_index
    from freshet.stream.warming import warm_up

    bundle = Bundle.load(bundle_path, check_parity=encode_fixture)
    warm_up(bundle)
    until_ms = day_ms(backfill_until, "--backfill-until")
    origin = Origin(
        bundle=str(bundle_path.resolve()),
        logs=[LogPart(str(backfill.resolve()), until_ms)] if backfill else [],
        started_ms=int(time.time() * 1e3),
    )
    log = EventLog(backfill) if backfill else None
    index = make_index(settings.index, bundle.config.dim)
    with suppress(Stopped):
        described = wait_for("Kafka", lambda: ask_topics(TopicAdmin(settings.kafka), settings), bars, should_stop)
        with worker_of(settings, bundle, index, described, origin, bars, should_stop) as worker:
            if log is not None:
                worker.backfill(log.columns(until_ms=until_ms), sum(log.counts.values()), should_stop)
            frozen = said = False
            while not should_stop():
                worker.turn()
                if not frozen and worker.state in ("rewriting", "live"):
                    frozen = True
                    gc.collect()
                    gc.freeze()  # the state is long-lived: a collection that walked it would hold up events
                if not said and worker.state == "live":
                    said = True
                    bars.say(f"live: {worker.graph.users.known} users, {len(worker.graph.products)} products")
            worker.stop()
            if index_dir is not None:
                index.snapshot(index_dir, bundle.model_version)


class Described(NamedTuple):
    """What a broker says of the topics of a worker."""

    read: dict[str, int]
    """The topics that it reads, with their partitions."""
    partitions: int
    """Of each topic that is keyed by user."""
    ids: dict[str, str]
    """The ids of the input topics: one that was made anew has another."""


def ask_topics(admin: TopicAdmin, settings: Settings) -> Described:
    """All that a worker has to know of its topics, asked at one place, so that a broker may be waited for.

    Raises TopicMismatch, FreshetError and KafkaUnavailable.
    """
    names = settings.topics
    counts = topics.verify_topics(admin, names)
    ids = {topic: there or "" for topic, there in admin.topic_ids(names.inputs).items()}
    read = dict(counts)
    if Role(settings.worker.role) is Role.USERS:
        states = admin.describe([names.state_products])[names.state_products]
        if states is None:
            raise FreshetError(
                f"{names.state_products} does not exist: create the topics with `{topics.CREATE_COMMAND}`"
            )
        read = {**{topic: counts[topic] for topic in names.by_user}, names.state_products: states}
    return Described(read, counts[names.view], ids)


@contextmanager
def worker_of(
    settings: Settings, bundle: Bundle, index: ItemIndex, described: Described, origin: Origin, bars: Bars,
    should_stop: Callable[[], bool],
) -> Iterator[Worker]:  # fmt: skip
    """A worker on real servers; its clients are closed afterwards."""
    from freshet.model.frozen import FrozenTowers
    from freshet.store.graph import GraphStore
    from freshet.stream.ownership import Ownership
    from freshet.stream.sink import Sink
    from freshet.stream.updater import Updater

    role, name = Role(settings.worker.role), settings.worker.name or worker_name(settings)
    store, names, shard = open_store(settings), settings.topics, Shard.parse(settings.worker.shard)
    shard.check(bundle.config)
    scope = place_of(shard.scope) if role.writes_items else f"worker-{name}"
    incarnation = wait_for("Redis", store.incarnation, bars, should_stop)
    fence = wait_for("Redis", lambda: store.next_fence(scope, int(time.time() * 1e3)), bars, should_stop)
    graph = GraphStore(settings.graph, product_lists=role.writes_items)
    producer, consumer = RecordProducer(settings.kafka), PartitionConsumer(settings.kafka)
    ownership = Ownership(graph.users, described.partitions)
    sink = Sink(
        graph, store, index, producer, names.embeddings_products, bundle.model_version, bundle.config.dim,
        ownership, fence, settings.sink, should_stop=should_stop,
        users_topic=names.embeddings_users if names.publish_users else None,
        states_topic=names.state_products if role is Role.ITEMS else None,
    )  # fmt: skip
    towers = FrozenTowers(bundle, graph)
    updater = Updater(graph, towers, sink, topics.kinds(names), settings.decode, settings.ripple, role=role)
    membership = _membership(settings, role, name, described.partitions, consumer)
    try:
        yield Worker(
            graph, updater, sink, store, consumer, producer, membership, names, described.read, origin,
            settings.worker, settings.popular,
            _snapshots(settings, graph, ownership, bundle.model_version, described.ids),
            name, settings.deadletter, incarnation, shard, progress=bars.update,
        )  # fmt: skip
    finally:
        membership.close()
        consumer.close()
        producer.close()


def worker_name(settings: Settings) -> str:
    """The name of a worker that was given none: one is alone, or one of those of this machine's processes."""
    role = settings.worker.role
    if role == "users":
        return f"users-{socket.gethostname()}-{os.getpid()}"
    return "worker" if role == "all" else Shard.parse(settings.worker.shard).scope


def _membership(
    settings: Settings, role: Role, name: str, partitions: int, consumer: PartitionConsumer
) -> Membership:
    if role is Role.USERS:
        from freshet.stream.kafka_group import GroupMember

        return GroupMember(settings.kafka, settings.topics.view, consumer, name if settings.worker.name else None)
    return Alone(partitions if role is Role.ALL else 0, consumer)


def _snapshots(
    settings: Settings, graph: GraphStore, ownership: Ownership, model_version: str, topic_ids: Mapping[str, str]
) -> Snapshots | None:
    """What takes and reads snapshots, where a place for them is set."""
    if settings.snapshot.place is None:
        return None
    from freshet.store.snapshot_places import open_place
    from freshet.stream.snapshots import Snapshots

    return Snapshots(
        graph, ownership, open_place(settings.snapshot.place), settings.snapshot, model_version, topic_ids
    )


