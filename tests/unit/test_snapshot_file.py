"""The container of a snapshot: what is damaged, cut off or foreign is refused by name, and never taken for a state."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freshet.errors import FreshetError
from freshet.store.canonical import canonical
from freshet.store.graph import GraphStore
from freshet.store.merge import LimitsDiffer
from freshet.store.snapshot import ENTRY, LogPart, Part, SnapshotCorrupt, SnapshotHead, absorb, parts
from freshet.store.snapshot_file import MANIFEST, Manifest, SnapshotForeign, SnapshotReader, SnapshotWriter
from freshet.stream.decode import decode_events
from freshet.stream.events import Line, Product, Profile, Purchase, Session, SessionItem, View
from tests.property.logs import LIMITS
from tests.property.test_snapshot import HEAD, absorbed, everything, file_of

EVENTS = [
    View(event_id="v", user_id="ann", product_id="p", timestamp=5, dwell_time_s=2.0),
    Purchase(event_id="o", user_id="bob", timestamp=6, items=(Line("p", quantity=1.0), Line("q"))),
    Session(event_id="s", user_id="ann", session_id="s", timestamp=6, device="phone", items=(SessionItem("p"),)),
    Profile(user_id="ann", timestamp=4, geo="DE"),
    Product(product_id="q", timestamp=4, brand="b", price=2.5, description_emb=(0.5, 0.25)),
    View(event_id="w", user_id="cid", product_id="p", timestamp=2),
    Profile(user_id="cid", timestamp=9, forgotten=True),
    Profile(user_id="bob", timestamp=3, forgotten=True),
]


@pytest.fixture(scope="module")
def graph() -> GraphStore:
    graph = GraphStore(LIMITS)
    graph.apply(decode_events(EVENTS))
    return graph


@pytest.fixture(scope="module")
def data(graph: GraphStore) -> bytes:
    file = io.BytesIO()
    writer = SnapshotWriter(file)
    for part in parts(graph, everything, everything):
        writer.write_part(part)
    writer.finish(HEAD, {"index": b"opaque bytes"})
    return file.getvalue()


def read(data: bytes) -> SnapshotReader:
    return SnapshotReader(io.BytesIO(data), "x.snapshot")


def state_of(data: bytes) -> tuple[bytes, bytes]:
    """All that a reader gets out of these bytes; raises what it raises."""
    reader = read(data)
    graph = GraphStore(LIMITS)
    absorb(graph, reader.head, reader.parts())
    return canonical(graph), repr((reader.head, [reader.blob(name) for name in reader.blobs()])).encode()


def test_head_blobs_and_parts_come_back(graph: GraphStore, data: bytes) -> None:
    reader = read(data)
    assert reader.head == HEAD
    assert reader.blobs() == ["index"]
    assert reader.blob("index") == b"opaque bytes"
    with pytest.raises(KeyError):
        reader.blob("other")
    assert reader.manifest.counts["users"] == 2
    assert reader.manifest.counts["purchased"] == 2
    reader.verify()
    assert canonical(absorbed(data)) == canonical(graph)


def test_the_file_is_a_plain_archive_of_arrays(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.snapshot"
    path.write_bytes(data)
    with np.load(path, allow_pickle=False) as arrays:
        name = next(name for name in arrays.files if ".viewed" in name)
        assert arrays[name].dtype == ENTRY
        assert arrays[name]["time"].tolist() == [5]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[-1] == MANIFEST
        assert json.loads(archive.read(MANIFEST))["format"] == "freshet-snapshot"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_same_state_is_the_same_file(graph: GraphStore) -> None:
    assert file_of(parts(graph, everything, everything)) == file_of(parts(graph, everything, everything))


def test_a_file_that_cannot_seek_will_do(graph: GraphStore, tmp_path: Path) -> None:
    path = tmp_path / "x.snapshot"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=path.open("wb")) as process:
        assert process.stdin is not None
        writer = SnapshotWriter(process.stdin)  # type: ignore[arg-type]
        for part in parts(graph, everything, everything):
            writer.write_part(part)
        writer.finish(HEAD)
        process.stdin.close()
    assert canonical(absorbed(path.read_bytes())) == canonical(graph)


def test_every_flipped_byte_is_refused_or_harmless(data: bytes) -> None:
    right = state_of(data)
    refused = 0
    for place in range(len(data)):
        for bits in (1 << place % 8, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= bits
            try:
                found = state_of(bytes(damaged))
            except (SnapshotCorrupt, SnapshotForeign):
                refused += 1
            else:
                assert found == right, f"byte {place} ^ {bits:#x}"
    assert refused > len(data), "most of a file is its contents"


def test_every_truncation_is_refused(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises((SnapshotCorrupt, SnapshotForeign)):
            state_of(data[:size])


def test_bytes_that_were_added_or_left_out_are_refused_or_harmless(data: bytes) -> None:
    right = state_of(data)
    for place in range(0, len(data), 7):
        for damaged in (data[:place] + b"\0" + data[place:], data[:place] + data[place + 1 :]):
            with contextlib.suppress(SnapshotCorrupt, SnapshotForeign):
                assert state_of(damaged) == right


def rewritten(data: bytes, change: dict[str, bytes | None], compress: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with members replaced, left out (None) or added before the manifest, as anyone could write it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = members.pop(MANIFEST)
    members = {**members, **change, MANIFEST: change.get(MANIFEST, manifest)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(zipfile.ZipInfo(name), content, compress)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({MANIFEST: None}, "its last member is not the manifest"),
        ({"000099.users.msgpack": b""}, "its members are not those"),
        ({"../evil": b""}, "its members are not those"),
        ({MANIFEST: b"{"}, "manifest cannot be read"),
        ({MANIFEST: b"[" * 100_000}, "manifest cannot be read"),
    ],
)
def test_another_archive_in_its_place_is_refused(data: bytes, change: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(SnapshotCorrupt, match=message) as e:
        read(rewritten(data, change))
    assert "x.snapshot is damaged" in str(e.value)
    assert "an older snapshot is used, if there is one" in str(e.value)


def test_a_compressed_archive_is_refused_unread(data: bytes) -> None:
    with pytest.raises(SnapshotCorrupt, match="is compressed"):
        read(rewritten(data, {"000099.index.blob": bytes(10_000_000)}, zipfile.ZIP_DEFLATED))


def test_a_newer_format_is_named(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        manifest = json.loads(archive.read(MANIFEST))
    newer = rewritten(data, {MANIFEST: json.dumps({**manifest, "format_version": 3}).encode()})
    with pytest.raises(SnapshotForeign, match=r"x\.snapshot has format version 3, and this release reads 1 and 2"):
        read(newer)
    with pytest.raises(SnapshotForeign, match="not a Freshet snapshot"):
        read(rewritten(data, {MANIFEST: b'{"format": "other"}'}))


def of_version_1(data: bytes, damage: str = "") -> bytes:
    """The same snapshot as the release before wrote it, with another byte at the end of the member `damage`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        manifest = json.loads(archive.read(MANIFEST))
        content = {m["name"]: archive.read(m["name"]) for m in manifest["members"]}
    manifest |= {"format_version": 1, "blake2b": ""}
    manifest["members"] = [
        {"name": name, "size_bytes": len(member), "blake2b": hashlib.blake2b(member, digest_size=32).hexdigest()}
        for name, member in content.items()
    ]
    sealed = msgspec.json.encode(msgspec.convert(manifest, Manifest), order="sorted")
    manifest["blake2b"] = hashlib.blake2b(sealed, digest_size=32).hexdigest()
    spoilt = {name: member[:-1] + b"\xfe" for name, member in content.items() if name == damage}
    return rewritten(data, spoilt | {MANIFEST: json.dumps(manifest).encode()})


