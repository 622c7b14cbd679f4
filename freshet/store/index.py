"""The item index: vectors of products by id, and the greatest inner products with a query.

Vectors are float32 [dim]. Embeddings are L2-normalised, so the inner product is the cosine, but nothing here
relies on it: a vector of zeros is a vector, and scores 0 with everything.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freshet.errors import FreshetError
from freshet.store.columns import F32, Bool
from freshet.store.index_snapshot import IndexCorrupt, SnapshotFiles, read_snapshot, write_snapshot

__all__ = ["IndexCorrupt", "InvalidVectors", "ItemIndex", "MemoryItemIndex", "SearchResult", "VectorTable"]


class InvalidVectors(FreshetError):
    """Vectors, ids or a search that an index cannot take; the message names what is wrong with them.

    The index is as it was before.
    """


@dataclass(frozen=True)
class SearchResult:
    """What q queries found: `ids[i]` and `scores[i]` (float32, inner products) of query i, greatest first.

    Query i has at most k; fewer where fewer products qualify. Equal scores come in any order.
    """

    ids: list[list[str]]
    scores: list[F32]


class VectorTable(Protocol):
    """The vectors of an index, by id."""

    def get(self, ids: Sequence[str]) -> tuple[F32, Bool]:
        """Copies of the vectors [n, dim], and whether each id is present [n]; absent ones are zeros."""
        ...

    def __len__(self) -> int:
        """Products in the index."""
        ...

    def ids(self) -> list[str]:
        """All ids, in any order."""
        ...


class ItemIndex(VectorTable, Protocol):
    """Any number of threads may use one index at once.

    A search beside an update sees each product as it was before or as it is after, never torn and never
    twice; it does not see the whole of an update at once.
    """

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """Insert or move products to `vectors` [n, dim]. Of an id given twice, the last counts.

        Raises InvalidVectors, and changes nothing, where shapes do not fit or a vector is not finite.
        """
        ...

    def remove(self, ids: Collection[str]) -> None:
        """Take products out. Unknown ids are ignored."""
        ...

    def search(
        self,
        vectors: F32,
        k: int,
        allowed: Collection[str] | None = None,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> SearchResult:
        """The k greatest inner products with each of `vectors` [q, dim].

        Only products in `allowed` are found (None: all), and for query i none in `excluded[i]`. Ids that the
        index does not hold are ignored in both. Raises InvalidVectors for shapes that do not fit, values that
        are not finite and k below 1.
        """
        ...

    def snapshot(self, path: Path, model_version: str) -> None:
        """Write the index into the folder `path`, which then holds either the former snapshot or this one,
        also after a crash. Raises OSError where it cannot be written."""
        ...

    def load(self, path: Path) -> str:
        """Replace the contents by those of a snapshot; returns its model version.

        Raises IndexCorrupt, and changes nothing, where it is missing, damaged, or of another kind or dimension.
        """
        ...


# --- checks that all implementations share ------------------------------------------------------


def checked_vectors(ids: Sequence[str], vectors: ArrayLike, dim: int) -> tuple[list[str], F32]:
    """Unique ids [m] and their vectors [m, dim], contiguous; of an id given twice, the last.

    Raises InvalidVectors.
    """
    rows = _finite_rows(vectors, dim, ids)
    if rows.shape[0] != len(ids):
        raise InvalidVectors(f"{len(ids)} ids came with {rows.shape[0]} vectors: give one vector an id")
    last = dict(zip(ids, range(len(ids))))
    if len(last) < len(ids):
        rows = rows[np.fromiter(last.values(), dtype=np.int64, count=len(last))]
    return list(last), rows


def checked_search(vectors: ArrayLike, k: int, excluded: Sequence[Collection[str]] | None, dim: int) -> F32:
    """Contiguous queries [q, dim]. Raises InvalidVectors."""
    queries = _finite_rows(vectors, dim, None)
    if k < 1:
        raise InvalidVectors(f"k is {k}: ask for at least one product")
    if excluded is not None and len(excluded) != queries.shape[0]:
        raise InvalidVectors(
            f"excluded has {len(excluded)} sets for {queries.shape[0]} queries: give one set a query, empty if need be"
        )
    return queries


def _finite_rows(vectors: ArrayLike, dim: int, ids: Sequence[str] | None) -> F32:
    try:
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as e:
        raise InvalidVectors(f"the vectors are not an array of numbers: {e}") from e
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise InvalidVectors(f"vectors have the shape {list(rows.shape)}: this index takes [n, {dim}]")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        name = f" (id {ids[row]!r})" if ids is not None and row < len(ids) else ""
        raise InvalidVectors(f"vector {row}{name} has a value that is not a finite float32 number")
    return rows


def kept(names: Iterable[str], scores: NDArray[np.float32], k: int, excluded: Collection[str]) -> tuple[list[str], F32]:
    """The first k of candidates sorted by score that are not excluded."""
    out, places = [], []
    for place, name in enumerate(names):
        if name not in excluded:
            out.append(name)
            places.append(place)
            if len(out) == k:
                break
    return out, scores[places]


# --- the twin in memory -------------------------------------------------------------------------


class MemoryItemIndex:
    """An ItemIndex in plain NumPy: exact, linear, and simple enough to be what others are compared with."""

    kind = "memory"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._vectors: dict[str, F32] = {}
        self._lock = threading.Lock()

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """See ItemIndex."""
        names, rows = checked_vectors(ids, vectors, self.dim)
        with self._lock:
            self._vectors.update(zip(names, rows.copy()))

    def remove(self, ids: Collection[str]) -> None:
        """See ItemIndex."""
        with self._lock:
            for name in ids:
                self._vectors.pop(name, None)

    def search(
        self,
        vectors: F32,
        k: int,
        allowed: Collection[str] | None = None,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> SearchResult:
        """See ItemIndex."""
        queries = checked_search(vectors, k, excluded, self.dim)
        with self._lock:
            wanted = set(self._vectors) if allowed is None else self._vectors.keys() & set(allowed)
            names = [name for name in self._vectors if name in wanted]
            table = self._stack(names)
        scores = queries @ table.T
        result = SearchResult([], [])
        for i, row in enumerate(scores):
            order = np.argsort(-row, kind="stable")
            found = kept([names[j] for j in order], row[order], k, set(excluded[i]) if excluded else ())
            result.ids.append(found[0])
            result.scores.append(found[1])
        return result

    def snapshot(self, path: Path, model_version: str) -> None:
        """See ItemIndex."""
        with self._lock:
            names = list(self._vectors)
            table = self._stack(names)
        write_snapshot(path, self.kind, self.dim, model_version, SnapshotFiles.of(names, table))

    def load(self, path: Path) -> str:
        """See ItemIndex."""
        manifest, files = read_snapshot(path, self.kind, self.dim)
        names, table = files.rows(self.dim, path)
        with self._lock:
            self._vectors = dict(zip(names, table))
        return manifest.model_version

    def get(self, ids: Sequence[str]) -> tuple[F32, Bool]:
        """See VectorTable."""
        out = np.zeros((len(ids), self.dim), dtype=np.float32)
        with self._lock:
            present = np.array([name in self._vectors for name in ids], dtype=np.bool_)
            for i, name in enumerate(ids):
                out[i] = self._vectors.get(name, 0.0)
        return out, present

    def __len__(self) -> int:
        return len(self._vectors)

    def ids(self) -> list[str]:
        """See VectorTable."""
        with self._lock:
            return list(self._vectors)

    def _stack(self, names: list[str]) -> F32:
        if not names:
            return np.zeros((0, self.dim), dtype=np.float32)
        return np.stack([self._vectors[name] for name in names])
