"""The event log under any events and any damage: nothing is lost, nothing is made up, no other error escapes."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.stream import eventlog
from freshet.stream.eventlog import EventLog, EventLogError, EventLogWriter
from freshet.stream.eventlog_format import MANIFEST_FILE, TIE_ORDER, file_name
from freshet.stream.events import STRUCT_OF, Event, Kind
from freshet.stream.validate import KIND_OF, owner_of
from tests.property.logs import logs

T0 = 1_767_225_600_000
TIMES = range(T0, T0 + 15)


def dated(events: list[Event]) -> list[Event]:
    """The events in an order that may be written, moved to a time that an event may have."""
    moved = [msgspec.structs.replace(event, timestamp=T0 + (event.timestamp or 0)) for event in events]
    return sorted(moved, key=time_of)


def time_of(event: Event) -> int:
    assert event.timestamp is not None
    return event.timestamp


def merged(events: list[Event]) -> list[Event]:
    """The order that the format promises: by time, then by kind, then as written."""
    return sorted(events, key=lambda event: (time_of(event), TIE_ORDER.index(KIND_OF[type(event)])))


@contextmanager
def written(events: list[Event]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with EventLogWriter(path, source="test") as log:
            log.write_many(events)
        yield path


def by_hand(path: Path) -> None:
    (path / MANIFEST_FILE).unlink()


def pack(path: Path) -> None:
    for file in path.glob("*.jsonl"):
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes(), 1))
        file.unlink()


@settings(max_examples=60, deadline=None)
@given(logs)
def test_a_log_gives_back_what_was_written(random: list[Event]) -> None:
    events = dated(random)
    with written(events) as path:
        stated = EventLog(path).manifest
        for change in (None, by_hand, pack):
            if change:
                change(path)
            log = EventLog(path)
            assert list(log.stream()) == merged(events)
            assert log.counts == {kind: sum(KIND_OF[type(e)] is kind for e in events) for kind in Kind}
            assert log.time_range == (time_of(events[0]), time_of(events[-1]))
            assert sum(columns.event_count for columns in log.columns(size=7)) == len(events)
        # what is derived from the lines is what the writer had stated
        derived = EventLog(path).manifest
        assert (derived.counts, derived.first_ms, derived.last_ms) == (
            stated.counts,
            stated.first_ms,
            stated.last_ms,
        )


@settings(max_examples=60, deadline=None)
@given(logs)
def test_raw_lines_are_the_events_undecoded(random: list[Event]) -> None:
    with written(dated(random)) as path:
        log = EventLog(path)
        rows = list(log.raw())
        events = [msgspec.json.decode(line, type=STRUCT_OF[kind]) for kind, _, _, line in rows]
        assert events == list(log.stream())
        assert [(time, key) for _, time, key, _ in rows] == [(time_of(e), owner_of(e)) for e in events]


@settings(max_examples=60, deadline=None)
@given(
    logs, st.lists(st.sampled_from(TIMES), max_size=4), st.sampled_from([1, 100, 1 << 16]), st.sampled_from([1, 2, 512])
)
def test_cut_in_time_anywhere_the_pieces_are_the_whole(
    random: list[Event], cuts: list[int], seek_bytes: int, batch_lines: int
) -> None:
    events = dated(random)
    bounds = [None, *sorted(cuts), None]
    with (
        written(events) as path,
        patch.object(eventlog, "SEEK_BYTES", seek_bytes),
        patch.object(eventlog, "BATCH_LINES", batch_lines),
    ):
        log = EventLog(path)
        pieces = [list(log.stream(since_ms=low, until_ms=high)) for low, high in pairwise(bounds)]
        assert [event for piece in pieces for event in piece] == merged(events)
        raw = [row for low, high in pairwise(bounds) for row in log.raw(since_ms=low, until_ms=high)]
        assert raw == list(log.raw())
        for (low, high), piece in zip(pairwise(bounds), pieces, strict=True):
            assert sum(c.event_count for c in log.columns(3, low, high)) == len(piece)


@settings(max_examples=60, deadline=None)
@given(logs, st.data())
def test_a_file_cut_short_gives_a_prefix_or_an_error(random: list[Event], data: st.DataObject) -> None:
    events = dated(random)
    kind = KIND_OF[type(data.draw(st.sampled_from(events)))]
    with written(events) as path:
        file = path / file_name(kind)
        whole = file.read_bytes()
        size = data.draw(st.integers(0, len(whole) - 1))
        file.write_bytes(whole[:size])
        with pytest.raises(EventLogError, match=file.name):
            EventLog(path)
        by_hand(path)
        same = [event for event in events if KIND_OF[type(event)] is kind]
        # without the manifest, a file that ends with a line is a log; the last newline may be missing
        ends_with_line = size == 0 or whole[size - 1 : size] == b"\n" or whole[size : size + 1] == b"\n"
        if ends_with_line:
            assert list(EventLog(path).stream([kind])) == same[: whole[: size + 1].count(b"\n") if size else 0]
        else:
            with pytest.raises(EventLogError, match=rf"{file.name}: line .* ends in the middle"):
                list(EventLog(path).stream([kind]))


@settings(max_examples=200, deadline=None)
@given(logs, st.data())
def test_damage_is_an_error_of_the_log_or_none(random: list[Event], data: st.DataObject) -> None:
    events = dated(random)
    kind = KIND_OF[type(data.draw(st.sampled_from(events)))]
    with written(events) as path:
        file = path / file_name(kind)
        damaged = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"\n", b'"', b"}", b"[" * 2000, b"1e999", b"null", b"-", b"\xff"])
        )
        file.write_bytes(damaged)
        by_hand(path)
        for read in (EventLog.stream, EventLog.raw, EventLog.columns):
            try:
                found = list(read(EventLog(path)))
            except EventLogError as error:
                assert f"{file.name}: line " in str(error)
            else:
                assert found or not damaged.strip()


@settings(max_examples=100, deadline=None)
@given(logs, st.data())
def test_damage_to_a_packed_file_never_changes_an_event(random: list[Event], data: st.DataObject) -> None:
    events = dated(random)
    kind = KIND_OF[type(data.draw(st.sampled_from(events)))]
    with written(events) as path:
        pack(path)
        file = path / f"{file_name(kind)}.gz"
        damaged = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        file.write_bytes(damaged)
        try:
            found = list(EventLog(path).stream())
        except EventLogError as error:
            assert file.name in str(error)
        else:  # the damage is where gzip keeps what nobody reads, such as the time of packing
            assert found == merged(events)
