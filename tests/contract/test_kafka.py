"""One suite for `freshet.stream.kafka`, on the embedded broker and on Apache Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from freshet.stream.embedded import EmbeddedBroker, free_port
from freshet.stream.kafka import RecordProducer, TopicAdmin, Weather, translated
from freshet.stream.kafka_consumer import PartitionConsumer, _Reach
from freshet.stream.kafka_errors import KafkaError, KafkaUnavailable, OffsetGap, UnknownTopic
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.records import Outgoing, Record
from freshet.stream.topics import TopicSettings, TopicSpec, create, partition_of, specs, verify_topics
from tests.integration.apache_kafka import ApacheKafka

Name = Callable[[str], str]
WAIT_S = 60.0
"""After so long a test gives up; it bounds a failure and judges nothing."""


@pytest.fixture
def settings(broker: str, fresh_name: Name) -> KafkaSettings:
    return KafkaSettings(bootstrap=broker, group_id=fresh_name("group"))


@pytest.fixture
def topic(settings: KafkaSettings, fresh_name: Name) -> str:
    return made(settings, fresh_name("topic"))


@pytest.fixture
def consumer(settings: KafkaSettings) -> Iterator[PartitionConsumer]:
    consumer = PartitionConsumer(settings)
    yield consumer
    consumer.close()


def made(settings: KafkaSettings, name: str, partitions: int = 3) -> str:
    assert TopicAdmin(settings).create([TopicSpec(name, partitions, 1, {})]) == [name]
    return name


def test_topics_can_be_read_as_soon_as_they_are_made(
    settings: KafkaSettings, consumer: PartitionConsumer, fresh_name: Name
) -> None:
    # Apache Kafka answers "not the leader" for a moment; a worker that starts right then must not give up.
    name = made(settings, fresh_name("wide"), partitions=60)
    assert consumer.watermarks([(name, p) for p in range(60)]) == {(name, p): (0, 0) for p in range(60)}


def send(settings: KafkaSettings, *records: Outgoing) -> list[tuple[str | None, int | None]]:
    """Send and wait; the delivery reports in the order they came."""
    producer = RecordProducer(settings)
    reports: list[tuple[str | None, int | None]] = []
    for record in records:
        producer.send(record, lambda error, offset: reports.append((error, offset)))
    assert producer.flush(WAIT_S) == 0
    producer.close()
    return reports


def numbered(topic: str, n: int, key: bytes = b"k") -> list[Outgoing]:
    return [Outgoing(topic, key, b"%d" % i) for i in range(n)]


def read(consumer: PartitionConsumer, n: int) -> list[Record]:
    """Poll until there are `n` records."""
    records: list[Record] = []
    end = time.monotonic() + WAIT_S
    while len(records) < n and time.monotonic() < end:
        records += consumer.poll(1000, 0.05)
    return records


def poll_for(consumer: PartitionConsumer, error: type[Exception]) -> Exception:
    """Poll until that error is raised."""
    with pytest.raises(error) as caught:
        read(consumer, 10**9)
    return caught.value


# --- records ------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_sent(settings: KafkaSettings, topic: str, consumer: PartitionConsumer) -> None:
    sent = [
        Outgoing(
            topic,
            b"ada",
            b"\x00\xff",
            (("content-type", b"application/msgpack"), ("x", b"")),
            1_700_000_000_123,
        ),
        Outgoing(topic, b"ada", None, (), 1_700_000_000_124),
        Outgoing(topic, None, b"no key", (), 1_700_000_000_125),
        Outgoing(topic, "zoë".encode(), b"", (), 1_700_000_000_126),
    ]
    assert [error for error, _ in send(settings, *sent)] == [None] * 4
    consumer.assign({(topic, p): 0 for p in range(3)})
    got = {r.timestamp_ms: r for r in read(consumer, 4)}
    for out in sent:
        back = got[out.timestamp_ms or 0]
        assert (back.topic, back.key, back.value, back.headers) == (topic, out.key, out.value, out.headers)
        if out.key is not None:
            assert back.partition == partition_of(out.key, 3)


def test_a_record_without_a_timestamp_gets_the_time_of_sending(
    settings: KafkaSettings, topic: str, consumer: PartitionConsumer
) -> None:
    before = int(time.time() * 1e3)
    send(settings, Outgoing(topic, b"k", b"v"))
    consumer.assign({(topic, p): 0 for p in range(3)})
    assert before <= read(consumer, 1)[0].timestamp_ms <= int(time.time() * 1e3)


def test_reports_and_records_are_in_order_with_their_offsets(
    settings: KafkaSettings, topic: str, consumer: PartitionConsumer
) -> None:
    assert send(settings, *numbered(topic, 5000)) == [(None, i) for i in range(5000)]
    consumer.assign({(topic, partition_of(b"k", 3)): 0})
    assert [(r.offset, r.value) for r in read(consumer, 5000)] == [(i, b"%d" % i) for i in range(5000)]


# --- positions ----------------------------------------------------------------------------------


def test_watermarks_say_what_a_partition_holds(
    settings: KafkaSettings, topic: str, consumer: PartitionConsumer
) -> None:
    send(settings, *numbered(topic, 7))
    full = partition_of(b"k", 3)
    marks = consumer.watermarks([(topic, p) for p in range(3)])
    assert marks == {(topic, p): (0, 7 if p == full else 0) for p in range(3)}


def test_reading_begins_where_it_is_told_to_and_ends_with_the_assignment(
    settings: KafkaSettings, topic: str, consumer: PartitionConsumer
) -> None:
    send(settings, *numbered(topic, 2000))
    full = (topic, partition_of(b"k", 3))
    consumer.assign({full: 1990})
    assert [r.offset for r in read(consumer, 10)] == list(range(1990, 2000))
    consumer.assign({full: 0})
    assert [r.offset for r in consumer.poll(5, WAIT_S)] == list(range(5))
    # Two thousand records are fetched ahead by now: none of them may show up after the next line.
    consumer.assign({full: 1000})
    assert [r.offset for r in read(consumer, 1000)] == list(range(1000, 2000))
    consumer.assign({(topic, p): 0 for p in range(3) if p != full[1]})
    assert consumer.poll(100, 0.3) == []


def test_at_most_so_many_records_come(settings: KafkaSettings, topic: str, consumer: PartitionConsumer) -> None:
    send(settings, *numbered(topic, 100))
    consumer.assign({(topic, p): 0 for p in range(3)})
    assert len(consumer.poll(30, WAIT_S)) == 30


def test_commits_are_for_others_to_see_and_move_nothing(
    settings: KafkaSettings, topic: str, consumer: PartitionConsumer
) -> None:
    send(settings, *numbered(topic, 20))
    full = (topic, partition_of(b"k", 3))
    everything = [(topic, p) for p in range(3)]
    assert consumer.committed(everything) == {}
    consumer.assign({full: 0})
    read(consumer, 20)
    consumer.commit({full: 12})
    consumer.close()
    again = PartitionConsumer(settings)
    assert again.committed(everything) == {full: 12}
    again.assign({full: 3})
    assert read(again, 17)[0].offset == 3
    assert again.commit_failures == 0
    again.close()


def test_an_offset_beyond_the_end_is_a_gap(settings: KafkaSettings, topic: str, consumer: PartitionConsumer) -> None:
    send(settings, *numbered(topic, 4))
    full = (topic, partition_of(b"k", 3))
    with pytest.raises(
        OffsetGap, match=rf"{topic}, partition {full[1]}: offset 99 was asked for.*only 0 to 4.*Rebuild"
    ):
        consumer.assign({full: 99})


# --- topics -------------------------------------------------------------------------------------


def test_topics_are_described_created_and_deleted(settings: KafkaSettings, fresh_name: Name) -> None:
    admin, name = TopicAdmin(settings), fresh_name("topic")
    assert admin.describe([name]) == {name: None}
    assert name not in admin.ping()  # asking must not make it
    spec = TopicSpec(name, 5, 1, {"cleanup.policy": "compact"})
    assert admin.create([spec]) == [name]
    assert admin.create([spec]) == []
    assert admin.describe([name]) == {name: 5}
    assert name in admin.ping()
    first = admin.topic_ids([name, fresh_name("other")])
    assert first[name] and first[fresh_name("other")] is None
    admin.delete([name])
    with pytest.raises(UnknownTopic, match=name):
        admin.delete([name])
    assert admin.describe([name]) == {name: None}


def test_freshets_own_topics(settings: KafkaSettings, fresh_topics: Callable[[int], TopicSettings]) -> None:
    admin, ours = TopicAdmin(settings), fresh_topics(2)
    assert set(create(admin, ours)) == {spec.name for spec in specs(ours)}
    assert create(admin, ours) == []
    assert verify_topics(admin, ours) == dict.fromkeys(ours.inputs, 2)


def test_a_topic_that_cannot_be_is_refused(settings: KafkaSettings) -> None:
    with pytest.raises(KafkaError, match=r"creating topics: .*some\.name.*num_partitions"):
        TopicAdmin(settings).create([TopicSpec("some.name", -7, 1, {})])


@pytest.mark.integration
def test_a_topic_that_the_broker_refuses_is_named(apache_kafka: ApacheKafka) -> None:
    admin = TopicAdmin(KafkaSettings(bootstrap=apache_kafka.bootstrap))
    with pytest.raises(KafkaError, match=r"creating topic some\.name: .*[Rr]eplication"):
        admin.create([TopicSpec("some.name", 1, 3, {})])


def test_an_unknown_topic_is_named_and_not_made(
    settings: KafkaSettings, consumer: PartitionConsumer, fresh_name: Name
) -> None:
    name = fresh_name("nowhere")
    with pytest.raises(UnknownTopic, match=rf"topic {name}, partition 0 does not exist.*freshet topics create"):
        consumer.watermarks([(name, 0)])
    with pytest.raises(UnknownTopic):
        consumer.assign({(name, 0): 0})
    assert TopicAdmin(settings).describe([name]) == {name: None}


def test_a_partition_that_is_not_there(settings: KafkaSettings, topic: str, consumer: PartitionConsumer) -> None:
    with pytest.raises(UnknownTopic, match="partition 3"):
        consumer.assign({(topic, 3): 0})


def test_partitions_missed_before_are_found_once_the_broker_shows_them(
    apache_kafka: ApacheKafka, fresh_name: Name
) -> None:
    # The client keeps what a broker said, and one that is going or coming says that there are fewer.
    settings = KafkaSettings(bootstrap=apache_kafka.bootstrap)
    topic = made(settings, fresh_name("topic"), partitions=1)
    consumer = PartitionConsumer(settings)
    with pytest.raises(UnknownTopic, match="partition 3"):
        consumer.watermarks([(topic, 3)])
    admin = AdminClient({"bootstrap.servers": settings.bootstrap})
    admin.create_partitions([NewPartitions(topic, 4)])[topic].result()
    end = time.monotonic() + WAIT_S
    while TopicAdmin(settings).describe([topic]) != {topic: 4}:
        assert time.monotonic() < end
    assert consumer.watermarks([(topic, 3)]) == {(topic, 3): (0, 0)}
    consumer.close()


# --- bad weather --------------------------------------------------------------------------------


def test_a_full_queue_makes_the_sender_wait(settings: KafkaSettings, topic: str, consumer: PartitionConsumer) -> None:
    tight = KafkaSettings(bootstrap=settings.bootstrap, send_queue_records_max=10, linger_ms=5)
    assert send(tight, *numbered(topic, 500)) == [(None, i) for i in range(500)]


def test_a_record_that_is_too_large_is_refused_at_once(settings: KafkaSettings, topic: str) -> None:
    small = KafkaSettings(bootstrap=settings.bootstrap, message_bytes_max=10_000)
    producer = RecordProducer(small)
    with pytest.raises(KafkaError, match=f"topic {topic}: a record of 20001 bytes.*message_bytes_max is 10000"):
        producer.send(Outgoing(topic, b"k", b"x" * 20_000))
    producer.close()


def test_a_property_that_does_not_exist_is_named(settings: KafkaSettings) -> None:
    wrong = KafkaSettings(bootstrap=settings.bootstrap, properties={"no.such.thing": "1"})
    for client in (PartitionConsumer, RecordProducer, TopicAdmin):
        with pytest.raises(KafkaError, match=r"no\.such\.thing"):
            client(wrong)


def test_nobody_answers_at_the_address() -> None:
    nowhere = KafkaSettings(
        bootstrap=f"127.0.0.1:{free_port()}",
        request_timeout_ms=500,
        delivery_timeout_ms=1000,
        send_queue_records_max=5,
    )
    admin, consumer, producer = TopicAdmin(nowhere), PartitionConsumer(nowhere), RecordProducer(nowhere)
    asked: list[Callable[[], object]] = [
        admin.ping,
        lambda: admin.describe(["t"]),
        lambda: admin.create([TopicSpec("t", 1, 1, {})]),
        lambda: consumer.watermarks([("t", 0)]),
        lambda: consumer.committed([("t", 0)]),
        lambda: consumer.assign({("t", 0): 0}),
    ]
    for ask in asked:
        with pytest.raises(KafkaUnavailable, match=rf"{nowhere.bootstrap}.*freshet broker.*--bootstrap"):
            ask()
    consumer.commit({("t", 0): 1})
    assert consumer.poll(10, 0.0) == []
    reports: list[tuple[str | None, int | None]] = []
    producer.send(Outgoing("t", b"k", b"v"), lambda error, offset: reports.append((error, offset)))
    producer.send(Outgoing("t", b"k", b"v"))
    assert producer.flush(WAIT_S) == 0
    assert len(reports) == 1 and reports[0][0] and reports[0][1] is None
    assert producer.failures == 1 and producer.last_failure
    consumer.close()
    producer.close()


def test_a_queue_that_stays_full_is_given_up() -> None:
    ticks = iter(range(0, 10**9, 30))
    nowhere = KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}", delivery_timeout_ms=60_000, send_queue_records_max=5)
    producer = RecordProducer(nowhere, monotonic=lambda: float(next(ticks)))
    for record in numbered("t", 5):
        producer.send(record)
    with pytest.raises(KafkaUnavailable, match="5 records wait"):
        producer.send(Outgoing("t", b"k", b"v"))
    assert producer.close() == 5


@pytest.mark.integration
def test_records_that_retention_deleted_are_a_gap(apache_kafka: ApacheKafka, fresh_name: Name) -> None:
    settings = KafkaSettings(bootstrap=apache_kafka.bootstrap, group_id=fresh_name("group"), fetch_queue_kbytes_max=1)
    topic = made(settings, fresh_name("topic"), partitions=1)
    # Large records, of which one is taken: what waits behind it is one fetch or two, the rest is still to be fetched
    # when it is deleted. (A poll for more goes on fetching while it lasts: on a fast machine, all of them.)
    send(settings, *(Outgoing(topic, b"k", b"x" * 100_000) for _ in range(200)))
    reader = PartitionConsumer(settings)
    reader.assign({(topic, 0): 0})
    assert [r.offset for r in reader.poll(1, WAIT_S)] == [0]
    TopicAdmin(settings).delete_records({(topic, 0): 199})
    assert reader.watermarks([(topic, 0)]) == {(topic, 0): (199, 200)}
    error = poll_for(reader, OffsetGap)
    assert "199 as the oldest: retention deleted" in str(error)
    told = rf"topic {topic}, partition 0: offset 3 .* 199 as the oldest.*freshet backfill LOG"
    with pytest.raises(OffsetGap, match=told):
        reader.assign({(topic, 0): 3})
    reader.assign({(topic, 0): 199})
    assert [r.offset for r in read(reader, 1)] == [199]
    reader.close()


@pytest.mark.integration
def test_a_restarted_broker_is_read_on(apache_kafka: ApacheKafka, fresh_name: Name) -> None:
    settings = KafkaSettings(bootstrap=apache_kafka.bootstrap, group_id=fresh_name("group"))
    topic = made(settings, fresh_name("topic"), partitions=1)
    send(settings, *numbered(topic, 10))
    reader, producer = PartitionConsumer(settings), RecordProducer(settings)
    reader.assign({(topic, 0): 0})
    assert len(read(reader, 10)) == 10
    apache_kafka.kill()
    producer.send(Outgoing(topic, b"k", b"while it was down"))
    for _ in range(5):
        assert reader.poll(10, 0.1) == []
    apache_kafka.start()
    assert [(r.offset, r.value) for r in read(reader, 1)] == [(10, b"while it was down")]
    assert reader.transport_errors > 0
    assert producer.flush(WAIT_S) == 0 and producer.failures == 0
    reader.close()
    producer.close()


def test_a_broker_that_forgot_everything_is_an_error(fresh_name: Name) -> None:
    with EmbeddedBroker() as broker:
        settings = KafkaSettings(bootstrap=broker.bootstrap, recheck_interval_ms=50, recheck_grace_ms=200)
        topic = made(settings, fresh_name("topic"), partitions=1)
        send(settings, *numbered(topic, 10))
        reader = PartitionConsumer(settings)
        reader.assign({(topic, 0): 0})
        assert len(read(reader, 10)) == 10
        broker.kill()
        broker.start()
        assert f"topic {topic} does not exist" in str(poll_for(reader, UnknownTopic))
        made(settings, topic, partitions=1)
        assert "offset 10 was asked for, but the broker has only 0 to 0" in str(poll_for(reader, OffsetGap))
        reader.close()


@pytest.mark.parametrize(
    "code",
    [
        ck.KafkaError._DESTROY_BROKER,
        ck.KafkaError._UNKNOWN_BROKER,
        ck.KafkaError.OFFSET_NOT_AVAILABLE,
        ck.KafkaError.FENCED_LEADER_EPOCH,
        ck.KafkaError.NOT_ENOUGH_REPLICAS,
        ck.KafkaError.KAFKA_STORAGE_ERROR,
    ],
)
def test_what_passes_when_brokers_come_and_go_is_waited_out(code: int) -> None:
    """As a cluster of three said them, one broker after the other having been killed; a worker ended with the first."""
    error = translated(ck.KafkaException(ck.KafkaError(code)), KafkaSettings(), Weather("test"), "watermarks")
    assert isinstance(error, KafkaUnavailable)


# --- a client that loses sight of a partition ---------------------------------------------------
#
# librdkafka does so when leaders change at an unlucky moment, which no test can bring about: the client is made blind.


@pytest.fixture
def watchful(settings: KafkaSettings) -> Iterator[PartitionConsumer]:
    consumer = PartitionConsumer(replace(settings, stall_check_interval_ms=300.0, stall_after_ms=300.0))
    yield consumer
    consumer.close()


def test_another_client_reads_on_where_one_stands_still(
    settings: KafkaSettings, topic: str, watchful: PartitionConsumer, caplog: pytest.LogCaptureFixture
) -> None:
    home = partition_of(b"k", 3)
    send(settings, *numbered(topic, 5))
    watchful.assign({(topic, p): 0 for p in range(3)})
    assert [r.value for r in read(watchful, 5)] == [b"%d" % i for i in range(5)]
    watchful._consumer.pause([ck.TopicPartition(topic, home)])
    send(settings, *numbered(topic, 9)[5:])
    assert [(r.offset, r.value) for r in read(watchful, 4)] == [(i, b"%d" % i) for i in range(5, 9)]
    assert f"nothing comes of {{('{topic}', {home}):" in caplog.text


@pytest.mark.integration
def test_an_end_that_is_no_record_is_no_standstill(
    apache_kafka: ApacheKafka, fresh_name: Name, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind the records of a transaction stands its marker, and those of one that was given up are not read."""
    settings = KafkaSettings(bootstrap=apache_kafka.bootstrap, stall_check_interval_ms=200.0, stall_after_ms=100.0)
    topic = made(settings, fresh_name("topic"), partitions=1)
    sender = ck.Producer({"bootstrap.servers": settings.bootstrap, "transactional.id": topic})
    sender.init_transactions(WAIT_S)
    for finish in (sender.commit_transaction, sender.abort_transaction):
        sender.begin_transaction()
        sender.produce(topic, b"v")
        sender.flush(WAIT_S)
        finish(WAIT_S)
    consumer = PartitionConsumer(settings)
    consumer.assign({(topic, 0): 0})
    assert consumer.watermarks([(topic, 0)]) == {(topic, 0): (0, 4)}
    assert len(read(consumer, 1)) == 1
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        assert consumer.poll(10, 0.05) == []
    assert "nothing comes of" not in caplog.text
    consumer.close()


