"""Index snapshots on disk: a folder of data files, and a manifest that names them with their checksums.

    manifest.json        {"format": "freshet-item-index", "format_version": 1, "kind": ..., "dim": ...,
                          "model_version": ..., "files": {role: {"name", "size_bytes", "blake2b"}}, "blake2b": ...}
                          (its own checksum is that of the manifest with this field empty, as compact JSON)
    ids-<token>.json     the ids in the order of the rows; null for a row that is dead (HNSW alone)
    vectors-<token>.f32  float32, little-endian, row by row (flat)
    graph-<token>.faiss  the graph with its vectors, in FAISS's own format (HNSW)

Every snapshot writes files under new names and puts the manifest in place last, by one atomic rename. So a crash
at any instant leaves the former snapshot whole. A checksum is needed: FAISS loads a file with a flipped bit.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.columns import F32

FORMAT = "freshet-item-index"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SUFFIX = {"ids": ".json", "vectors": ".f32", "graph": ".faiss"}
REMEDY = "take a new snapshot, or follow the changelog of product embeddings into a new index"


class IndexCorrupt(FreshetError):
    """An index snapshot that is missing, damaged, or not one that this index can load."""


class FileEntry(msgspec.Struct, frozen=True):
    """A data file of a snapshot."""

    name: str
    size_bytes: int
    blake2b: str


class Manifest(msgspec.Struct, frozen=True):
    """What `manifest.json` holds."""

    format: str
    format_version: int
    kind: str
    dim: int
    model_version: str
    files: dict[str, FileEntry]
    blake2b: str = ""

    def digest(self) -> str:
        """What `blake2b` has to be."""
        return _digest(msgspec.json.encode(msgspec.structs.replace(self, blake2b=""), order="sorted"))


@dataclass
class SnapshotFiles:
    """The bytes of the data files by their role: `ids`, and `vectors` or `graph`."""

    content: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, ids: list[str], vectors: F32) -> SnapshotFiles:
        """Files of n ids with `vectors` [n, dim]."""
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        return cls({"ids": msgspec.json.encode(ids), "vectors": rows.tobytes()})

    @classmethod
    def of_graph(cls, ids: list[str | None], graph: NDArray[np.uint8]) -> SnapshotFiles:
        """Files of a graph that FAISS serialised, with the id of each row, None for a dead one."""
        return cls({"ids": msgspec.json.encode(ids), "graph": graph.tobytes()})

    def rows(self, dim: int, path: Path) -> tuple[list[str], F32]:
        """The inverse of `of`: ids [n] and vectors [n, dim]. Raises IndexCorrupt where they do not fit."""
        ids = [name for name in self.names(path) if name is not None]
        flat = np.frombuffer(self.content["vectors"], dtype="<f4")
        if flat.shape[0] != len(ids) * dim or not np.isfinite(flat).all():
            raise IndexCorrupt(f"{path}: the vectors do not fit the {len(ids)} ids: {REMEDY}")
        return ids, flat.reshape(len(ids), dim).astype(np.float32)

    def names(self, path: Path) -> list[str | None]:
        """The ids by row; None for a dead row. Raises IndexCorrupt."""
        try:
            ids = msgspec.json.decode(self.content["ids"], type=list[str | None])
        except msgspec.DecodeError as e:
            raise IndexCorrupt(f"{path}: the ids cannot be read ({e}): {REMEDY}") from e
        live = [name for name in ids if name is not None]
        if len(set(live)) != len(live):
            raise IndexCorrupt(f"{path} names a product twice: {REMEDY}")
        return ids


def is_file_name(name: str) -> bool:
    """Whether a name from elsewhere is that of a file in its folder, and leads nowhere else."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def read_manifest(path: Path) -> Manifest:
    """The manifest of the snapshot in the folder `path`. Raises IndexCorrupt."""
    try:
        raw = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise IndexCorrupt(f"{path} holds no index snapshot ({MANIFEST} is missing): {REMEDY}") from e
    try:
        head = msgspec.json.decode(raw)
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise IndexCorrupt(f"{path / MANIFEST} is not the manifest of a Freshet item index: name another folder")
        if head.get("format_version") != FORMAT_VERSION:
            version = head.get("format_version")
            raise IndexCorrupt(f"{path} has format version {version!r}, this release reads {FORMAT_VERSION}: {REMEDY}")
        manifest = msgspec.convert(head, Manifest)
    except (msgspec.DecodeError, msgspec.ValidationError) as e:
        raise IndexCorrupt(f"{path / MANIFEST} is damaged ({e}): {REMEDY}") from e
    if manifest.blake2b != manifest.digest():
        raise IndexCorrupt(f"{path / MANIFEST} is damaged (its checksum differs): {REMEDY}")
    if not all(is_file_name(entry.name) for entry in manifest.files.values()):
        raise IndexCorrupt(f"{path / MANIFEST} names a file outside its folder: {REMEDY}")
    return manifest


