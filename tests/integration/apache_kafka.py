"""Apache Kafka as the integration tests run it: fetched once by Maven, KRaft nodes on loopback ports, one or three.

    python -m tests.integration.apache_kafka python -m bench.freshness --seconds 30

runs a command with `--bootstrap` and the broker's address added to it, then ends the broker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from freshet.stream.embedded import EmbeddedError, EmbeddedServer, connects, free_port
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_errors import KafkaUnavailable
from freshet.stream.kafka_settings import KafkaSettings

VERSION = "4.1.1"
"""As pinned in kafka/pom.xml."""
POM = Path(__file__).parent / "kafka" / "pom.xml"
CACHE = Path(__file__).parents[2] / ".cache"
MEMORY_MB_MAX = 512


class Missing(Exception):
    """What this machine lacks to run Apache Kafka."""


def fetch_jars(cache: Path = CACHE) -> Path:
    """The folder with the jars, fetched on the first call. Raises Missing, naming what is not there."""
    for program, package in (("java", "a Java runtime 17+"), ("mvn", "Maven")):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not on the PATH: install {package} to run Apache Kafka {VERSION}")
    jars = cache / f"kafka-{VERSION}"
    if jars.is_dir():
        return jars
    cache.mkdir(parents=True, exist_ok=True)
    # Into a folder of its own and then renamed: an interrupted download is never taken for a whole one.
    part = Path(tempfile.mkdtemp(prefix=f"kafka-{VERSION}-", dir=cache))
    try:
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={part}"]
        done = subprocess.run(
            ["mvn", "-q", "-B", "-f", str(POM), *goal],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode or not list(part.glob(f"kafka_*-{VERSION}.jar")):
            raise Missing(f"mvn could not fetch Apache Kafka {VERSION}: {(done.stdout + done.stderr)[-800:]}")
        try:
            part.rename(jars)
        except OSError:
            if not jars.is_dir():  # else another run was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return jars


class Guarded(NamedTuple):
    """What the listeners SASL (PLAIN and SCRAM-SHA-512) and SSL (with a client's certificate) let in."""

    username: str
    password: str
    server_pem: Path
    """The broker's key and certificate."""
    ca_pem: Path


class Node(NamedTuple):
    """One of several brokers."""

    number: int
    """From 1."""
    port: int
    controllers: tuple[int, ...]
    """Controller ports of all nodes."""
    cluster: str
    """The cluster's id."""


class ApacheKafka(EmbeddedServer):
    """One broker that is its own controller, or with `node` one of several.

    `stop` keeps its records, so that `start` brings them back; `discard` deletes them. With `guarded` it listens in
    two more places.
    """

    name = "apache-kafka"
    start_timeout_s = 90.0
    stop_timeout_s = 30.0

    def __init__(self, jars: Path, guarded: Guarded | None = None, node: Node | None = None) -> None:
        super().__init__(port=node.port if node else 0)
        self._jars = jars
        self._guarded = guarded
        self._node = node
        self._controllers: tuple[int, ...] = node.controllers if node else ()
        self.sasl_port, self.ssl_port = (free_port(), free_port()) if guarded else (0, 0)

    @property
    def bootstrap(self) -> str:
        """host:port of the broker."""
        return self.address

    def command(self) -> list[str]:
        """Formats the log folder the first time; then the broker's own command."""
        config = self.folder / "server.properties"
        if not self._controllers:
            self._controllers = (free_port(),)
        config.write_text(self._properties())
        if not (self.folder / "logs").exists():
            cluster = self._node.cluster if self._node else uuid.uuid4().hex[:22]
            format_logs = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)]
            if self._guarded:
                user = f"name={self._guarded.username},password={self._guarded.password}"
                format_logs += ["--add-scram", f"SCRAM-SHA-512=[{user}]"]
            done = subprocess.run(self._java(*format_logs), capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                raise EmbeddedError(f"StorageTool format failed: {(done.stdout + done.stderr)[-800:]}")
        return self._java("kafka.Kafka", str(config))

    def answers(self) -> bool:
        """Whether it lists its topics."""
        if not connects(self.host, self.port):
            return False
        try:
            TopicAdmin(KafkaSettings(bootstrap=self.bootstrap)).ping(5.0)
        except KafkaUnavailable:
            return False
        return True

    def stop(self, keep_folder: bool = True) -> None:
        """End the broker in order."""
        super().stop(keep_folder)

    def discard(self) -> None:
        """End the broker and delete its records."""
        super().stop(keep_folder=False)

    def _java(self, *arguments: str) -> list[str]:
        options = [f"-Xmx{MEMORY_MB_MAX}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        options.append("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        return ["java", *options, "-cp", f"{self._jars}{os.sep}*", *arguments]

    def _properties(self) -> str:
        number, copies = self._node.number if self._node else 1, len(self._controllers)
        voters = [f"{i}@{self.host}:{port}" for i, port in enumerate(self._controllers, 1)]
        controller = voters[number - 1].partition("@")[2]
        settings: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": number,
            "controller.quorum.voters": ",".join(voters),
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self.folder / "logs",
            "min.insync.replicas": max(1, copies - 1),
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "broker.session.timeout.ms": 3000,  # a killed broker may come back after so long
            "broker.heartbeat.interval.ms": 500,
            "auto.create.topics.enable": "true",  # Kafka's default, and a trap that our clients must not step into
        }
        if self._guarded:
            settings |= self._guards(self._guarded, settings)
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def _guards(self, by: Guarded, settings: Mapping[str, object]) -> dict[str, object]:
        more = f",SASL://{self.host}:{self.sasl_port},SSL://{self.host}:{self.ssl_port}"
        modules = "org.apache.kafka.common.security"
        plain = f'{modules}.plain.PlainLoginModule required user_{by.username}="{by.password}";'
        return {
            "listeners": f"{settings['listeners']}{more}",
            "advertised.listeners": f"{settings['advertised.listeners']}{more}",
            "listener.security.protocol.map": f"{settings['listener.security.protocol.map']},"
            "SASL:SASL_PLAINTEXT,SSL:SSL",
            "inter.broker.listener.name": "PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.sasl.plain.sasl.jaas.config": plain,
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": by.server_pem,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": by.ca_pem,
            "ssl.client.auth": "required",
        }


class KafkaCluster:
    """Several brokers, each with a copy of everything; `nodes` may be killed and started again one by one."""

    def __init__(self, jars: Path, count: int = 3) -> None:
        controllers, cluster = tuple(free_port() for _ in range(count)), uuid.uuid4().hex[:22]
        self.nodes = [ApacheKafka(jars, node=Node(i, free_port(), controllers, cluster)) for i in range(1, count + 1)]

    @property
    def bootstrap(self) -> str:
        """Addresses of all brokers."""
        return ",".join(node.address for node in self.nodes)

    def start(self) -> KafkaCluster:
        """Start all: none answers before most of them run."""
        try:
            for node in self.nodes:
                node._spawn()
            for node in self.nodes:
                if not node._wait_until_ready():
                    raise EmbeddedError(f"{node.name} {node.address} did not start; it said:\n{node.last_words()}")
        except BaseException:
            self.discard()
            raise
        return self

    def stop(self) -> None:
        """End all, together as none can hand over to another; `start` brings their records back."""
        for node in self.nodes:
            if node.process is not None:
                node.process.terminate()
        for node in self.nodes:
            node.stop()

    def discard(self) -> None:
        """End all and delete their records."""
        for node in self.nodes:
            node.discard()


def main() -> None:
    """See the module."""
    server = ApacheKafka(fetch_jars())
    try:
        server.start()
        done = subprocess.run([*sys.argv[1:], "--bootstrap", server.bootstrap], check=False)
    finally:
        server.discard()
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
