"""A log with anything in its files is read to its end or refused with `EventLogError`, however it is read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.stream.eventlog import EventLog, EventLogError
from freshet.stream.eventlog_format import MANIFEST_FILE
from freshet.stream.events import Kind
from tests.fuzz.budget import fuzzed
from tests.fuzz.mutate import dumped, spoilt_bytes, spoilt_json

TINY = Path(__file__).parents[2] / "examples" / "tiny_log"
FILES = {path.name: path.read_bytes() for path in TINY.iterdir() if path.suffix == ".jsonl"}
T = 1_700_000_000_000
MANIFEST = {
    "source": "x", "counts": {"view": 3}, "first_ms": T, "last_ms": T + 9, "notes": {"a": 1}, "bytes": {},
    "format_version": 1,
}  # fmt: skip


def read(folder: Path) -> bool:
    """In every way that a log is read."""
    ways = (
        lambda log: [log.counts, log.time_range],
        lambda log: sum(1 for _ in log.stream()),
        lambda log: sum(1 for _ in log.stream(since_ms=T, until_ms=T + 10**9)),
        lambda log: sum(1 for _ in log.raw()),
        lambda log: sum(1 for _ in log.raw(since_ms=T)),
        lambda log: sum(columns.event_count for columns in log.columns(size=50)),
    )
    good = True
    for way in ways:
        try:
            way(EventLog(folder))
        except EventLogError:
            good = False
    return good


def emptied(folder: Path) -> Path:
    for path in folder.iterdir():
        path.unlink()
    return folder


def test_the_original_is_read() -> None:
    assert read(TINY)


@fuzzed(150)
@given(st.data(), st.booleans())
def test_files_spoilt_by_bytes(tmp_path: Path, data: st.DataObject, packed: bool) -> None:
    folder = emptied(tmp_path)
    name = data.draw(st.sampled_from(sorted(FILES)))
    lines = FILES[name].splitlines(keepends=True)[:30]
    raw = data.draw(spoilt_bytes([b"".join(lines)]))
    (folder / f"{name}.gz").write_bytes(gzip.compress(raw, 1)) if packed else (folder / name).write_bytes(raw)
    read(folder)


@fuzzed(80)
@given(st.data())
def test_packed_files_spoilt_by_bytes(tmp_path: Path, data: st.DataObject) -> None:
    folder = emptied(tmp_path)
    packed = gzip.compress(b"".join(FILES["view.jsonl"].splitlines(keepends=True)[:30]), 1, mtime=0)
    (folder / "view.jsonl.gz").write_bytes(data.draw(spoilt_bytes([packed])))
    read(folder)


@fuzzed(150)
@given(st.data())
def test_manifests_spoilt_by_fields(tmp_path: Path, data: st.DataObject) -> None:
    folder = emptied(tmp_path)
    (folder / "view.jsonl").write_bytes(b'{"event_id":"v","user_id":"u","product_id":"p","timestamp":%d}\n' % T)
    (folder / MANIFEST_FILE).write_bytes(dumped(data.draw(spoilt_json(MANIFEST))))
    read(folder)


@pytest.mark.parametrize("raw", [b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"null", b'"\\ud800"'])
@pytest.mark.parametrize("name", [MANIFEST_FILE, *(f"{kind.value}.jsonl" for kind in Kind)])
def test_any_file_may_hold_anything(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / "view.jsonl").write_bytes(b"")
    (tmp_path / name).write_bytes(raw)
    assert read(tmp_path) == (raw == b"" and name != MANIFEST_FILE)
