"""Kafka behind a password or a certificate: Apache Kafka's own listeners, and what a refusal looks like."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from freshet.errors import FreshetError
from freshet.stream import topics
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_errors import KafkaRefused, KafkaUnavailable
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.producer import Producer
from freshet.stream.topics import TopicSettings
from tests.certificates import KEY_PASSWORD, Certificates
from tests.conftest import SASL_PASSWORD, SASL_USER
from tests.integration.apache_kafka import ApacheKafka

pytestmark = pytest.mark.integration

FINAL_WITHIN_S = 25.0
"""A refusal is final after the timeout of a question or two, not after minutes."""


def sasl(server: ApacheKafka, mechanism: str = "PLAIN", **changed: object) -> KafkaSettings:
    given: dict[str, object] = {
        "bootstrap": f"127.0.0.1:{server.sasl_port}", "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism, "sasl_username": SASL_USER, "sasl_password": SASL_PASSWORD, **changed,
    }  # fmt: skip
    return KafkaSettings(**given)  # type: ignore[arg-type]


def ssl(server: ApacheKafka, made: Certificates, **changed: object) -> KafkaSettings:
    given: dict[str, object] = {
        "bootstrap": f"127.0.0.1:{server.ssl_port}", "security_protocol": "SSL", "ssl_ca_file": str(made.ca),
        "ssl_certificate_file": str(made.client), "ssl_key_file": str(made.client_locked_key),
        "ssl_key_password": KEY_PASSWORD, **changed,
    }  # fmt: skip
    return KafkaSettings(**given)  # type: ignore[arg-type]


def there_and_back(settings: KafkaSettings, names: TopicSettings) -> None:
    """Topics are made, an event is sent, and read again."""
    assert set(topics.create(TopicAdmin(settings), names)) >= set(names.inputs)
    with Producer(settings.bootstrap, topics=names, kafka=settings) as producer:
        producer.view("ann", "p1")
    assert producer.delivered == 1
    consumer = PartitionConsumer(settings)
    try:
        consumer.assign({(names.view, 0): 0})
        found, end = [], time.monotonic() + 20
        while not found and time.monotonic() < end:
            found = consumer.poll(10, 0.1)
        assert [record.key for record in found] == [b"ann"]
    finally:
        consumer.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_password_lets_us_in(
    guarded_kafka: ApacheKafka, mechanism: str, fresh_topics: Callable[[int], TopicSettings], tmp_path: Path
) -> None:
    kept = tmp_path / "password"
    kept.write_text(SASL_PASSWORD + "\n")
    by_file = {"sasl_password": None, "sasl_password_file": str(kept)} if mechanism == "PLAIN" else {}
    there_and_back(sasl(guarded_kafka, mechanism, **by_file), fresh_topics(1))


def test_librdkafkas_own_properties_let_us_in(
    guarded_kafka: ApacheKafka, fresh_topics: Callable[[int], TopicSettings]
) -> None:
    properties = {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": SASL_USER,
        "sasl.password": SASL_PASSWORD,
    }  # fmt: skip
    settings = KafkaSettings(bootstrap=f"127.0.0.1:{guarded_kafka.sasl_port}", properties=properties)
    there_and_back(settings, fresh_topics(1))


def test_a_certificate_lets_us_in(
    guarded_kafka: ApacheKafka, certificates: Certificates, fresh_topics: Callable[[int], TopicSettings]
) -> None:
    there_and_back(ssl(guarded_kafka, certificates), fresh_topics(1))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
@pytest.mark.parametrize("who", ["admin", "producer", "consumer"])
def test_a_wrong_password_is_final(guarded_kafka: ApacheKafka, mechanism: str, who: str) -> None:
    settings = sasl(guarded_kafka, mechanism, sasl_password="wr0ng-pass-8812", request_timeout_ms=3000)
    calls: dict[str, Callable[[], object]] = {
        "admin": lambda: TopicAdmin(settings).describe(["t"]),
        "producer": lambda: RecordProducer(settings).connect(3.0),
        "consumer": lambda: PartitionConsumer(settings).watermarks([("t", 0)]),
    }
    start = time.monotonic()
    with pytest.raises(KafkaRefused, match=r"uthentication.*sasl_password") as caught:
        calls[who]()
    assert time.monotonic() - start < FINAL_WITHIN_S
    assert not isinstance(caught.value, KafkaUnavailable)
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("lacks", ["its CA", "a certificate"])
def test_certificates_that_do_not_fit_are_final(
    guarded_kafka: ApacheKafka, certificates: Certificates, lacks: str
) -> None:
    changed: dict[str, object] = {"ssl_ca_file": str(certificates.other_ca)}
    if lacks == "a certificate":
        changed = {"ssl_certificate_file": None, "ssl_key_file": None, "ssl_key_password": None}
    settings = ssl(guarded_kafka, certificates, request_timeout_ms=3000, **changed)
    with pytest.raises(KafkaRefused, match="certificate"):
        TopicAdmin(settings).describe(["t"])


def test_a_key_that_stays_locked_is_named(guarded_kafka: ApacheKafka, certificates: Certificates) -> None:
    settings = ssl(guarded_kafka, certificates, ssl_key_password="wr0ng-pass-8812")
    with pytest.raises(FreshetError, match=r"Kafka settings.*key") as caught:
        TopicAdmin(settings)
    assert "wr0ng" not in str(caught.value)
