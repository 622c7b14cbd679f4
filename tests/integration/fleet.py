"""Several worker processes on one broker and one Redis, to be killed, paused and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from freshet.stream import topics
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.completeness import Sentinel, read_sentinel, sentinel_blob
from freshet.stream.embedded import EmbeddedRedis
from freshet.stream.events import Event, Kind, Product, Profile, Purchase, Session, View
from freshet.stream.kafka import RecordProducer, TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.records import Outgoing
from freshet.stream.settings import Settings, as_environment
from freshet.stream.verify import NotQuiet, Report, wait_until_quiet
from freshet.stream.wiring import open_store, run_verify
from freshet.stream.worker import partitions_of
from freshet.stream.worker_status import status_blob

KIND_OF = {
    View: Kind.VIEW, Purchase: Kind.PURCHASE, Product: Kind.PRODUCT, Profile: Kind.PROFILE, Session: Kind.SESSION,
}  # fmt: skip

PUBLISH_TIMEOUT_MS = 180_000


class Quiet:
    """Progress nobody looks at."""

    def update(self, what: str, done: int, total: int) -> None: ...

    def say(self, text: str) -> None: ...


class Fleet:
    """Worker processes by name, all with the same bundle; everything it started ends with it."""

    def __init__(self, work: Path, bundle: Path, version: str, settings: Settings) -> None:
        self.work, self.bundle, self.version, self.settings = work, bundle, version, settings
        self.redis = EmbeddedRedis()
        """The Redis of this fleet, where a test may stop it."""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Fleet:
        self.work.mkdir(parents=True, exist_ok=True)
        topics.create(TopicAdmin(self.settings.kafka), self.settings.topics)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def start(self, name: str, role: str, *more: str, first: str = "") -> None:
        """Start a worker, again under a name that was there before. `first` is Python that its process runs before."""
        program = f"{first}\nfrom freshet.stream.cli import main\nmain()"
        command = [
            sys.executable, "-c", program, "worker", "--bundle", str(self.bundle),
            "--bootstrap", self.settings.kafka.bootstrap, "--redis", self.settings.redis.url,
            "--role", role, "--name", name, *more,
        ]  # fmt: skip
        env = {**os.environ, "FRESHET_LOG": "INFO", **as_environment(self.settings)}
        with self.log(name).open("ab") as out:
            self.processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)

    def log(self, name: str) -> Path:
        """What a worker printed."""
        return self.work / f"{name}.log"

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal that ends a worker; its exit code."""
        self.processes[name].send_signal(how)
        return self.processes[name].wait(40)

    def signal(self, name: str, how: signal.Signals) -> None:
        """Send a signal that does not end a worker."""
        self.processes[name].send_signal(how)

    def status(self, name: str) -> dict[str, Any]:
        """What a worker wrote of itself last; empty before that."""
        blob = open_store(self.settings).get_blob(f"{self.version}:{status_blob(name)}")
        found: dict[str, Any] = msgspec.json.decode(blob) if blob else {}
        return found

    def sentinel(self, scope: str) -> Sentinel:
        """What stands beside the values of a scope."""
        found = read_sentinel(open_store(self.settings).get_blob(f"{self.version}:{sentinel_blob(scope)}"))
        assert found is not None
        return found

    def wait(self, what: str, until: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until something is so; the workers' last words where it never is."""
        end = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < end, f"{what} never came\n" + self.last_words()
            time.sleep(0.05)

    def serves(self, name: str, since_ms: int = 0) -> set[str]:
        """The scopes that a worker says it serves, while it is live; nothing where it has not said so since then."""
        status = self.status(name)
        known = status.get("state") in ("live", "rewriting") and status["written_ms"] >= since_ms
        return set(status["serves"]) if known else set()

    def last_words(self) -> str:
        """The end of every worker's log."""
        tails = [f"--- {n}\n" + "\n".join(self.log(n).read_text().splitlines()[-15:]) for n in self.processes]
        return "\n".join(tails)

    def wait_quiet(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until the workers have applied all that the topics hold; their status."""
        store = open_store(self.settings)
        counts = topics.verify_topics(TopicAdmin(self.settings.kafka), self.settings.topics)
        consumer = PartitionConsumer(replace(self.settings.kafka, group_id="freshet-fleet"))
        try:
            return wait_until_quiet(store, self.version, consumer, partitions_of(counts), timeout_s)
        finally:
            consumer.close()

    def verify(self, backfill: Path | None = None, timeout_s: float = 60.0) -> Report:
        """What `freshet verify` finds."""
        try:
            return run_verify(self.settings, self.bundle, backfill, None, timeout_s, Quiet())  # type: ignore[arg-type]
        except NotQuiet as e:
            raise AssertionError(f"{e}\n{self.last_words()}") from e

    def publish(self, events: list[Event]) -> None:
        """Publish events and wait until the broker has them, however long it is away."""
        producer = RecordProducer(replace(self.settings.kafka, delivery_timeout_ms=PUBLISH_TIMEOUT_MS))
        topic_of = {kind: topic for topic, kind in topics.kinds(self.settings.topics).items()}
        for event in events:
            producer.send(Outgoing(topic_of[KIND_OF[type(event)]], encode_record_key(event), encode(event)))
        assert producer.flush(PUBLISH_TIMEOUT_MS / 1e3) == 0
        assert not producer.failures, producer.last_failure
        producer.close()
