"""A whole system on one machine: embedded broker and Redis, and a worker as a process of its own.

The demo, the benchmarks and the tests of the whole path stand on it; a user gets the same by three commands
(`freshet broker`, `freshet redis`, `freshet worker`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from freshet.errors import FreshetError
from freshet.stream import topics
from freshet.stream.embedded import EmbeddedBroker, EmbeddedRedis
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.settings import Settings, as_environment
from freshet.stream.verify import NotQuiet, wait_until_quiet
from freshet.stream.wiring import open_store, read_status
from freshet.stream.worker import partitions_of

END_TIMEOUT_S = 15.0
LOG_TAIL_LINES = 15


class LocalSystem:
    """Servers and one worker; everything it started ends with it.

    Without `bootstrap` or `redis` the embedded ones are started. `work` holds the worker's log.
    """

    def __init__(
        self,
        work: Path,
        settings: Settings | None = None,
        bootstrap: str | None = None,
        redis: str | None = None,
    ) -> None:
        self.work = work
        self.settings = settings or Settings()
        self.worker: subprocess.Popen[bytes] | None = None
        self.command: list[str] = []
        self._bootstrap, self._redis = bootstrap, redis
        self._stack = ExitStack()
        self._since_ms = 0

    def __enter__(self) -> LocalSystem:
        self.work.mkdir(parents=True, exist_ok=True)
        bootstrap = self._bootstrap or self._stack.enter_context(EmbeddedBroker()).bootstrap
        redis = self._redis or self._stack.enter_context(EmbeddedRedis()).url
        self.settings = replace(
            self.settings,
            kafka=replace(self.settings.kafka, bootstrap=bootstrap),
            redis=replace(self.settings.redis, url=redis),
        )
        topics.create(TopicAdmin(self.settings.kafka), self.settings.topics)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop_worker()
        self._stack.close()

    @property
    def worker_log(self) -> Path:
        """What the worker printed."""
        return self.work / "worker.log"

    def start_worker(self, bundle: Path, backfill: Path | None = None, until: str | None = None) -> None:
        """Start the worker; it is live some time later (`wait_live`)."""
        self.command = [
            sys.executable, "-m", "freshet.stream.cli", "worker", "--bundle", str(bundle),
            *(("--backfill", str(backfill)) if backfill else ()),
            *(("--backfill-until", until) if until else ()),
        ]  # fmt: skip
        self.restart_worker()

    def restart_worker(self) -> None:
        """Start the worker again as it was started before."""
        self._since_ms = int(time.time() * 1e3)
        with self.worker_log.open("ab") as out:
            self.worker = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # By the environment, as a command line can be read by everybody; also where ours says otherwise.
                env={
                    **os.environ,
                    **as_environment(self.settings),
                    "FRESHET_KAFKA_BOOTSTRAP": self.settings.kafka.bootstrap,
                    "FRESHET_REDIS_URL": self.settings.redis.url,
                },
            )

    def kill_worker(self) -> None:
        """SIGKILL: nothing is finished, nothing is said."""
        assert self.worker is not None
        self.worker.kill()
        self.worker.wait()

    def stop_worker(self) -> int | None:
        """SIGTERM, and SIGKILL if that does not help; returns the exit code."""
        if self.worker is None:
            return None
        if self.worker.poll() is None:
            self.worker.terminate()
            try:
                self.worker.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill_worker()
        return self.worker.returncode

    def wait_live(self, timeout_s: float = 120.0) -> dict[str, Any]:
        """Wait until the worker that was started last serves; returns its status."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            self.check_alive()
            try:
                status = read_status(self.settings)
            except FreshetError:
                status = {}
            if status.get("state") == "live" and status["origin"]["started_ms"] >= self._since_ms:
                return status
            time.sleep(0.05)
        raise FreshetError(f"the worker was not live within {timeout_s:.0f} s:\n{self.last_words()}")

    def wait_snapshot(self, timeout_s: float = 60.0) -> None:
        """Wait until what the worker has taken in is in snapshots."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            self.check_alive()
            said = read_status(self.settings).get("snapshots") or {}
            if said.get("error"):
                raise FreshetError(str(said["error"]))
            if said.get("taken") and not said["due"]:
                return
            time.sleep(0.05)
        raise FreshetError(f"no snapshot was taken within {timeout_s:.0f} s:\n{self.last_words()}")

    def wait_quiet(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until the worker has applied all that the topics hold; returns its status."""
        store = open_store(self.settings)
        counts = topics.verify_topics(TopicAdmin(self.settings.kafka), self.settings.topics)
        consumer = PartitionConsumer(replace(self.settings.kafka, group_id="freshet-local"))
        try:
            self.check_alive()
            return wait_until_quiet(store, store.current() or "", consumer, partitions_of(counts), timeout_s)
        except NotQuiet:
            self.check_alive()
            raise
        finally:
            consumer.close()

    def check_alive(self) -> None:
        """Raises FreshetError with the end of its log where the worker has ended."""
        if self.worker is not None and self.worker.poll() is not None:
            raise FreshetError(f"the worker ended with {self.worker.returncode}:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of the worker's log."""
        return "\n".join(self.worker_log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
