"""A batch of records to columns, with answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from freshet.errors import FreshetError
from freshet.store.columns import ProductAttributes, UserAttributes
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.decode import decode, decode_events
from freshet.stream.events import Event, Kind, Line, Product, Profile, Purchase, Session, SessionItem, View
from freshet.stream.records import Record
from freshet.stream.rejection import Reason
from freshet.stream.tables import KEY_MAX
from freshet.stream.validate import KIND_OF

T = 1_764_000_000_000
KINDS = {kind.value: kind for kind in Kind}


def record(event: Event, offset: int = 0, **changes: object) -> Record:
    plain = Record(KIND_OF[type(event)].value, 0, offset, T, encode_record_key(event), encode(event))
    return plain._replace(**changes)  # type: ignore[arg-type]


def hash_of(event_id: str) -> int:
    return xxhash.xxh3_64_intdigest(event_id.encode())


def test_views() -> None:
    decoded = decode([record(View("é1", "u", "p", T, 1.5)), record(View("e2", "w", "q", T + 1))], KINDS)
    views = decoded.columns.views
    assert (views.user, views.product) == (["u", "w"], ["p", "q"])
    assert views.time.tolist() == [T, T + 1]
    assert views.event_hash.tolist() == [hash_of("é1"), hash_of("e2")]
    assert views.dwell_s[0] == 1.5 and np.isnan(views.dwell_s[1])
    assert decoded.events == {Kind.VIEW: 2}
    assert decoded.view_record.tolist() == [0, 1]


def test_dtypes_are_those_of_the_contract_with_and_without_rows() -> None:
    events: list[Event] = [
        View("e", "u", "p", T),
        Purchase("e", "u", T, "p"),
        Session("e", "u", "s", T, items=(SessionItem("p"),)),
        Product("p", T),
        Profile("u", T),
    ]
    full, empty = decode_events(events), decode_events([])
    for table in ("views", "purchases", "sessions", "products", "profiles"):
        a, b = vars(getattr(full, table)), vars(getattr(empty, table))
        for name, column in a.items():
            if isinstance(column, np.ndarray):
                assert column.dtype == b[name].dtype, f"{table}.{name}"


def test_orders_lines_and_cancellation() -> None:
    lines = (Line("a", 2.0, cancelled=True), Line("b"), Line("c", 0.0))
    orders: list[Event] = [
        Purchase("o1", "u", T, "p", 3.0),
        Purchase("o2", "v", T + 1, items=lines),
        Purchase("o3", "w", T + 2, items=lines[1:], cancelled=True),
    ]
    decoded = decode([record(o) for o in orders], KINDS)
    table = decoded.columns.purchases
    assert table.user == ["u", "v", "v", "v", "w", "w"]
    assert table.product == ["p", "a", "b", "c", "b", "c"]
    assert table.time.tolist() == [T, T + 1, T + 1, T + 1, T + 2, T + 2]
    assert table.event_hash.tolist() == [hash_of(o) for o in ("o1", "o2", "o2", "o2", "o3", "o3")]
    np.testing.assert_array_equal(table.quantity, np.array([3, 2, np.nan, 0, np.nan, 0], dtype=np.float32))
    assert table.cancelled.tolist() == [False, True, False, False, True, True]
    assert table.order_start.tolist() == [0, 1, 4, 6]
    assert decoded.order_record.tolist() == [0, 1, 2]
    assert decoded.events == {Kind.PURCHASE: 3}


def test_a_product_named_twice_in_an_order_is_one_line() -> None:
    lines = (Line("a", 2.0), Line("b"), Line("a", 1.0, cancelled=True), Line("b"), Line("a"), Line("c", 3e38))
    table = decode_events([Purchase("o", "u", T, items=(*lines, Line("c", 3e38)))]).purchases
    assert table.product == ["a", "b", "c"]
    assert table.quantity[0] == 3.0 and np.isnan(table.quantity[1]) and np.isfinite(table.quantity[2])
    assert table.cancelled.tolist() == [True, False, False]


def test_sessions() -> None:
    items = (SessionItem("p", 0, True), SessionItem("p", click=False), SessionItem("q", 7))
    decoded = decode(
        [record(Session("e1", "u", "s1", T)), record(Session("e2", "u", "s2", T, "tv", 9.0, items))], KINDS
    )
    table = decoded.columns.sessions
    assert (table.user, table.session, table.device) == (["u", "u"], ["s1", "s2"], [None, "tv"])
    assert np.isnan(table.duration_s[0]) and table.duration_s[1] == 9.0
    assert table.item_start.tolist() == [0, 0, 3]
    assert (table.product, table.position.tolist()) == (["p", "p", "q"], [0, -1, 7])
    assert table.click.tolist() == [1, 0, -1]
    assert decoded.session_record.tolist() == [0, 1]


def test_catalogue_and_profiles() -> None:
    full = Product("p", T, ("a", "b"), "acme", 2.5, "text", (0.5, -1.0))
    records = [
        record(full),
        record(Product("q", T, category=(), description_emb=())),
        record(Product("q"), value=None, timestamp_ms=T + 9),
        record(Product("q", T, withdrawn=True, brand="kept out")),
        record(Profile("u", T, "25-34", "DE", "1970-01-02")),
        record(Profile("u"), value=b"", timestamp_ms=T + 7),
        record(Profile("u", T - 1, forgotten=True)),
    ]
    decoded = decode(records, KINDS)
    products, profiles = decoded.columns.products, decoded.columns.profiles
    assert decoded.rejections == []
    assert products.product == ["p", "q", "q", "q"]
    assert products.time.tolist() == [T, T, T + 9, T]
    assert products.attributes == [
        ProductAttributes(("a", "b"), "acme", 2.5, "text", (0.5, -1.0)),
        ProductAttributes(),
        None,
        None,
    ]
    assert products.key.tolist()[2:] == [KEY_MAX, KEY_MAX] and max(products.key.tolist()[:2]) < KEY_MAX
    assert profiles.user == ["u", "u", "u"]
    assert profiles.time.tolist() == [T, T + 7, T - 1]
    assert profiles.attributes == [UserAttributes("25-34", "DE", 1), None, None]
    assert profiles.key.tolist()[1:] == [KEY_MAX, KEY_MAX]
    assert decoded.product_record.tolist() == [0, 1, 2, 3]
    assert decoded.profile_record.tolist() == [4, 5, 6]


def test_the_key_of_content_depends_on_the_content_alone() -> None:
    products = [Product("p", T, brand="a"), Product("p", T + 5, brand="a"), Product("p", T, brand="b")]
    a, later, other = decode_events(products).products.key.tolist()
    assert a == later != other
    as_json, packed = (
        decode(
            [record(products[0], value=encode(products[0], kind), headers=(("content-type", kind.encode()),))], KINDS
        )
        for kind in ("application/json", "application/msgpack")
    )
    assert as_json.columns.products.key.tolist() == packed.columns.products.key.tolist() == [a]


def test_what_cannot_be_used_is_left_out_and_the_rest_goes_on() -> None:
    good = View("e", "u", "p", T)
    records = [
        record(good, 0),
        record(good, 1, value=b"{"),
        record(good, 2, key=b"x"),
        record(good, 3, key=None),
        record(View("e", "u", "p", T // 1000), 4),
        record(View("e", "u", "p", T, 1e39), 5),
        record(Purchase("e", "u", T), 6),
        record(View("e", "u", "p", 2**64 - 1), 7),
        record(View("e", "u", "é" * 129, T), 8),
        record(Profile("u"), 9, timestamp_ms=-1),
        record(good, 10, value=None),
        record(good, 11, headers=(("ce_type", b"freshet.nope"),)),
        record(View("last", "ü" * 128, "p", T), 12),
        record(Purchase("e", "u", T, "p"), 13),
    ]
    decoded = decode(records, KINDS)
    assert [(r.offset, why.reason) for r, why in decoded.rejections] == [
        (1, Reason.UNDECODABLE),
        (2, Reason.KEY_MISMATCH),
        (3, Reason.MISSING_KEY),
        (4, Reason.TIMESTAMP_TOO_OLD),
        (5, Reason.NUMBER_TOO_LARGE),
        (6, Reason.NO_PRODUCT),
        (7, Reason.TIMESTAMP_IN_FUTURE),
        (8, Reason.ID_TOO_LONG),
        (9, Reason.MISSING_FIELD),
        (10, Reason.EMPTY_VALUE),
        (11, Reason.UNKNOWN_EVENT_TYPE),
    ]
    assert decoded.columns.views.user == ["u", "ü" * 128]
    assert decoded.view_record.tolist() == [0, 12]
    assert decoded.order_record.tolist() == [13]
    assert decoded.events == {Kind.VIEW: 2, Kind.PURCHASE: 1}


def test_of_two_faults_the_first_is_named() -> None:
    records = [record(Purchase("e", "u", T), key=b"x"), record(View("e", "u", "p", 1, 1e39))]
    reasons = [why.reason for _, why in decode(records, KINDS).rejections]
    assert reasons == [Reason.KEY_MISMATCH, Reason.TIMESTAMP_TOO_OLD]


def test_an_unknown_topic_and_a_log_without_time_are_errors_that_say_so() -> None:
    with pytest.raises(FreshetError, match=r"'elsewhere'.*view"):
        decode([record(View("e", "u", "p", T), topic="elsewhere")], KINDS)
    with pytest.raises(FreshetError, match=r"product 'p' has no timestamp"):
        decode_events([Product("p")])


def test_nothing_gives_nothing() -> None:
    decoded = decode([], KINDS)
    assert decoded.rejections == [] and decoded.events == {} and decoded.view_record.shape == (0,)
