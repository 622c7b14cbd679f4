"""Is a decoded event usable? What the schema's types cannot say, check by check.

`check` is the one judge. `decode` only asks, for a whole batch at a time, which rows need judging.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

import msgspec

from freshet.stream.events import (
    ID_BYTES_MAX,
    Event,
    Kind,
    Line,
    Product,
    Profile,
    Purchase,
    Session,
    SessionItem,
    View,
)
from freshet.stream.explain import explain
from freshet.stream.rejection import DecodeLimits, Reason, Rejection, reject

TIMESTAMP_MS_MIN = 631_152_000_000
"""1990-01-01: an earlier time is taken for seconds sent in place of milliseconds."""
TIMESTAMP_MS_MAX = 253_402_300_799_999
"""9999-12-31: the latest time where a record has no timestamp of its own to judge by."""
NUMBER_MAX = 3.4028234663852886e38
"""The greatest float32: numbers are kept in that width."""

KIND_OF: dict[type[Event], Kind] = {
    View: Kind.VIEW,
    Purchase: Kind.PURCHASE,
    Session: Kind.SESSION,
    Product: Kind.PRODUCT,
    Profile: Kind.PROFILE,
}
_DAY_0 = date(1970, 1, 1).toordinal()


class Context(NamedTuple):
    """What an event is judged against: key and timestamp (ms; 0 or less: none) of its Kafka record."""

    key: bytes | None
    record_ms: int
    limits: DecodeLimits


def owner_of(event: Event) -> str:
    """The id that keys the event's record: the product of a catalogue record, else the user."""
    return event.product_id if isinstance(event, Product) else event.user_id


def future_bound_ms(record_ms: int, limits: DecodeLimits) -> int:
    """The latest time an event may have in a record stamped `record_ms`."""
    if record_ms <= 0:
        return TIMESTAMP_MS_MAX
    return min(record_ms + limits.event_future_ms_max, TIMESTAMP_MS_MAX)


def check(event: Event, context: Context) -> Rejection | None:
    """The first reason why `event`, which has the schema's types, cannot be used; None when it can."""
    return check_envelope(event, context) or check_body(event, context.limits)


def check_envelope(event: Event, context: Context) -> Rejection | None:
    """Key, ids and time."""
    return _check_ids(event) or _check_key(event, context.key) or _check_time(event, context)


def check_body(event: Event, limits: DecodeLimits) -> Rejection | None:
    """Everything else, by kind."""
    if isinstance(event, View):
        return check_number("dwell_time_s", event.dwell_time_s)
    if isinstance(event, Purchase):
        return _check_purchase(event, limits)
    if isinstance(event, Session):
        return _check_session(event, limits)
    if isinstance(event, Product):
        return _check_product(event, limits)
    return _check_profile(event)


def validate(event: Event, limits: DecodeLimits | None = None, now_ms: int = 0) -> Rejection | None:
    """Would this event be accepted? For producers, before they send.

    Also judges the schema's types, which constructing a struct does not. `now_ms` stands for the timestamp
    the record will get; 0 judges no time as too far in the future but the year 10000.
    """
    limits = limits or DecodeLimits()
    raw = msgspec.to_builtins(event)
    try:
        event = msgspec.convert(raw, type=type(event))
        key = owner_of(event).encode()
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        return explain(error, type(event), raw)
    if event.timestamp is None and isinstance(event, Product | Profile):
        return check_body(event, limits) or _check_ids(event)
    return check(event, Context(key, now_ms, limits))


def epoch_day(text: str) -> int | None:
    """Days since 1970-01-01 of an ISO date, or None where no such date exists."""
    try:
        return date.fromisoformat(text).toordinal() - _DAY_0
    except ValueError:
        return None


# --- checks -------------------------------------------------------------------------------------


def _ids(event: Event) -> Iterator[tuple[str, str | None]]:
    if isinstance(event, Product):
        yield "product_id", event.product_id
        return
    yield "user_id", event.user_id
    if isinstance(event, Profile):
        return
    yield "event_id", event.event_id
    if isinstance(event, Session):
        yield "session_id", event.session_id
    else:
        yield "product_id", event.product_id
    if isinstance(event, Purchase):
        yield "order_id", event.order_id
    if not isinstance(event, View):
        items: tuple[Line | SessionItem, ...] = event.items or ()
        for i, item in enumerate(items):
            yield f"items[{i}].product_id", item.product_id


def _check_ids(event: Event) -> Rejection | None:
    for name, value in _ids(event):
        # The schema bounds characters; at 4 bytes a character, 64 of them are never too long.
        if value is not None and len(value) > ID_BYTES_MAX // 4 and not value.isascii():
            size = len(value.encode())
            if size > ID_BYTES_MAX:
                return reject(
                    Reason.ID_TOO_LONG,
                    f"{name} has {size} bytes in UTF-8: send an id of at most {ID_BYTES_MAX} bytes, or its hash",
                )
    return None