def read_snapshot(path: Path, kind: str, dim: int) -> tuple[Manifest, SnapshotFiles]:
    """Manifest and checked contents of a snapshot of this kind and dimension. Raises IndexCorrupt."""
    manifest = read_manifest(path)
    for _ in range(3):
        if manifest.kind != kind:
            raise IndexCorrupt(f"{path} holds an index of kind {manifest.kind!r}, not {kind!r}: make one of that kind")
        if manifest.dim != dim:
            raise IndexCorrupt(f"{path} holds vectors of dimension {manifest.dim}, not {dim}: it is of another model")
        roles = {"ids", "graph" if kind == "hnsw" else "vectors"}
        if set(manifest.files) != roles:
            named = sorted(manifest.files)
            raise IndexCorrupt(f"{path / MANIFEST} names the files {named}, not {sorted(roles)}: {REMEDY}")
        try:
            return manifest, SnapshotFiles({role: _checked(path, entry) for role, entry in manifest.files.items()})
        except FileNotFoundError as e:
            again = read_manifest(path)
            if again == manifest:
                raise IndexCorrupt(f"{path}: the file {Path(e.filename).name} is missing: {REMEDY}") from e
            manifest = again  # a newer snapshot took its place while this one was read
    raise IndexCorrupt(f"{path} is replaced faster than it can be read: snapshot less often")


def _checked(path: Path, entry: FileEntry) -> bytes:
    data = (path / entry.name).read_bytes()
    if len(data) != entry.size_bytes:
        raise IndexCorrupt(f"{path / entry.name} has {len(data)} bytes, not {entry.size_bytes}: {REMEDY}")
    if _digest(data) != entry.blake2b:
        raise IndexCorrupt(f"{path / entry.name} is damaged (its checksum differs): {REMEDY}")
    return data


def write_snapshot(path: Path, kind: str, dim: int, model_version: str, files: SnapshotFiles) -> None:
    """Write a snapshot into the folder `path`, replacing the one that is there. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(6)
    entries, written = {}, []
    try:
        for role, data in files.content.items():
            name = f"{role}-{token}{SUFFIX[role]}"
            written.append(path / name)
            _write_synced(path / name, data)
            entries[role] = FileEntry(name, len(data), _digest(data))
        manifest = Manifest(FORMAT, FORMAT_VERSION, kind, dim, model_version, entries)
        manifest = msgspec.structs.replace(manifest, blake2b=manifest.digest())
        temporary = path / f"{MANIFEST}.{token}"
        written.append(temporary)
        _write_synced(temporary, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        _sync_folder(path)
        os.replace(temporary, path / MANIFEST)
    except BaseException:
        for leftover in written:
            leftover.unlink(missing_ok=True)
        raise
    _sync_folder(path)
    _drop_old(path, {entry.name for entry in entries.values()})


def _drop_old(path: Path, current: set[str]) -> None:
    """Delete data files of former snapshots, and what a crash may have left."""
    for found in path.iterdir():
        role = found.name.split("-")[0]
        old_data = role in SUFFIX and found.suffix == SUFFIX[role] and found.name not in current
        if old_data or found.name.startswith(f"{MANIFEST}."):
            found.unlink(missing_ok=True)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
