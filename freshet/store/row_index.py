"""What the item indexes over numbered rows share: ids to rows and back, argument checks, and the search itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from freshet.store.columns import F32, I64, Bool
from freshet.store.index import SearchResult, checked_search, kept
from freshet.store.read_write_lock import ReadWriteLock


class RowIndex(ABC):
    """An ItemIndex but for updates and snapshots: a subclass says where rows stand and which are nearest."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._lock = ReadWriteLock()  # searches against changes of the rows

    @abstractmethod
    def _numbering(self) -> tuple[dict[str, int], Sequence[str | None]]:
        """The row of each id, and the id of each row (None: dead)."""

    @abstractmethod
    def _vectors(self) -> F32:
        """The vectors [rows, dim]; asked for under the lock, and used no longer."""

    @abstractmethod
    def _nearest(self, queries: F32, k: int, allowed: Collection[str] | None) -> tuple[F32, I64]:
        """Scores and rows [q, at most k], greatest first; -1 where there is none."""

    def search(
        self,
        vectors: F32,
        k: int,
        allowed: Collection[str] | None = None,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> SearchResult:
        """See ItemIndex."""
        queries = checked_search(vectors, k, excluded, self.dim)
        # So many that k are left when the excluded ones are taken out.
        fetch = k + max((len(names) for names in excluded or ()), default=0)
        with self._lock.read():
            scores, rows = self._nearest(queries, fetch, allowed)
            return _result(self._numbering()[1], scores, rows, k, excluded)

    def get(self, ids: Sequence[str]) -> tuple[F32, Bool]:
        """See VectorTable."""
        with self._lock.read():
            return vectors_of(ids, self._numbering()[0], self._vectors())

    def __len__(self) -> int:
        return len(self._numbering()[0])

    def ids(self) -> list[str]:
        """See VectorTable."""
        with self._lock.read():
            return list(self._numbering()[0])


def rows_of(row_of: dict[str, int], names: Collection[str]) -> I64:
    """Rows of those of `names` that are there, each once."""
    return np.array([row_of[name] for name in set(names) if name in row_of], dtype=np.int64)


def vectors_of(ids: Sequence[str], row_of: dict[str, int], table: F32) -> tuple[F32, Bool]:
    """Copies of the vectors [n, dim], zeros where absent, and whether each id is present [n]."""
    rows = np.fromiter((row_of.get(name, -1) for name in ids), dtype=np.int64, count=len(ids))
    present = rows >= 0
    out = np.zeros((len(ids), table.shape[1]), dtype=np.float32)
    out[present] = table[rows[present]]
    return out, present


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
