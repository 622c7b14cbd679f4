"""Redis behind TLS, ACL rules and passwords, on real servers; and what a refusal looks like."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from freshet.errors import FreshetError
from freshet.reader import Reader
from freshet.store.credentials import has_password, read_secret, without_password
from freshet.store.embeddings import StoreUnavailable
from freshet.store.index import MemoryItemIndex
from freshet.store.redis_settings import RedisSettings
from freshet.store.redis_store import RedisStore
from freshet.store.value import Seq
from freshet.stream.embedded import EmbeddedRedis, free_port
from tests.certificates import KEY_PASSWORD, Certificates
from tests.conftest import lacking
from tests.contract.test_embedding_store import value
from tests.redis_topologies import SERVICE, SentinelServer, asked, until

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
WORD = "p@s:s/w?o#r%d 4417"
"""A password with all that a URL minds."""
ENCODED = "p%40s%3As%2Fw%3Fo%23r%25d%204417"


def store_of(url: str, **settings: object) -> closing[RedisStore]:
    return closing(RedisStore(RedisSettings(url=url, retry_ms=10, **settings)))  # type: ignore[arg-type]


def refusal(url: str, **settings: object) -> str:
    """What is said to somebody who is refused for good."""
    with store_of(url, **settings) as store, pytest.raises(FreshetError) as caught:
        store.current()
    assert not isinstance(caught.value, StoreUnavailable), caught.value
    return str(caught.value)


# --- TLS ----------------------------------------------------------------------------------------

TlsServer = Callable[..., EmbeddedRedis]


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates) -> Iterator[TlsServer]:
    """Starts servers of a distribution's redis-server with TLS on `tls_port`: the wheel's Valkey was built without."""
    program = shutil.which("redis-server")
    if program is None:
        lacking("redis-server is not on the PATH: install the package redis-server of the distribution")
    started: list[EmbeddedRedis] = []

    def start(*options: str, clients: str = "no") -> EmbeddedRedis:
        server = EmbeddedRedis(
            binary=Path(program),
            options=(
                "--tls-port", str(free_port()), "--tls-cert-file", str(certificates.server),
                "--tls-key-file", str(certificates.server_key), "--tls-ca-cert-file", str(certificates.ca),
                "--tls-auth-clients", clients, *options,
            ),
        )  # fmt: skip
        started.append(server.start())
        return server

    yield start
    for server in started:
        server.stop()


def tls_url(server: EmbeddedRedis, scheme: str = "rediss") -> str:
    return f"{scheme}://127.0.0.1:{server.options[1]}"


@pytest.mark.integration
def test_tls_carries_everything(tls_server: TlsServer, certificates: Certificates) -> None:
    url, users = tls_url(tls_server()), [f"u{i}" for i in range(500)]
    with store_of(url, ssl_ca_file=str(certificates.ca)) as store:
        assert not store.upsert("v1", users, [value(1, 1)] * 500).any()
        assert store.get("v1", users) == [value(1, 1)] * 500
        assert sorted(store.user_ids("v1")) == sorted(users)
        assert store.incarnation()
    with store_of(url.replace("127.0.0.1", "localhost"), ssl_ca_file=str(certificates.ca)) as store:
        assert store.get("v1", ["u1"]) == [value(1, 1)]
    with closing(Reader(RedisSettings(url=url, ssl_ca_file=str(certificates.ca)), MemoryItemIndex(4))) as reader:
        assert reader._store.get("v1", ["u1"]) == [value(1, 1)]  # type: ignore[attr-defined]


@pytest.mark.integration
def test_a_server_that_is_not_trusted_is_not_talked_to(tls_server: TlsServer, certificates: Certificates) -> None:
    url = tls_url(tls_server())
    for ca in (None, str(certificates.other_ca)):
        assert "FRESHET_REDIS_SSL_CA_FILE" in refusal(url, ssl_ca_file=ca)


@pytest.mark.integration
def test_a_name_that_the_certificate_lacks(tls_server: TlsServer, certificates: Certificates) -> None:
    url = tls_url(tls_server("--bind", "127.0.0.1", "127.0.0.2")).replace("127.0.0.1", "127.0.0.2")
    assert "certificate" in refusal(url, ssl_ca_file=str(certificates.ca))
    with store_of(url, ssl_ca_file=str(certificates.ca), ssl_check_hostname=False) as store:
        assert store.current() is None


@pytest.mark.integration
def test_a_client_shows_its_certificate(tls_server: TlsServer, certificates: Certificates) -> None:
    url = tls_url(tls_server(clients="yes"))
    ca, pem = str(certificates.ca), str(certificates.client)
    keys: list[dict[str, object]] = [
        {"ssl_key_file": str(certificates.client_key)},
        {"ssl_key_file": str(certificates.client_locked_key), "ssl_key_password": KEY_PASSWORD},
    ]
    for key in keys:
        with store_of(url, ssl_ca_file=ca, ssl_certificate_file=pem, **key) as store:
            assert store.current() is None
    # In TLS 1.3 a client may write before it reads that it was refused, and then only sees the end of the connection.
    named = "FRESHET_REDIS_SSL_CERTIFICATE_FILE"
    with store_of(url, ssl_ca_file=ca) as store, pytest.raises(FreshetError, match=named):
        store.current()


@pytest.mark.integration
def test_a_cluster_and_sentinels_speak_tls(tls_server: TlsServer, certificates: Certificates) -> None:
    ca = str(certificates.ca)
    node = tls_server("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--tls-cluster", "yes")
    asked(node, "CLUSTER ADDSLOTSRANGE", 0, 16_383)
    until(lambda: asked(node, "CLUSTER INFO")["cluster_state"] == "ok", "the cluster is whole")
    with store_of(tls_url(node, "rediss+cluster"), ssl_ca_file=ca) as store:
        assert not store.upsert("v1", ["a", "b"], [value(1, 1)] * 2).any()
        assert sorted(store.user_ids("v1")) == ["a", "b"]
    primary = tls_server()
    port = free_port()
    sentinel = SentinelServer(
        primary, 15_000, port=int(primary.options[1]),
        more=(
            f"tls-port {port}", f"tls-cert-file {certificates.server}", f"tls-key-file {certificates.server_key}",
            f"tls-ca-cert-file {certificates.ca}", "tls-auth-clients no", "tls-replication yes",
        ),
    )  # fmt: skip
    with sentinel:
        until(lambda: "flags" in asked(sentinel, "SENTINEL MASTER", SERVICE), "the sentinel watches")
        with store_of(f"rediss+sentinel://127.0.0.1:{port}/{SERVICE}", ssl_ca_file=ca) as store:
            store.set_current("v1")
            assert store.current() == "v1"


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    for name in ("ssl_ca_file", "ssl_certificate_file", "ssl_key_file"):
        with pytest.raises(FreshetError, match=rf"{name}: there is no file .*nowhere"):
            RedisStore(RedisSettings(url="rediss://h/0", **{name: str(tmp_path / "nowhere")}))  # type: ignore[arg-type]
    with pytest.raises(FreshetError, match="need a rediss URL"):
        RedisStore(RedisSettings(url="redis://h/0", ssl_ca_file=__file__))


# --- users and passwords ------------------------------------------------------------------------


def rules() -> dict[str, list[str]]:
    """The ACL rules of the documentation, by user."""
    block = re.search(r"```acl\n(.*?)```", DOCS.read_text(), re.S)
    assert block is not None
    found = [line.split() for line in block[1].splitlines()]
    return {name: rest for _, name, *rest in found}


@pytest.fixture(params=["valkey", "redis_cluster", pytest.param("redis_server", marks=pytest.mark.integration)])
def with_users(request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Makes the users of the documentation; gives the URL of one of them."""
    url = str(request.getfixturevalue(request.param))
    cluster = request.param == "redis_cluster"
    if cluster:
        servers: list[Any] = request.getfixturevalue("shared_cluster").servers
    else:
        servers = [request.getfixturevalue("valkey_server" if request.param == "valkey" else "debian_redis")]
    extra = ["+cluster|slots", "+command"] if cluster else []
    for server in servers:
        for name, rule in rules().items():
            chosen = [part.replace(">PASSWORD", f">{WORD}") for part in rule]
            asked(server, "ACL", "SETUSER", name, "reset", *chosen, *extra)
    yield lambda name: url.replace("://", f"://{name}:{ENCODED}@")
    for server in servers:
        asked(server, "ACL", "DELUSER", *rules())


