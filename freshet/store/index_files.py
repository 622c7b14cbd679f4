"""Snapshots of an index: ids and vectors, and a manifest with checksums, swapped in by one rename.

FAISS reads a file with a flipped bit without a word, so it is not its format that is kept: vectors are
NumPy's, ids are JSON, and everything is checked before it is believed. A graph index is rebuilt from them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from freshet.errors import FreshetError
from freshet.store.columns import F32

FORMAT_VERSION = 1
MANIFEST = "index.json"


class IndexCorrupt(FreshetError):
    """A snapshot that cannot be used; the message names the file and what is wrong with it."""


def write_vectors(path: Path, kind: str, model_version: str, ids: list[str], vectors: F32) -> None:
    """Write a snapshot to the folder `path`, replacing what is there. Raises FreshetError when it cannot."""
    array = io.BytesIO()
    np.save(array, np.ascontiguousarray(vectors, dtype=np.float32), allow_pickle=False)
    files = {"vectors.npy": array.getvalue(), "ids.json": json.dumps(ids).encode()}
    head: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "model_version": model_version,
        "dim": int(vectors.shape[1]),
        "count": len(ids),
        "blake2b": {name: _digest(data) for name, data in files.items()},
    }
    head["self_blake2b"] = _digest(json.dumps(head, sort_keys=True).encode())
    files[MANIFEST] = json.dumps(head, indent=2, sort_keys=True).encode()
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            for name, data in files.items():
                with (temporary / name).open("wb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as e:
        raise FreshetError(f"cannot write the index snapshot at {path}: {e.strerror or e}") from e


def read_vectors(path: Path, dim: int | None) -> tuple[str, list[str], F32]:
    """Model version, ids and vectors of a snapshot of `dim` dimensions (None: any). Raises IndexCorrupt."""
    path = Path(path)
    try:
        head = json.loads(_read(path, MANIFEST))
        claimed = head.pop("self_blake2b")
        files, version = dict(head["blake2b"]), head["format_version"]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise IndexCorrupt(f"{path / MANIFEST} is not the manifest of an index snapshot: {e}") from e
    if version != FORMAT_VERSION:
        raise IndexCorrupt(f"{path / MANIFEST} has format version {version}; this Freshet reads {FORMAT_VERSION}")
    if claimed != _digest(json.dumps(head, sort_keys=True).encode()):
        raise IndexCorrupt(f"{path / MANIFEST} does not match its checksum; take another snapshot")
    data = {}
    for name, digest in files.items():
        data[name] = _read(path, name)
        if _digest(data[name]) != digest:
            raise IndexCorrupt(f"{path / name} does not match its checksum; take another snapshot")
    if dim is not None and head["dim"] != dim:
        raise IndexCorrupt(f"{path} holds vectors of {head['dim']} dimensions, not {dim}")
    vectors = np.load(io.BytesIO(data["vectors.npy"]), allow_pickle=False)
    return head["model_version"], json.loads(data["ids.json"]), vectors


def dim_of(path: Path) -> int:
    """Dimensions of the vectors of a snapshot. Raises IndexCorrupt."""
    return int(read_vectors(path, None)[2].shape[1])


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as e:
        raise IndexCorrupt(f"cannot read {path / name}: {e.strerror or e}; {path} is not a whole snapshot") from e


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()
