"""Snapshots of a running worker: taken scope by scope beside the stream, and read when a scope is gained.

The offsets that a snapshot is complete up to are noted first; rows are copied afterwards, some between two turns
of the stream. They may hold what came later, which does no harm: state is a join-semilattice, and what came later is
applied again (`docs/decisions/snapshots.md`). A snapshot is put in place only when its offsets have been committed,
that is, when the dead letters of what it covers have been delivered: nobody reads those records again.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Protocol

from freshet.errors import FreshetError
from freshet.store.columns import I32, Bool
from freshet.store.graph import GraphStore, Touched
from freshet.store.merge import LimitsDiffer
from freshet.store.snapshot import LogPart, Part, SnapshotHead, absorb, parts
from freshet.store.snapshot_file import SnapshotWriter
from freshet.store.snapshot_places import (
    SnapshotName,
    SnapshotPlace,
    newest_valid,
    parse_name,
    retain,
    snapshot_name,
)
from freshet.store.snapshot_settings import SnapshotSettings
from freshet.stream.membership import TopicPartition
from freshet.stream.ownership import Ownership
from freshet.stream.rewriting import is_items, items_scope, shards_in

logger = logging.getLogger("freshet.snapshots")

END, ABANDON = "end", "abandon"
Step = Part | str
QUEUED_MAX = 8
"""Parts that may wait for the disk; the next one is not copied before there is room."""


class Writing(Protocol):
    """A snapshot on its way to its place."""

    def put(self, step: Step) -> None:
        """Write a part, or END, or ABANDON."""
        ...

    def busy(self) -> bool:
        """Whether nothing more should be put for now."""
        ...

    def result(self) -> BaseException | bool | None:
        """True once it is in place, the error where it failed, None while it is under way."""
        ...


def written(place: SnapshotPlace, head: SnapshotHead, token: str) -> Generator[None, Step, None]:
    """Writes what it is sent; returns after END, when the snapshot is in place.

    Named by the time in `head`, or later, so that it is newer than every other of its scope (of products, of every
    cut): they may be by a worker whose clock is ahead, and the newest is read first and kept longest.
    """
    others = [
        name for name in map(parse_name, place.names())
        if name is not None and (name.scope == head.scope or (is_items(name.scope) and is_items(head.scope)))
    ]  # fmt: skip
    head = replace(head, created_ms=max([head.created_ms, *(name.created_ms + 1 for name in others)]))
    with place.write(snapshot_name(head, token)) as file:
        writer = SnapshotWriter(file)
        while (step := (yield)) != END:
            if isinstance(step, str):
                raise Abandoned
            writer.write_part(step)
        writer.finish(head)


class SnapshotsUnreadable(FreshetError, OSError):
    """The place of snapshots does not answer, or a disk fails."""


class Abandoned(Exception):
    """A snapshot was given up: its scope went to another worker, or the process ends."""


class InTurn:
    """Writes at once, in the caller's thread."""

    def __init__(self, steps: Generator[None, Step, None]) -> None:
        self._steps = steps
        self._result: BaseException | bool | None = None
        self._advance(lambda: next(steps))

    def put(self, step: Step) -> None:
        """See `Writing.put`."""
        if self._result is None:
            self._advance(lambda: self._steps.send(step))

    def busy(self) -> bool:
        """See `Writing.busy`."""
        return False

    def result(self) -> BaseException | bool | None:
        """See `Writing.result`."""
        return self._result

    def _advance(self, call: Callable[[], None]) -> None:
        try:
            call()
        except StopIteration:
            self._result = True
        except (OSError, FreshetError, Abandoned) as e:
            self._result = e


class InBackground:
    """Writes in a thread of its own: checksums and the disk leave the stream alone."""

    def __init__(self, steps: Generator[None, Step, None]) -> None:
        self._steps = steps
        self._queue: SimpleQueue[Step] = SimpleQueue()
        self._result: BaseException | bool | None = None
        threading.Thread(target=self._run, name="freshet-snapshot", daemon=True).start()

    def put(self, step: Step) -> None:
        """See `Writing.put`."""
        self._queue.put(step)

    def busy(self) -> bool:
        """See `Writing.busy`."""
        return self._result is None and self._queue.qsize() >= QUEUED_MAX

    def result(self) -> BaseException | bool | None:
        """See `Writing.result`."""
        return self._result

    def _run(self) -> None:
        try:
            next(self._steps)
            while True:
                self._steps.send(self._queue.get())
        except StopIteration:
            self._result = True
        except BaseException as e:  # whatever it is, the worker is told
            self._result = e


