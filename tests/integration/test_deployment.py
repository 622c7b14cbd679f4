"""The Procfile and docker-compose.yml started for real, but for the containers: the same commands and settings on
loopback ports that are free."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from freshet.errors import FreshetError
from freshet.stream.embedded import EmbeddedRedis, free_port
from freshet.stream.settings import Settings
from freshet.stream.wiring import read_status
from tests.conftest import lacking
from tests.deployment import ROOT, compose, procfile, service_commands
from tests.integration.apache_kafka import ApacheKafka
from tests.random_bundle import random_bundle

TINY_LOG = ROOT / "examples" / "tiny_log"
FRESHET = [sys.executable, "-m", "freshet.stream.cli"]
START_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deployment") / "bundle"
    random_bundle(products=("p1", "p2")).save(path)
    return path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def started(stack: ExitStack, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A process that is killed at the end of the test if it still runs."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=out)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def wait_live(settings: Settings, worker: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        assert worker.poll() is None, log.read_text()
        try:
            if read_status(settings)["state"] == "live":
                return
        except FreshetError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not live after {START_TIMEOUT_S} s:\n{log.read_text()}")


def test_every_line_of_the_procfile_starts_and_ends(stack: ExitStack, bundle: Path, tmp_path: Path) -> None:
    ports = {"broker": free_port(), "redis": free_port()}
    settings = Settings()
    settings = replace(settings, kafka=replace(settings.kafka, bootstrap=f"127.0.0.1:{ports['broker']}"))
    settings = replace(settings, redis=replace(settings.redis, url=f"redis://127.0.0.1:{ports['redis']}/0"))
    environment = {
        "FRESHET_KAFKA_BOOTSTRAP": settings.kafka.bootstrap,
        "FRESHET_REDIS_URL": settings.redis.url,
        "BUNDLE": str(bundle),
    }
    running = {}
    for name, line in procfile().items():
        line = line.replace(".venv/bin/freshet", " ".join(FRESHET))
        line += f" --port {ports[name]}" if name in ports else ""
        line = line if "exec " in line else f"exec {line}"  # as a process manager's shell does for one command
        running[name] = started(stack, ["sh", "-c", line], environment, tmp_path / name)
    wait_live(settings, running["worker"], tmp_path / "worker")
    for name in ("worker", "redis", "broker"):
        running[name].send_signal(signal.SIGTERM)
        assert running[name].wait(30.0) == 0, (tmp_path / name).read_text()


class ComposedKafka(ApacheKafka):
    """Apache Kafka with the settings of docker-compose.yml, its host names and ports replaced by ours."""

    def _properties(self) -> str:
        given = compose()["services"]["kafka"]["environment"]
        # The rule of the image: KAFKA_LOG_DIRS becomes log.dirs.
        named = {k.removeprefix("KAFKA_").lower().replace("_", "."): v for k, v in given.items() if k != "CLUSTER_ID"}
        self._outside_port = getattr(self, "_outside_port", 0) or free_port()
        places = {
            "INSIDE://:9092": f"INSIDE://{self.address}",
            "INSIDE://kafka:9092": f"INSIDE://{self.address}",
            "OUTSIDE://:29092": f"OUTSIDE://{self.host}:{self._outside_port}",
            "OUTSIDE://localhost:29092": f"OUTSIDE://{self.host}:{self._outside_port}",
            "CONTROLLER://:9093": f"CONTROLLER://{self.host}:{self._controllers[0]}",
            "1@kafka:9093": f"1@{self.host}:{self._controllers[0]}",
            "/var/lib/kafka/data": str(self.folder / "logs"),
        }
        ours = {name: ",".join(places.get(part, part) for part in value.split(",")) for name, value in named.items()}
        return "".join(f"{name}={value}\n" for name, value in ours.items())


@pytest.mark.integration
def test_the_services_of_compose_start_and_a_log_goes_through(
    stack: ExitStack, apache_kafka: ApacheKafka, bundle: Path, tmp_path: Path
) -> None:
    services, commands = compose()["services"], service_commands()
    program, *options = services["redis"]["command"]
    redis = shutil.which(program) or lacking(f"{program} is not on the PATH")
    kafka = ComposedKafka(apache_kafka._jars)
    stack.callback(kafka.discard)
    kafka.start()
    store = stack.enter_context(EmbeddedRedis(binary=Path(redis), options=tuple(options)))
    environment = {"FRESHET_KAFKA_BOOTSTRAP": kafka.bootstrap, "FRESHET_REDIS_URL": store.url}
    assert environment.keys() == services["worker"]["environment"].keys()
    settings = Settings()
    settings = replace(settings, kafka=replace(settings.kafka, bootstrap=kafka.bootstrap))
    settings = replace(settings, redis=replace(settings.redis, url=store.url))
    mounted = {"/bundle": str(bundle), "/log": str(TINY_LOG)}

    def call(name: str) -> list[str]:
        return [*FRESHET, *(mounted.get(word, word) for word in commands[name])]

    def run(name: str) -> None:
        process = started(stack, call(name), environment, tmp_path / name)
        assert process.wait(60.0) == 0, (tmp_path / name).read_text()

    run("topics")
    worker = started(stack, call("worker"), environment, tmp_path / "worker")
    wait_live(settings, worker, tmp_path / "worker")
    run("worker healthcheck")
    run("replay")
    end = time.monotonic() + 60.0
    written = sum(1 for path in TINY_LOG.glob("*.jsonl") for line in path.read_text().splitlines() if line)
    while (status := read_status(settings))["records"] < written:
        assert worker.poll() is None, (tmp_path / "worker").read_text()
        assert time.monotonic() < end, f"{status['records']} of {written} records: {(tmp_path / 'worker').read_text()}"
        time.sleep(0.1)
    assert status["rejected"] == 0
    assert status["users"] > 0
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60.0) == 0, (tmp_path / "worker").read_text()
