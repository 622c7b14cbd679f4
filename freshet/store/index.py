"""The item index: what Freshet needs of one, and the exact twin in memory that all others are tested against."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.columns import F32, Bool
from freshet.store.index_files import read_vectors, write_vectors


class IndexInputError(FreshetError):
    """Vectors that cannot go into the index."""


@dataclass(frozen=True)
class SearchResult:
    """For each query the ids found, best first, and their inner products; as many as there are, at most k."""

    ids: list[list[str]]
    scores: list[F32]


class ItemIndex(Protocol):
    """Vectors by id under the inner product. One writer, any number of searches beside it."""

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """Insert or move n vectors [n, dim]; of an id named twice the last counts."""
        ...

    def remove(self, ids: Sequence[str]) -> None:
        """Take ids out; unknown ones are passed over."""
        ...

    def search(
        self, vectors: F32, k: int, allowed: Collection[str] | None = None,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> SearchResult:  # fmt: skip
        """The k best of each query [q, dim]: among `allowed`, if given, and without the query's `excluded`."""
        ...

    def snapshot(self, path: Path, model_version: str) -> None:
        """Write everything to the folder `path`, whole or not at all."""
        ...

    def load(self, path: Path) -> str:
        """Replace everything by a snapshot; returns its model version. Raises IndexCorrupt."""
        ...


class VectorTable(Protocol):
    """Reading back what an index holds."""

    def ids(self) -> list[str]:
        """Every id in the index."""
        ...

    def get(self, ids: Sequence[str]) -> tuple[F32, Bool]:
        """Vectors [n, dim] (zeros where absent) and which are there [n]."""
        ...

    def __len__(self) -> int: ...


class Index(ItemIndex, VectorTable, Protocol):
    """Both."""


def checked(ids: Sequence[str], vectors: F32, dim: int) -> tuple[list[str], F32]:
    """Vectors as float32, of an id named twice the last. Raises IndexInputError."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape != (len(ids), dim):
        raise IndexInputError(f"expected vectors of shape ({len(ids)}, {dim}), got {rows.shape}")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise IndexInputError(f"the vector of {ids[int(np.argmin(finite))]!r} holds a number that is not finite")
    last = {name: i for i, name in enumerate(ids)}
    if len(last) == len(ids):
        return list(ids), rows
    return list(last), rows[list(last.values())]


class Rows:
    """Ids in rows without gaps: a removed row is filled by the last one."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.row: dict[str, int] = {}

    def place(self, ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of distinct `ids`, appending new ones; and which are new."""
        rows, new = np.empty(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.bool_)
        for i, name in enumerate(ids):
            row = self.row.get(name)
            if row is None:
                row = self.row[name] = len(self.names)
                self.names.append(name)
                new[i] = True
            rows[i] = row
        return rows, new

    def remove(self, name: str) -> tuple[int, int] | None:
        """Take a name out; returns (its row, the row that moves into it), equal when it was the last."""
        row = self.row.pop(name, None)
        if row is None:
            return None
        last = len(self.names) - 1
        moved = self.names.pop()
        if row != last:
            self.names[row] = moved
            self.row[moved] = row
        return row, last

    def numbers(self, ids: Collection[str]) -> NDArray[np.int64]:
        """Rows of those of `ids` that are there."""
        found = [self.row[name] for name in ids if name in self.row]
        return np.array(found, dtype=np.int64)


class MemoryItemIndex:
    """The exact index in NumPy: the twin for unit tests and the oracle of the contract suite."""

    kind = "memory"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._rows = Rows()
        self._vectors: F32 = np.zeros((0, dim), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._rows.names)

    def ids(self) -> list[str]:
        """See `VectorTable.ids`."""
        return list(self._rows.names)

    def get(self, ids: Sequence[str]) -> tuple[F32, Bool]:
        """See `VectorTable.get`."""
        out, there = np.zeros((len(ids), self.dim), dtype=np.float32), np.zeros(len(ids), dtype=np.bool_)
        for i, name in enumerate(ids):
            row = self._rows.row.get(name)
            if row is not None:
                out[i], there[i] = self._vectors[row], True
        return out, there

    def upsert(self, ids: Sequence[str], vectors: F32) -> None:
        """See `ItemIndex.upsert`."""
        names, rows = checked(ids, vectors, self.dim)
        places, _ = self._rows.place(names)
        if len(self) > self._vectors.shape[0]:
            room = np.zeros((2 * len(self), self.dim), dtype=np.float32)
            room[: self._vectors.shape[0]] = self._vectors
            self._vectors = room
        self._vectors[places] = rows

    def remove(self, ids: Sequence[str]) -> None:
        """See `ItemIndex.remove`."""
        for name in ids:
            moved = self._rows.remove(name)
            if moved is not None:
                self._vectors[moved[0]] = self._vectors[moved[1]]

    def search(
        self, vectors: F32, k: int, allowed: Collection[str] | None = None,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> SearchResult:  # fmt: skip
        """See `ItemIndex.search`."""
        scores = np.asarray(vectors, dtype=np.float32) @ self._vectors[: len(self)].T
        out = SearchResult([], [])
        for i, row in enumerate(scores):
            keep = np.ones(len(self), dtype=np.bool_)
            if allowed is not None:
                keep[:] = False
                keep[self._rows.numbers(allowed)] = True
            if excluded is not None:
                keep[self._rows.numbers(excluded[i])] = False
            found = np.flatnonzero(keep)
            best = found[np.argsort(-row[found], kind="stable")[:k]]
            out.ids.append([self._rows.names[j] for j in best])
            out.scores.append(row[best])
        return out

    def snapshot(self, path: Path, model_version: str) -> None:
        """See `ItemIndex.snapshot`."""
        write_vectors(path, self.kind, model_version, self.ids(), self._vectors[: len(self)])

    def load(self, path: Path) -> str:
        """See `ItemIndex.load`."""
        version, ids, vectors = read_vectors(path, self.dim)
        self._rows, self._vectors = Rows(), np.zeros((0, self.dim), dtype=np.float32)
        self.upsert(ids, vectors)
        return version