@dataclass
class _Running:
    head: SnapshotHead
    parts: Iterator[Part]
    writing: Writing
    copied: bool = False
    ended: bool = False


class Snapshots:
    """Takes snapshots of the scopes it is told of, one after another, every `interval_s`; and reads them."""

    def __init__(
        self,
        graph: GraphStore,
        ownership: Ownership,
        place: SnapshotPlace,
        settings: SnapshotSettings,
        model_version: str,
        topic_ids: Mapping[str, str],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        begin: Callable[[Generator[None, Step, None]], Writing] = InBackground,
        token: Callable[[], str] = lambda: secrets.token_hex(4),
    ) -> None:
        self.graph = graph
        self.ownership = ownership
        self.place = place
        self.settings = settings
        self.model_version = model_version
        self.topic_ids = dict(topic_ids)
        self.on_loaded: Callable[[Touched], None] = lambda touched: None
        """Told of what a snapshot changed in the graph."""
        self.logs: list[LogPart] = []
        """Event logs that state was read from, by this worker or by those whose snapshots it began with."""
        self.taken = 0
        self.error: str | None = None
        self.pause_ms_max = 0.0
        self._wall, self._monotonic = wall, monotonic
        self._begin, self._token = begin, token
        self._running: _Running | None = None
        self._due: list[str] = []
        self._round_at = monotonic() + settings.interval_s
        self._last: dict[str, dict[TopicPartition, int]] = {}

    # --- reading --------------------------------------------------------------------------------

    def load(self, scope: str) -> dict[TopicPartition, int] | None:
        """Merge the newest usable snapshot of a scope into the graph; the offsets it is complete up to.

        None where there never was one, empty where none of those there can be used. Damaged ones are named in the log
        and passed over for older ones, and so is the newest whole one where a topic was made anew, or the limits of
        lists are others, since. Products may have been cut into another number of shards before: snapshots of all of
        those serve as well, and the graph keeps of them what is its own.
        """
        if not is_items(scope):
            return self._load(scope)
        newest: dict[str, int] = {}
        for name in self._names():
            if is_items(name.scope):
                newest[name.scope] = max(name.created_ms, newest.get(name.scope, 0))
        for scopes in self._of_items(scope, newest):
            found = [self._load(one) for one in scopes]
            if all(found):
                each = [positions for positions in found if positions]
                return {tp: min(positions.get(tp, 0) for positions in each) for tp in set().union(*each)}
        # Of another cut some may be left that are not all of it; there was state, and it is not here.
        return {} if scope in newest or any(shards_in(one) != shards_in(scope) for one in newest) else None

    def _of_items(self, scope: str, newest: Mapping[str, int]) -> list[list[str]]:
        """Scopes that together hold all that one of products may need: itself, or every shard of another number; those
        of which the oldest snapshot is newest first. `newest`: when the newest of each scope was made."""
        families = {n: [items_scope(k, n) for k in range(n)] for n in map(shards_in, newest)}
        families[shards_in(scope)] = [scope]
        whole = [family for family in families.values() if all(one in newest for one in family)]
        return sorted(whole, key=lambda family: (min(newest[one] for one in family), family == [scope]), reverse=True)

    def _names(self) -> list[SnapshotName]:
        try:
            return [name for name in map(parse_name, self.place.names()) if name is not None]
        except OSError as e:
            raise self._unreadable(e) from e

    def _unreadable(self, error: OSError) -> SnapshotsUnreadable:
        return SnapshotsUnreadable(
            f"snapshots cannot be read from {self.settings.place}: {error}; mend the place, or name another with "
            "--snapshots (without one, the topics are read from their start)"
        )

    def _load(self, scope: str) -> dict[TopicPartition, int] | None:
        """As `load`, of this very scope."""
        try:
            found = newest_valid(self.place, lambda of: of == scope, logger.warning)
        except OSError as e:
            raise self._unreadable(e) from e
        known = found is not None or any(name.scope == scope for name in self._names())
        if found is None:
            return {} if known else None
        name, reader = found
        with reader:
            wrong = self._misfit(reader.head)
            if wrong is not None:
                logger.warning("snapshot %s is not used: %s", name, wrong)
                return {}
            try:
                touched = absorb(self.graph, reader.head, reader.parts())
            except LimitsDiffer as e:  # raised before anything was taken in
                logger.warning("snapshot %s is not used, and the topics are read from their start: %s", name, e)
                return {}
            self.add_logs(reader.head.logs)
            self.on_loaded(touched)
        logger.info("snapshot %s loaded", name)
        self._last[scope] = dict(reader.head.positions)
        return dict(reader.head.positions)

    def add_logs(self, logs: Iterable[LogPart]) -> None:
        """Have these named in the snapshots to come."""
        self.logs += [log for log in dict.fromkeys(logs) if log not in self.logs]

    def _misfit(self, head: SnapshotHead) -> str | None:
        """Why a snapshot cannot be used with these topics, if it cannot."""
        for topic, there in head.topic_ids.items():
            here = self.topic_ids.get(topic, "")
            if here and there and here != there:
                return f"the topic {topic} was made anew since (it had the id {there} and has {here})"
        return None

    # --- writing --------------------------------------------------------------------------------

    def turn(
        self, scopes: Mapping[str, Mapping[TopicPartition, int]], committed: Mapping[TopicPartition, int]
    ) -> None:
        """A little of whatever is due. `scopes`: those that are whole, each with its next offsets; `committed`: the
        next offsets that have been committed."""
        if self._running is None:
            self._start_next(scopes)
            return
        running = self._running
        if running.head.scope not in scopes:
            self.abandon()
        elif (result := running.writing.result()) is not None:
            self._finish(running, result)
        elif not running.copied:
            self._copy(running)
        elif not running.ended and all(committed.get(tp, -1) >= at for tp, at in running.head.positions.items()):
            running.writing.put(END)
            running.ended = True

    def all_now(self) -> None:
        """Begin a round now, or as soon as a scope is whole."""
        self._round_at = self._monotonic()

    def status(self) -> dict[str, object]:
        """How many were taken and how many are due, what went wrong with the last one, and the longest the stream was
        held up."""
        due = len(self._due) + (self._running is not None)
        return {"taken": self.taken, "due": due, "error": self.error, "pause_ms_max": round(self.pause_ms_max, 2)}

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or due."""
        return self._running is None and not self._due and self._monotonic() < self._round_at

    def abandon(self) -> None:
        """Give up the snapshot under way, if there is one; nothing of it is left."""
        if self._running is not None and not self._running.ended:
            self._running.writing.put(ABANDON)
        self._running = None

    def _start_next(self, scopes: Mapping[str, Mapping[TopicPartition, int]]) -> None:
        if scopes and not self._due and self._monotonic() >= self._round_at:
            self._round_at = self._monotonic() + self.settings.interval_s
            self._due = sorted(scopes)
        while self._due:
            scope = self._due.pop(0)
            if scope in scopes and dict(scopes[scope]) != self._last.get(scope):
                self._start(scope, dict(scopes[scope]))
                return

    def _start(self, scope: str, positions: dict[TopicPartition, int]) -> None:
        topics = {topic: self.topic_ids.get(topic, "") for topic, _ in positions}
        head = SnapshotHead(
            scope, positions, int(self._wall() * 1e3), self.graph.limits, self.model_version, topics,
            tuple(self.logs),
        )  # fmt: skip
        users: Callable[[I32], Bool] | None = None
        if not is_items(scope):
            partition = int(scope.removeprefix("users-"))

            def users(numbers: I32) -> Bool:
                here: Bool = self.ownership.of(numbers) == partition
                return here

        copied = parts(
            self.graph, users, all_of if is_items(scope) else None, self.settings.entries_per_part
        )  # fmt: skip
        self._running = _Running(head, copied, self._begin(written(self.place, head, self._token())))

    def _copy(self, running: _Running) -> None:
        if running.writing.busy():
            return
        start = self._monotonic()
        part = next(running.parts, None)
        self.pause_ms_max = max(self.pause_ms_max, (self._monotonic() - start) * 1e3)
        if part is None:
            running.copied = True
        else:
            running.writing.put(part)

    def _finish(self, running: _Running, result: BaseException | bool) -> None:
        self._running = None
        if result is not True:
            self.error = f"a snapshot of {running.head.scope} could not be written: {result}"
            logger.warning("%s; the stream goes on, and the next try is in %g s", self.error, self.settings.interval_s)
            return
        self.taken += 1
        self.error = None
        self._last[running.head.scope] = dict(running.head.positions)
        try:
            retain(self.place, running.head.scope, self.settings.keep)
        except OSError as e:
            self.error = f"older snapshots of {running.head.scope} could not be deleted: {e}"
            logger.warning("%s; the next try is after the next snapshot", self.error)


def all_of(numbers: I32) -> Bool:
    """[n] bool, all true."""
    everything: Bool = numbers >= 0
    return everything
