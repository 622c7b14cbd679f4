"""What a process prints, raises and shows to others on its machine, searched for the secrets that it was given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import psutil
import pytest

from freshet.store.redis_settings import RedisSettings
from freshet.stream import topics
from freshet.stream.embedded import EmbeddedBroker, EmbeddedRedis, free_port
from freshet.stream.events import View
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.local import LocalSystem
from freshet.stream.producer import Producer
from freshet.stream.settings import Settings, as_environment, from_environment
from freshet.stream.topics import TopicSettings
from tests.certificates import Certificates
from tests.conftest import SASL_PASSWORD, SASL_USER
from tests.contract.test_redis_security import rules
from tests.integration.apache_kafka import ApacheKafka
from tests.random_bundle import random_bundle
from tests.redis_topologies import asked

PLANTED = "pl4nted/s?cr:t@word#%x"
FORMS = {PLANTED, quote(PLANTED, safe=""), "pl4nted", "s?cr", "word#", "t@word"}
"""The secret as it is, as a URL writes it, and its pieces: no part of it may be seen."""
ENCODED = quote(PLANTED, safe="")
PATIENCE_S = 60.0


def seen(text: str) -> list[str]:
    """The forms of the secret that a text has."""
    return [form for form in FORMS if form in text]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    random_bundle(products=("p1", "p2")).save(path)
    return path


@pytest.fixture(scope="module")
def locked_redis() -> Iterator[EmbeddedRedis]:
    """A Redis with a password that is not the planted one."""
    with EmbeddedRedis(options=("--requirepass", "another one")) as server:
        yield server


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    """Of a broker with all topics."""
    with EmbeddedBroker() as broker:
        made = Settings(kafka=KafkaSettings(bootstrap=broker.bootstrap))
        topics.create(TopicAdmin(made.kafka), made.topics)
        yield made


class Failing(NamedTuple):
    """A command that cannot do its work: what it is given, and what it has to say."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    says: str
    code: int | None
    """None for a command that waits and has to be ended."""


def failing(nobody: int) -> dict[str, Failing]:
    """REDIS and LOCKED_KEY stand for what exists only when a test runs."""
    worker, topic = ("worker", "--bundle", "BUNDLE"), ("topics", "create")
    sasl = {"FRESHET_KAFKA_SASL_USERNAME": "ann", "FRESHET_KAFKA_SASL_PASSWORD": PLANTED}
    away = f"127.0.0.1:{nobody}"
    return {
        "a login that Redis refuses": Failing(
            ("status",), {"FRESHET_REDIS_URL": f"redis://ann:{ENCODED}@REDIS/0"}, "refuses the login", 2),
        "a password in the query": Failing(
            ("status",), {"FRESHET_REDIS_URL": f"redis://REDIS/0?password={ENCODED}"}, "refuses the login", 2),
        "a password setting": Failing(
            worker, {"FRESHET_REDIS_URL": "redis://REDIS/0", "FRESHET_REDIS_PASSWORD": PLANTED},
            "refuses the login", 2),
        "a URL that was not encoded": Failing(
            ("status",), {"FRESHET_REDIS_URL": f"redis://ann:{PLANTED}@REDIS/0"}, "cannot be used", 2),
        "a URL with an unknown option": Failing(
            ("status",), {"FRESHET_REDIS_URL": f"redis://REDIS/0?pasword={ENCODED}"}, "cannot be used", 2),
        "a Redis that is away": Failing(
            worker, {"FRESHET_REDIS_URL": f"redis://ann:{ENCODED}@{away}/0"}, "waiting for Redis", None),
        "a cluster that is away": Failing(
            worker, {"FRESHET_REDIS_URL": f"redis+cluster://ann:{ENCODED}@{away}"}, "waiting for Redis", None),
        "sentinels that are away": Failing(
            worker, {"FRESHET_REDIS_URL": f"redis+sentinel://ann:{ENCODED}@{away}/shop/0",
                     "FRESHET_REDIS_SENTINEL_PASSWORD": PLANTED}, "waiting for Redis", None),
        "a password on the command line": Failing(
            ("status", "--redis", f"redis://ann:{ENCODED}@{away}/0"), {}, "--redis has a password", 3),
        "properties that are no JSON": Failing(
            topic, {"FRESHET_KAFKA_PROPERTIES": f"sasl.password={PLANTED}"}, "FRESHET_KAFKA_PROPERTIES cannot", 2),
        "a property that does not exist": Failing(
            topic, {"FRESHET_KAFKA_PROPERTIES": f'{{"sasl.password": "{PLANTED}", "no.such": "{PLANTED}"}}'},
            "no.such", 2),
        "a setting that contradicts another": Failing(worker, sasl, "make it SASL_SSL", 2),
        "a password for a broker that asks for none": Failing(
            topic, {**sasl, "FRESHET_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
                    "FRESHET_KAFKA_REQUEST_TIMEOUT_MS": "2000",
                    "FRESHET_KAFKA_PROPERTIES": '{"debug": "security,broker"}'}, "Kafka", None),
        "a key that stays locked": Failing(
            topic, {"FRESHET_KAFKA_SECURITY_PROTOCOL": "SSL", "FRESHET_KAFKA_SSL_CERTIFICATE_FILE": "CERTIFICATE",
                    "FRESHET_KAFKA_SSL_KEY_FILE": "LOCKED_KEY", "FRESHET_KAFKA_SSL_KEY_PASSWORD": PLANTED},
            "Kafka settings", 2),
        "another setting that is wrong": Failing(
            worker, {"FRESHET_REDIS_PASSWORD": PLANTED, "FRESHET_REDIS_TTL_S": "x"}, "FRESHET_REDIS_TTL_S='x'", 2),
        "help": Failing(("worker", "--help"), {"FRESHET_REDIS_PASSWORD": PLANTED, **sasl}, "--redis", 0),
    }  # fmt: skip


