"""The event log: a folder of JSON lines, one file a kind, read in event-time order in bounded memory.

`view.jsonl`, `purchase.jsonl`, `session.jsonl`, `product.jsonl`, `profile.jsonl` (each optional, each also as
`.jsonl.gz`) hold one JSON object a line, exactly the value the topic carries, in order of `timestamp`.
`log.json` says what is in them; a log written by hand does without. `docs/eventlog.md` is the same for people.
"""

from __future__ import annotations

import gzip
import heapq
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import msgspec

from freshet.errors import FreshetError
from freshet.store.columns import EventColumns
from freshet.stream.codec import JSON_DECODERS, explain_failure
from freshet.stream.decode import decode_events
from freshet.stream.events import Event, Kind
from freshet.stream.headers import Format
from freshet.stream.rejection import DecodeLimits
from freshet.stream.validate import Context, check, owner_of

FORMAT_VERSION = 1
MANIFEST_FILE = "log.json"
BATCH_LINES = 512
"""Lines of one kind that are held at a time while a log is streamed."""
TIE_ORDER = (Kind.PRODUCT, Kind.PROFILE, Kind.SESSION, Kind.VIEW, Kind.PURCHASE)
"""Kinds in the order in which events of one timestamp are given."""

_RANK = {kind: rank for rank, kind in enumerate(TIE_ORDER)}
_timestamp = attrgetter("timestamp")


class EventLogError(FreshetError):
    """An event log that cannot be read or written; the message names the file and, where there is one, the line."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `log.json` says. Times in ms since the epoch, null for a log without events.

    `counts`: events by kind; `bytes`: size of each file by its name, so that a file which was edited or cut short
    is noticed; `notes`: what the conversion left out, and why, with counts.
    """

    source: str
    counts: dict[str, int]
    first_ms: int | None
    last_ms: int | None
    notes: dict[str, int | str] = {}
    bytes: dict[str, int] = {}
    format_version: int = FORMAT_VERSION


class _UserHead(msgspec.Struct, gc=False):
    timestamp: int
    user_id: str


class _ProductHead(msgspec.Struct, gc=False):
    timestamp: int
    product_id: str


_USER_HEAD = msgspec.json.Decoder(_UserHead)
_PRODUCT_HEAD = msgspec.json.Decoder(_ProductHead)


