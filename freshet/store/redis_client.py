"""Redis: the only file that imports its client. One server, the primary that sentinels name, or a cluster.

Every call that is made here may be made again, which is what makes retries safe: after a timeout, after a
failover, and of a call that a cluster has sent elsewhere.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from typing import Any, TypeVar

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterError, RedisClusterException, TryAgainError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from freshet.errors import FreshetError
from freshet.store.embeddings import StoreUnavailable
from freshet.store.redis_settings import EXAMPLES, RedisAddress, RedisSettings

T = TypeVar("T")
Command = tuple[Any, ...]
"""A command of the server with its arguments."""

SCAN_KEYS = 1_000
"""Keys that a server looks at in one step of a scan."""

_ERRORS = (redis.RedisError, RedisClusterException)
_PASSING = (redis.ConnectionError, redis.TimeoutError, ClusterError, RedisClusterException)
"""What may pass by itself: the store is away, or loading."""

_PASSING_CODES = {
    "OOM": "it is full: raise its maxmemory, or let values expire with ttl_s",
    "READONLY": "it is a replica: name the primary with --redis",
    "MISCONF": "it cannot save its data and so takes no writes: free its disk, or see its log",
    "NOREPLICAS": "it has too few replicas to take writes: start them, or lower min-replicas-to-write",
    "BUSY": "it is busy with somebody's script: wait, or end that with SCRIPT KILL",
    "MASTERDOWN": "it is a replica that has lost its primary: start the primary",
    "CLUSTERDOWN": "it is a node of a cluster that is not whole: see CLUSTER INFO",
    "TRYAGAIN": "it is moving keys to another node: wait",
}
"""Answers that may pass by themselves or when somebody acts, and how to act."""

_CERTIFICATE = ("CERTIFICATE", "UNKNOWN_CA", "WRONG_VERSION_NUMBER", "HANDSHAKE_FAILURE")
"""What TLS says when waiting does not help."""


def slot_of(key: str) -> int:
    """The slot of a cluster, 0 to 16383, that a key falls into."""
    return int(key_slot(key.encode()))


@cache
def tags() -> tuple[str, ...]:
    """A hash tag for every slot: a key with `{tags()[slot]}` as its first braces falls into `slot`."""
    found: dict[int, str] = {}
    for number in count():
        found.setdefault(slot_of(str(number)), str(number))
        if len(found) == REDIS_CLUSTER_HASH_SLOTS:
            return tuple(found[slot] for slot in range(REDIS_CLUSTER_HASH_SLOTS))
    raise AssertionError("count() does not end")


class _Servers(ABC):
    """The servers behind a URL. Every method raises the client's errors."""

    @abstractmethod
    def pipelined(self, calls: Sequence[tuple[int, Command]]) -> list[Any]:
        """The answers to calls, each given with its slot."""

    def begin(self, calls: Sequence[tuple[int, Command]]) -> Callable[[], list[Any]]:
        """Send calls, and return what waits for their answers; where that takes several servers, wait first."""
        answers = self.pipelined(calls)
        return lambda: answers

    @abstractmethod
    def call(self, command: Command) -> Any:
        """The answer to one command with a key."""

    @abstractmethod
    def primaries(self) -> list[redis.Redis]:
        """The servers that together hold every key once."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def look_again(self) -> None:
        """A call has failed: before the next one, find out who is the primary now."""


class _Single(_Servers):
    """One server, which may be another one from one connection to the next."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis: Any = client

    def pipelined(self, calls: Sequence[tuple[int, Command]]) -> list[Any]:
        return self.begin(calls)()

    def begin(self, calls: Sequence[tuple[int, Command]]) -> Callable[[], list[Any]]:
        return _begun(self._redis, [command for _, command in calls])

    def call(self, command: Command) -> Any:
        return self._redis.execute_command(*command)

    def primaries(self) -> list[redis.Redis]:
        return [self._redis]

    def close(self) -> None:
        self._redis.close()

    def look_again(self) -> None:
        pass  # behind sentinels every new connection asks them


