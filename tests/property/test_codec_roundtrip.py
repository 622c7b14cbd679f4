"""What is encoded decodes to itself; a batch is judged as its records are one by one; no bytes raise."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.stream.codec import decode_record, encode, encode_record_key, validate
from freshet.stream.deadletter import from_deadletter, replay, to_deadletter
from freshet.stream.decode import decode, decode_events
from freshet.stream.events import Event, Kind, Line, Product, Profile, Purchase, Session, SessionItem, View
from freshet.stream.records import Record
from freshet.stream.rejection import Reason, Rejection
from freshet.stream.validate import KIND_OF

T = 1_764_000_000_000
KINDS = {kind.value: kind for kind in Kind}
ENCODINGS = ("application/json", "application/msgpack", "application/x-msgpack")

ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
labels = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
times = st.integers(T - 10**11, T)
amounts = st.none() | st.floats(0, 3e38)
lines = st.builds(Line, ids, amounts, amounts, st.booleans())
items = st.builds(SessionItem, ids, st.none() | st.integers(0, 2**31 - 1), st.none() | st.booleans())
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(View, ids, ids, ids, times, amounts),
    st.builds(Purchase, ids, ids, times, ids, amounts, amounts, st.none(), st.none() | ids, st.booleans()),
    st.builds(
        Purchase,
        event_id=ids,
        user_id=ids,
        timestamp=times,
        items=st.lists(lines, min_size=1, max_size=5).map(tuple),
        cancelled=st.booleans(),
    ),
    st.builds(Session, ids, ids, ids, times, st.none() | labels, amounts, st.lists(items, max_size=5).map(tuple)),
    st.builds(
        Product,
        ids,
        times,
        st.none() | st.lists(labels, max_size=8).map(tuple),
        st.none() | labels,
        amounts,
        st.none() | st.text(st.characters(codec="utf-8"), max_size=50),
        st.none() | st.lists(st.floats(-1e6, 1e6), max_size=5).map(tuple),
        st.booleans(),
    ),
    st.builds(
        Profile,
        ids,
        times,
        st.none() | labels,
        st.none() | labels,
        st.none() | st.dates().map(str),
        st.booleans(),
    ),
)


def record_of(event: Event, content_type: str) -> Record:
    headers = (("content-type", content_type.encode()),)
    topic = KIND_OF[type(event)].value
    return Record(topic, 0, 0, T, encode_record_key(event), encode(event, content_type), headers)


@given(events, st.sampled_from(ENCODINGS))
def test_what_is_encoded_decodes_to_itself(event: Event, content_type: str) -> None:
    assert validate(event, now_ms=T) is None
    assert decode_record(record_of(event, content_type), KIND_OF[type(event)]) == event


@given(st.lists(events, max_size=12), st.sampled_from(ENCODINGS))
def test_a_batch_and_a_log_give_the_same_columns(batch: list[Event], content_type: str) -> None:
    decoded = decode([record_of(e, content_type) for e in batch], KINDS)
    assert decoded.rejections == []
    assert sum(decoded.events.values()) == len(batch)
    logged = decode_events(batch)
    for table in ("views", "purchases", "sessions", "products", "profiles"):
        a, b = vars(getattr(decoded.columns, table)), vars(getattr(logged, table))
        for name in a:
            if isinstance(a[name], np.ndarray):
                np.testing.assert_array_equal(a[name], b[name])
            else:
                assert a[name] == b[name]


odd: st.SearchStrategy[Any] = st.sampled_from(
    [None, "", "x" * 257, "é" * 129, -1, 0, 1.5, 2**64 - 1, 1e39, float("nan"), True, [], {}]
)
fields = st.sampled_from([
    "event_id", "user_id", "product_id", "session_id", "timestamp", "dwell_time_s", "quantity", "items", "price",
    "category", "signup_date", "description_emb", "device", "no_such_field",
])  # fmt: skip
names = st.sampled_from(["content-type", "ce_type", "ce_id", "ce_time", "ce_specversion", "other"])
texts = st.sampled_from([
    None, b"", b"\xff", b"freshet.view", b"freshet.x", b"1.0", b"2", b"application/msgpack", b"application/json",
    b"2025-01-01T00:00:00Z", b"application/json; charset=latin-1",
])  # fmt: skip


@st.composite
def spoilt(draw: st.DrawFn) -> Record:
    """A record that was good once: a field changed, bytes cut, another key, header or timestamp."""
    event = draw(events)
    content_type = draw(st.sampled_from(ENCODINGS))
    record = record_of(event, content_type)
    raw: dict[str, Any] = msgspec.to_builtins(event)
    if draw(st.booleans()):
        raw[draw(fields)] = draw(odd)
        pack = msgspec.json.encode if content_type == ENCODINGS[0] else msgspec.msgpack.encode
        record = record._replace(value=pack(raw))
    change = draw(st.integers(0, 6))
    if change == 0:
        record = record._replace(value=(record.value or b"")[: draw(st.integers(0, 30))])
    elif change == 1:
        record = record._replace(key=draw(st.none() | st.binary(max_size=3)))
    elif change == 2:
        record = record._replace(headers=tuple(draw(st.lists(st.tuples(names, texts), max_size=3))))
    elif change == 3:
        record = record._replace(timestamp_ms=draw(st.sampled_from([-1, 0, T - 10**12, 2**62])))
    elif change == 4:
        record = record._replace(topic=draw(st.sampled_from(list(KINDS))))
    return record


@settings(max_examples=300)
@given(st.lists(spoilt(), min_size=1, max_size=8))
def test_a_batch_is_judged_as_its_records_one_by_one(records: list[Record]) -> None:
    records = [record._replace(offset=i) for i, record in enumerate(records)]
    decoded = decode(records, KINDS)
    single = [decode_record(record, KINDS[record.topic]) for record in records]
    assert decoded.rejections == [
        (record, outcome) for record, outcome in zip(records, single, strict=True) if isinstance(outcome, Rejection)
    ]
    accepted = [outcome for outcome in single if not isinstance(outcome, Rejection)]
    assert sum(decoded.events.values()) == len(accepted)
    assert decoded.columns.views.user == [e.user_id for e in accepted if isinstance(e, View)]
    rows = [i for i, e in enumerate(single) if isinstance(e, Product)]
    assert decoded.product_record.tolist() == rows
    for event in accepted:
        assert validate(event, now_ms=max(T, event.timestamp or 0)) is None


@pytest.mark.parametrize("kind", list(Kind))
@given(
    value=st.binary(max_size=60),
    headers=st.lists(st.tuples(names, st.none() | st.binary(max_size=12)), max_size=3),
)
def test_no_bytes_raise(kind: Kind, value: bytes, headers: list[tuple[str, bytes | None]]) -> None:
    outcome = decode_record(Record(kind.value, 0, 0, T, b"u", value, tuple(headers)), kind)
    assert not isinstance(outcome, Rejection) or (outcome.reason in Reason and outcome.message)


@given(st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=9), st.lists(st.tuples(st.text(
    st.characters(codec="utf-8"), max_size=9), st.binary(max_size=9)), max_size=4), st.integers(1, 2**62))  # fmt: skip
def test_a_dead_letter_replays_to_the_record_it_came_from(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], timestamp_ms: int
) -> None:
    original = Record("t", 1, 2, timestamp_ms, key, value, tuple(headers))
    out = to_deadletter(original, Rejection(Reason.UNDECODABLE, "x"), "d")
    again = replay(from_deadletter(Record("d", 0, 0, 0, out.key, out.value, out.headers)))
    assert (again.topic, again.key, again.value, again.headers, again.timestamp_ms) == (
        "t", key, value, (*headers, ("freshet-origin", b"t:1:2"), ("freshet-replays", b"1")), timestamp_ms,
    )  # fmt: skip
    back = Record("t", 0, 9, 0, again.key, again.value, again.headers)
    out = to_deadletter(back, Rejection(Reason.UNDECODABLE, "x"), "d")
    letter = from_deadletter(Record("d", 0, 1, 0, out.key, out.value, out.headers))
    assert (letter.headers, letter.origin, letter.replays) == (tuple(headers), ("t", 1, 2), 1)