def test_the_documented_rules_are_enough_and_no_more(with_users: Callable[[str], str]) -> None:
    users = [f"u{i}" for i in range(30)]
    with store_of(with_users("freshet-worker")) as worker, store_of(with_users("freshet-reader")) as reader:
        worker.upsert("v1", users, [value(1, 1)] * 30)
        worker.delete("v1", users[:3], Seq(1, 2))
        worker.upsert("v1", users[:1], [value(1, 3)])
        worker.set_current("v1")
        worker.put_blob("v1:popular", Seq(1, 1), b"x")
        assert worker.next_fence("w", 5) > 5
        assert worker.incarnation()
        assert sorted(worker.user_ids("v1")) == sorted([users[0], *users[3:]])
        assert (reader.current(), reader.get_blob("v1:popular")) == ("v1", b"x")
        assert reader.get("v1", users[3:]) == [value(1, 1)] * 27
        forbidden: list[Callable[[], object]] = [
            lambda: reader.upsert("v1", users, [value(1, 5)] * 30),
            lambda: reader.set_current("v2"),
            lambda: list(reader.user_ids("v1")),
        ]
        for call in forbidden:
            with pytest.raises(FreshetError, match=r"does not permit.*ACL rules") as caught:
                call()
            assert not isinstance(caught.value, StoreUnavailable)
    stranger = RedisStore(RedisSettings(url=with_users("freshet-worker"), namespace="other"))
    with closing(stranger), pytest.raises(FreshetError, match="does not permit"):
        stranger.current()