def test_a_snapshot_of_the_release_before_is_read_and_checked(data: bytes, graph: GraphStore) -> None:
    reader = read(of_version_1(data))
    assert reader.manifest.format_version == 1
    reader.verify()
    assert canonical(absorbed(of_version_1(data))) == canonical(graph)
    assert reader.blob("index") == b"opaque bytes"
    for member in reader.manifest.members:
        with pytest.raises(SnapshotCorrupt, match=f"the checksum of {re.escape(member.name)} differs"):
            read(of_version_1(data, damage=member.name)).verify()


def test_other_archives_and_files_are_no_snapshots() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(SnapshotForeign, match="is a ZIP archive, but no snapshot"):
        read(file.getvalue())
    for junk in (b"", b"hello", bytes(100_000), b"PK\x05\x06" + bytes(18)):
        with pytest.raises(SnapshotCorrupt, match=r"x\.snapshot is damaged"):
            read(junk)


def test_limits_that_differ_are_named(data: bytes) -> None:
    reader, graph = read(data), GraphStore(replace(LIMITS, viewed_max=9))
    with pytest.raises(LimitsDiffer, match="viewed_max"):
        absorb(graph, reader.head, reader.parts())
    assert not len(graph.users)


def entries(**columns: int) -> np.ndarray:
    row = {"row": 0, "nbr": 0, "time": 1, "key": 1, "value": 1.0, "flag": 0, **columns}
    return np.array([tuple(row[name] for name in ENTRY.names or ())], dtype=ENTRY)


