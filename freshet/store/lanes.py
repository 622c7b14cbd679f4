"""Work side by side on two cores: compiled loops, checksums and NumPy let go of the interpreter while they run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

LANES = 2
WAITING_MAX = 4
"""Things that wait in a lane: who puts in one more waits, so memory is bounded."""


class Lanes:
    """Threads that do what they are given: in a lane one thing after another, the lanes side by side.

    What was put in is done at the end of a `with`, or at `join`; of what fails the first error is raised there or by
    the next `put`, and what waited in its lane is not to be relied on.
    """

    def __init__(self, lanes: int = LANES, waiting_max: int = WAITING_MAX) -> None:
        self._pools = [ThreadPoolExecutor(1, "freshet-lane") for _ in range(lanes)]
        self._waiting: list[deque[Future[object]]] = [deque() for _ in range(lanes)]
        self._waiting_max = waiting_max
        self._next = 0

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.join()
        finally:
            for pool in self._pools:
                pool.shutdown(cancel_futures=True)

    def put(self, act: Callable[[], object], lane: int | None = None, little: bool = False) -> None:
        """Have this done, in the next lane or after all that was put into a certain one. What is `little` is done at
        once where its lane has nothing to do: starting a thread would take longer."""
        if lane is None:
            self._next += 1
            lane = self._next
        place = lane % len(self._pools)
        waiting = self._waiting[place]
        if little and all(future.done() for future in waiting):
            while waiting:
                waiting.popleft().result()
            act()
            return
        if len(waiting) >= self._waiting_max:
            waiting.popleft().result()
        waiting.append(self._pools[place].submit(act))

    def join(self) -> None:
        """Wait until all is done."""
        for waiting in self._waiting:
            while waiting:
                waiting.popleft().result()
