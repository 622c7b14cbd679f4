"""An index snapshot whose checksums are right and whose content is not: an index that can be searched, or
`IndexCorrupt`; and nothing outside its folder is opened."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.store.faiss_index import make_index, open_index
from freshet.store.hnsw_format import check_graph
from freshet.store.index_settings import IndexSettings
from freshet.store.index_snapshot import (
    MANIFEST,
    FileEntry,
    IndexCorrupt,
    Manifest,
    SnapshotFiles,
    _digest,
    write_snapshot,
)
from tests.fuzz.budget import fuzzed
from tests.fuzz.mutate import FLOATS, SIZES, dumped, spoilt_bytes, spoilt_json

DIM, ROWS = 4, 60
SETTINGS = IndexSettings(kind="hnsw", hnsw_m=4, hnsw_exact_below_rows=0, hnsw_exact_below_share=0.0)
"""Searches walk the graph, however small it is."""


def contents(kind: str, folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """A good snapshot of this kind, some of its rows dead."""
    index = make_index(IndexSettings(kind=kind, hnsw_m=4), DIM)  # type: ignore[arg-type]
    rows = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    index.upsert([f"p{i}" for i in range(ROWS)], rows)
    index.remove(["p3", "p17"])
    index.snapshot(folder, "m1")
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    return manifest, {role: (folder / entry.name).read_bytes() for role, entry in manifest.files.items()}


@cache
def good(kind: str) -> dict[str, bytes]:
    """The files of a good snapshot, by their role."""
    with TemporaryDirectory() as folder:
        return contents(kind, Path(folder))[1]


def opened(folder: Path) -> bool:
    """Whether it is an index; then it answers."""
    try:
        index, version = open_index(folder, SETTINGS)
    except IndexCorrupt:
        return False
    assert isinstance(version, str)
    ids = index.ids()
    for allowed in (None, ids[:5]):
        found = index.search(np.ones((2, index.dim), dtype=np.float32), 7, allowed)
        assert len(found.ids) == 2
    index.upsert(["new"], np.ones((1, index.dim), dtype=np.float32))
    return True


def rewritten(folder: Path, kind: str, files: dict[str, bytes]) -> bool:
    write_snapshot(folder, kind, DIM, "m1", SnapshotFiles(files))
    return opened(folder)


def test_the_originals_are_opened(tmp_path: Path) -> None:
    for kind in ("flat", "hnsw"):
        assert rewritten(tmp_path / kind, kind, good(kind))


@fuzzed(60)
@given(st.data(), st.sampled_from(["flat", "hnsw"]))
def test_files_spoilt_by_bytes(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    role = data.draw(st.sampled_from(sorted(good(kind))))
    rewritten(tmp_path, kind, good(kind) | {role: data.draw(spoilt_bytes([good(kind)[role]]))})


@fuzzed(80)
@given(st.data())
def test_graphs_with_other_numbers_in_them(tmp_path: Path, data: st.DataObject) -> None:
    graph = bytearray(good("hnsw")["graph"])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, (len(graph) - 8) // 4)) * 4 + data.draw(st.sampled_from([0, 0, 0, 1, 2]))
        number = st.integers(-2, ROWS + 2).map(lambda n: struct.pack("<i", n))
        put = data.draw(st.sampled_from(SIZES + FLOATS) | number)
        graph[at : at + len(put)] = put
    rewritten(tmp_path, "hnsw", good("hnsw") | {"graph": bytes(graph)})


def test_every_number_of_a_graph_may_be_wrong() -> None:
    """Each four bytes in turn, by what a link, a level, an offset or a length could be."""
    raw, refused = good("hnsw")["graph"], 0
    assert check_graph(raw, DIM) == ROWS
    for at in range(len(raw) - 4):
        for number in (-2, 1, ROWS, 2**31 - 1):
            spoilt = raw[:at] + struct.pack("<i", number) + raw[at + 4 :]
            try:
                check_graph(spoilt, DIM)
            except ValueError:
                refused += 1
    assert refused > 2 * len(raw)
    for end in range(len(raw)):
        with pytest.raises(ValueError, match="graph"):
            check_graph(raw[:end], DIM)


@fuzzed(60)
@given(st.data())
def test_manifests_spoilt_by_fields(tmp_path: Path, data: st.DataObject) -> None:
    manifest, files = contents("flat", tmp_path)
    for role, entry in manifest.files.items():
        (tmp_path / entry.name).write_bytes(files[role])
    value: Any = data.draw(spoilt_json(msgspec.to_builtins(manifest)))
    with suppress(msgspec.MsgspecError, TypeError, AttributeError, OverflowError, UnicodeEncodeError):
        value["blake2b"] = msgspec.convert(value, Manifest).digest()
    (tmp_path / MANIFEST).write_bytes(dumped(value))
    opened(tmp_path)


@pytest.mark.parametrize(
    "raw", [b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"null", b" " * 10**6, b'"\\ud800"']
)
def test_a_manifest_may_hold_anything(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(raw)
    assert not opened(tmp_path)


def named(
    folder: Path, name: str, size: int, digest: str, dim: int = DIM, make: Callable[[Path], object] = lambda path: None
) -> bool:
    """Open a snapshot whose vectors are said to stand in the file `name`, which `make` makes."""
    manifest, _ = contents("flat", folder)
    make(folder / name)
    entries = manifest.files | {"vectors": FileEntry(name, size, digest)}
    manifest = msgspec.structs.replace(manifest, files=entries, dim=dim)
    manifest = msgspec.structs.replace(manifest, blake2b=manifest.digest())
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return opened(folder)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "/dev/zero", "..", ".", "", "a/b", "a\x00b", "y" * 5_000, "-", "a b"]
)
def test_no_other_file_is_opened(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (tmp_path / "x").write_bytes(b"")
    assert not named(folder, name, 0, _digest(b""))


def test_what_is_no_file_is_refused_and_not_read_for_ever(tmp_path: Path) -> None:
    makers = (lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir(), os.mkfifo, lambda p: p.symlink_to(p))
    for i, make in enumerate(makers):
        for name in ("vectors-x.f32", MANIFEST):
            folder = tmp_path / f"{i}-{name}"
            folder.mkdir()
            if name == MANIFEST:
                make(folder / name)
                assert not opened(folder)
            else:
                assert not named(folder, name, 10, _digest(b""), make=make)


@pytest.mark.parametrize("dim", [0, -1, 5, 2**31, 2**62])
def test_a_dimension_is_believed_by_nobody(tmp_path: Path, dim: int) -> None:
    vectors = (ROWS - 2) * DIM * 4
    manifest, files = contents("flat", tmp_path)
    assert not named(tmp_path, manifest.files["vectors"].name, vectors, _digest(files["vectors"]), dim)
