"""Valid bytes and valid JSON, spoilt in the ways that files and records are spoilt, by accident and on purpose."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

SIZES = [b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f"]
FLOATS = [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f"]
MSGPACK = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1",
           b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\x00" * 7,
           b"\xcb\x7f\xf8" + b"\x00" * 6, b"\xcb\x7f\xf0" + b"\x00" * 6]  # fmt: skip
JSON = [b"NaN", b"-Infinity", b"1e999", b"-1", b"null", b"{}", b"[]", b'""', b'"\\ud800"', b"\xff\xfe", b"9" * 400,
        b"[" * 2_000, b'{"a":' * 2_000, b"\xef\xbb\xbf", b"true", b"1.5"]  # fmt: skip
ODD: list[Any] = [
    None, True, -1, 0, 1, 1.5, 2**31, 2**63, 2**64, 2**70, -(2**63), 1e39, 1e308, float("nan"), float("inf"), "", "x",
    "\ud800", "\x00", "../x", "/dev/zero", [], {}, [[]], [1], [None], {"a": 1},
]  # fmt: skip


@st.composite
def spoilt_bytes(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of the originals with a few changes: bytes turned, cut out, put in, repeated, spliced with another's."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 24))
        change = draw(st.integers(0, 6))
        if change == 0 and data:
            data[at % len(data)] ^= 1 << draw(st.integers(0, 7))
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = draw(st.sampled_from(MSGPACK + JSON + SIZES))
        elif change == 3:
            put = draw(st.sampled_from(MSGPACK + FLOATS + SIZES))
            data[at : at + len(put)] = put
        elif change == 4:
            data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
        elif change == 5:
            other = draw(st.sampled_from(originals))
            data[at:] = other[draw(st.integers(0, len(other))) :]
        else:
            data[at : at + length] = draw(st.binary(max_size=24))
    return bytes(data)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value; of a list the first few."""
    yield above
    parts = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places(part, (*above, name))


@st.composite
def spoilt_json(draw: st.DrawFn, original: Any) -> Any:
    """The value with something in one or two places that does not belong there, or with an entry less or more."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(list(places(value))))
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        if not place:
            value = odd if draw(st.integers(0, 9)) == 0 else value
            continue
        holder = value
        for step in place[:-1]:
            holder = holder[step]
        change = draw(st.integers(0, 3))
        if change == 0:
            del holder[place[-1]]
        elif change == 1 and isinstance(holder, list):
            holder.append(holder[place[-1]])
        elif change == 2 and isinstance(holder, dict):
            holder[draw(st.sampled_from(["x", "", *map(str, holder)]))] = odd
        else:
            holder[place[-1]] = odd
    return value


def dumped(value: Any) -> bytes:
    """As JSON, in the spelling of Python's own module, which writes NaN and lone surrogates."""
    return json.dumps(value).encode()
