"""The bytes of a value: what readers in any language get, and that nothing damaged is taken for a value."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.errors import FreshetError
from freshet.store.value import SEQ_CHARS, SEQ_PLACE, EmbeddingValue, Seq, ValueCorrupt, decode_value, encode_value

SEQ = Seq(1_763_900_000_123, 42)
VECTOR = np.array([0.5, -0.25, 3e-8], dtype="<f4")
RECENT = [("tea", "purchase", 1_763_900_000_000), ("käse", "view", 1_763_800_000_000)]
BOUGHT = [("tea", 3, 1_763_900_000_000, 1.75), ("brot", 1, 1_763_700_000_000, 1.0)]


def value(**changes: Any) -> bytes:
    parts: dict[str, Any] = {
        "v": VECTOR.tobytes(), "dim": 3, "model": "m1", "seq": SEQ, "event_ts": 1_763_900_000_000,
        "written_ts": 1_763_900_000_005, "src": ("freshet.events.view", 3, 17), "recent": RECENT,
        "bought": BOUGHT,
    }  # fmt: skip
    return encode_value(**{**parts, **changes})


def entries(**changes: Any) -> dict[str, Any]:
    """The map of a value, `seq` first; a change to `...` drops the entry."""
    made = {**msgpack.unpackb(value()), **changes}
    return {name: content for name, content in made.items() if content is not ...}


def packed(content: Any) -> bytes:
    out: bytes = msgpack.packb(content)
    return out


def test_the_bytes_are_the_documented_ones() -> None:
    lists = [("p", "view", 3)], [("p", 2, 3, 1.5)]
    short = encode_value(struct.pack("<f", 1.0), 1, "m", Seq(7, 9), -1, 5, None, *lists)
    assert short == (
        b"\x89"
        b"\xa3seq\xd9\x210000000000000007.0000000000000009"
        b"\xa1v\xc4\x04\x00\x00\x80\x3f"
        b"\xa3dim\x01"
        b"\xa5model\xa1m"
        b"\xa8event_ts\xff"
        b"\xaawritten_ts\x05"
        b"\xa3src\xc0"
        b"\xa6recent\x91\x93\xa1p\xa4view\x03"
        b"\xa6bought\x91\x94\xa1p\x02\x03\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00"
    )
    written = short.replace(b"\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00", b"\xca\x3f\xc0\x00\x00")  # a float32
    assert decode_value(written).bought == [("p", 2, 3, 1.5)]


def test_another_library_reads_it_and_seq_stands_at_its_place() -> None:
    raw = value()
    assert msgpack.unpackb(raw) == {
        "seq": "0001763900000123.0000000000000042", "v": VECTOR.tobytes(), "dim": 3, "model": "m1",
        "event_ts": 1_763_900_000_000, "written_ts": 1_763_900_000_005, "src": ["freshet.events.view", 3, 17],
        "recent": [list(entry) for entry in RECENT], "bought": [list(entry) for entry in BOUGHT],
    }  # fmt: skip
    assert raw[SEQ_PLACE : SEQ_PLACE + SEQ_CHARS] == SEQ.text().encode()


def test_decoding_gives_back_what_was_encoded() -> None:
    found = decode_value(value())
    assert found.vector.dtype == np.float32
    np.testing.assert_array_equal(found.vector, VECTOR)
    assert (found.seq, found.model) == (SEQ, "m1")
    assert (found.event_ts, found.written_ts) == (1_763_900_000_000, 1_763_900_000_005)
    assert (found.src, found.recent) == (("freshet.events.view", 3, 17), RECENT)
    assert found.bought == BOUGHT


def test_a_value_of_another_library_is_read_too_and_further_entries_do_no_harm() -> None:
    assert decode_value(packed(entries(colour="blue"))).recent == RECENT


names = st.text(max_size=64)
times = st.integers(-1, 2**53)


@given(
    vector=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    model=names,
    seq=st.builds(Seq, st.integers(0, 10**16 - 1), st.integers(0, 10**16 - 1)),
    event_ts=times,
    src=st.none() | st.tuples(names, st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1)),
    recent=st.lists(st.tuples(names, st.sampled_from(["view", "purchase"]), times), max_size=20),
    bought=st.lists(st.tuples(names, st.integers(1, 2**16), times, st.floats(1, 2**16)), max_size=20),
)
def test_any_value_survives_the_round_trip(
    vector: list[float], model: str, seq: Seq, event_ts: int, src: tuple[str, int, int] | None,
    recent: list[tuple[str, str, int]], bought: list[tuple[str, int, int, float]],
) -> None:  # fmt: skip
    rows = np.array(vector, dtype="<f4")
    found = decode_value(encode_value(rows.tobytes(), len(vector), model, seq, event_ts, 1, src, recent, bought))
    np.testing.assert_array_equal(found.vector, rows)
    assert (found.model, found.seq, found.event_ts, found.src, found.recent) == (model, seq, event_ts, src, recent)
    assert found.bought == bought


def test_a_value_that_was_cut_short_is_refused_wherever_it_ends() -> None:
    for kept in range(len(value())):
        with pytest.raises(ValueCorrupt):
            decode_value(value()[:kept])


@pytest.mark.parametrize("name", list(entries()))
def test_a_missing_entry_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ValueCorrupt, match=name):
        decode_value(packed(entries(**{name: ...})))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not an embedding value"),
        (b"\xc1", "not an embedding value"),
        (b"hello", "not an embedding value"),
        (packed([1, 2]), "not an embedding value"),
        (value() + b"\x00", "not an embedding value"),
        (value(v=VECTOR.tobytes()[:-1]), "v holds 11 bytes and dim is 3"),
        (value(dim=4), "v holds 12 bytes and dim is 4"),
        (value(v=b"", dim=0), "dim is 0"),
        (value(v=b"", dim=-1), "dim is -1"),
        (value(v=np.array([1, np.nan, 1], "<f4").tobytes()), "not finite"),
        (value(v=np.array([1, 1, -np.inf], "<f4").tobytes()), "not finite"),
        (packed(entries(seq="0000000000000001.1")), "16 digits"),
        (packed(entries(seq="٠" * 16 + "." + "٠" * 16)), "16 digits"),
        (packed(entries(seq=12)), "not an embedding value"),
        (packed(entries(dim="3")), "not an embedding value"),
        (packed(entries(model=b"\xff\xfe")), "not an embedding value"),
        (packed(entries(src=["topic", 1])), "not an embedding value"),
        (packed(entries(recent=[["tea", "view"]])), "not an embedding value"),
        (packed(entries(bought=[["tea", 3, 1_763_900_000_000]])), "not an embedding value"),
        (packed(dict(reversed(entries().items()))), "seq is not the first entry"),
        (b"\x88\xa3seq\xa3\xff\xfe\xfd" + value()[40:], "not an embedding value"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(ValueCorrupt, match=says):
        decode_value(raw)


@given(place=st.integers(0, len(value()) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_a_value_or_one_clear_error(place: int, bit: int) -> None:
    raw = bytearray(value())
    raw[place] ^= 1 << bit
    try:
        assert isinstance(decode_value(bytes(raw)), EmbeddingValue)
    except ValueCorrupt as e:
        assert isinstance(e, FreshetError)


@given(raw=st.binary(max_size=200))
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueCorrupt):
        decode_value(raw)


@pytest.mark.parametrize("seq", [Seq(-1, 0), Seq(0, -1), Seq(10**16, 0), Seq(0, 10**16)])
def test_a_seq_that_does_not_fit_is_never_written(seq: Seq) -> None:
    with pytest.raises(ValueError, match="16 digits"):
        value(seq=seq)