def test_a_backlog_that_is_being_read_is_no_standstill(
    settings: KafkaSettings, topic: str, watchful: PartitionConsumer, caplog: pytest.LogCaptureFixture
) -> None:
    send(settings, *numbered(topic, 60))
    watchful.assign({(topic, p): 0 for p in range(3)})
    got: list[Record] = []
    while len(got) < 60:
        got += watchful.poll(1, 0.05)
        time.sleep(0.03)
    assert [r.offset for r in got] == list(range(60))
    assert "nothing comes of" not in caplog.text
    home, everywhere = (topic, partition_of(b"k", 3)), watchful._positions()
    ahead = {tp: at + 1 for tp, at in everywhere.items()}
    assert watchful._standing_still(_Reach(0.0, {}, everywhere, ahead)) == ahead
    moved = _Reach(0.0, {}, {**everywhere, home: 59}, ahead)
    assert home not in watchful._standing_still(moved), "a record came since it was asked"


def test_a_partition_of_many_batches_is_read_from_the_embedded_broker(caplog: pytest.LogCaptureFixture) -> None:
    """It looks through all of them for each answer, and answers with nothing where its time is up before."""
    caplog.set_level("INFO")
    count = 24_000
    with EmbeddedBroker() as broker:
        settings = KafkaSettings(bootstrap=broker.bootstrap, request_timeout_ms=2_000.0)
        topic = made(settings, "crumbs", partitions=1)
        sender = ck.Producer({"bootstrap.servers": broker.bootstrap, "batch.num.messages": 1})
        for i in range(count):
            sender.produce(topic, b"%d" % i)
            sender.poll(0)
        assert sender.flush(WAIT_S) == 0
        consumer = PartitionConsumer(settings)
        assert consumer.watermarks([(topic, 0)]) == {(topic, 0): (0, count)}
        consumer.assign({(topic, 0): 0})
        values = [record.value for record in read(consumer, count)]
        consumer.close()
    assert values == [b"%d" % i for i in range(count)]
    assert "is given" in caplog.text


