"""The value of a user (and of a product in the changelog): one MessagePack map, `seq` first.

`seq` is fixed-width text at a fixed place, so the guard in Redis reads it with a GETRANGE of a few bytes and
need not unpack anything. `docs/reading.md` is the same for readers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError

SEQ_DIGITS = 16
SEQ_CHARS = 2 * SEQ_DIGITS + 1
SEQ_PLACE = 7
"""Where the text of `seq` begins in a value: map head, key (4 bytes), head of the text (2 bytes)."""

SEQ_HEADER = "freshet-seq"
"""Header of an empty value in the changelog of products that holds its `seq`."""
MODEL_HEADER = "freshet-model"
"""Header of such a value that holds the model version of who wrote it."""

_SEQ = re.compile(rf"([0-9]{{{SEQ_DIGITS}}})\.([0-9]{{{SEQ_DIGITS}}})")
_SEQ_BYTES = re.compile(_SEQ.pattern.encode())


class ValueCorrupt(FreshetError):
    """Bytes that are no value, or not a whole one."""


class Seq(NamedTuple):
    """Who wrote a value and when in its life: a fencing token, and a step that grows with every write."""

    fence: int
    step: int

    def text(self) -> str:
        """33 characters that compare as the numbers do. Raises ValueError for a number of over 16 digits."""
        return _text(self)

    @staticmethod
    def parse(text: str) -> Seq:
        """The inverse of `text`. Raises ValueCorrupt."""
        found = _SEQ.fullmatch(text)
        if found is None:
            raise ValueCorrupt(f"seq {text!r} is not two numbers of {SEQ_DIGITS} digits")
        return Seq(int(found[1]), int(found[2]))


@lru_cache(maxsize=4096)  # the values of a batch carry one a partition
def _text(seq: Seq) -> str:
    if not all(0 <= number < 10**SEQ_DIGITS for number in seq):
        raise ValueError(f"{seq} cannot be written: both numbers have to be from 0 to {SEQ_DIGITS} digits")
    return f"{seq.fence:0{SEQ_DIGITS}d}.{seq.step:0{SEQ_DIGITS}d}"


@dataclass(frozen=True, eq=False)
class EmbeddingValue:
    """A value, decoded: `vector` [dim] float32, read-only; `event_ts` (-1 none) and `written_ts` in ms since the
    epoch; `src` (topic, partition, offset) of the event that came last, if it is known; `recent` (product, kind,
    timestamp in ms), newest first; `bought` (product, how often, timestamp of the last time in ms, how often
    lately: each time counts half for every 30 days before the last), alike."""

    seq: Seq
    vector: NDArray[np.float32]
    model: str
    event_ts: int
    written_ts: int
    src: tuple[str, int, int] | None
    recent: list[tuple[str, str, int]]
    bought: list[tuple[str, int, int, float]]


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
    bought: Sequence[tuple[str, int, int, float]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Raw)


def encode_value(
    v: bytes, dim: int, model: str, seq: Seq, event_ts: int, written_ts: int,
    src: tuple[str, int, int] | None, recent: Sequence[tuple[str, str, int]],
    bought: Sequence[tuple[str, int, int, float]] = (),
) -> bytes:  # fmt: skip
    """The bytes of a value; `v` are `dim` little-endian float32, `recent` and `bought` are newest first."""
    return _encoder.encode(_Raw(_text(seq), v, dim, model, event_ts, written_ts, src, recent, bought))


def decode_value(raw: bytes) -> EmbeddingValue:
    """The value of these bytes. Raises ValueCorrupt for anything that is not a whole, finite value."""
    try:
        found = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ValueCorrupt(f"not an embedding value: {e}") from e
    seq = Seq.parse(found.seq)
    if seq_text(raw) != found.seq.encode():
        raise ValueCorrupt("seq is not the first entry, where the guard in Redis reads it")
    if found.dim < 1 or len(found.v) != 4 * found.dim:
        raise ValueCorrupt(f"v holds {len(found.v)} bytes and dim is {found.dim}; v holds 4 bytes a dimension")
    vector = np.frombuffer(found.v, dtype="<f4").astype(np.float32, copy=False)
    if not np.isfinite(vector).all():
        raise ValueCorrupt("v holds a number that is not finite")
    lists = list(found.recent), list(found.bought)
    return EmbeddingValue(seq, vector, found.model, found.event_ts, found.written_ts, found.src, *lists)


def seq_text(raw: bytes) -> bytes:
    """The text of `seq` in a value, without decoding it; b"", which guards nothing, where there is none."""
    text = raw[SEQ_PLACE : SEQ_PLACE + SEQ_CHARS]
    return text if _SEQ_BYTES.fullmatch(text) else b""
