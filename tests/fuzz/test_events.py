"""No bytes in a record raise or hang: an event or a reason comes out, alone, in a batch and as a letter."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.stream.codec import decode_record
from freshet.stream.deadletter import Address, DeadLetterError, from_deadletter, from_receipt, replay, to_deadletter
from freshet.stream.deadletter_repair import Repairs, repair
from freshet.stream.deadletter_topic import entries_of
from freshet.stream.decode import decode
from freshet.stream.events import STRUCT_OF, Kind
from freshet.stream.headers import EVENT_TYPE_OF
from freshet.stream.records import Record
from freshet.stream.rejection import MESSAGE_CHARS_MAX, DecodeLimits, Reason, Rejection
from tests.contract.golden.generate import FOLDER, RECORD_MS
from tests.fuzz.budget import fuzzed
from tests.fuzz.mutate import dumped, spoilt_bytes, spoilt_json

MANIFEST = json.loads((FOLDER / "manifest.json").read_bytes())["cases"]
SMALL = {name: raw for c in MANIFEST if (name := c["file"]) and len(raw := (FOLDER / name).read_bytes()) < 4_000}
GOLDEN = {kind: [raw for name, raw in SMALL.items() if name.startswith(kind.value)] for kind in Kind}
EVENTS = {kind: [c["event"] for c in MANIFEST if c["kind"] == kind and c["outcome"] == "accepted"] for kind in Kind}

kinds = st.sampled_from(list(Kind))
names = st.sampled_from(
    ["content-type", "Content-Type", "ce_id", "ce_time", "ce_type", "ce_specversion", "ce_datacontenttype", "orig.x",
     "freshet-reason", "freshet-origin", "freshet-replays", "freshet-replayed", "freshet-partition", ""]
)  # fmt: skip
texts = st.sampled_from(
    [b"application/json", b"application/msgpack", b"application/x-msgpack; charset=utf-8",
     b"application/cloudevents+json", b"2025-11-24T15:59:59Z", b"9999-12-31T23:59:59.999999999-23:59",
     b"0001-01-01T00:00:00+23:59", b"1.0", b"1.",
     b"t:0:1", b"1", b"-1", b"9" * 5_000, b"x" * 300, b"\xff", "t:٣:1".encode(), b"a;" * 4_000, b";=" * 4_000]
    + [name.encode() for name in EVENT_TYPE_OF.values()]
)  # fmt: skip
headers = st.lists(st.tuples(names, st.none() | texts | st.binary(max_size=20)), max_size=4).map(tuple)
plain = st.sampled_from([(), (("content-type", b"application/json"),), (("content-type", b"application/msgpack"),)])
stamps = st.sampled_from([RECORD_MS, -1, 0, 1, 2**62, -(2**62)])
keys = st.sampled_from([b"u-1", b"p-1", b"", None, b"\xff", b"x" * 300])


def judged(record: Record, kind: Kind) -> None:
    """Alone and in a batch alike; and what is rejected makes a letter that can be read, replayed and repaired."""
    outcome = decode_record(record, kind)
    batch = decode([record], {record.topic: kind})
    if not isinstance(outcome, Rejection):
        assert isinstance(outcome, STRUCT_OF[kind])
        assert (batch.rejections, batch.events) == ([], {kind: 1})
        return
    assert outcome.reason in set(Reason) and 0 < len(outcome.message) <= MESSAGE_CHARS_MAX
    assert batch.rejections == [(record, outcome)] and not batch.events
    out = to_deadletter(record, outcome, "dead")
    letter = from_deadletter(consumed := Record("dead", 0, 3, RECORD_MS, out.key, out.value, out.headers))
    assert letter.reason == outcome.reason and letter.address == (record.topic, 0, 7)
    assert len(entries_of([consumed])) == (from_receipt(consumed) is None)
    if letter.truncated:
        return
    assert (replay(letter).key, replay(letter).value) == (record.key, record.value)
    try:
        again = repair(letter, kind, Repairs(fix=True), DecodeLimits()).record
    except DeadLetterError:
        return
    fixed = decode_record(Record("view", 0, 0, record.timestamp_ms, again.key, again.value, again.headers), kind)
    assert not isinstance(fixed, Rejection)


@fuzzed(400)
@given(st.data(), kinds, keys, stamps, plain | headers)
def test_golden_records_spoilt_by_bytes(
    data: st.DataObject, kind: Kind, key: bytes | None, stamp: int, head: tuple[tuple[str, bytes | None], ...]
) -> None:
    judged(Record("view", 0, 7, stamp, key, data.draw(spoilt_bytes(GOLDEN[kind])), head), kind)


@fuzzed(400)
@given(st.data(), kinds, keys, stamps, st.booleans())
def test_golden_records_spoilt_by_fields(
    data: st.DataObject, kind: Kind, key: bytes | None, stamp: int, packed: bool
) -> None:
    value = data.draw(spoilt_json(data.draw(st.sampled_from(EVENTS[kind]))))
    raw, head = dumped(value), ()
    if packed:
        with suppress(OverflowError, UnicodeEncodeError):  # what MessagePack cannot say stays JSON
            raw, head = msgspec.msgpack.encode(value), (("content-type", b"application/msgpack"),)  # type: ignore
    judged(Record("view", 0, 7, stamp, key, raw, head), kind)


@pytest.mark.parametrize("name", list(SMALL))
def test_every_byte_of_a_golden_file_may_be_wrong(name: str) -> None:
    kind = Kind(name.split(".")[0])
    form = b"application/msgpack" if name.endswith("msgpack") else b"application/json"
    for at in range(0, len(SMALL[name]), max(1, len(SMALL[name]) // 60)):
        for turned in (0x01, 0x80, 0xFF):
            raw = bytearray(SMALL[name])
            raw[at] ^= turned
            outcome = decode_record(
                Record("view", 0, 7, RECORD_MS, b"u-1", bytes(raw), (("content-type", form),)), kind
            )
            assert isinstance(outcome, Rejection | STRUCT_OF[kind])


@fuzzed(200)
@given(st.lists(st.tuples(keys, st.none() | st.binary(max_size=30), headers), max_size=6))
def test_whatever_stands_in_the_dead_letter_topic_can_be_listed(
    records: list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]],
) -> None:
    found = entries_of([Record("dead", 0, i, RECORD_MS, key, v, head) for i, (key, v, head) in enumerate(records)])
    assert len(found) <= len(records)
    for entry in found:
        assert dataclasses.asdict(entry) and isinstance(entry.origin, Address)
