"""The event log: order, bounds, errors that name file and line, and writing that is complete or not there."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freshet.stream.decode import decode_events
from freshet.stream.eventlog import SEEK_BYTES, EventLog, EventLogError, EventLogWriter
from freshet.stream.events import Event, Kind, Line, Product, Profile, Purchase, Session, View

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "examples" / "tiny_log"
T0 = 1_767_225_600_000


def view(i: int, time: int) -> View:
    return View(f"v{i}", f"u{i % 7}", f"p{i % 11}", time)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of the tiny log that may be spoiled."""
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """All five kinds, some at the same time, as a writer leaves them."""
    path = tmp_path / "written"
    with EventLogWriter(path, source="test") as log:
        for step in range(5):
            time = T0 + step * 10
            log.write_many([
                Purchase(f"o{step}", "u", time, items=(Line("p", 2),)),
                view(step, time),
                Session(f"s{step}", "u", "s", time),
                Profile("u", time, geo=f"g{step}"),
                Product("p", time, brand=f"b{step}"),
            ])  # fmt: skip
    return path


def times(events: list[Event]) -> list[int | None]:
    return [event.timestamp for event in events]


def spoil(path: Path, line: int, new: bytes) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = new
    path.write_bytes(b"\n".join(lines))


# --- reading ------------------------------------------------------------------------------------


def test_the_tiny_log_reads_as_the_documentation_says() -> None:
    log = EventLog(TINY)
    assert log.counts == {Kind.VIEW: 5, Kind.PURCHASE: 3, Kind.SESSION: 2, Kind.PRODUCT: 5, Kind.PROFILE: 2}
    assert log.time_range == (1_767_225_600_000, 1_767_398_400_000)
    events = list(log.stream())
    assert times(events) == sorted(t for t in times(events) if t)
    assert [type(event) for event in events[:4]] == [Product, Product, Product, Profile]
    assert events[-1] == Product("tea-black", 1_767_398_400_000, withdrawn=True)
    assert log.manifest.source == "hand-written"


def test_events_of_one_time_come_by_kind(written: Path) -> None:
    kinds = [type(event) for event in EventLog(written).stream()]
    assert kinds == [Product, Profile, Session, View, Purchase] * 5


@pytest.mark.parametrize(
    ("since", "until", "steps"), [(None, None, 5), (0, 20, 2), (10, 30, 2), (11, 30, 1), (40, None, 1), (50, None, 0)]
)
def test_since_is_included_and_until_is_not(written: Path, since: int | None, until: int | None, steps: int) -> None:
    log = EventLog(written)
    low, high = (None if t is None else T0 + t for t in (since, until))
    events = list(log.stream(since_ms=low, until_ms=high))
    assert len(events) == 5 * steps
    assert [(e.timestamp) for e in events] == [row[1] for row in log.raw(low, high)]
    columns = list(log.columns(since_ms=low, until_ms=high))
    assert sum(len(c.views.time) for c in columns) == steps
    assert sum(len(c.products.time) for c in columns) == steps


def test_raw_gives_the_lines_unchanged_with_their_keys() -> None:
    rows = list(EventLog(TINY).raw())
    for kind in Kind:
        lines = (TINY / f"{kind.value}.jsonl").read_bytes().splitlines()
        assert [line for k, _, _, line in rows if k is kind] == lines
    for kind, time, key, line in rows:
        value = json.loads(line)
        assert (time, key) == (value["timestamp"], value["product_id" if kind is Kind.PRODUCT else "user_id"])
    assert {k for k, *_ in EventLog(TINY).raw(kinds=[Kind.VIEW])} == {Kind.VIEW}


def test_chunks_hold_the_stream(written: Path) -> None:
    log = EventLog(written)
    chunks = list(log.chunks(4, kinds=[Kind.VIEW, Kind.PROFILE]))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert [e for chunk in chunks for e in chunk] == list(log.stream([Kind.VIEW, Kind.PROFILE]))


def test_columns_hold_the_same_rows_as_the_stream(written: Path) -> None:
    log = EventLog(written)
    whole = decode_events(log.stream())
    parts = list(log.columns(size=2))
    assert np.array_equal(np.concatenate([c.views.event_hash for c in parts]), whole.views.event_hash)
    assert [u for c in parts for u in c.purchases.user] == whole.purchases.user
    assert [a for c in parts for a in c.products.attributes] == whole.products.attributes