def _check_key(event: Event, key: bytes | None) -> Rejection | None:
    name = "product_id" if isinstance(event, Product) else "user_id"
    if key is None:
        return reject(Reason.MISSING_KEY, f"the record has no key: send {name} in UTF-8 as the key")
    if key != owner_of(event).encode():
        shown = key[:60].decode(errors="backslashreplace")
        return reject(
            Reason.KEY_MISMATCH,
            f"the record's key is {shown!r}, but {name} is {owner_of(event)[:60]!r}: "
            f"send {name} in UTF-8 as the key, or the record lands on another partition",
        )
    return None


def _check_time(event: Event, context: Context) -> Rejection | None:
    time = event.timestamp
    if time is None:
        return reject(
            Reason.MISSING_FIELD,
            "timestamp is missing and the record has no timestamp either: send timestamp in ms since 1970 UTC",
        )
    if time < TIMESTAMP_MS_MIN:
        return too_old(time)
    if time > future_bound_ms(context.record_ms, context.limits):
        unit = " (microseconds or nanoseconds?)" if time > 10**14 else ""
        than = (
            f"the record's own timestamp {context.record_ms} by more than {context.limits.event_future_ms_max} ms"
            if context.record_ms > 0
            else "the year 9999"
        )
        return reject(
            Reason.TIMESTAMP_IN_FUTURE,
            f"timestamp {time} is past {than}: send milliseconds since 1970 UTC{unit} and check the clock",
        )
    return None


def too_old(time_ms: int) -> Rejection:
    """The rejection of a time before 1990."""
    return reject(
        Reason.TIMESTAMP_TOO_OLD,
        f"timestamp {time_ms} lies before 1990 and looks like seconds: milliseconds since 1970 UTC are expected",
    )


def check_number(name: str, value: float | None) -> Rejection | None:
    """A number the schema already found not to be negative: is it finite, and does float32 hold it?"""
    if value is None or value <= NUMBER_MAX:
        return None
    if math.isfinite(value):
        return reject(Reason.NUMBER_TOO_LARGE, f"{name} is {value:g}: send at most {NUMBER_MAX:.3g}")
    return reject(Reason.NOT_FINITE, f"{name} is {value}: send a finite number, or leave the field out")


def _check_items(items: tuple[object, ...], limits: DecodeLimits) -> Rejection | None:
    if len(items) <= limits.items_max:
        return None
    return reject(
        Reason.TOO_MANY_ITEMS, f"items has {len(items)} entries, items_max is {limits.items_max}: send fewer"
    )


def _check_purchase(event: Purchase, limits: DecodeLimits) -> Rejection | None:
    items = event.items
    if items is None:
        if event.product_id is None:
            return reject(Reason.NO_PRODUCT, "product_id and items are both missing: send one of them")
        return check_number("quantity", event.quantity) or check_number("price", event.price)
    for name in ("product_id", "quantity", "price"):
        if getattr(event, name) is not None:
            return reject(
                Reason.PRODUCT_AND_ITEMS,
                f"{name} stands beside items: send product_id, quantity, price or items",
            )
    if not items:
        return reject(Reason.EMPTY_ITEMS, "items is empty: an order has at least one line")
    too_many = _check_items(items, limits)
    if too_many:
        return too_many
    for i, line in enumerate(items):
        if (line.quantity or 0.0) > NUMBER_MAX or (line.price or 0.0) > NUMBER_MAX:
            return check_number(f"items[{i}].quantity", line.quantity) or check_number(
                f"items[{i}].price", line.price
            )
    return None


def _check_session(event: Session, limits: DecodeLimits) -> Rejection | None:
    return check_number("duration_s", event.duration_s) or _check_items(event.items, limits)


def _check_product(event: Product, limits: DecodeLimits) -> Rejection | None:
    if event.category is not None and len(event.category) > limits.category_levels_max:
        return reject(
            Reason.CATEGORY_TOO_DEEP,
            f"category has {len(event.category)} levels, category_levels_max is {limits.category_levels_max}: "
            "send a shorter path",
        )
    vector = event.description_emb or ()
    if len(vector) > limits.embedding_dim_max:
        return reject(
            Reason.EMBEDDING_TOO_LONG,
            f"description_emb has {len(vector)} numbers, embedding_dim_max is {limits.embedding_dim_max}: "
            "send a shorter vector",
        )
    for i, x in enumerate(vector):
        if not abs(x) <= NUMBER_MAX:  # also true of NaN
            if math.isfinite(x):
                return check_number(f"description_emb[{i}]", abs(x))
            return reject(Reason.NOT_FINITE, f"description_emb[{i}] is {x}: send finite numbers")
    return check_number("price", event.price)


def _check_profile(event: Profile) -> Rejection | None:
    if event.signup_date is not None and epoch_day(event.signup_date) is None:
        return reject(
            Reason.BAD_DATE, f"signup_date is {event.signup_date!r}: send a date that exists, as 2017-03-01"
        )
    return None
