"""A reader whose index follows the changelog, on both brokers and a real Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

import freshet
from freshet.store.redis_settings import RedisSettings
from freshet.store.redis_store import RedisStore
from freshet.store.value import SEQ_HEADER, Seq, encode_value
from freshet.stream.embedded import EmbeddedBroker, free_port
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_errors import KafkaUnavailable, UnknownTopic
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.records import Outgoing
from freshet.stream.topics import TopicSettings, create

DIM = 8
WAIT_S = 60.0
"""After so long a test gives up; it bounds a failure and judges nothing."""


class Changelog:
    """Writes products as a worker of items does: product i of `dim` axes stands on axis i."""

    def __init__(self, bootstrap: str, topics: TopicSettings, fence: int = 1) -> None:
        self.topic = topics.embeddings_products
        self.producer = RecordProducer(KafkaSettings(bootstrap=bootstrap))
        self.fence, self.step = fence, 0

    def write(self, version: str, *products: int) -> None:
        for i in products:
            vector = np.eye(DIM, dtype="<f4")[i].tobytes()
            raw = encode_value(vector, DIM, version, self.seq(), -1, 0, None, [])
            self.producer.send(Outgoing(self.topic, b"p%d" % i, raw))
        assert self.producer.flush(WAIT_S) == 0

    def withdraw(self, product: int) -> None:
        headers = ((SEQ_HEADER, self.seq().text().encode()),)
        self.producer.send(Outgoing(self.topic, b"p%d" % product, None, headers))
        assert self.producer.flush(WAIT_S) == 0

    def seq(self) -> Seq:
        self.step += 1
        return Seq(self.fence, self.step)


def soon(said: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not said():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_reader_is_fresh_and_goes_with_the_version(
    broker: str, redis_url: str, fresh_topics: Callable[[int], TopicSettings]
) -> None:
    topics, store = fresh_topics(2), RedisStore(RedisSettings(url=redis_url))
    create(TopicAdmin(KafkaSettings(bootstrap=broker)), topics)
    changelog = Changelog(broker, topics)
    changelog.write("v1", 0, 1, 2)
    store.set_current("v1")
    for version in ("v1", "v2"):
        listed = [(f"p{i}", float(DIM - i)) for i in range(DIM)]
        store.put_blob(f"{version}:popular", Seq(1, 1), msgspec.msgpack.encode(listed))
    with freshet.LiveIndex(broker, topics=topics) as index, freshet.Reader(redis_url, index) as reader:

        def offered() -> list[str]:
            found = reader.recommend("nobody", DIM)
            assert found.model_version == store.current()
            return [name for name, _, _ in found.items]

        assert offered() == ["p0", "p1", "p2"]
        changelog.write("v1", 3)
        changelog.withdraw(1)
        soon(lambda: offered() == ["p0", "p2", "p3"])
        changelog.write("v2", 0, 2, 3, 4, 5)
        assert "p5" not in offered()
        store.set_current("v2")
        assert offered() == ["p0", "p2", "p3", "p4", "p5"]
        assert sorted(name for name, _ in reader.similar("p5", 9)) == ["p0", "p2", "p3", "p4"]
        store.set_current("v1")
        assert offered() == ["p0", "p2", "p3"]
        assert index.error is None
    store.close()


def test_a_broker_that_comes_back_empty_does_not_empty_the_index() -> None:
    topics, port = TopicSettings(partitions=2), free_port()
    settings = KafkaSettings(bootstrap=f"127.0.0.1:{port}", request_timeout_ms=2_000, recheck_grace_ms=500)
    with EmbeddedBroker(port):
        create(TopicAdmin(settings), topics)
        Changelog(settings.bootstrap, topics, fence=7).write("v1", 0, 1, 2)
        live = freshet.LiveIndex(settings.bootstrap, topics=topics, kafka=settings)
        live.reread("v1")
        assert sorted(live.pair("v1")[0].ids()) == ["p0", "p1", "p2"]
    with EmbeddedBroker(port):
        soon(lambda: "freshet topics create" in (live.error or ""))
        create(TopicAdmin(settings), topics)
        changelog = Changelog(settings.bootstrap, topics)
        changelog.write("v1", 0, 1)
        soon(lambda: live.error is None)
        assert sorted(live.pair("v1")[0].ids()) == ["p0", "p1", "p2"]
        changelog.write("v1", 4)
        soon(lambda: sorted(live.pair("v1")[0].ids()) == ["p0", "p1", "p4"])
        live.close()


def test_it_says_at_once_what_is_not_there(embedded_broker: EmbeddedBroker) -> None:
    with pytest.raises(UnknownTopic, match=r"topic nowhere .*freshet topics create"):
        freshet.LiveIndex(embedded_broker.bootstrap, topics=TopicSettings(embeddings_products="nowhere"))
    nobody = f"127.0.0.1:{free_port()}"
    with pytest.raises(KafkaUnavailable, match=nobody):
        freshet.LiveIndex(nobody, kafka=KafkaSettings(request_timeout_ms=500))