class _Cluster(_Servers):
    """A cluster: calls go to the primary that has their slot, in one pipeline a node.

    The client library's own pipeline repeats what a dead node did not answer call by call, each after a timeout.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        self._hosts, self._options = hosts, options
        self._made: RedisCluster | None = None
        self._doubted = False

    def pipelined(self, calls: Sequence[tuple[int, Command]]) -> list[Any]:
        cluster = self._cluster()
        placed: dict[str, list[int]] = defaultdict(list)
        nodes = {}
        for place, (slot, _) in enumerate(calls):
            node = cluster.nodes_manager.get_node_from_slot(slot)
            placed[node.name].append(place)
            nodes[node.name] = node
        answers: list[Any] = [None] * len(calls)
        for name, places in placed.items():
            client = cluster.get_redis_connection(nodes[name])
            for place, answer in zip(places, _begun(client, [calls[p][1] for p in places])(), strict=True):
                if isinstance(answer, (AskError, TryAgainError)):  # the slot has moved, or is on its way
                    answer = cluster.execute_command(*calls[place][1], target_nodes=nodes[name])
                answers[place] = answer
        return answers

    def call(self, command: Command) -> Any:
        cluster, key = self._cluster(), command[3 if command[0] == "EVAL" else 1]
        # Left to itself, the client finds the key of some commands by asking the server.
        node = cluster.nodes_manager.get_node_from_slot(slot_of(key))
        return cluster.execute_command(*command, target_nodes=node)

    def primaries(self) -> list[redis.Redis]:
        cluster = self._cluster()
        return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def look_again(self) -> None:
        self._doubted = True

    def _cluster(self) -> RedisCluster:
        if self._made is not None and self._doubted:
            self._doubted = False
            try:
                self._made.nodes_manager.initialize()
            except _ERRORS:
                self._made = None  # all nodes that were known are away: those of the URL may have new addresses
                raise
        if self._made is None:
            nodes = [ClusterNode(host, port) for host, port in self._hosts]
            once = Retry(NoBackoff(), 0)
            self._made = RedisCluster(startup_nodes=nodes, retry=once, require_full_coverage=False, **self._options)
            known = [(node.host, node.port) for node in self._made.get_nodes()]
            self._hosts = tuple(dict.fromkeys([*self._hosts, *known]))
        return self._made


def _begun(client: Any, commands: Sequence[Command]) -> Callable[[], list[Any]]:
    """Send commands to one server; what is returned reads the answers, once, and raises the first error that is not
    about where a slot is.

    A pipeline of the client library would wait for the answers at once, and look at every argument in Python first.
    """
    pool = client.connection_pool
    connection = pool.get_connection()

    @contextmanager
    def unless_broken() -> Iterator[None]:
        """A connection of which answers may still come is not used again."""
        try:
            yield
        except BaseException:
            connection.disconnect()
            pool.release(connection)
            raise

    with unless_broken():
        connection.send_packed_command([hiredis.pack_command(command) for command in commands])

    def answers() -> list[Any]:
        found: list[Any] = []
        with unless_broken():
            for _ in commands:
                try:
                    found.append(connection.read_response())
                except redis.ResponseError as e:
                    found.append(e)
        pool.release(connection)
        for answer in found:
            if isinstance(answer, redis.RedisError) and not isinstance(answer, (AskError, TryAgainError)):
                raise answer
        return found

    return answers


class RedisClient:
    """Calls to Redis that are repeated where that may help. Threads may share one.

    Nothing is connected before the first call. Every method raises StoreUnavailable where a server is away or takes
    nothing for now, and FreshetError for what does not pass by itself.
    """

    def __init__(self, settings: RedisSettings, sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings = settings
        self._shown = settings.url_shown
        self._sleep = sleep
        address = settings.address()
        self.slotted = address.kind == "cluster"
        """Whether keys of one call have to be of one slot."""
        self._servers = _opened(settings, address)

    def close(self) -> None:
        """Close the connections."""
        self._servers.close()

    def call(self, *command: Any) -> Any:
        """The answer to one command with a key; it has to be idempotent."""
        answer = self._attempt(lambda: self._servers.call(command))
        if isinstance(answer, redis.RedisError):
            raise self._explained(answer)
        return answer

    def pipelined(self, calls: Sequence[tuple[int, Command]]) -> list[Any]:
        """The answers to calls in one round trip a server, each given with its slot (0 unless `slotted`)."""

        return self._attempt(lambda: _checked(self._servers.pipelined(calls)))

    def begin(self, calls: Sequence[tuple[int, Command]]) -> Callable[[], list[Any]]:
        """Send calls without waiting for the answers; what is returned does, as `pipelined`.

        Raises nothing: where something fails then or now, all calls are made again. So they are when it is called
        a second time.
        """
        begun: Callable[[], list[Any]] | None = None
        with suppress(*_ERRORS):
            begun = self._servers.begin(calls)

        def answers() -> list[Any]:
            nonlocal begun
            first, begun = begun, None
            if first is not None:
                with suppress(*_ERRORS):
                    return _checked(first())
            return self.pipelined(calls)

        return answers

    def scan(self, pattern: str) -> Iterator[bytes]:
        """Every key that matches, some twice.

        Where a server was replaced meanwhile it is done again: another one's places in a scan mean nothing to it.
        """
        while True:
            before = self.incarnation()
            for server in self._attempt(self._servers.primaries):
                yield from self._scan(server, pattern)
            if self.incarnation() == before:
                return

    def incarnation(self) -> str:
        """The ids that the primaries gave themselves when they started, sorted, with commas between them."""

        def ask() -> list[str]:
            found = []
            for server in self._servers.primaries():
                info: Any = server.info()
                if self.slotted and info["role"] != "master":
                    raise redis.ConnectionError(f"a node of the cluster is a {info['role']} now")
                found.append(str(info["run_id"]))
            return found

        return ",".join(sorted(self._attempt(ask)))

    # --- parts ----------------------------------------------------------------------------------

    def _scan(self, server: Any, pattern: str) -> Iterator[bytes]:
        cursor = 0

        def step() -> tuple[int, list[bytes]]:
            found: tuple[int, list[bytes]] = server.scan(cursor, match=pattern, count=SCAN_KEYS)
            return found

        while True:
            cursor, keys = self._attempt(step)
            yield from keys
            if not cursor:
                return

    def _attempt(self, call: Callable[[], T]) -> T:
        """Make an idempotent call, again if need be. Raises StoreUnavailable, FreshetError."""
        wait_s = self.settings.retry_ms / 1e3
        for left in range(self.settings.attempts - 1, -1, -1):
            try:
                return call()
            except _ERRORS as e:
                error = self._explained(e)
                if isinstance(error, StoreUnavailable):
                    self._servers.look_again()
                if not left or not isinstance(error, StoreUnavailable):
                    raise error from e
                self._sleep(wait_s)
                wait_s *= 2
        raise AssertionError("attempts is at least 1")

    def _explained(self, e: Exception) -> FreshetError:
        """The error to raise in its place: StoreUnavailable where it may pass."""
        where, code = f"Redis at {self._shown}", _code(e)
        if code in _PASSING_CODES:
            return StoreUnavailable(f"{where} does not take this ({e}): {_PASSING_CODES[code]}")
        if code == "NOPERM":
            return FreshetError(
                f"{where} does not permit this: {e}; docs/operations.md, Security, has the ACL rules that are needed"
            )
        if _is_login(e):
            return FreshetError(
                f"{where} refuses the login: {e}; put user and password into the URL, or into FRESHET_REDIS_USERNAME "
                "and FRESHET_REDIS_PASSWORD (sentinels have their own: FRESHET_REDIS_SENTINEL_PASSWORD)"
            )
        if any(word in str(e) for word in _CERTIFICATE):
            return FreshetError(
                f"{where} and we do not agree on TLS ({e}): name the CA with FRESHET_REDIS_SSL_CA_FILE, a client's "
                "certificate with FRESHET_REDIS_SSL_CERTIFICATE_FILE, and a server without TLS as redis://"
            )
        if "Cluster mode is not enabled" in str(e):
            return FreshetError(f"{where} is no cluster: name it as redis://HOST:PORT/0")
        if isinstance(e, MasterNotFoundError):
            return StoreUnavailable(f"{where}: the sentinels know no primary that is up ({e}): wait, or see their log")
        if "EOF occurred in violation of protocol" in str(e):  # it went away, or wants to see a certificate
            return StoreUnavailable(
                f"{where} ended the TLS connection ({e}): start it, or, where it asks clients for a certificate, name "
                "one with FRESHET_REDIS_SSL_CERTIFICATE_FILE"
            )
        if isinstance(e, _PASSING):
            return StoreUnavailable(
                f"{where} does not answer ({e}): start it (`freshet redis` runs an embedded one), or name another "
                "with --redis"
            )
        if code in ("MOVED", "ASK", "CROSSSLOT"):
            return FreshetError(f"{where} is a node of a Redis Cluster ({e}): name it as redis+cluster://HOST:PORT")
        if code == "WRONGTYPE":
            return FreshetError(
                f"{where} holds a key under {self.settings.namespace + ':'!r} that Freshet did not write ({e}): "
                "choose another namespace"
            )
        return FreshetError(f"{where}: {e}")


def _opened(settings: RedisSettings, address: RedisAddress) -> _Servers:
    """Raises FreshetError for a URL that cannot be used."""
    seconds = settings.timeout_ms / 1e3
    waits = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    once = Retry(NoBackoff(), 0)  # `_attempt` repeats, and says so when it gives up
    login = {
        "username": address.username or settings.username,
        "password": address.password or settings.secret(),
    }
    tls: dict[str, Any] = {
        "ssl_ca_certs": settings.ssl_ca_file,
        "ssl_certfile": settings.ssl_certificate_file,
        "ssl_keyfile": settings.ssl_key_file,
        "ssl_password": settings.ssl_key_password,
        "ssl_check_hostname": settings.ssl_check_hostname,
    }
    tls = {name: value for name, value in tls.items() if value is not None} if address.tls else {}
    if address.kind == "server":
        try:
            client = redis.Redis.from_url(address.url, retry=once, **waits, **login, **tls)
            pool = client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # connects to nothing; unknown options come to light
            return _Single(client)
        except (ValueError, TypeError):  # not `from`: their texts may quote a piece of a password
            raise FreshetError(f"Redis URL {settings.url_shown!r} cannot be used. {EXAMPLES}") from None
    secured = {"ssl": True, **tls} if address.tls else {}
    if address.kind == "cluster":
        return _Cluster(address.hosts, {**waits, **login, **secured})
    own = {"username": settings.sentinel_username, "password": settings.sentinel_password}
    sentinel = Sentinel(address.hosts, sentinel_kwargs={"retry": once, **waits, **own, **secured})
    options = {"retry": once, "db": address.db, **waits, **login, **secured}
    return _Single(sentinel.master_for(address.service, **options))


def _checked(answers: list[Any]) -> list[Any]:
    """These answers. Raises the first that is an error."""
    for answer in answers:
        if isinstance(answer, redis.RedisError):
            raise answer
    return answers


def _code(e: Exception) -> str:
    """The first word of the server's answer; the client drops it from the text where it has a class for it."""
    return str(getattr(e, "status_code", None) or str(e).split(" ")[0])


def _is_login(e: Exception) -> bool:
    """Whether a server refused the login; what stands between us and it wraps that up."""
    if isinstance(e, redis.AuthenticationError):
        return True
    if isinstance(e.__cause__, redis.AuthenticationError):
        return True
    return isinstance(e, MasterNotFoundError) and "AuthenticationError" in str(e)