class Blind:
    """A client to which a broker has said that there are no partitions."""

    def __init__(self, client: ck.Consumer) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_watermark_offsets(self, *asked: object, **how: object) -> None:
        raise ck.KafkaException(ck.KafkaError(ck.KafkaError._UNKNOWN_PARTITION))


def test_no_partition_is_gone_before_a_new_client_says_so(
    settings: KafkaSettings, topic: str, consumer: PartitionConsumer, fresh_name: Name
) -> None:
    send(settings, *numbered(topic, 3))
    consumer.assign({(topic, p): 0 for p in range(3)})
    assert len(read(consumer, 1)) >= 1
    consumer._consumer = Blind(consumer._consumer)  # type: ignore[assignment]
    home = topic, partition_of(b"k", 3)
    assert consumer.watermarks([home]) == {home: (0, 3)}
    send(settings, *numbered(topic, 2))
    assert [r.offset for r in read(consumer, 2)][-2:] == [3, 4]
    with pytest.raises(UnknownTopic):
        consumer.watermarks([(fresh_name("missing"), 0)])


def test_what_one_client_cannot_deliver_another_does(
    settings: KafkaSettings, topic: str, consumer: PartitionConsumer, caplog: pytest.LogCaptureFixture
) -> None:
    """In their order, with all that they had, and each is reported once."""
    patient = replace(settings, delivery_attempt_ms=1_500)
    producer = RecordProducer(replace(patient, bootstrap=f"127.0.0.1:{free_port()}"))
    producer.settings = patient
    reports: list[tuple[int, str | None, int | None]] = []
    for i in range(20):
        record = Outgoing(topic, b"k", b"%d" % i, (("n", b"%d" % i),), 1_700_000_000_000 + i)
        producer.send(record, lambda error, offset, i=i: reports.append((i, error, offset)))  # type: ignore[misc]
    producer.send(Outgoing(topic, b"k", None))
    assert len(producer) == 21
    assert producer.flush(WAIT_S) == 0
    assert reports == [(i, None, i) for i in range(20)]
    assert producer.failures == 0
    assert caplog.text.count("another client sends") == 1
    producer.close()
    consumer.assign({(topic, p): 0 for p in range(3)})
    got = read(consumer, 21)
    assert [r.value for r in got] == [*(b"%d" % i for i in range(20)), None]
    assert [(r.headers, r.timestamp_ms) for r in got[:20]] == [
        ((("n", b"%d" % i),), 1_700_000_000_000 + i) for i in range(20)
    ]


def test_what_no_client_delivers_in_time_is_a_failure() -> None:
    nobody = KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}", delivery_timeout_ms=1_200, delivery_attempt_ms=300)
    producer = RecordProducer(nobody)
    reports: list[tuple[str | None, int | None]] = []
    producer.send(Outgoing("t", b"k", b"v"), lambda error, offset: reports.append((error, offset)))
    producer.send(Outgoing("t", b"k", b"v"))
    assert producer.flush(0.5) == 2
    assert producer.flush(WAIT_S) == 0
    assert [offset for _, offset in reports] == [None]
    assert reports[0][0]
    assert producer.failures == 1
    assert len(producer) == 0
