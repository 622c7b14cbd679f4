"""The event log: a folder of JSON lines, one file a kind, read in event-time order in bounded memory.

`view.jsonl`, `purchase.jsonl`, `session.jsonl`, `product.jsonl`, `profile.jsonl` (each optional, each also as
`.jsonl.gz`) hold one JSON object a line, exactly the value the topic carries, in order of `timestamp`.
`log.json` says what is in them; a log written by hand does without. `docs/eventlog.md` is the same for people.
"""

from __future__ import annotations

import gzip
import heapq
import io
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, NoReturn

import msgspec

from freshet.store.columns import EventColumns
from freshet.stream.codec import FAILURES, JSON_DECODERS, explain_failure
from freshet.stream.decode import decode_events
from freshet.stream.eventlog_format import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    TIE_ORDER,
    EventLogError,
    Manifest,
    file_name,
)
from freshet.stream.eventlog_writer import EventLogWriter
from freshet.stream.events import Event, Kind
from freshet.stream.headers import Format
from freshet.stream.rejection import DecodeLimits, Rejection
from freshet.stream.validate import Context, check, owner_of

__all__ = ["FORMAT_VERSION", "EventLog", "EventLogError", "EventLogWriter", "Manifest"]

BATCH_LINES = 512
"""Lines of one kind that are held at a time while a log is streamed."""
LINE_BYTES_MAX = 4 * 1024 * 1024
"""Longest line. A topic takes no more in a record, and a line without end would be read into memory whole."""
SEEK_BYTES = 64 * 1024
"""How near to the first event wanted the search for it stops."""

_LIMITS = DecodeLimits()
_RANK = {kind: rank for rank, kind in enumerate(TIE_ORDER)}
_timestamp = attrgetter("timestamp")


class _Time(msgspec.Struct, gc=False):
    timestamp: int


class _UserHead(_Time, gc=False):
    user_id: str


class _ProductHead(_Time, gc=False):
    product_id: str


_TIME = msgspec.json.Decoder(_Time)
_USER_HEAD = msgspec.json.Decoder(_UserHead)
_PRODUCT_HEAD = msgspec.json.Decoder(_ProductHead)


