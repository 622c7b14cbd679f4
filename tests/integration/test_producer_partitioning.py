"""Where keys land: our producer, plain confluent-kafka as the docs show it, and murmur2 in Python agree."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from freshet.stream.codec import decode_record
from freshet.stream.events import Kind, View
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.producer import Producer
from freshet.stream.records import Outgoing, Record
from freshet.stream.topics import TopicSettings, TopicSpec, create, partition_of
from tests.conftest import lacking
from tests.integration.apache_kafka import ApacheKafka, fetch_jars

DOCS = Path(__file__).parents[2] / "docs" / "producers.md"


def read_all(settings: KafkaSettings, topics: dict[str, int]) -> list[Record]:
    consumer = PartitionConsumer(settings)
    marks = consumer.watermarks([(t, p) for t, n in topics.items() for p in range(n)])
    consumer.assign({tp: low for tp, (low, _) in marks.items()})
    records: list[Record] = []
    while len(records) < sum(high - low for low, high in marks.values()):
        records += consumer.poll(10_000, 0.05)
    consumer.close()
    return records


@pytest.mark.parametrize("partitions", [1, 7, 12])
def test_murmur2_places_keys_where_the_client_does(
    broker: str, fresh_name: Callable[[str], str], partitions: int
) -> None:
    settings, topic = KafkaSettings(broker), fresh_name("topic")
    TopicAdmin(settings).create([TopicSpec(topic, partitions, 1, {})])
    keys = [b"%d" % i for i in range(2000)] + [bytes([i]) * n for i in (0, 127, 128, 255) for n in range(1, 20)]
    keys += [("zoë" + "x" * i).encode() for i in range(256)]
    producer = RecordProducer(settings)
    for key in keys:
        producer.send(Outgoing(topic, key, b""))
    assert producer.flush(60.0) == 0 and producer.failures == 0
    records = read_all(settings, {topic: partitions})
    assert len(records) == len(keys)
    assert {r.partition for r in records} == set(range(partitions))
    assert [r for r in records if r.partition != partition_of(r.key or b"", partitions)] == []


def test_a_users_records_share_one_partition_number(broker: str, fresh_topics: Callable[[int], TopicSettings]) -> None:
    settings, topics = KafkaSettings(broker), fresh_topics(5)
    create(TopicAdmin(settings), topics)
    with Producer(broker, topics=topics) as producer:
        for i in range(40):
            user = f"user-{i}"
            producer.view(user, "p")
            producer.purchase(user, "p")
            producer.session(user, "s")
            producer.profile(user, geo="DE")
    places: dict[bytes, list[int]] = {}
    for record in read_all(settings, dict.fromkeys(topics.by_user, 5)):
        places.setdefault(record.key or b"", []).append(record.partition)
    assert len(places) == 40
    assert {(len(at), len(set(at))) for at in places.values()} == {(4, 1)}


def test_the_plain_client_of_the_docs(broker: str, fresh_name: Callable[[str], str]) -> None:
    """Runs the Python block without Freshet as it stands in docs/producers.md, against this broker and topic."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    plain = next(block for block in blocks if "from confluent_kafka" in block)
    settings, topic = KafkaSettings(broker), fresh_name("topic")
    TopicAdmin(settings).create([TopicSpec(topic, 4, 1, {})])
    assert "127.0.0.1:9092" in plain and "freshet.events.view" in plain
    exec(plain.replace("127.0.0.1:9092", broker).replace("freshet.events.view", topic), {})
    (record,) = read_all(settings, {topic: 4})
    event = decode_record(record, Kind.VIEW)
    assert isinstance(event, View)
    assert record.partition == partition_of(event.user_id.encode(), 4)


@pytest.mark.integration
def test_the_java_client_of_the_docs(
    apache_kafka: ApacheKafka, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    """Runs the Java block of docs/producers.md, as a source file."""
    if shutil.which("javac") is None:
        lacking("javac is not on the PATH: install a JDK to run the Java example of docs/producers.md")
    (block,) = re.findall(r"```java\n(.*?)```", DOCS.read_text(), re.DOTALL)
    settings, topic = KafkaSettings(apache_kafka.bootstrap), fresh_name("topic")
    TopicAdmin(settings).create([TopicSpec(topic, 4, 1, {})])
    source = tmp_path / "SendView.java"
    source.write_text(block.replace("127.0.0.1:9092", settings.bootstrap).replace("freshet.events.view", topic))
    subprocess.run(["java", "-cp", f"{fetch_jars()}/*", str(source)], check=True, capture_output=True, timeout=120)
    (record,) = read_all(settings, {topic: 4})
    assert isinstance(decode_record(record, Kind.VIEW), View)
    assert (record.key, record.partition) == (b"ada", partition_of(b"ada", 4))
