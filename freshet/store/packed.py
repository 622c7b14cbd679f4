"""The values of many users at once, packed by a compiled loop: names are packed once and copied after that.

The same bytes could be had from `encode_value`, one value after another; numbers have a fixed width here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.store import value_kernels
from freshet.store.columns import F32, I32, I64
from freshet.store.ids import IdMap
from freshet.store.lists import grown
from freshet.store.recent import KINDS, Bought, Recent
from freshet.store.value import SEQ_CHARS, SEQ_DIGITS, Seq

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Sources:
    """The record that named each of n users last: `topic` [n] a place in `topics` (-1 unknown), `partition` [n] int32,
    `offset` [n] int64."""

    topics: Sequence[str]
    topic: NDArray[np.int16]
    partition: I32
    offset: I64


class ValuePacker:
    """Packs values of one model version; learns the ids of products as the map of them grows."""

    def __init__(self, products: IdMap, model_version: str, dim: int) -> None:
        self._ids = products
        self._model_version, self._dim = model_version, dim
        self._start: I64 = np.zeros(1025, dtype=np.int64)
        self._bytes: U8 = np.zeros(16_384, dtype=np.uint8)
        self._known = 0
        self._kinds = _joined([msgspec.msgpack.encode(kind) for kind in KINDS])

    def pack(
        self, vectors: F32, fences: I64, step: int, written_ms: int, sources: Sources, seen: Recent, found: Bought
    ) -> list[bytes]:
        """The values of n users: `vectors` [n, dim], the token of each, and what is said of each besides.

        Raises ValueError for a token or a step that has no place in a `seq`.
        """
        n = fences.shape[0]
        if not n:
            return []
        self._learn()
        for fence in int(fences.min()), int(fences.max()):
            text = Seq(fence, step).text()
        fixed, fixed_start = _joined(self._between(text[SEQ_DIGITS:], written_ms))
        topics = [b"\x93" + msgspec.msgpack.encode(topic) for topic in sources.topics]
        src, src_start = _joined([*topics, msgspec.msgpack.encode(None)])
        known = sources.topic >= 0
        topic = np.where(known, sources.topic, len(topics)).astype(np.int64)
        raw: U8 = np.ascontiguousarray(vectors, dtype="<f4").view(np.uint8)
        size = np.diff(src_start)[topic] + np.where(known, value_kernels.OF_RECORD, 0)
        size += fixed.shape[0] + SEQ_DIGITS + raw.shape[1] + value_kernels.OF_INT64
        ends = np.empty(n, dtype=np.int64)
        kinds, kind_start = self._kinds
        value_kernels.value_ends(size, seen.product, seen.kind, found.product, self._start, kind_start, ends)
        out = np.empty(ends[-1], dtype=np.uint8)
        value_kernels.pack_values(
            fixed, fixed_start, raw, fences, seen.event_time, src, src_start, topic, sources.partition, sources.offset,
            seen.product, seen.kind, seen.time, found.product, found.count, found.time,
            found.decayed.view(np.uint32), self._bytes, self._start, kinds, kind_start, ends, out,
        )  # fmt: skip
        whole, at = out.tobytes(), ends.tolist()
        return [whole[start:end] for start, end in zip([0, *at], at, strict=False)]

    def _between(self, step: str, written_ms: int) -> list[bytes]:
        """What stands before the token, the vector, the newest event, the source and each list."""
        pack, size = msgspec.msgpack.encode, 4 * self._dim
        return [
            b"\x89" + pack("seq") + pack(" " * SEQ_CHARS)[:-SEQ_CHARS],
            step.encode() + pack("v") + pack(bytes(size))[:-size],
            pack("dim") + pack(self._dim) + pack("model") + pack(self._model_version) + pack("event_ts"),
            pack("written_ts") + pack(written_ms) + pack("src"),
            pack("recent"),
            pack("bought"),
        ]

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


def _joined(parts: Sequence[bytes]) -> tuple[U8, I64]:
    """Parts one after another, and where each begins and the last ends."""
    start = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return np.frombuffer(b"".join(parts), dtype=np.uint8), start
