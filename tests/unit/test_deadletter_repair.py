"""What is repaired without guessing, what is left to a person, and that nothing invalid is sent."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from freshet.stream.deadletter import Address, DeadLetter, DeadLetterError
from freshet.stream.deadletter_repair import Repaired, Repairs, in_ms, likely_fields, parse_change, repair
from freshet.stream.events import STRUCT_OF, Kind
from freshet.stream.rejection import DecodeLimits
from tests.contract.golden.generate import BASES, INVALID, RECORD_MS, Case, T, encoded

FIX = Repairs(fix=True)
VIEW: dict[str, Any] = BASES["view"]


def letter(
    value: dict[str, Any] | bytes | None, key: bytes | None = b"u-1", reason: str = "wrong_type", **changes: Any
) -> DeadLetter:
    raw = json.dumps(value).encode() if isinstance(value, dict) else value
    made = DeadLetter(
        reason, "m", "view", 1, 7, RECORD_MS, key, raw, (), len(raw or b""), Address("view", 1, 7)
    )  # fmt: skip
    return DeadLetter(**{**vars(made), **changes})


def fixed(made: DeadLetter, repairs: Repairs = FIX, kind: Kind = Kind.VIEW) -> tuple[dict[str, Any], Repaired]:
    found = repair(made, kind, repairs, DecodeLimits())
    assert found.record.value is not None
    return json.loads(found.record.value), found


def refused(made: DeadLetter, repairs: Repairs = FIX, kind: Kind = Kind.VIEW) -> str:
    with pytest.raises(DeadLetterError) as error:
        repair(made, kind, repairs, DecodeLimits())
    return str(error.value)


@pytest.mark.parametrize("key", [None, b"u-2", b"\xff", b""])
def test_the_key_comes_from_the_body(key: bytes | None) -> None:
    body, found = fixed(letter(VIEW, key))
    assert (found.record.key, body) == (b"u-1", VIEW)
    assert found.done[0].startswith("key was ") and found.done[0].endswith("now it is user_id 'u-1'")
    product = letter({"product_id": "p-1", "timestamp": T}, key)
    assert fixed(product, kind=Kind.PRODUCT)[1].record.key == b"p-1"


def test_a_record_that_needs_nothing_is_sent_byte_for_byte() -> None:
    raw = b' {"product_id":"p-1","event_id" : "v-1","user_id":"u-1","timestamp":%d}' % T
    _, found = fixed(letter(raw))
    assert (found.record.value, found.done) == (raw, ())
    _, found = fixed(letter(raw, reason="wrong_partition"))
    assert (found.record.value, found.done) == (raw, ("goes to the partition that murmur2 of its key gives",))


@pytest.mark.parametrize(
    ("stated", "ms"),
    [(T // 1000, T), (T * 1000 + 7, T), (T * 10**6, T), (T / 1000, T), (float(T), T), (631_152_000, 631152 * 10**6)],
)
def test_a_time_in_another_unit_becomes_milliseconds(stated: float, ms: int) -> None:
    body, found = fixed(letter(VIEW | {"timestamp": stated}))
    assert body["timestamp"] == ms
    assert len(found.done) == 1 and found.done[0].endswith(f"is {ms} ms")


@pytest.mark.parametrize("stated", [-5, 0, 631_151_999, RECORD_MS + 10**8, T + 0.5, str(T), None, True, [T], 10**40])
def test_a_time_that_no_unit_explains_is_left(stated: Any) -> None:
    assert "timestamp" in refused(letter(VIEW | {"timestamp": stated}))


def test_without_a_time_of_the_record_units_still_do_not_overlap() -> None:
    latest = 253_402_300_799_999
    assert in_ms(T, latest) is None
    assert in_ms(T // 1000, latest) == ("seconds", T)
    assert in_ms(T * 1000, latest) == ("microseconds", T)
    assert in_ms(T * 10**6, latest) == ("nanoseconds", T)


def test_a_misspelt_field_gets_its_name() -> None:
    wrong = {"eventId": "v-1", "user_id": "u-1", "prodct_id": "p-1", "TimeStamp": T, "dwel_time_s": 2.5}
    body, found = fixed(letter(wrong))
    assert body == VIEW | {"dwell_time_s": 2.5}
    assert found.done == (
        "eventId is event_id", "prodct_id is product_id", "TimeStamp is timestamp", "dwel_time_s is dwell_time_s",
    )  # fmt: skip
    order = {"event_id": "o", "user_id": "u-1", "timestamp": T, "items": [{"productId": "p-1", "quantiy": 2}]}
    body, found = fixed(letter(order), kind=Kind.PURCHASE)
    assert body["items"] == [{"product_id": "p-1", "quantity": 2}]
    assert found.done == ("items[0].productId is items[0].product_id", "items[0].quantiy is items[0].quantity")


@pytest.mark.parametrize(
    "field", ["dwell_time_ms", "dwell_time", "dwell_time_secs", "total_price", "colour", "s", "", "é", "x" * 10_000]
)
def test_a_field_that_may_mean_something_else_is_left(field: str) -> None:
    assert "unknown_field" in refused(letter(VIEW | {field: 1}))


def test_a_misspelling_never_takes_the_place_of_what_is_there_nor_of_another_one() -> None:
    assert "unknown_field" in refused(letter(VIEW | {"productId": "p-2"}))
    twice = {"event_id": "v", "user_id": "u-1", "timestamp": T, "productId": "a", "product_ID": "b"}
    assert "product_id is missing" in refused(letter(twice)) or "productId" in refused(letter(twice))


def test_every_field_is_only_its_own_misspelling() -> None:
    for struct in STRUCT_OF.values():
        for name in struct.__struct_fields__:
            camel = name.split("_")[0] + "".join(word.title() for word in name.split("_")[1:])
            for spelt in (name, camel, name.upper(), name.replace("_", "-"), name.replace("_", "")):
                assert likely_fields(spelt, struct.__struct_fields__) == [name]


def test_numbers_are_never_guessed() -> None:
    order = VIEW | {"quantity": -1.0}
    assert "negative_number" in refused(letter(order), kind=Kind.PURCHASE)


def test_a_field_is_set_by_hand_or_left_out() -> None:
    order = VIEW | {"quantity": -1.0, "colour": "red"}
    by_hand = Repairs(changes=(("quantity", 1), ("colour", None)))
    body, found = fixed(letter(order), by_hand, Kind.PURCHASE)
    assert body == VIEW | {"quantity": 1}
    assert found.done == ("quantity set to 1", "colour left out")
    assert "no such field" in refused(letter(VIEW), Repairs(changes=(("colour", "red"),)))
    assert "key_mismatch" in refused(letter(VIEW), Repairs(changes=(("user_id", "u-9"),)))
    assert fixed(letter(VIEW), Repairs(True, (("user_id", "u-9"),)))[1].record.key == b"u-9"


def test_what_has_no_fields_gets_none_set_and_is_not_sent_without() -> None:
    by_hand = Repairs(True, (("price", 1),))
    tombstone = letter(None, b"p-1", "wrong_partition")
    assert repair(tombstone, Kind.PRODUCT, FIX, DecodeLimits()).record.value is None
    for made in (tombstone, letter(b"[1]"), letter(b"{")):
        assert "no fields" in refused(made, by_hand, Kind.PRODUCT)


def test_the_id_of_an_event_is_kept() -> None:
    for made in (letter(VIEW), letter({"user_id": "u-1"}, headers=(("ce_id", b"ce-1"),))):
        assert "event_id" in refused(made, Repairs(changes=(("event_id", "new"),)))
    missing = {name: value for name, value in VIEW.items() if name != "event_id"}
    assert fixed(letter(missing), Repairs(changes=(("event_id", "new"),)))[0]["event_id"] == "new"
    assert fixed(letter(VIEW | {"timestamp": T // 1000}, None))[0]["event_id"] == "v-1"


def test_messagepack_stays_messagepack() -> None:
    raw = msgpack.packb(VIEW | {"timestamp": T // 1000})
    found = repair(letter(raw, headers=(("content-type", b"application/msgpack"),)), Kind.VIEW, FIX, DecodeLimits())
    assert found.record.value is not None and msgpack.unpackb(found.record.value) == VIEW
    assert ("content-type", b"application/msgpack") in found.record.headers


def test_what_was_cut_is_refused_before_anything_else() -> None:
    assert "does not hold the whole value" in refused(letter(VIEW, truncated=("value",)))


@pytest.mark.parametrize(
    "raw", [b'{"a":' * 5000, b"[" * 100_000, b"\xff\xfe", b'{"a":1e999}', b'{"timestamp":1' + b"0" * 400 + b"}"]
)
def test_bytes_from_anywhere_are_refused_and_never_raise_anything_else(raw: bytes) -> None:
    refused(letter(raw))
    refused(letter(raw, headers=(("content-type", b"application/msgpack"),)), Repairs(True, (("event_id", "x"),)))


REPAIRED = {"view.no_key", "view.another_key", "view.seconds", "view.microseconds", "view.misspelt_field"}


@pytest.mark.parametrize("case", INVALID, ids=[f"{case.kind}.{case.name}" for case in INVALID])
def test_of_the_golden_rejections_only_those_with_one_answer_are_repaired(case: Case) -> None:
    headers = tuple((name, text.encode()) for name, text in case.headers.items())
    owner = BASES[case.kind]["product_id" if case.kind == "product" else "user_id"].encode()
    key = {b"": owner, b"\x00": b""}.get(case.key, case.key) if case.key is not None else None
    value = encoded(case, "json")
    value = None if value is None else value + b" " * case.pad_bytes
    made = letter(value, key, case.reason or "", headers=headers)
    if f"{case.kind}.{case.name}" in REPAIRED:
        assert repair(made, Kind(case.kind), FIX, DecodeLimits()).done
    else:
        assert f"rejected again: {case.reason}: " in refused(made, FIX, Kind(case.kind))


def test_a_change_is_a_field_and_json() -> None:
    assert parse_change("quantity=1") == ("quantity", 1)
    assert parse_change('device="a=b"') == ("device", "a=b")
    assert parse_change("x=null") == ("x", None)
    for text in ("quantity", "=1", "device=mobile", "a=", "a=" + "[" * 100_000):
        with pytest.raises(DeadLetterError, match="FIELD=VALUE"):
            parse_change(text)
