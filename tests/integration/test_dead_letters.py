"""Dead letters with real parts: a poisoned stream, a broker that refuses letters, and the commands."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer as AnyPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from freshet.stream import topics
from freshet.stream.codec import encode
from freshet.stream.deadletter_topic import Entry, open_dead_letters
from freshet.stream.events import Kind, View
from freshet.stream.kafka import RecordProducer
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.local import LocalSystem
from freshet.stream.records import Outgoing
from freshet.stream.rejection import Reason
from freshet.stream.settings import Settings, as_environment
from freshet.stream.topics import partition_of
from freshet.stream.wiring import run_verify
from tests.commands import freshet
from tests.contract.test_golden import CASES, record_of
from tests.integration.apache_kafka import ApacheKafka
from tests.random_bundle import random_bundle

NOW_MS = int(time.time() * 1e3)
PARTITIONS = 3
ROUNDS = 6
"""How often each bad record of the contract is sent: several hundred in all."""


class Quiet:
    """Progress nobody looks at."""

    def update(self, what: str, done: int, total: int) -> None: ...

    def say(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    random_bundle(products=("p1", "p2")).save(path)
    return path


@pytest.fixture
def system(
    broker: str, valkey: str, fresh_topics: Callable[[int], topics.TopicSettings], tmp_path: Path
) -> Iterator[LocalSystem]:
    """A system on either broker, with topics of its own."""
    with LocalSystem(tmp_path / "run", Settings(topics=fresh_topics(PARTITIONS)), broker, valkey) as made:
        yield made


def send(system: LocalSystem, *records: Outgoing) -> None:
    producer = RecordProducer(system.settings.kafka)
    for record in records:
        producer.send(record)
    assert producer.flush(30.0) == 0
    assert producer.failures == 0
    producer.close()


def send_to(system: LocalSystem, partition: int, record: Outgoing) -> None:
    """To this partition, whatever its key."""
    producer = AnyPartition({"bootstrap.servers": system.settings.kafka.bootstrap})
    producer.produce(record.topic, record.value, record.key, partition)
    assert producer.flush(30.0) == 0


def entries(system: LocalSystem, count: int) -> list[Entry]:
    """The dead letters, once there are so many."""
    end = time.monotonic() + 30
    while True:
        with open_dead_letters(system.settings) as letters:
            found = letters.entries()
        if len(found) >= count or time.monotonic() > end:
            return found
        time.sleep(0.1)


def called(system: LocalSystem, *words: object) -> subprocess.CompletedProcess[str]:
    return freshet("deadletter", *words, env=as_environment(system.settings))


def said(system: LocalSystem, *words: object) -> Any:
    done = called(system, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def view(number: int, user: str = "u1") -> View:
    return View(f"v{number}", user, f"p{number % 5}", NOW_MS + number)


def outgoing(system: LocalSystem, event: View, **changes: Any) -> Outgoing:
    return Outgoing(system.settings.topics.view, event.user_id.encode(), encode(event))._replace(**changes)


def golden_bad(system: LocalSystem) -> list[tuple[Outgoing, str]]:
    """Every rejected record of the golden files, for this system's topics, and its reason; but for those without a
    key on the compacted topics, which Apache Kafka itself refuses."""
    topic_of = {kind: topic for topic, kind in topics.kinds(system.settings.topics).items()}
    found = []
    for case in CASES:
        if case["outcome"] == "rejected":
            r = record_of(case)
            headers = tuple((name, value or b"") for name, value in r.headers)
            record = Outgoing(topic_of[Kind(case["kind"])], r.key, r.value, headers, r.timestamp_ms)
            if r.key is not None or case["kind"] not in ("product", "profile"):
                found.append((record, case["reason"]))
    return found


def test_a_poisoned_stream_never_stops_a_partition(system: LocalSystem, bundle: Path) -> None:
    """Bad records of every reason, hundreds of them, each followed by good ones on every partition."""
    system.start_worker(bundle)
    system.wait_live()
    bad, good, want = golden_bad(system), 0, Counter[str]()
    users = {partition_of(b"u%d" % i, PARTITIONS): f"u{i}" for i in range(50)}
    assert len(users) == PARTITIONS
    for _ in range(ROUNDS):
        batch = []
        for record, reason in bad:
            want[reason] += 1
            batch.append(record)
            for user in users.values():
                batch.append(outgoing(system, view(good, user)))
                good += 1
        send(system, *batch)
        home = partition_of(b"u1", PARTITIONS)
        send_to(system, (home + 1) % PARTITIONS, outgoing(system, view(10**6)))
        want["wrong_partition"] += 1
    assert set(want) == set(Reason) and sum(want.values()) > 400
    status = system.wait_quiet(120.0)
    assert status["state"] == "live"
    # A record without a key may land on any partition, and is judged by the decoder alone.
    assert status["events"] == {"view": good}
    assert status["rejected"] == sum(want.values())
    found = entries(system, sum(want.values()))
    assert Counter(entry.reason for entry in found) == want
    assert run_verify(system.settings, None, None, None, 60.0, Quiet()).passed  # type: ignore[arg-type]
    assert system.stop_worker() == 0


def test_letters_are_listed_shown_repaired_and_sent_again(system: LocalSystem, bundle: Path) -> None:
    system.start_worker(bundle)
    system.wait_live()
    topic = system.settings.topics.view
    home = partition_of(b"u1", PARTITIONS)
    seconds = encode(view(2)).replace(str(NOW_MS + 2).encode(), str(NOW_MS // 1000).encode())
    send_to(system, home, outgoing(system, view(0), value=b"\xff\x00\x1b[2J"))
    send_to(system, home, outgoing(system, view(1), key=None))
    send_to(system, home, outgoing(system, view(2), value=seconds))
    send_to(system, home, outgoing(system, view(3), value=encode(view(3))[:-1] + b',"dwell_time_s":-3}'))
    send_to(system, (home + 1) % PARTITIONS, outgoing(system, view(4)))
    system.wait_quiet()
    entries(system, 5)
    listed = said(system, "list")
    reason_of = {letter["origin"]: letter["reason"] for letter in listed}
    undecodable, keyless, old, negative = (f"{topic}:{home}:{offset}" for offset in range(4))
    placed = f"{topic}:{(home + 1) % PARTITIONS}:0"
    assert reason_of == {
        undecodable: "undecodable", keyless: "missing_key", old: "timestamp_too_old",
        negative: "negative_number", placed: "wrong_partition",
    }  # fmt: skip
    (chosen,) = said(system, "list", "--reason", "missing_key", "--topic", "view", "--since", "1h")
    assert chosen["origin"] == keyless
    assert said(system, "list", "--since", "2999-01-01") == said(system, "list", "--topic", "purchase") == []
    assert called(system, "list").stdout.splitlines()[0].startswith(f"{listed[0]['origin']}\t{listed[0]['reason']}\t")

    shown = said(system, "show", undecodable)
    assert base64.b64decode(shown["value"]) == b"\xff\x00\x1b[2J"
    assert base64.b64decode(shown["key"]) == b"u1"
    text = called(system, "show", undecodable).stdout
    assert "ff 00 1b 5b 32 4a" in text and "\x1b" not in text
    assert encode(view(3))[:-1].decode() in called(system, "show", negative).stdout

    assert called(system, "replay").returncode == 2
    assert called(system, "replay", keyless, "--all").returncode == 2
    before = len(said(system, "list", "--replayed"))
    would = said(system, "replay", "--all", "--fix", "--dry-run")
    assert (would["would_be_sent"], would["skipped"], would["sent"]) == (3, 2, 0)
    assert len(said(system, "list")) == before == 5

    done = said(system, "replay", "--all", "--fix")
    assert (done["sent"], done["skipped"], done["failed"]) == (3, 2, 0)
    told = {letter["origin"]: letter for letter in done["letters"]}
    assert "undecodable" in told[undecodable]["why"] and "negative_number" in told[negative]["why"]
    assert told[old]["repairs"] == [f"timestamp {NOW_MS // 1000} in seconds is {NOW_MS // 1000 * 1000} ms"]
    status = system.wait_quiet()
    assert status["events"] == {"view": 3}
    assert {letter["origin"] for letter in said(system, "list")} == {undecodable, negative}
    assert {x["origin"] for x in said(system, "list", "--replayed") if x["replayed"]} == {keyless, old, placed}
    assert said(system, "replay", "--reason", "missing_key")["letters"] == []

    assert said(system, "replay", negative, "--set", "dwell_time_s=3")["sent"] == 1
    assert system.wait_quiet()["events"] == {"view": 4}

    # Unchanged, it is refused again, and is one line with a count.
    for count in range(1, 3):
        assert said(system, "replay", undecodable)["sent"] == 1
        system.wait_quiet()
        end = time.monotonic() + 20
        while (left := said(system, "list")) == [] and time.monotonic() < end:
            time.sleep(0.2)
        assert [(letter["origin"], letter["replays"]) for letter in left] == [(undecodable, count)]
    assert run_verify(system.settings, None, None, None, 60.0, Quiet()).passed  # type: ignore[arg-type]


def test_a_letter_that_is_named_and_is_not_there(system: LocalSystem) -> None:
    for words in (["show", "view:0:1"], ["replay", "view:0:1"], ["show", "nonsense"], ["list", "--reason", "bad"]):
        done = called(system, *words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr and "error:" in done.stderr


def limit_letters(apache: ApacheKafka, topic: str, size: int) -> None:
    """Let the broker refuse records of `topic` that are larger."""
    client = AdminClient({"bootstrap.servers": apache.bootstrap})
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for answer in client.incremental_alter_configs([resource]).values():
        answer.result()


@pytest.mark.integration
def test_a_broker_that_refuses_letters_costs_a_restart_and_no_letter(
    apache_kafka: ApacheKafka,
    valkey: str,
    bundle: Path,
    tmp_path: Path,
    fresh_topics: Callable[[int], topics.TopicSettings],
) -> None:
    settings = Settings(topics=fresh_topics(1))
    with LocalSystem(tmp_path / "run", settings, apache_kafka.bootstrap, valkey) as system:
        names = system.settings.topics
        limit_letters(apache_kafka, names.deadletter, 100)
        system.start_worker(bundle)
        system.wait_live()
        send(system, outgoing(system, view(0)), outgoing(system, view(1), value=b"{"), outgoing(system, view(2)))
        assert system.worker is not None
        assert system.worker.wait(60.0) == 2
        last = system.last_words()
        assert "Traceback" not in last and "could not be delivered" in last and names.deadletter in last
        assert committed(system, names.view) <= 1
        limit_letters(apache_kafka, names.deadletter, 4 * 1024 * 1024)
        system.restart_worker()
        system.wait_live()
        (entry,) = entries(system, 1)
        assert (entry.reason, str(entry.origin)) == ("undecodable", f"{names.view}:0:1")
        assert system.wait_quiet()["events"] == {"view": 2}
        assert system.stop_worker() == 0
        assert committed(system, names.view) == 3


def committed(system: LocalSystem, topic: str) -> int:
    """The group's offset of partition 0; 0 where there is none."""
    consumer = PartitionConsumer(system.settings.kafka)
    try:
        return consumer.committed([(topic, 0)]).get((topic, 0), 0)
    finally:
        consumer.close()
