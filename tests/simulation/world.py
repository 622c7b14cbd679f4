"""Time, processes and faults: everything that is not a function of the seed's own choices is decided here.

Processes are threads of which one runs at a time. Whatever leaves a process goes through `World.effect`, the place
where the clock moves, the surroundings act, faults strike and another process may get its turn.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from freshet.stream.roles import Role
from freshet.stream.sharding import Shard

START_MS = 1_700_000_000_000
"""Wall-clock time at which a run begins."""


class Crash(BaseException):
    """The process is dead: no handler of the code under test catches this."""


class Violation(Exception):
    """A promise was broken."""


@dataclass(frozen=True)
class Fault:
    """`what` happens at the `nth` effect (from 1) of a kind ("any" for all), to the process that made it; `size` is
    how much of it: milliseconds, a share in percent, or a choice."""

    on: str
    nth: int
    what: str
    size: int = 0

    def __str__(self) -> str:
        return f"{self.what} ({self.size}) at {self.on} {self.nth}"


@dataclass
class Process:
    """A process under test. `main` runs in a thread of its own, and only between `resume` and the next pause."""

    name: str
    main: Callable[[Process], None]
    role: Role = Role.ALL
    shard: Shard = field(default_factory=Shard)
    spare: bool = False
    """Nobody starts it again: it came beside others."""
    wall_ahead_s: float = 0.0
    dead: bool = False
    stopping: bool = False
    ended: str | None = None
    error: BaseException | None = None
    asleep_until: float = 0.0
    """Frozen by its surroundings until then: a virtual machine that was suspended, a long pause."""
    in_turn: bool = False
    """Whether it stands in the middle of a turn: what it has taken up and not written does not show."""
    parts: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._go, self._back = threading.Lock(), threading.Lock()  # held by whoever waits for his turn
        self._go.acquire()
        self._back.acquire()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._started = False

    @property
    def alive(self) -> bool:
        return self.ended is None

    def resume(self) -> None:
        """Let it run until it pauses or ends."""
        if not self._started:
            self._started = True
            self._thread.start()
        self._go.release()
        self._back.acquire()

    def pause(self) -> None:
        """Let others run; to be called by the process itself."""
        self._back.release()
        self._go.acquire()
        if self.dead:
            raise Crash

    def kill(self) -> None:
        """End it from outside, wherever it stands."""
        self.dead = True
        if not self._started:
            self.ended = "crash"
        elif self.alive:
            self.resume()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if self.dead:
                raise Crash
            self.main(self)
            self.ended = "stopped"
        except Crash:
            self.ended = "crash"
        except BaseException as e:
            self.ended, self.error = type(e).__name__, e
        self.dead = True
        self._back.release()


class World:
    """One run: its clock, its processes, its faults, and the trace of what struck."""

    def __init__(self, seed: int, faults: list[Fault], switch_share: float = 0.3) -> None:
        self.seed = seed
        self.rng = random.Random(f"world {seed}")
        self.now_s = 0.0
        self.calm = False
        """No fault strikes any more."""
        self.effects = 0
        self.counts: Counter[str] = Counter()
        self.processes: list[Process] = []
        self.trace: list[str] = []
        self.fired: list[Fault] = []
        self.violations: list[str] = []
        self.strike: Callable[[Fault, Process], None] = lambda fault, process: None
        self.surroundings: list[Callable[[], None]] = []
        """What goes on by itself at every effect: producers, deliveries, readers."""
        self._waiting: dict[str, list[Fault]] = {}
        for fault in faults:
            self._waiting.setdefault(fault.on, []).append(fault)
        self._switch_share = switch_share

    @property
    def waiting(self) -> bool:
        """Whether some fault has not struck yet."""
        return any(self._waiting.values())

    def violate(self, text: str) -> None:
        """Note that a promise was broken, and end the run."""
        self.violations.append(text)
        raise Violation(text)

    def say(self, text: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{self.now_s * 1e3:9.1f} ms, effect {self.effects:5d}: {text}")

    # --- time -----------------------------------------------------------------------------------

    def wall(self, process: Process) -> float:
        """The wall clock of a process, in seconds since 1970."""
        return START_MS / 1e3 + self.now_s + process.wall_ahead_s

    def monotonic(self) -> float:
        """Seconds; asking takes a moment, so that loops under a budget of time end."""
        self.now_s += self.rng.random() * 4e-4
        return self.now_s

    def sleep(self, process: Process, seconds: float) -> None:
        """What a process calls to wait."""
        self.now_s += seconds
        with self.effect(process, "sleep"):
            pass

    # --- effects --------------------------------------------------------------------------------

    @contextmanager
    def effect(self, process: Process, kind: str, ms: float = 2.0) -> Iterator[None]:
        """Around whatever leaves a process. Raises Crash before or after it, as the faults have it."""
        if process.dead:
            raise Crash
        self.effects += 1
        self.now_s += self.rng.random() * ms / 1e3
        self.counts[kind] += 1
        due = [] if self.calm else self._due(kind)
        for fault in due:
            if fault.what != "crash after":
                self._strike(fault, process)
        for act in self.surroundings:
            act()
        others = sum(p.alive for p in self.processes) > 1
        if others and (self.rng.random() < self._switch_share or process.asleep_until > self.now_s):
            process.pause()
        yield
        for fault in due:
            if fault.what == "crash after":
                self._strike(fault, process)

    def _due(self, kind: str) -> list[Fault]:
        found = []
        for on, at in (("any", self.effects), (kind, self.counts[kind])):
            waiting = self._waiting.get(on)
            if waiting:
                now = [fault for fault in waiting if fault.nth <= at]
                if now:
                    self._waiting[on] = [fault for fault in waiting if fault.nth > at]
                    found += now
        return found

    def _strike(self, fault: Fault, process: Process) -> None:
        self.fired.append(fault)
        self.say(f"{fault.what} ({fault.size}), {process.name} at {fault.on} {fault.nth}")
        self.strike(fault, process)
        if process.dead:
            raise Crash
