"""Item indexes on FAISS: which kinds there are, and the exact one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from freshet.store.columns import F32, I64
from freshet.store.faiss_search import exact
from freshet.store.hnsw_index import FaissHnswIndex
from freshet.store.index import ItemIndex, MemoryItemIndex, checked_vectors
from freshet.store.index_settings import IndexSettings
from freshet.store.index_snapshot import IndexCorrupt, SnapshotFiles, read_manifest, read_snapshot, write_snapshot
from freshet.store.row_index import RowIndex, rows_of

__all__ = ["FaissFlatIndex", "FaissHnswIndex", "make_index", "open_index"]


def make_index(settings: IndexSettings, dim: int) -> ItemIndex:
    """An empty index of the kind that the settings name, for vectors [dim]."""
    return FaissHnswIndex(dim, settings) if settings.kind == "hnsw" else FaissFlatIndex(dim)


def open_index(path: Path, settings: IndexSettings | None = None) -> tuple[ItemIndex, str]:
    """The index in a snapshot folder, of the kind and dimension it was taken with, and its model version.

    Raises IndexCorrupt.
    """
    manifest = read_manifest(path)
    index: ItemIndex
    if manifest.kind == FaissFlatIndex.kind:
        index = FaissFlatIndex(manifest.dim)
    elif manifest.kind == FaissHnswIndex.kind:
        index = FaissHnswIndex(manifest.dim, settings)
    elif manifest.kind == MemoryItemIndex.kind:
        index = MemoryItemIndex(manifest.dim)
    else:
        raise IndexCorrupt(f"{path} holds an index of the unknown kind {manifest.kind!r}: a newer release wrote it?")
    return index, index.load(path)


class FaissFlatIndex(RowIndex):
    """Exact search over rows [n, dim] that stay dense: a product moves in place, and a removed one's row is
    filled with the last. The scan is FAISS's, over an array that is ours, so moving a vector costs a copy."""

    kind = "flat"

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._table: F32 = np.empty((0, dim), dtype=np.float32)
        self._names: list[str] = []
        self._row_of: dict[str, int] = {}

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """See ItemIndex."""
        names, rows = checked_vectors(ids, vectors, self.dim)
        with self._lock.write():
            for name in names:
                if name not in self._row_of:
                    self._row_of[name] = len(self._names)
                    self._names.append(name)
            self._reserve(len(self._names))
            self._table[[self._row_of[name] for name in names]] = rows

    def remove(self, ids: Collection[str]) -> None:
        """See ItemIndex."""
        with self._lock.write():
            gone = sorted({self._row_of.pop(name) for name in ids if name in self._row_of})
            left = len(self._names) - len(gone)
            holes = [row for row in gone if row < left]
            movers = sorted(set(range(left, len(self._names))) - set(gone))
            self._table[holes] = self._table[movers]
            for hole, mover in zip(holes, movers, strict=True):
                self._names[hole] = self._names[mover]
                self._row_of[self._names[hole]] = hole
            del self._names[left:]

    def snapshot(self, path: Path, model_version: str) -> None:
        """See ItemIndex."""
        with self._lock.read():
            files = SnapshotFiles.of(self._names, self._vectors())
        write_snapshot(path, self.kind, self.dim, model_version, files)

    def load(self, path: Path) -> str:
        """See ItemIndex."""
        manifest, files = read_snapshot(path, self.kind, self.dim)
        names, rows = files.rows(self.dim, path)
        with self._lock.write():
            self._names, self._table = names, rows
            self._row_of = dict(zip(names, range(len(names))))
        return manifest.model_version

    # --- parts ----------------------------------------------------------------------------------

    def _numbering(self) -> tuple[dict[str, int], Sequence[str | None]]:
        return self._row_of, self._names

    def _vectors(self) -> F32:
        return self._table[: len(self._names)]

    def _nearest(self, queries: F32, k: int, allowed: Collection[str] | None) -> tuple[F32, I64]:
        if allowed is None:
            return exact(queries, self._vectors(), k)
        rows = rows_of(self._row_of, allowed)
        scores, found = exact(queries, self._table[rows], k)
        return scores, rows[found]

    def _reserve(self, rows: int) -> None:
        if rows > self._table.shape[0]:
            larger = np.empty((max(rows, 2 * self._table.shape[0], 1024), self.dim), dtype=np.float32)
            larger[: self._table.shape[0]] = self._table
            self._table = larger
