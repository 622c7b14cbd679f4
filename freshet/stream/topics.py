"""The topics: names, partitions, retention; creating them, and the check a worker makes before it starts.

All that concerns a user has to be on one partition number, so the event topics and the profile topic have
the same number of partitions and their producers place a key by Kafka's murmur2 (`partition_of`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from freshet.errors import FreshetError
from freshet.stream.events import Kind

CREATE_COMMAND = "freshet topics create"
"""What a user runs when a topic is missing."""


class TopicMismatch(FreshetError):
    """The topics on the broker are not those that Freshet needs; the message names each and the remedy."""


class TopicSpec(NamedTuple):
    """A topic to be created; `config` holds Kafka's topic properties."""

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str]


class Admin(Protocol):
    """What creating and checking topics needs of a broker; `kafka.TopicAdmin` is one."""

    def describe(self, topics: Iterable[str]) -> dict[str, int | None]:
        """The number of partitions of each topic, None where the topic does not exist."""
        ...

    def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create what does not exist yet; the names of those that were created."""
        ...


@dataclass(frozen=True)
class TopicSettings:
    """Names of the topics, and how `freshet topics create` makes them; existing ones are left as they are."""

    view: str = "freshet.events.view"
    purchase: str = "freshet.events.purchase"
    session: str = "freshet.events.session"
    products: str = "freshet.catalog.products"
    profiles: str = "freshet.profiles.users"
    state_products: str = "freshet.state.products"
    embeddings_products: str = "freshet.embeddings.products"
    embeddings_users: str = "freshet.embeddings.users"
    deadletter: str = "freshet.deadletter"
    publish_users: bool = False
    """Whether the changelog of user embeddings is kept at all."""
    partitions: int = 4
    """Of every topic but the dead letters; it cannot be changed once there are events."""
    deadletter_partitions: int = 1
    replication_factor: int = 1
    """Copies of each partition; 3 is usual where there are three brokers."""
    event_retention_ms: int = -1
    """How long events are kept; -1 for ever. The topics are the truth that state is rebuilt from: limit this
    only if a snapshot or an event log older than the limit is always at hand."""
    deadletter_retention_ms: int = 30 * 24 * 3600 * 1000
    tombstone_retention_ms: int = 100 * 365 * 24 * 3600 * 1000
    """How long compaction keeps the empty record that withdraws a product or forgets a user. Kafka's own default
    (one day) would let a replay bring back what was withdrawn, as the events themselves are kept."""
    message_bytes_max: int = 2 * 1024 * 1024
    """Largest record the broker takes on an input topic. Above `value_bytes_max` of the decoder, so that an
    oversized event arrives, is dead-lettered and counted."""
    deadletter_message_bytes_max: int = 4 * 1024 * 1024
    """Largest dead letter: the record it is about, and the reason."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The five topics that state is built from."""
        return (*self.by_user, self.products)

    @property
    def by_user(self) -> tuple[str, ...]:
        """The topics keyed by user id: they need the same number of partitions."""
        return (self.view, self.purchase, self.session, self.profiles)


def kinds(settings: TopicSettings) -> dict[str, Kind]:
    """Which kind of record each input topic carries."""
    return {
        settings.view: Kind.VIEW,
        settings.purchase: Kind.PURCHASE,
        settings.session: Kind.SESSION,
        settings.products: Kind.PRODUCT,
        settings.profiles: Kind.PROFILE,
    }


def specs(settings: TopicSettings, partitions: int | None = None) -> list[TopicSpec]:
    """Every topic as it is to be created, with `partitions` in place of the setting if given."""
    size = str(settings.message_bytes_max)
    kept = {
        "cleanup.policy": "delete",
        "retention.ms": str(settings.event_retention_ms),
        "max.message.bytes": size,
    }
    changelog = {"cleanup.policy": "compact", "max.message.bytes": size}
    register = changelog | {"delete.retention.ms": str(settings.tombstone_retention_ms)}
    letters = {
        "cleanup.policy": "delete",
        "retention.ms": str(settings.deadletter_retention_ms),
        "max.message.bytes": str(settings.deadletter_message_bytes_max),
    }
    config = {
        settings.view: kept,
        settings.purchase: kept,
        settings.session: kept,
        settings.products: register,
        settings.profiles: register,
        settings.state_products: changelog,
        settings.embeddings_products: changelog,
    }
    if settings.publish_users:
        config[settings.embeddings_users] = changelog
    count, copies = partitions or settings.partitions, settings.replication_factor
    return [
        *(TopicSpec(name, count, copies, properties) for name, properties in config.items()),
        TopicSpec(settings.deadletter, settings.deadletter_partitions, copies, letters),
    ]


def create(admin: Admin, settings: TopicSettings) -> list[str]:
    """Create the topics that are missing and check the whole; returns the names of those created.

    Repeating it changes nothing. Where some topics keyed by user exist already and agree on a number of
    partitions, the missing ones are given that number. Raises TopicMismatch as `verify_topics` does.
    """
    there = admin.describe(settings.by_user)
    counts = {n for n in there.values() if n is not None}
    created = admin.create(specs(settings, counts.pop() if len(counts) == 1 else None))
    verify_topics(admin, settings)
    return created


def verify_topics(admin: Admin, settings: TopicSettings) -> dict[str, int]:
    """The number of partitions of each of the five input topics, once all is found to be in order.

    Raises TopicMismatch if a topic that a worker reads or writes is missing, or if the topics keyed by user
    differ in their number of partitions.
    """
    outputs = [settings.deadletter, settings.embeddings_products]
    if settings.publish_users:
        outputs.append(settings.embeddings_users)
    found = admin.describe((*settings.inputs, *outputs))
    missing = sorted(name for name, n in found.items() if n is None)
    if missing:
        raise TopicMismatch(
            f"missing on the broker: {', '.join(missing)}. Create them with `{CREATE_COMMAND}`, "
            "or name the topics that you use in the topic settings"
        )
    by_user = {name: found[name] for name in settings.by_user}
    if len(set(by_user.values())) > 1:
        listed = ", ".join(f"{name} has {n}" for name, n in by_user.items())
        raise TopicMismatch(
            f"the topics keyed by user need the same number of partitions, but {listed}. Delete those that are "
            f"wrong and run `{CREATE_COMMAND}`, or copy them into new topics with equal numbers"
        )
    return {name: n for name in settings.inputs if (n := found[name]) is not None}


# --- placement ----------------------------------------------------------------------------------

_SEED, _M, _MASK = 0x9747B28C, 0x5BD1E995, 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """Kafka's 32-bit murmur2 of `key`, unsigned (Java shows the same bits as a signed int)."""
    size = len(key)
    whole = size & ~3
    h = _SEED ^ size
    for i in range(0, whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ k >> 24) * _M & _MASK)
    if whole < size:
        h = (h ^ int.from_bytes(key[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition, from 0, that Kafka's default partitioner gives `key` in a topic of `partitions`."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