class EventLog:
    """A log on disk. Times in ms; `since_ms` is included, `until_ms` is not.

    Raises EventLogError for a folder that is missing, holds none of the known files, or has a manifest of another
    format or of other files; and while reading for a line that is not a valid event, out of order, or cut off.
    Lines of a log that a writer made are not judged beyond the schema's types: the writer has judged them.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise EventLogError(f"{self.path}: no such folder; `freshet convert` makes an event log")
        self._files = {kind: found for kind in TIE_ORDER if (found := self._find(kind))}
        self._stated = self._read_manifest()
        if not self._files and self._stated is None:
            names = ", ".join(map(file_name, Kind))
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

        Only time and key are read of a line; the rest is not judged.
        """
        parts = [self._heads(kind, since_ms, until_ms) for kind in self._chosen(kinds)]
        return ((TIE_ORDER[rank], time, key, line) for time, rank, key, line in heapq.merge(*parts))

    # --- files --------------------------------------------------------------------------------------

    def _find(self, kind: Kind) -> Path | None:
        plain = self.path / file_name(kind)
        packed = self.path / f"{file_name(kind)}.gz"
        if plain.exists() and packed.exists():
            raise EventLogError(f"{packed}: {plain.name} is there as well; keep one of them")
        if packed.exists() and not packed.stat().st_size:  # which gzip reads as a file without lines
            raise EventLogError(f"{packed}: is empty, which no packed file is; pack it again, or delete it")
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
                    f"{path}: format_version is {version!r}, this Freshet reads {FORMAT_VERSION}; "
                    "convert the source again"
                )
            manifest = msgspec.convert(raw, Manifest)
        except FAILURES as error:
            raise EventLogError(f"{path}: not a manifest: {error}; delete it to have it derived") from None
        self._check_sizes(manifest.bytes)
        return manifest

    def _check_sizes(self, stated: dict[str, int]) -> None:
        """Packed files are not looked at: they carry their own checksum."""
        found = {file.name: file.stat().st_size for file in self._files.values() if file.suffix != ".gz"}
        packed = {file.stem for file in self._files.values() if file.suffix == ".gz"}
        for name in sorted((stated.keys() | found.keys()) - packed) if stated else ():
            if stated.get(name, 0) != found.get(name, 0):
                raise EventLogError(
                    f"{self.path / name}: {found.get(name, 0)} bytes, {MANIFEST_FILE} says {stated.get(name, 0)}: "
                    f"the file is cut short or was edited; convert again, or delete {MANIFEST_FILE} if you edited it"
                )

    def _derive_manifest(self) -> Manifest:
        counts: dict[str, int] = {}
        first, last = [], []
        for kind in self._files:
            for events in self._events(kind, BATCH_LINES, None, None):
                counts[kind.value] = counts.get(kind.value, 0) + len(events)
                first.append(events[0].timestamp)
                last.append(events[-1].timestamp)
        return Manifest("hand-written", counts, min(first, default=None), max(last, default=None))

    def _chosen(self, kinds: Iterable[Kind] | None) -> list[Kind]:
        wanted = set(Kind) if kinds is None else set(kinds)
        return [kind for kind in self._files if kind in wanted]

    # --- lines --------------------------------------------------------------------------------------

    def _lines(self, kind: Kind, size: int, since_ms: int | None) -> Iterator[tuple[int, list[bytes]]]:
        """Batches of lines with the (unpacked) byte offset of the first; in a plain file from near `since_ms` on."""
        path = self._files[kind]
        try:
            with _open(path) as file:
                if since_ms is not None and path.suffix != ".gz":
                    file.seek(_seek(file, path.stat().st_size, since_ms))
                offset = file.tell()
                bounded = iter(partial(file.readline, LINE_BYTES_MAX + 1), b"")
                while lines := list(islice(_within(bounded, path), size)):
                    yield offset, lines
                    offset += sum(map(len, lines))
        except (EOFError, OSError, zlib.error) as error:
            raise EventLogError(f"{path}: cannot be read to its end: {error}") from None

    def _events(self, kind: Kind, size: int, since_ms: int | None, until_ms: int | None) -> Iterator[list[Any]]:
        """Batches of decoded events of one kind, none empty, all within the bounds."""
        newest = 0
        for offset, lines in self._lines(kind, size, since_ms):
            events = self._decode(kind, lines, newest)
            if events is None:
                events = self._decode_each(kind, offset, lines, newest)
            if not events:
                continue
            times = [*map(_timestamp, events)]
            newest = times[-1]
            low = 0 if since_ms is None else bisect_left(times, since_ms)
            high = len(times) if until_ms is None else bisect_left(times, until_ms)
            if low < high:
                yield events[low:high]
            if high < len(times):
                return

    def _decode(self, kind: Kind, lines: list[bytes], newest: int) -> list[Any] | None:
        """All lines at once; None when something about one of them is odd."""
        try:
            events = JSON_DECODERS[kind].decode_lines(b"".join(lines))
            times = [*map(_timestamp, events)]
            odd = not times or times[0] < newest or times != sorted(times)
        except (*FAILURES, TypeError):
            return None
        return None if odd or (self._stated is None and any(map(_check, events))) else events

    def _decode_each(self, kind: Kind, offset: int, lines: list[bytes], newest: int) -> list[Any]:
        """The events of `lines`, blank lines left out; raises for the first that is wrong."""
        events = []
        for i, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                event = JSON_DECODERS[kind].decode(line)
            except FAILURES as error:
                self._refuse(kind, offset, lines, i, explain_failure(error, line, kind, Format.JSON).message)
            if event.timestamp is None:
                self._refuse(kind, offset, lines, i, "timestamp is missing: in an event log every event has one")
            if rejection := _check(event):
                self._refuse(kind, offset, lines, i, rejection.message)
            if event.timestamp < newest:
                self._refuse(kind, offset, lines, i, _unsorted(event.timestamp, newest))
            newest = event.timestamp
            events.append(event)
        return events

    def _keyed(self, kind: Kind, since_ms: int | None, until_ms: int | None) -> Iterator[tuple[int, int, Any]]:
        rank = _RANK[kind]
        for events in self._events(kind, BATCH_LINES, since_ms, until_ms):
            for event in events:
                yield event.timestamp, rank, event

    def _heads(self, kind: Kind, since_ms: int | None, until_ms: int | None) -> Iterator[tuple[int, int, str, bytes]]:
        """Time, rank, key and line of each event of one kind."""
        rank, newest = _RANK[kind], 0
        decode = (_PRODUCT_HEAD if kind is Kind.PRODUCT else _USER_HEAD).decode
        key_of = attrgetter("product_id" if kind is Kind.PRODUCT else "user_id")
        for offset, lines in self._lines(kind, BATCH_LINES, since_ms):
            for i, line in enumerate(lines):
                if line.isspace():
                    continue
                try:
                    head = decode(line)
                except FAILURES as error:
                    self._decode_each(kind, offset, lines[: i + 1], 0)
                    self._refuse(kind, offset, lines, i, str(error))
                time = head.timestamp
                if time < newest:
                    self._refuse(kind, offset, lines, i, _unsorted(time, newest))
                newest = time
                if until_ms is not None and time >= until_ms:
                    return
                if since_ms is None or time >= since_ms:
                    yield time, rank, key_of(head), line.rstrip(b"\r\n")

    def _refuse(self, kind: Kind, offset: int, lines: list[bytes], i: int, why: str) -> NoReturn:
        """Raise EventLogError for `lines[i]`, where `lines` start `offset` bytes into the unpacked file."""
        path = self._files[kind]
        with _open(path) as file:
            before = sum(file.read(min(SEEK_BYTES, offset - at)).count(b"\n") for at in range(0, offset, SEEK_BYTES))
        if not lines[i].endswith(b"\n") and not _is_json(lines[i]):
            why = f"the file ends in the middle of this line; convert again, or delete the line ({why})"
        raise EventLogError(f"{path}: line {before + i + 1}: {why}")