class EventLog:
    """A log on disk. Times in ms; `since_ms` is included, `until_ms` is not.

    Raises EventLogError for a folder that is missing, holds none of the known files, or has a manifest of another
    format or of other files; and while reading for a line that is not a valid event, out of order, or cut off.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise EventLogError(f"{self.path}: no such folder; `freshet convert` makes an event log")
        self._files = {kind: found for kind in TIE_ORDER if (found := self._find(kind))}
        self._stated = self._read_manifest()
        if not self._files and self._stated is None:
            names = ", ".join(f"{kind.value}.jsonl" for kind in Kind)
            raise EventLogError(f"{self.path}: not an event log: none of {names} is there (each also as .gz)")

    @cached_property
    def manifest(self) -> Manifest:
        """What `log.json` says, or, without one, what reading all lines once gives."""
        return self._stated or self._derive_manifest()

    @property
    def counts(self) -> dict[Kind, int]:
        """Events of each kind; kinds without events are there with 0."""
        return {kind: self.manifest.counts.get(kind.value, 0) for kind in Kind}

    @property
    def time_range(self) -> tuple[int, int] | None:
        """Times (ms) of the first and the last event of all kinds; None for a log without events."""
        first, last = self.manifest.first_ms, self.manifest.last_ms
        return None if first is None or last is None else (first, last)

    def stream(
        self, kinds: Iterable[Kind] | None = None, since_ms: int | None = None, until_ms: int | None = None
    ) -> Iterator[Event]:
        """Events in order of time; those of one time in `TIE_ORDER`, and of one kind as they stand in the file."""
        parts = [self._keyed(kind, since_ms, until_ms) for kind in self._chosen(kinds)]
        return (event for _, _, event in heapq.merge(*parts))

    def chunks(
        self,
        size: int,
        kinds: Iterable[Kind] | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Iterator[list[Event]]:
        """As `stream`, `size` events at a time; the last chunk may be shorter, none is empty."""
        events = self.stream(kinds, since_ms, until_ms)
        while chunk := list(islice(events, size)):
            yield chunk

    def columns(
        self, size: int = 20_000, since_ms: int | None = None, until_ms: int | None = None
    ) -> Iterator[EventColumns]:
        """Columns of up to `size` events, kind after kind: for the store, to which order means nothing."""
        for kind in self._files:
            for events in self._events(kind, size, since_ms, until_ms):
                yield decode_events(events)

    def raw(
        self, since_ms: int | None = None, until_ms: int | None = None, kinds: Iterable[Kind] | None = None
    ) -> Iterator[tuple[Kind, int, str, bytes]]:
        """As `stream`, undecoded: kind, timestamp (ms), record key (user id, or product id), the line unchanged.

        Only time and key are read of a line, and the rest is not judged.
        """
        parts = [self._heads(kind, since_ms, until_ms) for kind in self._chosen(kinds)]
        return ((TIE_ORDER[rank], time, key, line) for time, rank, key, line in heapq.merge(*parts))

    # --- files --------------------------------------------------------------------------------------

    def _find(self, kind: Kind) -> Path | None:
        plain = self.path / f"{kind.value}.jsonl"
        packed = self.path / f"{kind.value}.jsonl.gz"
        if plain.exists() and packed.exists():
            raise EventLogError(f"{packed}: {plain.name} is there as well; keep one of them")
        return plain if plain.exists() else packed if packed.exists() else None

    def _read_manifest(self) -> Manifest | None:
        path = self.path / MANIFEST_FILE
        if not path.exists():
            return None
        try:
            raw = msgspec.json.decode(path.read_bytes())
            version = raw.get("format_version") if isinstance(raw, dict) else None
            if version != FORMAT_VERSION:
                raise EventLogError(
                    f"{path}: format_version is {version!r}, this Freshet reads {FORMAT_VERSION}; convert the source again"
                )
            manifest = msgspec.convert(raw, Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EventLogError(f"{path}: not a manifest: {error}; delete it to have it derived") from None
        sizes = {file.name: file.stat().st_size for file in self._files.values()}
        for name in sorted(sizes.keys() | manifest.bytes.keys()) if manifest.bytes else ():
            stated, found = manifest.bytes.get(name, 0), sizes.get(name, 0)
            if stated != found:
                raise EventLogError(
                    f"{self.path / name}: {found} bytes, {MANIFEST_FILE} says {stated}: the file is cut short or was "
                    f"edited; convert again, or delete {MANIFEST_FILE} if the edit is meant"
                )
        return manifest

    def _derive_manifest(self) -> Manifest:
        counts: dict[str, int] = {}
        times: list[int] = []
        for kind in self._files:
            for events in self._events(kind, BATCH_LINES, None, None):
                counts[kind.value] = counts.get(kind.value, 0) + len(events)
                times = [min(*times, events[0].timestamp), max(*times, events[-1].timestamp)] if times else [
                    events[0].timestamp, events[-1].timestamp
                ]  # fmt: skip
        first, last = times or (None, None)
        return Manifest(source="hand-written", counts=counts, first_ms=first, last_ms=last)

    def _chosen(self, kinds: Iterable[Kind] | None) -> list[Kind]:
        wanted = set(Kind) if kinds is None else set(kinds)
        return [kind for kind in self._files if kind in wanted]

    # --- lines --------------------------------------------------------------------------------------

    def _lines(self, kind: Kind, size: int, since_ms: int | None) -> Iterator[tuple[int, list[bytes]]]:
        """Batches of lines with the byte offset of the first; in a plain file starts near `since_ms`."""
        path = self._files[kind]
        packed = path.suffix == ".gz"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            if since_ms is not None and not packed:
                file.seek(_seek(file, path.stat().st_size, since_ms))
            try:
                offset = file.tell()
                while lines := list(islice(file, size)):
                    yield offset, lines
                    offset += sum(map(len, lines))
            except (EOFError, OSError, zlib.error) as error:
                raise EventLogError(f"{path}: cannot be unpacked to its end ({error}): the file is cut short") from None

    def _events(self, kind: Kind, size: int, since_ms: int | None, until_ms: int | None) -> Iterator[list[Any]]:
        """Batches of decoded events of one kind, none empty, each within the bounds."""
        decoder = JSON_DECODERS[kind]
        newest = -1
        for offset, lines in self._lines(kind, size, since_ms):
            try:
                events = decoder.decode_lines(b"".join(lines))
                times = [*map(_timestamp, events)]
                ordered = newest <= times[0] and times == sorted(times) if times else True
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
                ordered = False
            if not ordered or self._stated is None:
                self._judge(kind, offset, lines, newest)
            if not times:
                continue
            newest = times[-1]
            low = 0 if since_ms is None else bisect_left(times, since_ms)
            high = len(times) if until_ms is None else bisect_left(times, until_ms)
            if low < high:
                yield events[low:high]
            if high < len(times):
                return

    def _judge(self, kind: Kind, offset: int, lines: list[bytes], newest: int) -> None:
        """Find the first line that is wrong, and say what is; nothing for lines that are all right."""
        limits = DecodeLimits()
        for i, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                event = JSON_DECODERS[kind].decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                self._refuse(kind, offset, lines, i, explain_failure(error, line, kind, Format.JSON).message)
            if event.timestamp is None:
                self._refuse(kind, offset, lines, i, "timestamp is missing: in an event log every event has one")
            if rejection := check(event, Context(owner_of(event).encode(), 0, limits)):
                self._refuse(kind, offset, lines, i, rejection.message)
            if event.timestamp < newest:
                self._refuse(kind, offset, lines, i, _unsorted(event.timestamp, newest))
            newest = event.timestamp

    def _keyed(self, kind: Kind, since_ms: int | None, until_ms: int | None) -> Iterator[tuple[int, int, Any]]:
        rank = _RANK[kind]
        for events in self._events(kind, BATCH_LINES, since_ms, until_ms):
            for event in events:
                yield event.timestamp, rank, event

    def _heads(
        self, kind: Kind, since_ms: int | None, until_ms: int | None
    ) -> Iterator[tuple[int, int, str, bytes]]:
        """Time, rank, key and line of each event of one kind."""
        rank, of_product = _RANK[kind], kind is Kind.PRODUCT
        newest = -1
        for offset, lines in self._lines(kind, BATCH_LINES, since_ms):
            for i, line in enumerate(lines):
                try:
                    if of_product:
                        product = _PRODUCT_HEAD.decode(line)
                        time, key = product.timestamp, product.product_id
                    else:
                        user = _USER_HEAD.decode(line)
                        time, key = user.timestamp, user.user_id
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    if not line.strip():
                        continue
                    self._judge(kind, offset, [line], newest)
                    self._refuse(kind, offset, lines, i, str(error))
                if time < newest:
                    self._refuse(kind, offset, lines, i, _unsorted(time, newest))
                newest = time
                if until_ms is not None and time >= until_ms:
                    return
                if since_ms is None or time >= since_ms:
                    yield time, rank, key, line.rstrip(b"\r\n")

    def _refuse(self, kind: Kind, offset: int, lines: list[bytes], i: int, why: str) -> None:
        """Raise EventLogError for `lines[i]`, where `lines` start `offset` bytes into the (unpacked) file."""
        path = self._files[kind]
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            before = file.read(offset).count(b"\n")
        if not lines[i].endswith(b"\n") and not lines[i].rstrip().endswith(b"}"):
            why = f"the line is cut off at the end of the file; convert again, or delete the line ({why})"
        raise EventLogError(f"{path}: line {before + i + 1}: {why}")


def _unsorted(time: int, newest: int) -> str:
    return f"timestamp {time} after {newest}: the lines have to be in order of timestamp; sort the file"


def _seek(file: IO[bytes], size: int, since_ms: int) -> int:
    """The offset of a line from which on every event at or after `since_ms` is found, by bisection.

    Lines that cannot be read count as late, so that the reader meets and names them.
    """
    low, high = 0, size  # a line that starts at or before `low` is early; one at or after `high` is not known to be
    while high - low > 64 * 1024:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()
        start = file.tell()
        line = file.readline()
        if start < high and line and _is_before(line, since_ms):
            low = start
        else:
            high = middle
    return low


class _Time(msgspec.Struct, gc=False):
    timestamp: int


_TIME = msgspec.json.Decoder(_Time)


def _is_before(line: bytes, since_ms: int) -> bool:
    try:
        return _TIME.decode(line).timestamp < since_ms
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


from freshet.stream.eventlog_writer import EventLogWriter  # noqa: E402 - the writer builds on what stands above

__all__ = ["FORMAT_VERSION", "EventLog", "EventLogError", "EventLogWriter", "Manifest"]