@pytest.mark.parametrize("name", failing(1))
def test_nothing_that_fails_shows_a_secret(
    name: str, settings: Settings, locked_redis: EmbeddedRedis, certificates: Certificates, bundle: Path, tmp_path: Path
) -> None:
    case = failing(free_port())[name]
    stands_for = {
        "REDIS": locked_redis.address, "LOCKED_KEY": str(certificates.client_locked_key),
        "CERTIFICATE": str(certificates.client), "BUNDLE": str(bundle),
    }  # fmt: skip

    def real(text: str) -> str:
        for what, value in stands_for.items():
            text = text.replace(what, value) if text.isupper() or f"{what}/" in text else text
        return text

    environment = {
        **os.environ, **as_environment(settings), "FRESHET_LOG": "DEBUG",
        **{variable: real(value) for variable, value in case.environment.items()},
    }  # fmt: skip
    said = tmp_path / "said"
    with said.open("wb") as out:
        command = [sys.executable, "-m", "freshet.stream.cli", *map(real, case.words)]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        if case.code is not None:
            assert process.wait(PATIENCE_S) == case.code, said.read_text()
        else:
            end = time.monotonic() + PATIENCE_S
            while case.says not in said.read_text() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    text = said.read_text()
    assert case.says in " ".join(text.split()), text
    assert not seen(text), text


def test_settings_show_no_secret() -> None:
    given = {
        "FRESHET_REDIS_URL": f"redis://ann:{ENCODED}@h/0",
        "FRESHET_REDIS_PASSWORD": PLANTED,
        "FRESHET_REDIS_SENTINEL_PASSWORD": PLANTED,
        "FRESHET_REDIS_SSL_KEY_PASSWORD": PLANTED,
        "FRESHET_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "FRESHET_KAFKA_SASL_PASSWORD": PLANTED,
        "FRESHET_KAFKA_SSL_KEY_PASSWORD": PLANTED,
        "FRESHET_KAFKA_PROPERTIES": f'{{"sasl.password": "{PLANTED}"}}',
    }
    settings = from_environment(given)
    assert not seen(repr(settings) + str(settings) + f"{settings.kafka}{settings.redis}")
    assert {settings.redis.password, settings.kafka.sasl_password, *settings.kafka.properties.values()} == {PLANTED}
    assert from_environment(as_environment(settings)) == settings


@pytest.mark.integration
def test_a_system_behind_passwords_works_and_tells_nobody(
    guarded_kafka: ApacheKafka, valkey_server: EmbeddedRedis, valkey: str, bundle: Path,
    fresh_topics: Callable[[int], TopicSettings], tmp_path: Path,
) -> None:  # fmt: skip
    """Topics, producer, worker and commands; in Redis with no more rights than the documentation gives a worker."""
    rule = [part.replace(">PASSWORD", f">{PLANTED}") for part in rules()["freshet-worker"]]
    asked(valkey_server, "ACL", "SETUSER", "freshet-worker", "reset", *rule)
    kafka = KafkaSettings(
        bootstrap=f"127.0.0.1:{guarded_kafka.sasl_port}", security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512", sasl_username=SASL_USER, sasl_password=SASL_PASSWORD,
    )  # fmt: skip
    redis_settings = RedisSettings(username="freshet-worker", password=PLANTED)
    settings = Settings(kafka=kafka, redis=redis_settings, topics=fresh_topics(2))

    def run(*words: str, **changed: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **as_environment(system.settings), "FRESHET_LOG": "DEBUG", **changed}
        command = [sys.executable, "-m", "freshet.stream.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, check=False)

    try:
        with LocalSystem(tmp_path / "run", settings, kafka.bootstrap, valkey) as system:
            assert run("topics", "create").stdout == "all topics are there\n"
            system.start_worker(bundle)
            system.wait_live()
            assert system.worker is not None
            family = [psutil.Process(system.worker.pid), *psutil.Process(system.worker.pid).children(recursive=True)]
            for process in family:
                shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode() + process.name()
                assert not seen(shown)
                assert SASL_PASSWORD not in shown
            with Producer(kafka.bootstrap, topics=settings.topics, kafka=kafka) as producer:
                for i in range(20):
                    producer.send(View(f"v{i}", f"u{i % 4}", "p1", int(time.time() * 1e3)))
            assert system.wait_quiet()["records"] == 20
            outputs = [run("status", "--json"), run("status"), run("click", "u1", "p2"), run("recommend", "u1"),
                       run("deadletter", "list"), run("topics", "describe")]  # fmt: skip
            assert [done.returncode for done in outputs] == [0] * len(outputs), outputs
            wrong = run("topics", "describe", FRESHET_KAFKA_SASL_PASSWORD=PLANTED)
            assert wrong.returncode == 2
            assert "uthentication" in wrong.stderr
            assert system.stop_worker() == 0
            said = system.worker_log.read_text() + "".join(done.stdout + done.stderr for done in (*outputs, wrong))
        assert not seen(said), said
        assert SASL_PASSWORD not in said
    finally:
        asked(valkey_server, "ACL", "DELUSER", "freshet-worker")
