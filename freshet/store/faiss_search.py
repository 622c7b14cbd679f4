"""The only file that imports faiss: exact search in an array, and HNSW graphs over numbered rows.

FAISS accepts an id twice, cannot remove from HNSW, and crashes where a vector is added beside a search. So ids,
tombstones and locks are the business of those who call.
"""

from __future__ import annotations

from typing import Any, Self

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from freshet.store.columns import F32, I64, Bool
from freshet.store.index_settings import IndexSettings

faiss: Any = _faiss  # its stubs know only the signatures of C++, not those that Python sees


def exact(queries: F32, table: F32, k: int) -> tuple[F32, I64]:
    """Scores and rows [q, min(k, rows)] of the greatest inner products, greatest first."""
    k = min(k, table.shape[0])
    if not k or not queries.shape[0]:
        return np.empty((queries.shape[0], k), dtype=np.float32), np.empty((queries.shape[0], k), dtype=np.int64)
    scores, rows = faiss.knn(queries, table, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, rows


def use_one_thread() -> None:
    """Keep FAISS to one core, for the calling thread alone."""
    faiss.omp_set_num_threads(1)


class Hnsw:
    """One HNSW graph over rows [n, dim] that never change and are never taken out. No locking."""

    def __init__(self, dim: int, settings: IndexSettings, index: Any = None) -> None:
        made = faiss.IndexHNSWFlat(dim, settings.hnsw_m, faiss.METRIC_INNER_PRODUCT) if index is None else index
        self.dim = dim
        self._index: Any = made
        self._index.hnsw.efConstruction = settings.hnsw_ef_construction

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, rows: F32) -> None:
        """Insert rows [n, dim] after those that are there."""
        self._index.add(rows)

    def vectors(self) -> F32:
        """All rows [n, dim]; valid until the next addition."""
        n = len(self)
        if not n:
            return np.empty((0, self.dim), dtype=np.float32)
        flat: F32 = faiss.rev_swig_ptr(self._storage().get_xb(), n * self.dim)
        return flat.reshape(n, self.dim)

    def search(self, queries: F32, k: int, ef: int, chosen: Bool | None) -> tuple[F32, I64]:
        """Scores and rows [q, k] among the rows that are `chosen` [n] (None: all), greatest first.

        `ef` candidates are looked at. -1 stands where fewer than k rows are chosen, and only there.
        """
        selector = None
        if chosen is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
        scores, found = self._index.search(queries, k, params=faiss.SearchParametersHNSW(sel=selector, efSearch=ef))
        short = np.flatnonzero(found[:, -1] < 0)
        if short.shape[0]:  # a part of the graph that cannot be reached any more
            params = faiss.SearchParameters(sel=selector)
            scores[short], found[short] = self._storage().search(queries[short], k, params=params)
        return scores, found

    def serialized(self) -> NDArray[np.uint8]:
        """The graph with its vectors in FAISS's own format."""
        data: NDArray[np.uint8] = faiss.serialize_index(self._index)
        return data

    @classmethod
    def deserialized(cls, data: bytes, dim: int, settings: IndexSettings) -> Self:
        """The inverse of `serialized`. Raises ValueError where that is no such graph of vectors [dim]."""
        if data[:4] != b"IHNf":  # FAISS reads many kinds, some of which name other files
            raise ValueError(f"the graph is no HNSW graph of dimension {dim}")
        try:
            index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        except RuntimeError as e:
            raise ValueError(f"FAISS cannot read the graph ({str(e).splitlines()[-1]})") from e
        if not isinstance(index, faiss.IndexHNSWFlat) or index.d != dim:
            raise ValueError(f"the graph is no HNSW graph of dimension {dim}")
        return cls(dim, settings, index)

    def _storage(self) -> Any:
        return faiss.downcast_index(self._index.storage)
