"""Topic settings, the check before a worker starts, and murmur2 against Kafka's own vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from freshet.stream.events import Kind
from freshet.stream.topics import (
    TopicMismatch,
    TopicSettings,
    TopicSpec,
    create,
    kinds,
    murmur2,
    partition_of,
    specs,
    verify_topics,
)

SETTINGS = TopicSettings()


class TopicsInMemory:
    """The two calls of `Admin` over a dict; the real broker passes the same checks in the contract suite."""

    def __init__(self, partitions: dict[str, int] | None = None) -> None:
        self.partitions = dict(partitions or {})

    def describe(self, topics: Iterable[str]) -> dict[str, int | None]:
        return {name: self.partitions.get(name) for name in topics}

    def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        new = [spec for spec in specs if spec.name not in self.partitions]
        self.partitions.update({spec.name: spec.partitions for spec in new})
        return [spec.name for spec in new]


@pytest.mark.parametrize(
    ("key", "java"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_agrees_with_the_java_client(key: bytes, java: int) -> None:
    assert murmur2(key) == java % 2**32


def test_partition_of_ignores_the_sign_as_java_does() -> None:
    assert partition_of(b"21", 1000) == (-973932308 & 0x7FFFFFFF) % 1000
    assert {partition_of(b"user-%d" % i, 4) for i in range(64)} == {0, 1, 2, 3}


def test_every_input_topic_has_its_kind() -> None:
    assert kinds(SETTINGS) == {
        "freshet.events.view": Kind.VIEW,
        "freshet.events.purchase": Kind.PURCHASE,
        "freshet.events.session": Kind.SESSION,
        "freshet.catalog.products": Kind.PRODUCT,
        "freshet.profiles.users": Kind.PROFILE,
    }
    assert set(kinds(SETTINGS)) == set(SETTINGS.inputs)


def test_registers_are_compacted_and_events_kept() -> None:
    config = {spec.name: spec.config for spec in specs(SETTINGS)}
    compacted = {name for name, c in config.items() if c["cleanup.policy"] == "compact"}
    assert compacted == {
        SETTINGS.products, SETTINGS.profiles, SETTINGS.state_products, SETTINGS.embeddings_products,
    }  # fmt: skip
    assert config[SETTINGS.view]["retention.ms"] == "-1"
    assert config[SETTINGS.deadletter]["retention.ms"] == str(30 * 86_400_000)
    # A day, Kafka's default, would bring a forgotten user back on a later replay.
    assert int(config[SETTINGS.profiles]["delete.retention.ms"]) > 10 * 365 * 86_400_000


def test_users_are_published_only_on_demand() -> None:
    names = {spec.name for spec in specs(TopicSettings(publish_users=True))}
    assert names - {spec.name for spec in specs(SETTINGS)} == {"freshet.embeddings.users"}


def test_create_is_idempotent() -> None:
    admin = TopicsInMemory()
    assert set(create(admin, SETTINGS)) == {spec.name for spec in specs(SETTINGS)}
    assert create(admin, SETTINGS) == []
    assert verify_topics(admin, SETTINGS) == dict.fromkeys(SETTINGS.inputs, 4)


def test_create_follows_topics_that_exist() -> None:
    admin = TopicsInMemory({SETTINGS.purchase: 12})
    create(admin, SETTINGS)
    assert verify_topics(admin, SETTINGS)[SETTINGS.profiles] == 12


def test_a_missing_topic_is_named_with_the_command() -> None:
    admin = TopicsInMemory()
    create(admin, SETTINGS)
    del admin.partitions[SETTINGS.session]
    with pytest.raises(TopicMismatch, match=r"freshet\.events\.session.*`freshet topics create`"):
        verify_topics(admin, SETTINGS)


def test_unequal_partitions_are_listed() -> None:
    admin = TopicsInMemory()
    create(admin, SETTINGS)
    admin.partitions[SETTINGS.profiles] = 5
    with pytest.raises(TopicMismatch) as caught:
        verify_topics(admin, SETTINGS)
    assert "freshet.profiles.users has 5" in str(caught.value)
    assert "freshet.events.view has 4" in str(caught.value)
    with pytest.raises(TopicMismatch):
        create(admin, SETTINGS)


def test_the_catalogue_may_differ() -> None:
    admin = TopicsInMemory()
    create(admin, SETTINGS)
    admin.partitions[SETTINGS.products] = 1
    assert verify_topics(admin, SETTINGS)[SETTINGS.products] == 1
