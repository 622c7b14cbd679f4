"""The lists of a value as MessagePack, packed for many users at once: names are packed once and copied after that."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.store import value_kernels
from freshet.store.columns import I32, I64
from freshet.store.ids import IdMap
from freshet.store.lists import grown
from freshet.store.recent import KINDS, Bought, Recent

U8 = NDArray[np.uint8]

OF_BOUGHT = 1 + 5 + 9 + 5
"""Bytes of an entry of `bought` besides the name: its head, a uint32, an int64 and a float32."""
OF_RECENT = 1 + 9
"""Bytes of an entry of `recent` besides both texts."""


class PackedNames:
    """The ids of a map, each as the MessagePack of its text, one after the other; grows with the map."""

    def __init__(self, ids: IdMap) -> None:
        self._ids = ids
        self._start: I64 = np.zeros(1025, dtype=np.int64)
        self._bytes: U8 = np.zeros(16_384, dtype=np.uint8)
        self._known = 0
        self._kinds = [msgspec.msgpack.encode(kind) for kind in KINDS]
        self._kind_size = np.array([len(k) for k in self._kinds], dtype=np.int64)
        self._kind_start = np.concatenate([[0], np.cumsum(self._kind_size)]).astype(np.int64)
        self._kind_bytes: U8 = np.frombuffer(b"".join(self._kinds), dtype=np.uint8).copy()

    def recent(self, seen: Recent) -> list[memoryview]:
        """Packed `[product, kind, time]` of each user of `seen`."""
        self._learn()
        ends = np.empty(seen.product.shape[0], dtype=np.int64)
        fixed = self._kind_size[seen.kind] + OF_RECENT
        value_kernels.packed_ends(seen.product, self._start, fixed, ends)
        out = np.empty(ends[-1] if ends.shape[0] else 0, dtype=np.uint8)
        value_kernels.pack_recent(
            seen.product, seen.kind, seen.time, self._start, self._bytes, self._kind_start, self._kind_bytes, ends, out
        )
        return _slices(out, ends)

    def bought(self, found: Bought) -> list[memoryview]:
        """Packed `[product, count, time, decayed]` of each user of `found`."""
        self._learn()
        ends = np.empty(found.product.shape[0], dtype=np.int64)
        fixed = np.full(found.product.shape, OF_BOUGHT, dtype=np.int64)
        value_kernels.packed_ends(found.product, self._start, fixed, ends)
        out = np.empty(ends[-1] if ends.shape[0] else 0, dtype=np.uint8)
        value_kernels.pack_bought(
            found.product, found.count, found.time, found.decayed.view(np.uint32), self._start, self._bytes, ends, out
        )
        return _slices(out, ends)

    def _learn(self) -> None:
        """Pack the ids that the map has learned since."""
        size = len(self._ids)
        if size == self._known:
            return
        new: I32 = np.arange(self._known, size, dtype=np.int32)
        packed = [msgspec.msgpack.encode(name or "") for name in self._ids.names(new)]
        begin = int(self._start[self._known])
        ends = begin + np.cumsum([len(p) for p in packed])
        self._start = grown(self._start, size + 1)
        self._bytes = grown(self._bytes, int(ends[-1]))
        self._start[self._known + 1 : size + 1] = ends
        self._bytes[begin : ends[-1]] = np.frombuffer(b"".join(packed), dtype=np.uint8)
        self._known = size


def _slices(data: U8, ends: I64) -> list[memoryview]:
    whole = memoryview(data.data)
    out: list[memoryview] = []
    start = 0
    for end in ends.tolist():
        out.append(whole[start:end])
        start = end
    return out
