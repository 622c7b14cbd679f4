"""Real servers for the tests: the embedded broker and Valkey, Apache Kafka and a distribution's redis-server.

Servers live as long as the test session. What a machine lacks is named in the reason of a skip; where CI is
set, lacking it is a failure.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from freshet.stream.embedded import EmbeddedBroker, EmbeddedRedis
from freshet.stream.topics import TopicSettings
from tests.certificates import Certificates, make_certificates
from tests.integration.apache_kafka import ApacheKafka, Guarded, Missing, fetch_jars
from tests.redis_topologies import ClusterOfServers, WatchedByASentinel


def lacking(what: str) -> NoReturn:
    """Skip the test, naming what this machine lacks; in CI fail."""
    if os.environ.get("CI"):
        pytest.fail(f"CI has to run this test, but {what}")
    pytest.skip(what)


# --- Kafka --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """The embedded broker; `.bootstrap` is its address."""
    with EmbeddedBroker() as server:
        yield server


@pytest.fixture(scope="session")
def apache_kafka() -> Iterator[ApacheKafka]:
    """Apache Kafka; `.bootstrap` is its address. A test that stops it starts it again."""
    try:
        jars = fetch_jars()
    except Missing as missing:
        lacking(str(missing))
    server = ApacheKafka(jars)
    try:
        yield server.start()
    finally:
        server.discard()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of this test session."""
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    if made is None:
        lacking("openssl is not on the PATH: install it to make certificates")
    return made


SASL_USER, SASL_PASSWORD = "freshet", "sasl-pass-4417"


@pytest.fixture(scope="session")
def guarded_kafka(certificates: Certificates) -> Iterator[ApacheKafka]:
    """Apache Kafka that asks for a password on `sasl_port` and for a certificate on `ssl_port`."""
    try:
        jars = fetch_jars()
    except Missing as missing:
        lacking(str(missing))
    server = ApacheKafka(jars, Guarded(SASL_USER, SASL_PASSWORD, certificates.server_both, certificates.ca))
    try:
        yield server.start()
    finally:
        server.discard()


@pytest.fixture(
    params=[
        pytest.param("embedded_broker", id="embedded"),
        pytest.param("apache_kafka", id="apache", marks=pytest.mark.integration),
    ]
)
def broker(request: pytest.FixtureRequest) -> str:
    """The bootstrap address of either broker: a test that uses this runs on both."""
    return str(request.getfixturevalue(request.param).bootstrap)


@pytest.fixture
def fresh_name() -> Callable[[str], str]:
    """Names for topics and groups that no other test uses; equal within one test for equal stems."""
    token = uuid.uuid4().hex[:10]
    return lambda stem: f"{stem}.{token}"


@pytest.fixture
def fresh_topics(fresh_name: Callable[[str], str]) -> Callable[[int], TopicSettings]:
    """Freshet's topics under names of this test alone, with so many partitions; none is created yet."""
    return lambda partitions: TopicSettings(
        view=fresh_name("view"),
        purchase=fresh_name("purchase"),
        session=fresh_name("session"),
        products=fresh_name("products"),
        profiles=fresh_name("profiles"),
        state_products=fresh_name("state.products"),
        embeddings_products=fresh_name("embeddings.products"),
        embeddings_users=fresh_name("embeddings.users"),
        deadletter=fresh_name("deadletter"),
        partitions=partitions,
    )


# --- Redis --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[EmbeddedRedis]:
    """The embedded Valkey, shared by all tests."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="session")
def debian_redis() -> Iterator[EmbeddedRedis]:
    """A distribution's redis-server, shared by all tests."""
    program = shutil.which("redis-server")
    if program is None:
        lacking("redis-server is not on the PATH: install the package redis-server of the distribution")
    with EmbeddedRedis(binary=Path(program)) as server:
        yield server


@pytest.fixture
def valkey(valkey_server: EmbeddedRedis) -> str:
    """The URL of an empty Valkey."""
    return emptied(valkey_server)


@pytest.fixture
def redis_server(debian_redis: EmbeddedRedis) -> str:
    """The URL of an empty redis-server."""
    return emptied(debian_redis)


@pytest.fixture(params=["valkey", pytest.param("redis_server", marks=pytest.mark.integration)])
def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty server of either make: a test that uses this runs on both."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[ClusterOfServers]:
    """Three primaries, shared by all tests; none stops them."""
    with ClusterOfServers() as servers:
        yield servers


@pytest.fixture(scope="session")
def shared_sentinel() -> Iterator[WatchedByASentinel]:
    """A primary, a replica and a sentinel, shared by all tests; none stops them."""
    with WatchedByASentinel() as servers:
        yield servers


@pytest.fixture
def redis_cluster(shared_cluster: ClusterOfServers) -> str:
    """The URL of an empty cluster."""
    shared_cluster.clear()
    return shared_cluster.url


@pytest.fixture
def redis_sentinel(shared_sentinel: WatchedByASentinel) -> str:
    """The URL of an empty server that a sentinel watches."""
    shared_sentinel.clear()
    return shared_sentinel.url


def emptied(server: EmbeddedRedis) -> str:
    """The server's URL, once all its data is gone."""
    assert server.ask("FLUSHALL") == b"+OK"
    return server.url
