"""Item indexes on FAISS: flat (exact) and HNSW. The only file that imports faiss.

FAISS accepts an id twice, cannot remove from HNSW, crashes where a vector is added beside a search, and loads
a damaged file in silence. So ids live here and never in FAISS, which knows rows alone; dead HNSW rows stay as
tombstones until a rebuild; a lock keeps additions and searches apart; snapshots carry checksums.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from freshet.store.columns import F32, I64, Bool
from freshet.store.index import ItemIndex, MemoryItemIndex, SearchResult, checked_search, checked_vectors, kept
from freshet.store.index_settings import IndexSettings
from freshet.store.index_snapshot import IndexCorrupt, SnapshotFiles, read_manifest, read_snapshot, write_snapshot
from freshet.store.read_write_lock import ReadWriteLock

faiss: Any = _faiss  # its stubs know only the signatures of C++, not those that Python sees
log = logging.getLogger(__name__)

DRAIN_ROUNDS_MAX = 4
"""Rounds in which a rebuilt graph takes over what changed meanwhile while writers go on; the last stops them."""


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


# --- flat ---------------------------------------------------------------------------------------


class FaissFlatIndex:
    """Exact search over rows [n, dim] that stay dense: a product moves in place, and a removed one's row is
    filled with the last. The scan is FAISS's, over an array that is ours, so moving a vector costs a copy."""

    kind = "flat"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._rows: F32 = np.empty((0, dim), dtype=np.float32)
        self._names: list[str] = []
        self._row_of: dict[str, int] = {}
        self._lock = ReadWriteLock()

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """See ItemIndex."""
        names, rows = checked_vectors(ids, vectors, self.dim)
        with self._lock.write():
            for name in names:
                if name not in self._row_of:
                    self._row_of[name] = len(self._names)
                    self._names.append(name)
            self._reserve(len(self._names))
            self._rows[[self._row_of[name] for name in names]] = rows

    def remove(self, ids: Collection[str]) -> None:
        """See ItemIndex."""
        with self._lock.write():
            gone = sorted({self._row_of.pop(name) for name in ids if name in self._row_of})
            left = len(self._names) - len(gone)
            holes = [row for row in gone if row < left]
            movers = sorted(set(range(left, len(self._names))) - set(gone))
            self._rows[holes] = self._rows[movers]
            for hole, mover in zip(holes, movers, strict=True):
                self._names[hole] = self._names[mover]
                self._row_of[self._names[hole]] = hole
            del self._names[left:]

    def search(
        self,
        vectors: F32,
        k: int,
        allowed: Collection[str] | None = None,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> SearchResult:
        """See ItemIndex."""
        queries = checked_search(vectors, k, excluded, self.dim)
        with self._lock.read():
            rows = None if allowed is None else _rows_of(self._row_of, allowed)
            table = self._rows[: len(self._names)] if rows is None else self._rows[rows]
            scores, found = _exact(queries, table, _fetch(k, excluded))
            return _result(self._names, scores, found if rows is None else rows[found], k, excluded)

    def snapshot(self, path: Path, model_version: str) -> None:
        """See ItemIndex."""
        with self._lock.read():
            files = SnapshotFiles.of(self._names, self._rows[: len(self._names)])
        write_snapshot(path, self.kind, self.dim, model_version, files)

    def load(self, path: Path) -> str:
        """See ItemIndex."""
        manifest, files = read_snapshot(path, self.kind, self.dim)
        names, rows = files.rows(self.dim, path)
        with self._lock.write():
            self._names, self._rows = names, rows
            self._row_of = dict(zip(names, range(len(names))))
        return manifest.model_version

    def get(self, ids: Sequence[str]) -> tuple[F32, Bool]:
        """See VectorTable."""
        with self._lock.read():
            return _vectors_of(ids, self._row_of, self._rows, self.dim)

    def __len__(self) -> int:
        return len(self._names)

    def ids(self) -> list[str]:
        """See VectorTable."""
        with self._lock.read():
            return list(self._names)

    def _reserve(self, rows: int) -> None:
        if rows > self._rows.shape[0]:
            larger = np.empty((max(rows, 2 * self._rows.shape[0], 1024), self.dim), dtype=np.float32)
            larger[: self._rows.shape[0]] = self._rows
            self._rows = larger


# --- HNSW ---------------------------------------------------------------------------------------


class _Graph:
    """One HNSW graph with its ids. A row never changes: a product that moves gets a new one. No locking."""

    def __init__(self, dim: int, settings: IndexSettings, hnsw: Any = None) -> None:
        self.dim, self.settings = dim, settings
        made = faiss.IndexHNSWFlat(dim, settings.hnsw_m, faiss.METRIC_INNER_PRODUCT) if hnsw is None else hnsw
        self.hnsw: Any = made
        self.hnsw.hnsw.efConstruction = settings.hnsw_ef_construction
        self.names: list[str | None] = []
        self.row_of: dict[str, int] = {}
        self.dead = 0

    def vectors(self) -> F32:
        """All rows [rows, dim], dead ones too; valid until the next addition."""
        if not self.names:
            return np.empty((0, self.dim), dtype=np.float32)
        storage: Any = faiss.downcast_index(self.hnsw.storage)
        flat: F32 = faiss.rev_swig_ptr(storage.get_xb(), len(self.names) * self.dim)
        return flat.reshape(len(self.names), self.dim)

    def add(self, names: Sequence[str], rows: F32) -> None:
        """Insert products, or move them: the row they had before dies."""
        self.kill(names)
        for name in names:
            self.row_of[name] = len(self.names)
            self.names.append(name)
        self.hnsw.add(rows)

    def kill(self, names: Collection[str]) -> None:
        """Turn the rows of these products into tombstones."""
        for name in names:
            row = self.row_of.pop(name, None)
            if row is not None:
                self.names[row] = None
                self.dead += 1

    def live(self) -> tuple[list[str], F32]:
        """Ids and copies of their vectors, in the order of their rows."""
        rows = np.fromiter(self.row_of.values(), dtype=np.int64, count=len(self.row_of))
        return list(self.row_of), self.vectors()[rows]

    def search(self, queries: F32, k: int, allowed: Collection[str] | None) -> tuple[F32, I64]:
        """Scores and rows [q, at most k], greatest first; -1 where there is none."""
        rows = None if allowed is None else _rows_of(self.row_of, allowed)
        count = len(self.row_of) if rows is None else rows.shape[0]
        few = max(self.settings.hnsw_exact_below_rows, self.settings.hnsw_exact_below_share * len(self.row_of))
        if count <= self.settings.hnsw_exact_below_rows or (rows is not None and count < few):
            if rows is None:
                rows = np.fromiter(self.row_of.values(), dtype=np.int64, count=count)
            scores, found = _exact(queries, self.vectors()[rows], k)
            return scores, rows[found]
        k = min(k, count)
        selector = None if rows is None and not self.dead else self._selector(rows)
        # Dead and forbidden rows take up candidates, so there have to be as many more.
        ef = int(max(self.settings.hnsw_ef_search, k) * len(self.names) / count)
        scores, found = self.hnsw.search(queries, k, params=faiss.SearchParametersHNSW(sel=selector, efSearch=ef))
        short = np.flatnonzero(found[:, -1] < 0)
        if short.shape[0]:  # a part of the graph that cannot be reached any more
            storage = faiss.downcast_index(self.hnsw.storage)
            params = faiss.SearchParameters(sel=selector or self._selector(rows))
            scores[short], found[short] = storage.search(queries[short], k, params=params)
        return scores, found

    def _selector(self, rows: I64 | None) -> Any:
        chosen = np.zeros(len(self.names), dtype=np.bool_)
        chosen[list(self.row_of.values()) if rows is None else rows] = True
        return faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))


