"""`freshet.Producer` on the embedded broker: what arrives is what the decoder takes, and nothing else is sent."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from freshet.stream.codec import MSGPACK, decode_record
from freshet.stream.embedded import EmbeddedBroker, free_port
from freshet.stream.events import Event, Line, Product, Profile, Purchase, Session, SessionItem, View
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_errors import KafkaUnavailable
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.producer import DeliveryFailed, InvalidEvent, Producer, new_event_id
from freshet.stream.records import Record
from freshet.stream.rejection import DecodeLimits, Reason
from freshet.stream.topics import TopicMismatch, TopicSettings, create, kinds, partition_of

NOW_MS = 1_790_000_000_123


@pytest.fixture
def topics(embedded_broker: EmbeddedBroker, fresh_topics: Callable[[int], TopicSettings]) -> TopicSettings:
    settings = fresh_topics(3)
    create(TopicAdmin(KafkaSettings(embedded_broker.bootstrap)), settings)
    return settings


@pytest.fixture
def producer(embedded_broker: EmbeddedBroker, topics: TopicSettings) -> Iterator[Producer]:
    with Producer(embedded_broker.bootstrap, topics=topics, clock=lambda: NOW_MS / 1e3) as producer:
        yield producer


def arrived(bootstrap: str, topics: TopicSettings) -> list[Record]:
    """Every record on the five input topics."""
    consumer = PartitionConsumer(KafkaSettings(bootstrap))
    marks = consumer.watermarks([(t, p) for t in topics.inputs for p in range(topics.partitions)])
    consumer.assign({tp: low for tp, (low, _) in marks.items()})
    records: list[Record] = []
    while len(records) < sum(high - low for low, high in marks.values()):
        records += consumer.poll(1000, 0.05)
    consumer.close()
    return records


def decoded(records: list[Record], topics: TopicSettings) -> list[Event]:
    kind = kinds(topics)
    events = [decode_record(r, kind[r.topic]) for r in records]
    return [e for e in events if isinstance(e, View | Purchase | Session | Product | Profile)]


@pytest.mark.parametrize("content_type", ["application/json", MSGPACK])
def test_all_kinds_arrive_as_they_were_sent(
    embedded_broker: EmbeddedBroker, topics: TopicSettings, content_type: str
) -> None:
    with Producer(embedded_broker.bootstrap, content_type, topics=topics, clock=lambda: NOW_MS / 1e3) as producer:
        bought = producer.purchase("ada", "p1", quantity=2, price=3.5)
        sent: list[Event] = [
            bought,
            producer.cancel(bought),
            producer.view("ada", "p1", dwell_time_s=4.5),
            producer.purchase("zoë", items=[Line("p1", quantity=1), Line("p2", price=2.0)], order_id="o1"),
            producer.session("ada", "s1", [SessionItem("p1", 0, True)], device="phone", duration_s=60),
            producer.product("p1", category=["tea", "green"], brand="b", price=9, description_emb=[0.5, 1.0]),
            producer.profile("ada", age_bucket="25-34", geo="DE", signup_date="2017-03-01"),
            producer.withdraw("p2"),
            producer.forget_user("zoë"),
        ]
    assert (producer.sent, producer.delivered, producer.failed) == (9, 9, 0)
    records = arrived(embedded_broker.bootstrap, topics)
    key = msgspec.json.encode
    assert sorted(decoded(records, topics), key=key) == sorted(sent, key=key)
    for record in records:
        assert record.partition == partition_of(record.key or b"", 3)
        assert record.value is None or bool(record.headers) == (content_type == MSGPACK)


def test_ids_and_times_are_made_unless_given(producer: Producer) -> None:
    made, given = producer.view("u", "p"), producer.view("u", "p", event_id="e1", timestamp=NOW_MS - 5)
    assert made.timestamp == NOW_MS
    assert uuid.UUID(made.event_id).version == 7
    assert (given.event_id, given.timestamp) == ("e1", NOW_MS - 5)
    assert producer.view("u", "p").event_id != made.event_id


def test_event_ids_are_uuids_that_sort_by_time() -> None:
    ids = [new_event_id(NOW_MS + i, entropy) for i, entropy in enumerate((b"\xff" * 10, bytes(10)))]
    assert ids == sorted(ids)
    for i, text in enumerate(ids):
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert parsed.int >> 80 == NOW_MS + i
    assert len({new_event_id(NOW_MS, i.to_bytes(10, "big")) for i in (0, 1, 1 << 61, 1 << 62, 1 << 73)}) == 5


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (View("e", "u", "", NOW_MS), "product_id"),
        (View("e", "u", "p", NOW_MS, -1.0), "dwell_time_s"),
        (View("e", "u", "p", NOW_MS // 1000), "timestamp"),
        (View("e", "u", "p", NOW_MS + 10 * 86_400_000), "timestamp"),
        (View("e", 7, "p", NOW_MS), "user_id"),  # type: ignore[arg-type]
        (Purchase("e", "u", NOW_MS), "product_id"),
        (Purchase("e", "u", NOW_MS, items=(Line("p", quantity=-2),)), r"items\[0\].quantity"),
        (Profile("u", NOW_MS, signup_date="2017-02-30"), "signup_date"),
        (Product("p" * 300, NOW_MS), "product_id"),
    ],
)
def test_an_event_that_would_be_a_dead_letter_is_not_sent(producer: Producer, event: Event, field: str) -> None:
    with pytest.raises(InvalidEvent, match=field):
        producer.send(event)
    assert producer.sent == 0


@pytest.mark.parametrize("call", ["withdraw", "forget_user"])
def test_an_empty_id_is_not_sent(producer: Producer, call: str) -> None:
    with pytest.raises(InvalidEvent, match="_id"):
        getattr(producer, call)("")
    assert producer.sent == 0


def test_an_oversized_event_is_not_sent(embedded_broker: EmbeddedBroker, topics: TopicSettings) -> None:
    limits = DecodeLimits(value_bytes_max=200)
    with Producer(embedded_broker.bootstrap, topics=topics, limits=limits) as producer:
        with pytest.raises(InvalidEvent, match="value_bytes_max is 200") as caught:
            producer.product("p", description="x" * 300)
        assert caught.value.rejection.reason is Reason.VALUE_TOO_LARGE
        producer.product("p", description="x" * 50)
    assert producer.delivered == 1


def test_each_event_can_report_its_own_fate(producer: Producer) -> None:
    reports: list[tuple[str | None, int | None]] = []
    for i in range(3):
        producer.send(View(f"e{i}", "ada", "p", NOW_MS), lambda *report: reports.append(report))
    producer.flush(30.0)
    assert reports == [(None, 0), (None, 1), (None, 2)]


def test_what_is_not_delivered_is_counted_and_named(fresh_topics: Callable[[int], TopicSettings]) -> None:
    with EmbeddedBroker() as broker:
        topics = fresh_topics(3)
        kafka = KafkaSettings(delivery_timeout_ms=1500)
        create(TopicAdmin(KafkaSettings(broker.bootstrap)), topics)
        producer = Producer(broker.bootstrap, topics=topics, kafka=kafka)
        producer.view("ada", "p1")
        producer.flush(30.0)
        broker.kill()
        for i in range(3):
            producer.view("ada", f"p{i}")
        with pytest.raises(DeliveryFailed, match=rf"3 events were not delivered.*first error: topic {topics.view}:"):
            producer.flush(60.0)
        assert (producer.sent, producer.delivered, producer.failed) == (4, 1, 3)
        producer.view("ada", "p9")
        with pytest.raises(DeliveryFailed, match="0 events were not delivered and 1 are still waiting") as caught:
            producer.flush(0.0)
        assert caught.value.waiting == 1
        with pytest.raises(DeliveryFailed):
            producer.close(0.0)


def test_an_error_in_the_block_is_the_one_that_is_seen(embedded_broker: EmbeddedBroker, topics: TopicSettings) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Producer(embedded_broker.bootstrap, topics=topics) as producer,
    ):
        producer.view("ada", "p1")
        raise ZeroDivisionError
    assert producer.delivered == 1


def test_missing_topics_are_named_and_not_made(
    embedded_broker: EmbeddedBroker, fresh_topics: Callable[[int], TopicSettings]
) -> None:
    topics = fresh_topics(3)
    with pytest.raises(TopicMismatch, match=r"freshet topics create"):
        Producer(embedded_broker.bootstrap, topics=topics)
    found = TopicAdmin(KafkaSettings(embedded_broker.bootstrap)).describe(topics.inputs)
    assert set(found.values()) == {None}


def test_no_broker_is_said_at_once() -> None:
    with pytest.raises(KafkaUnavailable, match="--bootstrap"):
        Producer(f"127.0.0.1:{free_port()}", kafka=KafkaSettings(request_timeout_ms=300))


def test_the_example_of_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "producers.md").read_text()
    example = next(b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "from freshet import" in b)
    with EmbeddedBroker() as broker:
        topics = TopicSettings()
        create(TopicAdmin(KafkaSettings(broker.bootstrap)), topics)
        exec(example.replace("127.0.0.1:9092", broker.bootstrap), {})
        events = decoded(arrived(broker.bootstrap, topics), topics)
    assert sorted(type(e).__name__ for e in events) == ["Product", "Profile", "Purchase", "Purchase", "View"]
