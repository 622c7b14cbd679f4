"""What stands in Redis and in the changelog: a value, or `ValueCorrupt`."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from freshet.store.ranker import Ranker, RankerCorrupt, dump_ranker, load_ranker
from freshet.store.value import EmbeddingValue, Seq, ValueCorrupt, decode_value, encode_value, seq_text
from tests.fuzz.budget import fuzzed
from tests.fuzz.mutate import spoilt_bytes

VECTOR = np.array([0.5, -0.25, 3e-8], dtype="<f4")
VALUES = [
    encode_value(
        VECTOR.tobytes(), 3, "m1", Seq(7, 42), 1_763_900_000_000, 1_763_900_000_005, src,
        [("tea", "purchase", 1_763_900_000_000)] * n, [("tea", 3, 1_763_900_000_000)] * n,
    )
    for src, n in ((None, 0), (("view", 3, 17), 20))
]  # fmt: skip


@fuzzed(600)
@given(spoilt_bytes(VALUES))
def test_a_spoilt_value_is_a_value_or_refused(raw: bytes) -> None:
    assert len(seq_text(raw)) in (0, 33)
    try:
        found = decode_value(raw)
    except ValueCorrupt:
        return
    assert isinstance(found, EmbeddingValue) and np.isfinite(found.vector).all()
    assert seq_text(raw) == found.seq.text().encode()


@fuzzed(200)
@given(spoilt_bytes([dump_ranker(Ranker(again={"tea": 0.5, "mug": -1.25}))]))
def test_a_spoilt_ranker_is_a_ranker_or_refused(raw: bytes) -> None:
    try:
        found = load_ranker(raw)
    except RankerCorrupt:
        return
    assert all(np.isfinite(value) for value in [*vars(found.weights).values(), *found.again.values()])
