"""FAISS's own format of an HNSW graph over flat vectors, read to check it before FAISS does.

FAISS believes what it reads: a length that lies is allocated, and a link to a row that is not there is followed when
the graph is searched. So lengths are held against the bytes that are there, and links against the rows.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRAPH, FLAT = b"IHNf", b"IxFI"
INNER_PRODUCT = 0
EF_MAX = 1_000_000
LINKS_MAX = 100_000
"""Most links of one row, on all its levels."""
ROWS_AT_ONCE = 16_384
"""Rows whose links are checked together: bounds the memory of the check."""


class _Bytes:
    """Little-endian values and vectors, one after another. Raises ValueError where there are too few bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + form)
        if size > len(self.data) - self.at:
            raise ValueError("the graph ends too early")
        found = struct.unpack_from("<" + form, self.data, self.at)
        self.at += size
        return found

    def vector(self, dtype: str) -> NDArray[Any]:
        """A vector behind its length (uint64)."""
        (count,) = self.take("Q")
        size = np.dtype(dtype).itemsize
        if count > (len(self.data) - self.at) // size:
            raise ValueError(f"the graph states a vector of {count} numbers and does not hold them")
        found = np.frombuffer(self.data, dtype, count, self.at)
        self.at += count * size
        return found


def check_graph(data: bytes, dim: int) -> int:
    """How many rows the graph has, once all of it was found to fit together, for vectors [dim]. Raises ValueError."""
    source = _Bytes(data)
    rows = _head(source, GRAPH, dim)
    share, ends = source.vector("<f8"), source.vector("<i4")
    levels, offsets, links = source.vector("<i4"), source.vector("<u8"), source.vector("<i4")
    entry, top, ef_construction, ef_search, beam = source.take("iiiii")
    if not (0 < ef_construction <= EF_MAX and 0 < ef_search <= EF_MAX and beam == 1):
        raise ValueError("the graph has settings of a search that are none")
    if _head(source, FLAT, dim) != rows:
        raise ValueError("the graph has another number of rows than of vectors")
    vectors = source.vector("<f4")
    if vectors.shape[0] != rows * dim or source.at != len(data):
        raise ValueError(f"the graph does not hold {rows} vectors of dimension {dim}")
    if not np.isfinite(vectors).all():
        raise ValueError("the graph holds a vector that is not finite")
    _check_levels(share, ends, levels, rows)
    if rows:
        if not (0 <= entry < rows and 0 <= top < levels[entry]):
            raise ValueError("the graph is entered at a row that is not there")
    elif entry != -1:
        raise ValueError("the graph is empty and has an entry")
    _check_links(ends, levels, offsets, links, rows)
    return rows


def _head(source: _Bytes, name: bytes, dim: int) -> int:
    """The number of rows that the head of an index states."""
    (found,) = source.take("4s")
    d, rows, _, _, trained, metric = source.take("iqqq?i")
    if found != name or d != dim or metric != INNER_PRODUCT or not trained or rows < 0:
        raise ValueError(f"the graph is no HNSW graph of dimension {dim} by inner products")
    return int(rows)


def _check_levels(share: NDArray[Any], ends: NDArray[Any], levels: NDArray[Any], rows: int) -> None:
    """`ends` [levels + 1]: where the links of each level end among a row's; `levels` [rows]: how many a row has."""
    sound = ends.shape[0] == share.shape[0] + 1 > 1 and ends[0] == 0 and ends[-1] <= LINKS_MAX
    if not sound or not (ends[1:] > ends[:-1]).all() or not ((share >= 0) & (share <= 1)).all():
        raise ValueError("the graph has levels that are none")
    if levels.shape[0] != rows or not ((levels >= 1) & (levels < ends.shape[0])).all():
        raise ValueError("the graph has a row on a level that is not there")


def _check_links(
    ends: NDArray[Any], levels: NDArray[Any], offsets: NDArray[Any], links: NDArray[Any], rows: int
) -> None:
    """A link of some level leads to a row that is on this level, or nowhere (-1)."""
    sizes = ends[levels].astype(np.uint64)
    if offsets.shape[0] != rows + 1 or offsets[0] != 0 or (offsets[1:] != np.cumsum(sizes, dtype=np.uint64)).any():
        raise ValueError("the graph has links where no row has any")
    if offsets[-1] != links.shape[0]:
        raise ValueError("the graph does not hold the links it states")
    if links.size and not (links.min() >= -1 and links.max() < rows):
        raise ValueError("the graph has a link to a row that is not there")
    for first in range(0, rows, ROWS_AT_ONCE):
        last = min(rows, first + ROWS_AT_ONCE)
        start, end = int(offsets[first]), int(offsets[last])
        part, size = links[start:end], sizes[first:last].astype(np.int64)
        place = np.arange(end - start) - np.repeat(offsets[first:last].astype(np.int64) - start, size)
        level = np.searchsorted(ends, place, side="right") - 1
        if ((part >= 0) & (levels[np.maximum(part, 0)] <= level)).any():
            raise ValueError("the graph has a link to a row that is not on its level")