def test_a_password_may_come_in_any_way(valkey_server: EmbeddedRedis, valkey: str, tmp_path: Path) -> None:
    asked(valkey_server, "ACL", "SETUSER", "ann", "reset", "on", f">{WORD}", "allkeys", "+@all")
    try:
        kept = tmp_path / "password"
        kept.write_text(WORD + "\n")
        host = valkey.removeprefix("redis://")
        ways: list[tuple[str, dict[str, object]]] = [
            (f"redis://ann:{ENCODED}@{host}", {}),
            (f"redis://{host}?username=ann&password={ENCODED}", {}),
            (f"redis://{host}", {"username": "ann", "password": WORD}),
            (f"redis://ann@{host}", {"password": WORD}),
            (f"redis://{host}", {"username": "ann", "password_file": str(kept)}),
            (f"redis://ann:{ENCODED}@{host}", {"password": "not this one"}),
        ]
        for url, settings in ways:
            with store_of(url, **settings) as store:
                assert store.current() is None, url
        assert "refuses the login" in refusal(f"redis://{host}", username="ann", password="wr0ng")
        assert "refuses the login" in refusal(f"redis://nobody:{ENCODED}@{host}")
    finally:
        asked(valkey_server, "ACL", "DELUSER", "ann")


def test_a_password_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, why in (("nowhere", "cannot be read"), ("empty", "is empty"), ("bytes", "is no text")):
        with pytest.raises(FreshetError, match=f"FRESHET_REDIS_PASSWORD_FILE: .*{name}.*{why}"):
            RedisStore(RedisSettings(password_file=str(tmp_path / name)))
    with pytest.raises(ValueError, match="password and password_file are both given"):
        RedisSettings(password="a", password_file="b")
    assert read_secret("kept", None, "X") == "kept"
    assert read_secret(None, None, "X") is None


# --- what is shown ------------------------------------------------------------------------------

SECRET = "plantedsecret"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@h:1/0",
        f"redis://ann:{SECRET}@h:1/0",
        f"redis://ann:%70{SECRET}@h:1/0",
        f"redis://:{SECRET}/more@h:1/0",
        f"redis://:more/{SECRET}@h:1/0",
        f"redis://:more?{SECRET}@h:1/0",
        f"redis://:{SECRET}?x@h:1/0",
        f"redis://:{SECRET}?x=y@h:1/0",
        f"redis://:more?x={SECRET}@h:1/0",
        f"redis://:more#{SECRET}@h:1/0",
        f"redis://:{SECRET}#x@h:1/0",
        f"redis://:a@{SECRET}@h:1/0",
        f"redis://:{SECRET}@b@h:1/0",
        f"redis://h:1/0?password={SECRET}",
        f"redis://h:1/0?password=a@{SECRET}",
        f"redis://h:1/0?password=a&{SECRET}",
        f"redis://h:1/0?db=1&password={SECRET}&username=ann",
        f"redis://h:1/0?ssl_password={SECRET}",
        f"redis+cluster://ann:{SECRET}@h:1,h:2",
        f"rediss+sentinel://:{SECRET}@h:1,h:2/shop/0",
        f"ann:{SECRET}@h:1",
        f":{SECRET}@h:1",
        f"redis:/:{SECRET}@h:1",
        f"redis//:{SECRET}@h:1",
    ],
)
def test_no_spelling_of_a_url_shows_its_password(url: str) -> None:
    assert SECRET not in without_password(url)
    assert has_password(url)
    assert SECRET not in repr(RedisSettings(url=url))
    try:
        with store_of(url, attempts=1, timeout_ms=50) as store:
            store.current()
    except FreshetError as e:
        shown = [str(e)]
        cause: BaseException | None = e
        while cause is not None and not cause.__suppress_context__:
            cause = cause.__cause__ or cause.__context__
            shown.append(repr(cause))
        assert SECRET not in " ".join(shown)
    else:
        pytest.fail("there is no server")


@pytest.mark.parametrize("url", ["redis://h:1/0", "redis://ann@h:1/0?db=2&socket_timeout=5", "redis+cluster://h,h:2"])
def test_a_url_without_a_password_is_shown_whole(url: str) -> None:
    assert without_password(url) == url
    assert not has_password(url)


def test_reprs_show_no_secret() -> None:
    shown = repr(RedisSettings(password=SECRET, sentinel_password=SECRET, ssl_key_password=SECRET, username="ann"))
    assert SECRET not in shown
    assert "ann" in shown
    with closing(redis.Redis.from_url(f"redis://:{SECRET}@h:1")) as client:
        assert SECRET not in repr(client)
