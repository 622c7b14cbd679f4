"""Writing an event log: beside its place, renamed when complete, so that a killed conversion never looks whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from freshet.stream.codec import FAILURES, JSON_DECODERS, explain_failure
from freshet.stream.eventlog_format import MANIFEST_FILE, EventLogError, Manifest, file_name
from freshet.stream.events import Event, Kind
from freshet.stream.headers import Format
from freshet.stream.rejection import DecodeLimits
from freshet.stream.validate import KIND_OF, Context, check, owner_of

_ENCODER = msgspec.json.Encoder()


class EventLogWriter:
    """Writes a log; a context manager. Within a kind, events come in order of `timestamp`.

    `source` names where they are from. Leaving the block without an error completes the log, with one removes
    what was written. Raises EventLogError for a folder that is there already (unless `overwrite`, which replaces
    event logs only), an event without `timestamp`, out of order, or one that a worker would refuse.
    """

    def __init__(self, path: Path | str, source: str, overwrite: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self._source = source
        self._overwrite = overwrite
        self._partial = self.path.parent / f".{self.path.name}.partial-{os.getpid()}"
        self._files: dict[Kind, BinaryIO] = {}
        self._counts: dict[Kind, int] = {}
        self._first: dict[Kind, int] = {}
        self._newest: dict[Kind, int] = {}
        self._notes: dict[str, int | str] = {}
        self._limits = DecodeLimits()

    @property
    def counts(self) -> dict[Kind, int]:
        """Events written so far, by kind."""
        return dict(self._counts)

    def __enter__(self) -> EventLogWriter:
        self._refuse_what_is_there()
        try:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise EventLogError(f"{self.path}: cannot be written: {error}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._complete()
        except OSError as failed:
            raise EventLogError(f"{self.path}: cannot be written: {failed}") from None
        finally:
            for file in self._files.values():
                file.close()
            shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, event: Event) -> None:
        """Append one event."""
        kind = KIND_OF[type(event)]
        time = event.timestamp
        if time is None:
            raise EventLogError(f"{self._name(event)}: timestamp is missing: in an event log every event has one")
        if time < self._newest.get(kind, 0):
            raise EventLogError(
                f"{self._name(event)}: timestamp {time} after {self._newest[kind]}: write events in order of timestamp"
            )
        if rejection := check(event, Context(owner_of(event).encode(), 0, self._limits)):
            raise EventLogError(f"{self._name(event)}: {rejection.message}")
        line = _ENCODER.encode(event)
        try:
            JSON_DECODERS[kind].decode(line)  # constructing a struct has not judged the types of its fields
        except FAILURES as error:
            raise EventLogError(
                f"{self._name(event)}: {explain_failure(error, line, kind, Format.JSON).message}"
            ) from None
        if kind not in self._files:
            self._files[kind] = (self._partial / file_name(kind)).open("wb", buffering=1024 * 1024)
            self._first[kind] = time
        self._files[kind].write(line + b"\n")
        self._newest[kind] = time
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def write_many(self, events: Iterable[Event]) -> None:
        """Append events one after another."""
        for event in events:
            self.write(event)

    def note(self, name: str, value: int | str) -> None:
        """Add to the manifest's notes: what was left out, and how often."""
        self._notes[name] = value

    # --- parts --------------------------------------------------------------------------------------

    def _name(self, event: Event) -> str:
        kind = KIND_OF[type(event)]
        return f"{self.path}: {kind.value} {getattr(event, 'event_id', None) or owner_of(event)!r}"

    def _refuse_what_is_there(self) -> None:
        if not self.path.exists():
            return
        if not self._overwrite:
            raise EventLogError(f"{self.path}: is there already; choose another folder, or replace it (--overwrite)")
        known = {file_name(kind) + end for kind in Kind for end in ("", ".gz")} | {MANIFEST_FILE}
        if not self.path.is_dir() or not {entry.name for entry in self.path.iterdir()} <= known:
            raise EventLogError(f"{self.path}: holds other files than an event log's, and is not overwritten")

    def _complete(self) -> None:
        sizes = {}
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            sizes[Path(file.name).name] = file.tell()
        manifest = Manifest(
            source=self._source,
            counts={kind.value: self._counts[kind] for kind in Kind if kind in self._counts},
            first_ms=min(self._first.values(), default=None),
            last_ms=max(self._newest.values(), default=None),
            notes=self._notes,
            bytes=sizes,
        )
        text = msgspec.json.format(_ENCODER.encode(manifest), indent=2)
        (self._partial / MANIFEST_FILE).write_bytes(text + b"\n")
        if self.path.exists():
            old = self._partial.with_name(f".{self.path.name}.old-{os.getpid()}")
            self.path.rename(old)
            self._partial.rename(self.path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            self._partial.rename(self.path)