def _open(path: Path) -> IO[bytes]:
    if path.suffix != ".gz":
        return path.open("rb")
    return io.BufferedReader(gzip.open(path, "rb"))  # whose own `readline` is Python, a line at a time


def _within(lines: Iterator[bytes], path: Path) -> Iterator[bytes]:
    for line in lines:
        if len(line) > LINE_BYTES_MAX:
            raise EventLogError(f"{path}: a line has more than {LINE_BYTES_MAX} bytes: split the order or session")
        yield line


def _check(event: Event) -> Rejection | None:
    return check(event, Context(owner_of(event).encode(), 0, _LIMITS))


def _unsorted(time: int, newest: int) -> str:
    return f"timestamp {time} comes after {newest}: put the lines in order of timestamp"


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except FAILURES:
        return False
    return True


def _seek(file: IO[bytes], size: int, since_ms: int) -> int:
    """The offset of a line before which no event is at or after `since_ms`, by bisection.

    Lines that cannot be read count as late, so that the reader meets and names them.
    """
    low, high = 0, size
    while high - low > SEEK_BYTES:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline(LINE_BYTES_MAX)
        start = file.tell()
        if start < high and _is_before(file.readline(LINE_BYTES_MAX), since_ms):
            low = start
        else:
            high = middle
    return low


def _is_before(line: bytes, since_ms: int) -> bool:
    try:
        return _TIME.decode(line).timestamp < since_ms
    except FAILURES:
        return False