class FaissHnswIndex:
    """Approximate search by HNSW. Removed and moved products leave tombstones; when these pass a share, a
    thread builds a new graph and puts it in the place of the old one while searches and updates go on.
    """

    kind = "hnsw"

    def __init__(self, dim: int, settings: IndexSettings | None = None) -> None:
        self.dim = dim
        self._settings = settings or IndexSettings(kind="hnsw")
        self._graph = _Graph(dim, self._settings)
        self._lock = ReadWriteLock()  # searches against changes of the graph
        self._writing = threading.RLock()  # one writer at a time; taken before _lock
        self._changed_meanwhile: dict[str, F32 | None] | None = None
        self._rebuild: threading.Thread | None = None
        self._retry_at_dead = 0
        self.rebuilds = 0

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """See ItemIndex. A vector that is what it was costs nothing."""
        names, rows = checked_vectors(ids, vectors, self.dim)
        with self._writing:
            old, present = _vectors_of(names, self._graph.row_of, self._graph.vectors(), self.dim)
            changed = np.flatnonzero(~(present & (old == rows).all(axis=1)))
            step = self._settings.hnsw_rows_per_lock
            for start in range(0, changed.shape[0], step):
                part = changed[start : start + step]
                with self._lock.write():
                    self._graph.add([names[i] for i in part], rows[part])
            if self._changed_meanwhile is not None:
                self._changed_meanwhile.update((names[i], rows[i]) for i in changed)
            self._rebuild_if_due()

    def remove(self, ids: Collection[str]) -> None:
        """See ItemIndex."""
        with self._writing:
            with self._lock.write():
                self._graph.kill(ids)
            if self._changed_meanwhile is not None:
                self._changed_meanwhile.update((name, None) for name in ids)
            self._rebuild_if_due()

    def search(
        self,
        vectors: F32,
        k: int,
        allowed: Collection[str] | None = None,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> SearchResult:
        """See ItemIndex. Approximate, but never shorter than it has to be."""
        queries = checked_search(vectors, k, excluded, self.dim)
        with self._lock.read():
            scores, rows = self._graph.search(queries, _fetch(k, excluded), allowed)
            return _result(self._graph.names, scores, rows, k, excluded)

    def snapshot(self, path: Path, model_version: str) -> None:
        """See ItemIndex. Searches go on meanwhile; updates wait until the graph is copied."""
        with self._writing:
            files = SnapshotFiles.of_graph(self._graph.names, faiss.serialize_index(self._graph.hnsw))
        write_snapshot(path, self.kind, self.dim, model_version, files)

    def load(self, path: Path) -> str:
        """See ItemIndex."""
        manifest, files = read_snapshot(path, self.kind, self.dim)
        names = files.names(path)
        try:
            hnsw = faiss.deserialize_index(np.frombuffer(files.content["graph"], dtype=np.uint8))
        except RuntimeError as e:
            raise IndexCorrupt(f"{path}: FAISS cannot read the graph ({str(e).splitlines()[-1]})") from e
        if not isinstance(hnsw, faiss.IndexHNSWFlat) or hnsw.d != self.dim or hnsw.ntotal != len(names):
            raise IndexCorrupt(f"{path}: the graph does not fit the {len(names)} ids: take a new snapshot")
        graph = _Graph(self.dim, self._settings, hnsw)
        graph.names = names
        graph.row_of = {name: row for row, name in enumerate(names) if name is not None}
        graph.dead = len(names) - len(graph.row_of)
        with self._writing:
            with self._lock.write():
                self._graph = graph
            self._changed_meanwhile = None  # a rebuild under way is of the former contents
        return manifest.model_version

    def get(self, ids: Sequence[str]) -> tuple[F32, Bool]:
        """See VectorTable."""
        with self._lock.read():
            return _vectors_of(ids, self._graph.row_of, self._graph.vectors(), self.dim)

    def __len__(self) -> int:
        return len(self._graph.row_of)

    def ids(self) -> list[str]:
        """See VectorTable."""
        with self._lock.read():
            return list(self._graph.row_of)

    @property
    def tombstones(self) -> int:
        """Dead rows of the graph."""
        return self._graph.dead

    def wait_rebuilt(self, timeout_s: float | None = None) -> bool:
        """Wait until no rebuild is under way; False where it still is after `timeout_s`."""
        thread = self._rebuild
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    # --- the rebuild ----------------------------------------------------------------------------

    def _rebuild_if_due(self) -> None:
        """Start a rebuild where tombstones passed their share. The caller holds `_writing`."""
        graph, settings = self._graph, self._settings
        share = settings.hnsw_tombstone_share_max * len(graph.names)
        due = max(settings.hnsw_tombstones_min, share, self._retry_at_dead)
        if graph.dead >= due and (self._rebuild is None or not self._rebuild.is_alive()):
            self._changed_meanwhile = {}
            names, rows = graph.live()
            work = (names, rows, self._changed_meanwhile)
            self._rebuild = threading.Thread(
                target=self._run_rebuild, args=work, name="freshet-index-rebuild", daemon=True
            )
            self._rebuild.start()

    def _run_rebuild(self, names: list[str], rows: F32, changed: dict[str, F32 | None]) -> None:
        try:
            faiss.omp_set_num_threads(1)  # of this thread alone: searches keep the other cores
            graph = _Graph(self.dim, self._settings)
            graph.add(names, rows)
            for _ in range(DRAIN_ROUNDS_MAX):
                with self._writing:
                    taken = dict(changed)
                    changed.clear()
                _take_over(graph, taken)
                if len(taken) < self._settings.hnsw_rows_per_lock:
                    break
            with self._writing:
                if self._changed_meanwhile is changed:
                    _take_over(graph, changed)
                    with self._lock.write():
                        self._graph = graph
                    self._changed_meanwhile, self._retry_at_dead = None, 0
                    self.rebuilds += 1
        except Exception:
            with self._writing:
                if self._changed_meanwhile is changed:
                    self._changed_meanwhile = None
                self._retry_at_dead = 2 * self._graph.dead
            log.exception("rebuilding the item index failed; the former graph goes on")


def _take_over(graph: _Graph, changed: dict[str, F32 | None]) -> None:
    graph.kill([name for name, vector in changed.items() if vector is None])
    moved = {name: vector for name, vector in changed.items() if vector is not None}
    if moved:
        graph.add(list(moved), np.stack(list(moved.values())))


# --- rows and results ---------------------------------------------------------------------------


def _rows_of(row_of: dict[str, int], names: Collection[str]) -> I64:
    """Rows of those of `names` that are there, each once."""
    return np.array([row_of[name] for name in set(names) if name in row_of], dtype=np.int64)


def _vectors_of(ids: Sequence[str], row_of: dict[str, int], table: F32, dim: int) -> tuple[F32, Bool]:
    rows = np.fromiter((row_of.get(name, -1) for name in ids), dtype=np.int64, count=len(ids))
    present = rows >= 0
    out = np.zeros((len(ids), dim), dtype=np.float32)
    out[present] = table[rows[present]]
    return out, present


def _fetch(k: int, excluded: Sequence[Collection[str]] | None) -> int:
    """How many to ask for, so that k are left when the excluded ones are taken out."""
    return k + max((len(names) for names in excluded), default=0) if excluded is not None else k


def _exact(queries: F32, table: F32, k: int) -> tuple[F32, I64]:
    """Scores and rows [q, min(k, rows)] of the greatest inner products, greatest first."""
    k = min(k, table.shape[0])
    if not k or not queries.shape[0]:
        return np.empty((queries.shape[0], k), dtype=np.float32), np.empty((queries.shape[0], k), dtype=np.int64)
    scores, rows = faiss.knn(queries, table, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, rows


def _result(
    names: Sequence[str | None], scores: F32, rows: I64, k: int, excluded: Sequence[Collection[str]] | None
) -> SearchResult:
    result = SearchResult([], [])
    found: NDArray[np.bool_] = rows >= 0
    for i in range(rows.shape[0]):  # k ids of each query become strings
        row = rows[i][found[i]].tolist()
        without = frozenset(excluded[i]) if excluded is not None else frozenset()
        chosen = kept([names[j] or "" for j in row], scores[i][found[i]], k, without)
        result.ids.append(chosen[0])
        result.scores.append(chosen[1])
    return result