@pytest.mark.parametrize(
    "part",
    [
        Part("viewed", entries(nbr=99)),
        Part("viewed", entries(nbr=-1)),
        Part("viewed", entries(row=-1)),
        Part("viewed_by", entries(row=99)),
        Part("viewed_by", entries(nbr=-2)),
        Part("co_purchased", entries(row=2**31 - 1)),
        Part("co_purchased", entries(nbr=-1)),
        Part("viewed", np.zeros(1, dtype="<f8")),
        Part("viewed", b""),
        Part("sessions", np.zeros(1, dtype=ENTRY)),
        Part("users", b"\x81"),
        Part("product_attributes", b"\x80"),
        Part("something", b""),
    ],
    ids=str,
)
def test_parts_that_cannot_be_are_refused(data: bytes, part: Part) -> None:
    """Numbers that nothing has would be written beside the lists."""
    names = [p for p in read(data).parts() if p.section in ("users", "products", "devices")]
    with pytest.raises(SnapshotCorrupt, match=part.section):
        absorb(GraphStore(LIMITS), HEAD, [*names, part])


def test_a_blob_needs_a_plain_name() -> None:
    writer = SnapshotWriter(io.BytesIO())
    with pytest.raises(ValueError, match="cannot name a blob"):
        writer.finish(HEAD, {"../x": b""})


class Full(io.BytesIO):
    """A disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: object) -> int:
        size = len(data)  # type: ignore[arg-type]
        if self.tell() + size > self.room:
            raise OSError(28, "No space left on device")
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_a_full_disk_is_an_os_error_wherever_it_strikes(graph: GraphStore, data: bytes) -> None:
    for room in range(0, len(data), 37):
        file = Full(room)
        with pytest.raises(OSError, match="No space left"):
            writer = SnapshotWriter(file)
            for part in parts(graph, everything, everything):
                writer.write_part(part)
            writer.finish(HEAD, {"index": b"opaque bytes"})
        del writer
        assert len(file.getvalue()) <= room
        with pytest.raises(FreshetError):
            read(file.getvalue())


@pytest.mark.filterwarnings("error")
def test_a_snapshot_given_up_writes_nothing_more(graph: GraphStore) -> None:
    file = io.BytesIO()
    writer = SnapshotWriter(file)
    writer.write_part(next(parts(graph, everything, everything)))
    size = len(file.getvalue())
    file.close()
    del writer
    assert size
    other = io.BytesIO()
    writer = SnapshotWriter(other)
    del writer
    assert other.getvalue() == b""


def test_a_head_of_any_topics_comes_back() -> None:
    head = SnapshotHead("users-3", {("ä b", 3): 2**62, ("a", 0): 0}, 1, LIMITS, topic_ids={"ä b": "id", "a": ""})
    file = io.BytesIO()
    SnapshotWriter(file).finish(head)
    assert read(file.getvalue()).head == head
    assert re.fullmatch(r"[0-9a-f]{64}", read(file.getvalue()).manifest.blake2b)
    assert b'"logs"' not in file.getvalue(), "a manifest without logs is the one it was before there were any"


def test_a_head_names_the_logs_it_holds() -> None:
    head = SnapshotHead("items", {}, 1, LIMITS, logs=(LogPart("/logs/2017 ä", 5), LogPart("/logs/2016")))
    file = io.BytesIO()
    SnapshotWriter(file).finish(head)
    assert read(file.getvalue()).head == head
