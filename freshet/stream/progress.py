"""Progress on a terminal, and where there is none a line in ten seconds, then one of the end."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PLAIN_INTERVAL_S = 10.0


class Bars:
    """A set of progress bars; each `counts` or `share` gives a function that moves one of them."""

    def __init__(self, console: Console, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._monotonic = monotonic
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._unfinished: set[str] = set()

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Move the bar called `what`; what follows a comma is shown, and may change, but is not its name."""
        name = what.partition(",")[0]
        if self._console.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[name], description=what, completed=done, total=total)
            return
        now = self._monotonic()
        ended = done >= total
        if now - self._said.setdefault(name, now) >= PLAIN_INTERVAL_S or (ended and name in self._unfinished):
            self._said[name] = now
            self._unfinished.add(name)
            self._console.print(f"{what}: {done} of {total}", highlight=False)
        if ended:  # the next time this is done, it begins anew
            del self._said[name]
            self._unfinished.discard(name)

    @staticmethod
    def silent() -> Bars:
        """Bars that show nothing: of the processes that are not the first."""
        return Bars(Console(file=io.StringIO()))

    def counts(self, what: str) -> Callable[[int, int], None]:
        """A function of (done, total)."""
        return lambda done, total: self.update(what, done, total)

    def share(self, what: str, share: float) -> None:
        """Move the bar called `what` to a share between 0 and 1."""
        self.update(what, round(share * 100), 100)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, soft_wrap=True)
