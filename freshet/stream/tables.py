"""Typed events to columns, one function a kind. Every event is taken as valid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import xxhash

from freshet.store.columns import (
    I64,
    U64,
    ProductAttributes,
    ProductColumns,
    ProfileColumns,
    PurchaseColumns,
    SessionColumns,
    UserAttributes,
    ViewColumns,
)
from freshet.stream.events import Line, Product, Profile, Purchase, Session, View
from freshet.stream.validate import NUMBER_MAX, epoch_day

KEY_MAX = 2**64 - 1
"""The key of a record that takes an attribute back; no value has it, so at the same time it wins."""

_CONTENT = msgspec.msgpack.Encoder(order="deterministic")


def view_columns(events: Sequence[View]) -> ViewColumns:
    """Columns of n views."""
    if not events:
        return ViewColumns()
    return ViewColumns(
        user=[e.user_id for e in events],
        product=[e.product_id for e in events],
        time=np.array([e.timestamp for e in events], dtype=np.int64),
        event_hash=_hashes(e.event_id for e in events),
        dwell_s=np.array([e.dwell_time_s for e in events], dtype=np.float32),
    )


def purchase_columns(events: Sequence[Purchase]) -> PurchaseColumns:
    """Columns of the lines of m orders.

    A product that several lines of an order name becomes one line, in the place of its first: quantities are
    added (absent ones add nothing), and it is cancelled if any of its lines is, or the event.
    """
    if not events:
        return PurchaseColumns()
    product: list[str] = []
    quantity: list[float | None] = []
    cancelled: list[bool] = []
    lengths: list[int] = []
    for event in events:
        if event.items is None:
            assert event.product_id is not None
            product.append(event.product_id)
            quantity.append(event.quantity)
            cancelled.append(event.cancelled)
            lengths.append(1)
            continue
        lines = _merged(event.items)
        product += [line.product_id for line in lines]
        quantity += [line.quantity for line in lines]
        cancelled += [True] * len(lines) if event.cancelled else [line.cancelled for line in lines]
        lengths.append(len(lines))
    count = np.array(lengths, dtype=np.int64)
    order = np.repeat(np.arange(len(events)), count)
    users = [e.user_id for e in events]
    return PurchaseColumns(
        user=users if len(product) == len(users) else [users[o] for o in order.tolist()],
        product=product,
        time=np.array([e.timestamp for e in events], dtype=np.int64)[order],
        event_hash=_hashes(e.event_id for e in events)[order],
        quantity=np.array(quantity, dtype=np.float32),
        cancelled=np.array(cancelled, dtype=np.bool_),
        order_start=_starts(count),
    )


def session_columns(events: Sequence[Session]) -> SessionColumns:
    """Columns of m sessions and their items, in the order the events list them."""
    if not events:
        return SessionColumns()
    items = [item for e in events for item in e.items]
    return SessionColumns(
        user=[e.user_id for e in events],
        session=[e.session_id for e in events],
        device=[e.device for e in events],
        time=np.array([e.timestamp for e in events], dtype=np.int64),
        event_hash=_hashes(e.event_id for e in events),
        duration_s=np.array([e.duration_s for e in events], dtype=np.float32),
        item_start=_starts(np.array([len(e.items) for e in events], dtype=np.int64)),
        product=[item.product_id for item in items],
        position=np.array([-1 if i.position is None else i.position for i in items], dtype=np.int32),
        click=np.array([-1 if i.click is None else i.click for i in items], dtype=np.int8),
    )


def product_columns(events: Sequence[Product]) -> ProductColumns:
    """Columns of m catalogue records, each with a timestamp; an empty list counts as absent."""
    if not events:
        return ProductColumns()
    return ProductColumns(
        product=[e.product_id for e in events],
        time=np.array([e.timestamp for e in events], dtype=np.int64),
        key=np.array([KEY_MAX if e.withdrawn else _content_key(e) for e in events], dtype=np.uint64),
        attributes=[
            None
            if e.withdrawn
            else ProductAttributes(
                category=e.category or None,
                brand=e.brand,
                price=e.price,
                description=e.description,
                description_emb=e.description_emb or None,
            )
            for e in events
        ],
    )


def profile_columns(events: Sequence[Profile]) -> ProfileColumns:
    """Columns of m profiles, each with a timestamp."""
    if not events:
        return ProfileColumns()
    return ProfileColumns(
        user=[e.user_id for e in events],
        time=np.array([e.timestamp for e in events], dtype=np.int64),
        key=np.array([KEY_MAX if e.forgotten else _content_key(e) for e in events], dtype=np.uint64),
        attributes=[
            None
            if e.forgotten
            else UserAttributes(
                age_bucket=e.age_bucket,
                geo=e.geo,
                signup_day=None if e.signup_date is None else epoch_day(e.signup_date),
            )
            for e in events
        ],
    )


def _merged(lines: tuple[Line, ...]) -> Sequence[Line]:
    if len({line.product_id for line in lines}) == len(lines):
        return lines
    merged: dict[str, Line] = {}
    for line in lines:
        first = merged.get(line.product_id)
        merged[line.product_id] = line if first is None else _added(first, line)
    return list(merged.values())


def _added(a: Line, b: Line) -> Line:
    known = [line.quantity for line in (a, b) if line.quantity is not None]
    return Line(
        product_id=a.product_id,
        quantity=min(sum(known), NUMBER_MAX) if known else None,
        cancelled=a.cancelled or b.cancelled,
    )


def _content_key(event: Product | Profile) -> int:
    """A hash of the content without the time, so that a tie in time is settled the same way everywhere."""
    content = _CONTENT.encode(msgspec.structs.replace(event, timestamp=None))
    return min(xxhash.xxh3_64_intdigest(content), KEY_MAX - 1)


def _hashes(event_ids: Iterable[str]) -> U64:
    digest = xxhash.xxh3_64_intdigest
    return np.array([digest(event_id.encode()) for event_id in event_ids], dtype=np.uint64)


def _starts(counts: I64) -> I64:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