@pytest.mark.parametrize("since", [0, 1, 2_500, 4_999, 9_999, 10_000])
def test_a_long_file_is_entered_in_the_middle(tmp_path: Path, since: int) -> None:
    with EventLogWriter(tmp_path / "log", source="test") as log:
        log.write_many(view(i, T0 + i // 3) for i in range(30_000))
    assert (tmp_path / "log" / "view.jsonl").stat().st_size > 20 * SEEK_BYTES
    found = list(EventLog(tmp_path / "log").stream(since_ms=T0 + since))
    assert [e.event_id for e in found if isinstance(e, View)] == [f"v{i}" for i in range(since * 3, 30_000)]


def test_packed_files_read_the_same(written: Path) -> None:
    before = list(EventLog(written).stream())
    for path in list(written.glob("*.jsonl")):
        with gzip.open(f"{path}.gz", "wb") as packed:
            packed.write(path.read_bytes())
        path.unlink()
    log = EventLog(written)
    assert list(log.stream()) == before
    assert list(log.stream(since_ms=T0 + 30)) == [e for e in before if e.timestamp and e.timestamp >= T0 + 30]
    assert log.manifest.source == "test"


def test_blank_lines_and_a_missing_last_newline_do_no_harm(tiny: Path) -> None:
    path = tiny / "view.jsonl"
    path.write_bytes(b"\n" + path.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n\r\n"))
    assert list(EventLog(tiny).stream()) == list(EventLog(TINY).stream())
    assert list(EventLog(tiny).raw()) == list(EventLog(TINY).raw())


# --- what is wrong with a log -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "line", "new", "message"),
    [
        ("view", 2, b'{"event_id": oops}', "not"),
        ("view", 2, b"\xff\xfe", "UTF-8|JSON|decod"),
        ("view", 3, b'{"event_id":"v","user_id":"u","product_id":"p"}', "timestamp"),
        ("view", 3, b'{"event_id":"v","user_id":"u","product_id":"p","timestamp":1767225600000}', "in order"),
        ("product", 1, b'{"product_id":"p"}', "timestamp is missing"),
        ("profile", 2, b'{"user_id":"u","timestamp":1767229200}', "milliseconds"),
        ("purchase", 1, b'{"event_id":"o","user_id":"u","timestamp":1767258120000}', "product_id"),
        ("session", 1, b'{"event_id":"s","user_id":"u","session_id":"","timestamp":1767258060000}', "session_id"),
    ],
)
def test_an_error_names_file_and_line(tiny: Path, file: str, line: int, new: bytes, message: str) -> None:
    spoil(tiny / f"{file}.jsonl", line, new)
    expected = rf"{file}\.jsonl: line {line}: .*({message})"
    log = EventLog(tiny)
    with pytest.raises(EventLogError, match=expected):
        list(log.stream())
    with pytest.raises(EventLogError, match=expected):
        list(log.columns())
    with pytest.raises(EventLogError, match=expected):
        _ = log.counts


@pytest.mark.parametrize("new", [b'{"user_id": 3}', b"{", b'{"user_id":"u","timestamp":1767225600000}'])
def test_raw_names_file_and_line_too(tiny: Path, new: bytes) -> None:
    spoil(tiny / "view.jsonl", 4, new)
    with pytest.raises(EventLogError, match=r"view\.jsonl: line 4: "):
        list(EventLog(tiny).raw())


def test_the_line_is_right_beyond_the_first_batch(tmp_path: Path) -> None:
    path = tmp_path / "view.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(view(i, T0 + i)) + b"\n" for i in range(3_000)))
    spoil(path, 2_345, b'{"x": 1}')
    for read in (EventLog(tmp_path).stream, EventLog(tmp_path).raw, EventLog(tmp_path).columns):
        with pytest.raises(EventLogError, match=r"view\.jsonl: line 2345: "):
            list(read())
    with pytest.raises(EventLogError, match=r"view\.jsonl: line 2345: "):
        list(EventLog(tmp_path).stream(since_ms=T0 + 2_000))


def test_a_file_that_ends_within_a_line_is_told_from_other_damage(tiny: Path) -> None:
    path = tiny / "purchase.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    for read in (EventLog(tiny).stream, EventLog(tiny).raw):
        with pytest.raises(EventLogError, match=r"purchase\.jsonl: line 3: the file ends in the middle"):
            list(read())


def test_a_packed_file_that_is_cut_short_is_an_error(tiny: Path) -> None:
    packed = gzip.compress((tiny / "view.jsonl").read_bytes())
    (tiny / "view.jsonl").unlink()
    (tiny / "view.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(EventLogError, match=r"view\.jsonl\.gz: cannot be read"):
        list(EventLog(tiny).stream())
    (tiny / "view.jsonl.gz").write_bytes(b"")
    with pytest.raises(EventLogError, match=r"view\.jsonl\.gz: is empty"):
        EventLog(tiny)


def test_a_folder_that_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EventLogError, match="no such folder"):
        EventLog(tmp_path / "nowhere")
    (tmp_path / "views.csv").touch()
    with pytest.raises(EventLogError, match=r"none of view\.jsonl"):
        EventLog(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not a manifest"),
        (b"[]", "format_version is None"),
        (b'{"format_version": 2}', "format_version is 2, this Freshet reads 1"),
        (b'{"format_version": 1}', "source"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tiny: Path, text: bytes, message: str) -> None:
    (tiny / "log.json").write_bytes(text)
    with pytest.raises(EventLogError, match=rf"log\.json: .*{message}"):
        EventLog(tiny)


def test_a_file_that_is_not_as_the_manifest_says_is_refused(written: Path) -> None:
    path = written / "view.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)[:3]
    path.write_bytes(b"".join(kept))  # cut between two lines, which no reader of lines would notice
    with pytest.raises(EventLogError, match=r"view\.jsonl: .* bytes, log\.json says"):
        EventLog(written)
    path.unlink()
    with pytest.raises(EventLogError, match=r"view\.jsonl: 0 bytes"):
        EventLog(written)


def test_the_same_kind_twice_is_refused(tiny: Path) -> None:
    (tiny / "view.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(EventLogError, match="keep one of them"):
        EventLog(tiny)


# --- writing ------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    events = list(EventLog(TINY).stream())
    with EventLogWriter(tmp_path / "copy", source="tiny") as log:
        log.write_many(events)
        log.note("left_out", 3)
    copy = EventLog(tmp_path / "copy")
    assert list(copy.stream()) == events
    assert copy.counts == EventLog(TINY).counts
    assert copy.time_range == EventLog(TINY).time_range
    assert (copy.manifest.source, copy.manifest.notes) == ("tiny", {"left_out": 3})


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (view(9, T0 - 1), "in order of timestamp"),
        (Product("p"), "product 'p': timestamp is missing"),
        (View("v9", "", "p", T0 + 100), "v9.*user_id"),
        (Purchase("o9", "u", T0 + 100), "o9.*product_id"),
        (View("v9", "u", "p", 1_767_225_600), "v9"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, event: Event, message: str) -> None:
    with pytest.raises(EventLogError, match=message), EventLogWriter(tmp_path / "log", source="test") as log:
        log.write(view(1, T0))
        log.write(event)
    assert list(tmp_path.iterdir()) == []


def test_a_log_is_not_overwritten_unless_asked_to(written: Path) -> None:
    with pytest.raises(EventLogError, match="is there already"), EventLogWriter(written, source="again"):
        pass
    with EventLogWriter(written, source="again", overwrite=True) as log:
        log.write(view(1, T0))
        assert EventLog(written).manifest.source == "test"  # the old one stays until the new one is complete
    assert EventLog(written).counts[Kind.VIEW] == 1
    assert EventLog(written).counts[Kind.PRODUCT] == 0
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_a_failed_overwrite_keeps_the_old_log(written: Path) -> None:
    before = list(EventLog(written).stream())
    with pytest.raises(KeyboardInterrupt), EventLogWriter(written, source="again", overwrite=True) as log:
        log.write(view(1, T0))
        raise KeyboardInterrupt
    assert list(EventLog(written).stream()) == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_a_folder_of_other_things_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with (
        pytest.raises(EventLogError, match="other files"),
        EventLogWriter(tmp_path / "home", source="test", overwrite=True),
    ):
        pass
    assert (tmp_path / "home" / "letters.txt").read_text() == "dear"


def test_a_killed_writer_leaves_nothing_that_looks_like_a_log(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from freshet.stream.eventlog import EventLogWriter\n"
        "from freshet.stream.events import View\n"
        "log = EventLogWriter(sys.argv[1], source='test').__enter__()\n"
        "log.write(View('v', 'u', 'p', 1767225600000))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], cwd=REPOSITORY, check=False)
    assert done.returncode == -9
    assert [path.name[:13] for path in tmp_path.iterdir()] == [".log.partial-"]
    with EventLogWriter(tmp_path / "log", source="test") as log:
        log.write(view(1, T0))
    assert EventLog(tmp_path / "log").counts[Kind.VIEW] == 1


def test_no_place_to_write_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EventLogError, match="cannot be written"), EventLogWriter(tmp_path / "file" / "log", "test"):
        pass


def test_an_empty_log_is_a_log(tmp_path: Path) -> None:
    with EventLogWriter(tmp_path / "log", source="test"):
        pass
    log = EventLog(tmp_path / "log")
    assert (list(log.stream()), log.time_range, sum(log.counts.values())) == ([], None, 0)


# --- documentation ------------------------------------------------------------------------------


def test_the_worked_example_runs(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "eventlog.md").read_text()
    shell, python, error, writer = re.findall(r"```(?:sh|python|text)\n(.*?)```", text, re.DOTALL)
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run(["sh", "-ec", shell], cwd=tmp_path, check=True)

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)

    done = run(python)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 4
    path = tmp_path / "my_log" / "product.jsonl"
    spoiled = path.read_text().replace('"pot-1l", "timestamp": 1767225600000', '"pot-1l", "timestamp": 1767225500000')
    path.write_text(spoiled)
    assert error.strip() in run(python).stderr
    done = run(writer)
    assert done.returncode == 0, done.stderr
    assert [type(e) for e in EventLog(tmp_path / "my_log").stream()] == [View, Purchase]
