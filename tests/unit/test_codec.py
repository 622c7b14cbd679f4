"""Bytes and headers to events: what the golden files do not pin, the words of the messages above all."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest

from freshet.stream.codec import decode_record, encode, encode_record_key, validate
from freshet.stream.events import Event, Kind, Line, Product, Profile, Purchase, Session, View
from freshet.stream.headers import Format, content_format, rfc3339_ms
from freshet.stream.records import Record
from freshet.stream.rejection import MESSAGE_CHARS_MAX, DecodeLimits, Reason, Rejection

T = 1_764_000_000_000
VIEW = {"event_id": "e", "user_id": "u", "product_id": "p", "timestamp": T}
PURCHASE = {"event_id": "e", "user_id": "u", "timestamp": T}
MSGPACK = (("content-type", b"application/msgpack"),)


def record(value: Any, key: bytes | None = b"u", headers: Any = (), timestamp_ms: int = T) -> Record:
    if not (value is None or isinstance(value, bytes)):
        value = msgspec.json.encode(value)
    return Record("t", 3, 14, timestamp_ms, key, value, headers)


def rejected(
    value: Any, kind: Kind = Kind.VIEW, limits: DecodeLimits | None = None, **rest: Any
) -> Rejection:
    outcome = decode_record(record(value, **rest), kind, limits)
    assert isinstance(outcome, Rejection), outcome
    return outcome


@pytest.mark.parametrize(
    ("kind", "value", "reason", "words"),
    [
        (Kind.VIEW, VIEW | {"dwel_time_s": 1}, Reason.UNKNOWN_FIELD, ["dwel_time_s", "did you mean dwell_time_s?"]),
        (Kind.VIEW, VIEW | {"zzz": 1}, Reason.UNKNOWN_FIELD, ["zzz", "known fields are event_id"]),
        (Kind.VIEW, VIEW | {"timestamp": "x"}, Reason.WRONG_TYPE, ["timestamp", "string", "send int"]),
        (Kind.VIEW, VIEW | {"timestamp": 1_764_000_000}, Reason.TIMESTAMP_TOO_OLD, ["seconds", "milliseconds"]),
        (Kind.VIEW, VIEW | {"timestamp": T * 1000}, Reason.TIMESTAMP_IN_FUTURE, ["microseconds", str(T)]),
        (Kind.VIEW, VIEW | {"timestamp": 2**64 - 1}, Reason.TIMESTAMP_IN_FUTURE, ["timestamp"]),
        (Kind.VIEW, VIEW | {"timestamp": 10**30}, Reason.TIMESTAMP_IN_FUTURE, ["timestamp"]),
        (Kind.VIEW, VIEW | {"dwell_time_s": -2}, Reason.NEGATIVE_NUMBER, ["dwell_time_s", "-2", "0 or more"]),
        (Kind.VIEW, VIEW | {"product_id": "ж" * 129}, Reason.ID_TOO_LONG, ["product_id", "258", "256"]),
        (Kind.VIEW, VIEW | {"product_id": ""}, Reason.EMPTY_ID, ["product_id"]),
        (Kind.VIEW, b"[1]", Reason.WRONG_TYPE, ["the value", "list", "map"]),
        (Kind.VIEW, b'{"event_id":"e"', Reason.UNDECODABLE, ["truncated"]),
        (Kind.VIEW, b'{"event_id":"\xff"}', Reason.UNDECODABLE, ["utf-8"]),
        (Kind.VIEW, b"[" * 100_000, Reason.UNDECODABLE, ["deep"]),
        (Kind.VIEW, b'{"event_id":"e","dwell_time_s":-1e999}', Reason.NOT_FINITE, ["dwell_time_s"]),
        (Kind.PURCHASE, PURCHASE | {"items": [{"product_id": "p", "quantity": -1}]}, Reason.NEGATIVE_NUMBER,
         ["items[0].quantity"]),
        (Kind.PURCHASE, PURCHASE | {"items": [{"quantity": 1}]}, Reason.MISSING_FIELD, ["items[0].product_id"]),
        (Kind.PURCHASE, PURCHASE | {"items": [{"product_id": "p", "click": True}]}, Reason.UNKNOWN_FIELD,
         ["items[0].click", "line", "cancelled"]),
        (Kind.PURCHASE, PURCHASE | {"items": [{"product_id": "p", "price": 1e300}]}, Reason.NUMBER_TOO_LARGE,
         ["items[0].price"]),
        (Kind.PURCHASE, PURCHASE | {"items": [{"product_id": "p"}], "price": 1}, Reason.PRODUCT_AND_ITEMS,
         ["price"]),
        (Kind.PROFILE, {"user_id": "u", "signup_date": "2023-02-29"}, Reason.BAD_DATE,
         ["signup_date", "2023-02-29"]),
    ],
)  # fmt: skip
def test_a_rejection_names_the_field_and_the_remedy(
    kind: Kind, value: Any, reason: Reason, words: list[str]
) -> None:
    found = rejected(value, kind)
    assert found.reason is reason
    for word in words:
        assert word in found.message


def test_limits_are_settings() -> None:
    tight = DecodeLimits(
        value_bytes_max=200, event_future_ms_max=10, items_max=1, category_levels_max=1, embedding_dim_max=2
    )
    lines = [{"product_id": "a"}, {"product_id": "b"}]
    product = {"product_id": "u", "timestamp": T}
    for kind, value, reason in [
        (Kind.VIEW, VIEW | {"timestamp": T + 11}, Reason.TIMESTAMP_IN_FUTURE),
        (Kind.VIEW, msgspec.json.encode(VIEW) + b" " * 200, Reason.VALUE_TOO_LARGE),
        (Kind.PURCHASE, PURCHASE | {"items": lines}, Reason.TOO_MANY_ITEMS),
        (Kind.PRODUCT, product | {"category": ["a", "b"]}, Reason.CATEGORY_TOO_DEEP),
        (Kind.PRODUCT, product | {"description_emb": [1, 2, 3]}, Reason.EMBEDDING_TOO_LONG),
    ]:
        assert rejected(value, kind, tight).reason is reason
        if reason is not Reason.VALUE_TOO_LARGE:
            assert not isinstance(decode_record(record(value), kind), Rejection)
    assert not isinstance(decode_record(record(VIEW | {"timestamp": T + 10}), Kind.VIEW, tight), Rejection)


def test_the_future_is_judged_by_the_records_own_timestamp() -> None:
    late = T + 5 * 365 * 86_400_000
    assert isinstance(decode_record(record(VIEW | {"timestamp": late}, timestamp_ms=late), Kind.VIEW), View)
    assert rejected(VIEW | {"timestamp": late}).reason is Reason.TIMESTAMP_IN_FUTURE
    # A record without a timestamp of its own leaves only the year 9999 to judge by.
    assert isinstance(decode_record(record(VIEW | {"timestamp": late}, timestamp_ms=-1), Kind.VIEW), View)
    assert rejected(VIEW | {"timestamp": T * 1000}, timestamp_ms=-1).reason is Reason.TIMESTAMP_IN_FUTURE


def test_a_catalogue_record_takes_its_time_from_body_then_header_then_record() -> None:
    header = (("ce_time", b"2025-11-24T15:59:59Z"),)
    stated = decode_record(record({"product_id": "u", "timestamp": T - 5}, headers=header), Kind.PRODUCT)
    by_header = decode_record(record({"product_id": "u"}, headers=header), Kind.PRODUCT)
    by_record = decode_record(record({"product_id": "u"}), Kind.PRODUCT)
    assert isinstance(stated, Product) and stated.timestamp == T - 5
    assert isinstance(by_header, Product) and by_header.timestamp == 1_763_999_999_000
    assert isinstance(by_record, Product) and by_record.timestamp == T
    assert rejected({"product_id": "u"}, Kind.PRODUCT, timestamp_ms=-1).reason is Reason.MISSING_FIELD


@pytest.mark.parametrize("value", [None, b""])
def test_an_empty_value_withdraws_or_forgets_with_the_id_from_the_key(value: bytes | None) -> None:
    header = (("ce_time", b"2025-11-24T15:59:59Z"), ("content-type", b"application/msgpack"))
    assert decode_record(record(value, key="ü".encode()), Kind.PRODUCT) == Product("ü", T, withdrawn=True)
    forgotten = decode_record(record(value, headers=header), Kind.PROFILE)
    assert forgotten == Profile("u", 1_763_999_999_000, forgotten=True)
    assert rejected(value, Kind.SESSION).reason is Reason.EMPTY_VALUE
    for key, reason in [
        (None, Reason.MISSING_KEY),
        (b"", Reason.EMPTY_ID),
        (b"\xff", Reason.KEY_MISMATCH),
        (b"x" * 257, Reason.ID_TOO_LONG),
    ]:
        assert rejected(value, Kind.PROFILE, key=key).reason is reason


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (b"application/json", Format.JSON),
        (b"Application/JSON; Charset=UTF-8", Format.JSON),
        (b'application/json;charset="utf-8"', Format.JSON),
        (b"application/vnd.shop.view.v1+json", Format.JSON),
        (b"application/msgpack", Format.MSGPACK),
        (b"application/x-msgpack", Format.MSGPACK),
        (b"application/vnd.msgpack", Format.MSGPACK),
        (b"application/cloudevents+json", None),
        (b"application/json; charset=utf-16", None),
        (b"text/plain", None),
        (b"\xff", None),
        (b";", None),
    ],
)
def test_content_types(stated: bytes, expected: Format | None) -> None:
    found = content_format(stated)
    if expected is None:
        assert isinstance(found, Rejection) and found.reason is Reason.UNSUPPORTED_CONTENT_TYPE
    else:
        assert found is expected


def test_headers_any_case_last_one_counts_and_content_type_before_datacontenttype() -> None:
    packed = msgpack.packb(VIEW)
    plain = msgspec.json.encode(VIEW)
    for value, headers in [
        (packed, (("Content-Type", b"application/msgpack"),)),
        (packed, (("CE_DataContentType", b"application/msgpack"),)),
        (packed, (("content-type", b"text/plain"), ("content-type", b"application/msgpack"))),
        (plain, (("ce_datacontenttype", b"application/msgpack"), ("content-type", b"application/json"))),
        (plain, (("content-type", None), ("trace", b"\xff"))),
        (plain, (("content-type", b""),)),
    ]:
        assert decode_record(record(value, headers=headers), Kind.VIEW) == View(**VIEW), headers  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["application/json", "application/msgpack"])
def test_cloudevents_fill_what_the_body_lacks(encoding: str) -> None:
    headers = (
        ("ce_id", b"E"),
        ("ce_time", b"2025-11-24T15:59:59Z"),
        ("ce_type", b"freshet.view"),
        ("content-type", encoding.encode()),
    )
    body = {"user_id": "u", "product_id": "p"}
    pack = msgspec.json.encode if encoding == "application/json" else msgspec.msgpack.encode
    assert decode_record(record(pack(body), headers=headers), Kind.VIEW) == View(
        "E", "u", "p", 1_763_999_999_000
    )
    both = decode_record(record(pack(VIEW), headers=headers), Kind.VIEW)
    assert both == View("e", "u", "p", T)
    wrong = rejected(pack(body | {"dwell_time_s": -3.0}), headers=headers)
    assert wrong.reason is Reason.NEGATIVE_NUMBER and "-3.0" in wrong.message
    assert rejected(pack([1]), headers=headers).reason is Reason.WRONG_TYPE
    assert rejected(b"\xc1", headers=headers).reason is Reason.UNDECODABLE
    empty_id = (("ce_id", b"x" * 300), *headers[1:])
    assert rejected(pack(body), headers=empty_id).reason is Reason.ID_TOO_LONG


def test_an_empty_cloudevents_header_says_nothing() -> None:
    empty = (("ce_id", b""), ("ce_time", b""), ("ce_type", None), ("ce_specversion", b""))
    assert rejected({"user_id": "u", "product_id": "p"}, headers=empty).reason is Reason.MISSING_FIELD
    assert decode_record(record(VIEW, headers=empty), Kind.VIEW) == View("e", "u", "p", T)


def test_ce_type_of_others_is_nobodys_business() -> None:
    assert isinstance(decode_record(record(VIEW, headers=(("ce_type", b"com.shop.seen"),)), Kind.VIEW), View)
    wrong = rejected(VIEW, headers=(("ce_type", b"freshet.product"),))
    assert wrong.reason is Reason.EVENT_TYPE_MISMATCH and "freshet.view" in wrong.message
    assert rejected(VIEW, headers=(("ce_type", b"freshet.\xff"),)).reason is Reason.BAD_HEADER


@pytest.mark.parametrize(
    ("stamp", "ms"),
    [
        (b"1970-01-01T00:00:00Z", 0),
        (b"2025-11-24T16:59:59.9999+01:00", 1_763_999_999_999),
        (b"1969-12-31T23:59:59.9995Z", -1),
        (b"2025-11-24T15:59:59", None),
        (b"2025-11-24", None),
        (b"yesterday", None),
        (b"\xff", None),
    ],
)
def test_rfc_3339(stamp: bytes, ms: int | None) -> None:
    assert rfc3339_ms(stamp) == ms


def test_keys_and_unknown_encodings() -> None:
    assert encode_record_key(Product("ü")) == "ü".encode()
    assert encode_record_key(Session("e", "u", "s", T)) == b"u"
    with pytest.raises(ValueError, match="application/json"):
        encode(View("e", "u", "p", T), "text/csv")


def test_a_message_stays_short_whatever_was_sent() -> None:
    found = rejected(VIEW | {"x" * 100_000: 1})
    assert found.reason is Reason.UNKNOWN_FIELD and len(found.message) <= MESSAGE_CHARS_MAX
    assert len(rejected(VIEW, key=b"k" * 100_000).message) <= MESSAGE_CHARS_MAX
    loud = rejected(VIEW, headers=(("content-type", b"x" * 100_000),))
    assert len(loud.message) <= MESSAGE_CHARS_MAX


def test_validate_before_sending_judges_types_too() -> None:
    assert validate(View("e", "u", "p", T, 1.0)) is None
    assert validate(Product("p")) is None
    cases: list[tuple[Event, Reason]] = [
        (View("e", "u", "p", "now"), Reason.WRONG_TYPE),  # type: ignore[arg-type]
        (View("", "u", "p", T), Reason.EMPTY_ID),
        (View("e", "u", "p", T, float("nan")), Reason.NOT_FINITE),
        (View("e", "u", "p", T // 1000), Reason.TIMESTAMP_TOO_OLD),
        (View("e", "\ud800", "p", T), Reason.UNDECODABLE),
        (Purchase("e", "u", T, items=()), Reason.EMPTY_ITEMS),
        (Purchase("e", "u", T, items=(Line("p", -1.0),)), Reason.NEGATIVE_NUMBER),
        (Product("é" * 200), Reason.ID_TOO_LONG),
        (Profile("u", signup_date="2023-02-30"), Reason.BAD_DATE),
    ]
    for event, reason in cases:
        found = validate(event)
        assert found is not None and found.reason is reason, event
    late = validate(View("e", "u", "p", T + 2 * 86_400_000), now_ms=T)
    assert late is not None and late.reason is Reason.TIMESTAMP_IN_FUTURE
