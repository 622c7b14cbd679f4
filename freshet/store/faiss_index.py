"""FAISS: the only file that imports it.

The flat index is exact; a vector is moved by writing its row. HNSW can neither move nor remove, so a moved
or removed vector leaves a tombstone that searches skip, and past a share of them the graph is rebuilt in a
thread and swapped in. Adding beside a search would crash the process: one lock, held by either.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from freshet.store.columns import F32, I64, Bool
from freshet.store.index import Index, Rows, SearchResult, checked
from freshet.store.index_files import read_vectors, write_vectors
from freshet.store.index_settings import IndexSettings


def make_index(settings: IndexSettings, dim: int) -> Index:
    """The index that the settings ask for, empty."""
    return FaissHnswIndex(dim, settings) if settings.kind == "hnsw" else FaissFlatIndex(dim)


class FaissFlatIndex:
    """Exact search over rows without gaps."""

    kind = "flat"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._lock = threading.RLock()
        self._rows = Rows()
        self._index: Any = faiss.IndexFlatIP(dim)

    def __len__(self) -> int:
        return len(self._rows.names)

    def ids(self) -> list[str]:
        """See `VectorTable.ids`."""
        with self._lock:
            return list(self._rows.names)

    def get(self, ids: Sequence[str]) -> tuple[F32, Bool]:
        """See `VectorTable.get`."""
        with self._lock:
            rows = np.array([self._rows.row.get(name, -1) for name in ids], dtype=np.int64)
            out = np.zeros((len(ids), self.dim), dtype=np.float32)
            there = rows >= 0
            if there.any():
                out[there] = self._vectors()[rows[there]]
            return out, there

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """See `ItemIndex.upsert`."""
        names, rows = checked(ids, vectors, self.dim)
        if not names:
            return
        with self._lock:
            places, new = self._rows.place(names)
            if new.any():
                self._index.add(rows[new])
            if not new.all():
                self._vectors()[places[~new]] = rows[~new]

    def remove(self, ids: Sequence[str]) -> None:
        """See `ItemIndex.remove`."""
        with self._lock:
            for name in ids:
                moved = self._rows.remove(name)
                if moved is None:
                    continue
                vectors = self._vectors()
                vectors[moved[0]] = vectors[moved[1]]
                self._index.remove_ids(np.array([moved[1]], dtype=np.int64))

    def search(
        self, vectors: F32, k: int, allowed: Collection[str] | None = None,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> SearchResult:  # fmt: skip
        """See `ItemIndex.search`; a filter is exact."""
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        with self._lock:
            out = SearchResult([], [])
            within = None if allowed is None else self._rows.numbers(allowed)
            for i in range(queries.shape[0]):
                without = None if excluded is None else self._rows.numbers(excluded[i])
                found, scores = _search(self._index, queries[i : i + 1], k, len(self), within, without)
                out.ids.append([self._rows.names[j] for j in found])
                out.scores.append(scores)
            return out

    def snapshot(self, path: Path, model_version: str) -> None:
        """See `ItemIndex.snapshot`."""
        with self._lock:
            ids, vectors = self.ids(), self._vectors().copy()
        write_vectors(path, self.kind, model_version, ids, vectors)

    def load(self, path: Path) -> str:
        """See `ItemIndex.load`."""
        version, ids, vectors = read_vectors(path, self.dim)
        with self._lock:
            self._rows = Rows()
            self._index = faiss.IndexFlatIP(self.dim)
            self.upsert(ids, vectors)
        return version

    def _vectors(self) -> F32:
        """The rows of the index itself, [n, dim]: writing here moves vectors. Stale after the next add."""
        if not self._index.ntotal:
            return np.zeros((0, self.dim), dtype=np.float32)
        size = self._index.ntotal * self.dim
        view: F32 = faiss.rev_swig_ptr(self._index.get_xb(), size).reshape(-1, self.dim)
        return view


class FaissHnswIndex:
    """Approximate search; `_alive` maps a row of the graph to its id, -1 to a tombstone."""

    kind = "hnsw"

    def __init__(self, dim: int, settings: IndexSettings | None = None) -> None:
        self.dim = dim
        self.settings = settings or IndexSettings(kind="hnsw")
        self.rebuilds = 0
        self._lock = threading.RLock()
        self._reset()
        self._rebuild: threading.Thread | None = None

    def _reset(self) -> None:
        self._index = self._empty()
        self._row: dict[str, int] = {}
        self._name: list[str | None] = []
        self._epoch = getattr(self, "_epoch", 0) + 1

    def _empty(self) -> Any:
        index = faiss.IndexHNSWFlat(self.dim, self.settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self.settings.hnsw_ef_construction
        index.hnsw.efSearch = self.settings.hnsw_ef_search
        return index

    def __len__(self) -> int:
        return len(self._row)

    def ids(self) -> list[str]:
        """See `VectorTable.ids`."""
        with self._lock:
            return list(self._row)

    def get(self, ids: Sequence[str]) -> tuple[F32, Bool]:
        """See `VectorTable.get`."""
        with self._lock:
            out, there = np.zeros((len(ids), self.dim), dtype=np.float32), np.zeros(len(ids), dtype=np.bool_)
            for i, name in enumerate(ids):
                row = self._row.get(name)
                if row is not None:
                    out[i], there[i] = self._index.reconstruct(row), True
            return out, there

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """See `ItemIndex.upsert`."""
        names, rows = checked(ids, vectors, self.dim)
        if not names:
            return
        with self._lock:
            for name in names:
                self._bury(name)
            start = self._index.ntotal
            self._index.add(rows)
            self._name.extend(names)
            self._row.update(zip(names, range(start, start + len(names)), strict=True))
        self._rebuild_if_due()

    def remove(self, ids: Sequence[str]) -> None:
        """See `ItemIndex.remove`."""
        with self._lock:
            for name in ids:
                self._bury(name)
        self._rebuild_if_due()

    def search(
        self, vectors: F32, k: int, allowed: Collection[str] | None = None,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> SearchResult:  # fmt: skip
        """See `ItemIndex.search`."""
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        with self._lock:
            out = SearchResult([], [])
            dead = [row for row, name in enumerate(self._name) if name is None]
            within = None if allowed is None else self._numbers(allowed)
            for i in range(queries.shape[0]):
                hidden = dead if excluded is None else [*dead, *self._numbers(excluded[i]).tolist()]
                without = np.array(hidden, dtype=np.int64) if hidden else None
                found, scores = _search(self._index, queries[i : i + 1], k, self._index.ntotal, within, without)
                out.ids.append([self._name[j] or "" for j in found])
                out.scores.append(scores)
            return out

    def snapshot(self, path: Path, model_version: str) -> None:
        """See `ItemIndex.snapshot`."""
        with self._lock:
            ids = self.ids()
            vectors, _ = self.get(ids)
        write_vectors(path, self.kind, model_version, ids, vectors)

    def load(self, path: Path) -> str:
        """See `ItemIndex.load`."""
        version, ids, vectors = read_vectors(path, self.dim)
        with self._lock:
            self._reset()
            self.upsert(ids, vectors)
        return version

    def wait_for_rebuild(self) -> None:
        """Return when no rebuild is under way."""
        thread = self._rebuild
        if thread is not None:
            thread.join()

    def _numbers(self, ids: Collection[str]) -> I64:
        return np.array([self._row[name] for name in ids if name in self._row], dtype=np.int64)

    def _bury(self, name: str) -> None:
        row = self._row.pop(name, None)
        if row is not None:
            self._name[row] = None

    def _rebuild_if_due(self) -> None:
        with self._lock:
            tombstones = len(self._name) - len(self._row)
            under_way = self._rebuild is not None and self._rebuild.is_alive()
            if under_way or tombstones <= self.settings.tombstone_share_max * max(1, len(self._name)):
                return
            names = list(self._row)
            vectors, _ = self.get(names)
            self._rebuild = threading.Thread(
                target=self._build, args=(names, vectors, self._epoch), name="freshet-hnsw", daemon=True
            )
            self._rebuild.start()

    def _build(self, names: list[str], vectors: F32, epoch: int) -> None:
        """Build a graph without tombstones beside the live one, bring it up to date, swap it in."""
        fresh = self._empty()
        fresh.add(vectors)
        held: list[str | None] = list(names)
        row = {name: i for i, name in enumerate(names)}
        with self._lock:
            if epoch != self._epoch:
                return
            for name, i in list(row.items()):
                if name not in self._row:
                    held[i] = None
                    del row[name]
            current = list(self._row)
            now, _ = self.get(current)
            built = np.stack([vectors[row[n]] if n in row else np.full(self.dim, np.nan, np.float32) for n in current])
            moved = np.flatnonzero((built != now).any(axis=1)) if current else np.zeros(0, dtype=np.int64)
            for i in moved.tolist():
                old = row.pop(current[i], None)
                if old is not None:
                    held[old] = None
                row[current[i]] = len(held)
                held.append(current[i])
            if moved.shape[0]:
                fresh.add(now[moved])
            self._index, self._row, self._name = fresh, row, held
            self.rebuilds += 1


def _search(
    index: Any, query: F32, k: int, size: int, within: I64 | None, without: I64 | None
) -> tuple[list[int], F32]:
    """Rows and scores of one query [1, dim], best first; `within` and `without` are rows."""
    most = min(k, size)
    if most <= 0 or (within is not None and not within.shape[0]):
        return [], np.zeros(0, dtype=np.float32)
    selector = None
    if within is not None:
        allowed = np.setdiff1d(within, without) if without is not None else within
        if not allowed.shape[0]:
            return [], np.zeros(0, dtype=np.float32)
        selector = faiss.IDSelectorBatch(allowed)
    elif without is not None and without.shape[0]:
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(without))
    if isinstance(index, faiss.IndexHNSWFlat):
        params: Any = faiss.SearchParametersHNSW(sel=selector, efSearch=max(index.hnsw.efSearch, 2 * most))
    else:
        params = faiss.SearchParameters(sel=selector) if selector is not None else None
    scores, rows = index.search(query, most, params=params)
    found = rows[0] >= 0
    return rows[0][found].tolist(), scores[0][found]
