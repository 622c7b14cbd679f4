"""The value of a user (and of a product in the changelog): one MessagePack map, `seq` first.

`seq` is fixed-width text at a fixed place, so the guard in Redis reads it with a GETRANGE of a few bytes and
need not unpack anything. `docs/reading.md` is the same for readers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError

SEQ_DIGITS = 16
SEQ_CHARS = 2 * SEQ_DIGITS + 1
SEQ_PLACE = 7
"""Where the text of `seq` begins in a value: map head, key (4 bytes), head of the text (2 bytes)."""

_SEQ = re.compile(rf"(\d{{{SEQ_DIGITS}}})\.(\d{{{SEQ_DIGITS}}})")


class ValueCorrupt(FreshetError):
    """Bytes that are no value, or not a whole one."""


class Seq(NamedTuple):
    """Who wrote a value and when in its life: a fencing token, and a step that grows with every write."""

    fence: int
    step: int

    def text(self) -> str:
        """33 characters that compare as the numbers do."""
        return f"{self.fence:016d}.{self.step:016d}"

    @staticmethod
    def parse(text: str) -> Seq:
        """The inverse of `text`. Raises ValueCorrupt."""
        found = _SEQ.fullmatch(text)
        if found is None:
            raise ValueCorrupt(f"seq {text!r} is not two numbers of {SEQ_DIGITS} digits")
        return Seq(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class EmbeddingValue:
    """A value, decoded: `vector` [dim] float32; times in ms; `src` the event that came last, if it is known;
    `recent` (product, kind, timestamp), newest first."""

    seq: Seq
    vector: NDArray[np.float32]
    model: str
    event_ts: int
    written_ts: int
    src: tuple[str, int, int] | None
    recent: list[tuple[str, str, int]]


class _Raw(msgspec.Struct, gc=False):
    """The map as it stands; the order of the fields is the order of the bytes."""

    seq: str
    v: bytes
    dim: int
    model: str
    event_ts: int
    written_ts: int
    src: tuple[str, int, int] | None
    recent: Sequence[tuple[str, str, int]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Raw)


def encode_value(
    v: bytes, dim: int, model: str, seq: Seq, event_ts: int, written_ts: int,
    src: tuple[str, int, int] | None, recent: Sequence[tuple[str, str, int]],
) -> bytes:  # fmt: skip
    """The bytes of a value; `v` are `dim` little-endian float32."""
    return _encoder.encode(_Raw(seq.text(), v, dim, model, event_ts, written_ts, src, recent))


def decode_value(raw: bytes) -> EmbeddingValue:
    """The value of these bytes. Raises ValueCorrupt for anything that is not a whole, finite value."""
    try:
        found = _decoder.decode(raw)
    except msgspec.MsgspecError as e:
        raise ValueCorrupt(f"not an embedding value: {e}") from e
    if len(found.v) != 4 * found.dim:
        raise ValueCorrupt(f"v holds {len(found.v)} bytes, {found.dim} dimensions need {4 * found.dim}")
    vector = np.frombuffer(found.v, dtype="<f4").astype(np.float32, copy=False)
    if not np.isfinite(vector).all():
        raise ValueCorrupt("v holds a number that is not finite")
    return EmbeddingValue(
        Seq.parse(found.seq), vector, found.model, found.event_ts, found.written_ts, found.src, list(found.recent)
    )


def seq_text(raw: bytes) -> bytes:
    """The text of `seq` in a value, without decoding it."""
    return raw[SEQ_PLACE : SEQ_PLACE + SEQ_CHARS]
