"""Redis as more than one server, on loopback: a cluster, and a primary with a replica that sentinels watch.

A server that is killed stays dead; what is left takes over as it would anywhere.

    python -m tests.redis_topologies python -m bench.redis_write

runs a command with `--cluster` and the URL of a cluster of three nodes added to it, then ends them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from freshet.stream.embedded import EmbeddedRedis, free_port

SLOTS = 16_384
FORM_TIMEOUT_S = 60.0
SERVICE = "shop"


def until(holds: Callable[[], bool], what: str, timeout_s: float = FORM_TIMEOUT_S) -> None:
    """Wait until something holds; an assertion that names it otherwise."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            if holds():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


def asked(server: EmbeddedRedis, *command: object, password: str | None = None) -> Any:
    """The answer of one server."""
    with redis.Redis(port=server.port, password=password, decode_responses=True) as client:
        return client.execute_command(*command)  # type: ignore[arg-type]


class ClusterOfServers:
    """A Redis Cluster of so many primaries, each with `replicas`; `timeout_ms` is how long a node is waited for."""

    def __init__(self, primaries: int = 3, replicas: int = 0, timeout_ms: int = 15_000) -> None:
        bus = [free_port() for _ in range(primaries * (1 + replicas))]
        self.servers = [
            EmbeddedRedis(
                options=(
                    "--cluster-enabled", "yes", "--cluster-port", str(port), "--cluster-node-timeout", str(timeout_ms),
                    "--repl-diskless-sync-delay", "0",
                )
            )
            for port in bus
        ]  # fmt: skip
        self._bus = bus
        self._primaries = primaries
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for server in self.servers:
            self._stack.enter_context(server)
        first = self.servers[0]
        for i, server in enumerate(self.servers):
            asked(server, "CLUSTER SET-CONFIG-EPOCH", i + 1)
            if i < self._primaries:
                start, end = (SLOTS * i // self._primaries, SLOTS * (i + 1) // self._primaries - 1)
                asked(server, "CLUSTER ADDSLOTSRANGE", start, end)
            if i:
                asked(first, "CLUSTER MEET", server.host, server.port, self._bus[i])
        until(lambda: all(self._known(server) == len(self.servers) for server in self.servers), "the nodes have met")
        for i, server in enumerate(self.servers[self._primaries :]):
            asked(server, "CLUSTER REPLICATE", asked(self.servers[i % self._primaries], "CLUSTER MYID"))
        for server in self.servers:
            until(lambda s=server: asked(s, "CLUSTER INFO")["cluster_state"] == "ok", "the cluster is whole")  # type: ignore[misc]
        for server in self.servers[self._primaries :]:
            until(lambda s=server: asked(s, "INFO", "replication")["master_link_status"] == "up", "replicas follow")  # type: ignore[misc]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Of its first two nodes: the others are found."""
        return "redis+cluster://" + ",".join(server.address for server in self.servers[:2])

    @property
    def primaries(self) -> list[EmbeddedRedis]:
        """The servers that are primaries at the moment."""
        return [s for s in self.servers if s.alive() and asked(s, "INFO", "replication")["role"] == "master"]

    def clear(self) -> None:
        """Delete everything."""
        for server in self.primaries:
            asked(server, "FLUSHALL")

    def keys(self) -> set[bytes]:
        """Every key of every primary."""
        found: set[bytes] = set()
        for server in self.primaries:
            with redis.Redis(port=server.port) as client:
                found |= set(client.keys("*"))  # type: ignore[arg-type]
        return found

    @staticmethod
    def _known(server: EmbeddedRedis) -> int:
        return int(asked(server, "CLUSTER INFO")["cluster_known_nodes"])


class SentinelServer(EmbeddedRedis):
    """A sentinel that watches one primary; it alone is the quorum."""

    name = "sentinel"

    def __init__(
        self,
        primary: EmbeddedRedis,
        down_ms: int,
        password: str | None = None,
        own_password: str | None = None,
        port: int | None = None,
        more: tuple[str, ...] = (),
    ) -> None:
        super().__init__(binary=primary.binary)
        self._watch = [*more, f"sentinel monitor {SERVICE} {primary.host} {port or primary.port} 1"]
        self._watch.append(f"sentinel down-after-milliseconds {SERVICE} {down_ms}")
        self._watch.append(f"sentinel failover-timeout {SERVICE} 10000")
        if password:
            self._watch.append(f"sentinel auth-pass {SERVICE} {password}")
        if own_password:
            self._watch.append(f"requirepass {own_password}")

    def command(self) -> list[str]:
        """The binary as a sentinel, which keeps what it learns in its configuration file."""
        config = Path(self.folder / "sentinel.conf")
        config.write_text("\n".join([f"port {self.port}", f"bind {self.host}", f"dir {self.folder}", *self._watch]))
        return [super().command()[0], str(config), "--sentinel"]


class WatchedByASentinel:
    """A primary, a replica, and a sentinel that promotes the replica `down_ms` after the primary fell silent."""

    def __init__(self, down_ms: int = 15_000, password: str | None = None, own_password: str | None = None) -> None:
        self._login = ("--requirepass", password, "--masterauth", password) if password else ()
        self.primary = EmbeddedRedis(options=self._login)
        self.password = password
        self._down_ms, self._own_password = down_ms, own_password
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.primary)
        follow = ("--replicaof", f"{self.primary.host} {self.primary.port}", "--repl-diskless-sync-delay", "0")
        self.replica = self._stack.enter_context(EmbeddedRedis(options=(*self._login, *follow)))
        until(lambda: self._replication(self.replica)["master_link_status"] == "up", "the replica follows")
        self.sentinel = SentinelServer(self.primary, self._down_ms, self.password, self._own_password)
        self._stack.enter_context(self.sentinel)
        until(lambda: asked(self.primary, "PING", password=self.password) in (True, "PONG"), "the primary answers")
        until(self._sees_the_replica, "the sentinel has seen the replica")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Of its sentinel."""
        return f"redis+sentinel://{self.sentinel.address}/{SERVICE}/0"

    def clear(self) -> None:
        """Delete everything."""
        asked(self.primary, "FLUSHALL", password=self.password)

    def _replication(self, server: EmbeddedRedis) -> dict[str, Any]:
        found: dict[str, Any] = asked(server, "INFO", "replication", password=self.password)
        return found

    def _sees_the_replica(self) -> bool:
        return bool(asked(self.sentinel, "SENTINEL REPLICAS", SERVICE, password=self._own_password))


def main() -> None:
    """See the module."""
    with ClusterOfServers() as servers:
        done = subprocess.run([*sys.argv[1:], "--cluster", servers.url], check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
