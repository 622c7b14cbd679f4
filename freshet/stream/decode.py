"""A batch of records to columns: the only loop over single events in the whole data path.

Per record it does what cannot be batched, the typed decode; keys, times and ids are judged a batch at a time,
and only rows that look wrong are put before `validate.check_envelope`, which gives the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from freshet.errors import FreshetError
from freshet.store.columns import I64, Bool, EventColumns
from freshet.stream.codec import FAILURES, JSON_DECODERS, MSGPACK_DECODERS, explain_failure, parse
from freshet.stream.events import ID_BYTES_MAX, Event, Kind, Product, Profile, Purchase, Session, View
from freshet.stream.headers import Format
from freshet.stream.records import Record
from freshet.stream.rejection import DecodeLimits, Reason, Rejection
from freshet.stream.tables import (
    product_columns,
    profile_columns,
    purchase_columns,
    session_columns,
    view_columns,
)
from freshet.stream.validate import (
    KIND_OF,
    TIMESTAMP_MS_MAX,
    TIMESTAMP_MS_MIN,
    Context,
    check_body,
    check_envelope,
    owner_of,
)

__all__ = ["DecodeLimits", "Decoded", "Reason", "Rejection", "decode", "decode_events"]


@dataclass
class Decoded:
    """A decoded batch.

    `columns`: the events; `rejections`: what could not be used, in the order of the records; `events`: accepted
    records by kind. `*_record` [rows] int64: for each row of a table (an order, not its lines) the index of its
    record in the batch.
    """

    columns: EventColumns = field(default_factory=EventColumns)
    rejections: list[tuple[Record, Rejection]] = field(default_factory=list)
    events: dict[Kind, int] = field(default_factory=dict)
    view_record: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    order_record: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    session_record: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    product_record: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    profile_record: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))


Headers = tuple[tuple[str, bytes | None], ...]

_PLAIN_HEADERS: dict[Headers, Format] = {
    (): Format.JSON,
    (("content-type", b"application/json"),): Format.JSON,
    (("content-type", b"application/msgpack"),): Format.MSGPACK,
    (("content-type", b"application/x-msgpack"),): Format.MSGPACK,
}


class _Rows(NamedTuple):
    """The events of one kind with the indices of their records."""

    kind: Kind
    decoders: Mapping[Headers, tuple[Format, Callable[[bytes], Event]]]
    """The typed decoder for the headers that need no reading; other records are read whole by `codec.parse`."""
    events: list[Any]
    records: list[int]


def decode(
    records: Sequence[Record], kinds: Mapping[str, Kind], limits: DecodeLimits | None = None
) -> Decoded:
    """Decode and judge a batch; a record that cannot be used is rejected with its reason, never raised.

    `kinds` gives the kind of each topic. Raises FreshetError for a record of a topic that it does not name.
    """
    limits = limits or DecodeLimits()
    rows = {kind: _Rows(kind, _DECODERS[kind], [], []) for kind in Kind}
    rejected: dict[int, Rejection] = {}
    _parse_all(records, {topic: rows[kind] for topic, kind in kinds.items()}, limits, rejected)
    kept = {kind: _judge(rows[kind], records, limits, rejected) for kind in Kind}
    return Decoded(
        columns=_columns({kind: kept[kind].events for kind in Kind}),
        rejections=[(records[i], rejected[i]) for i in sorted(rejected)],
        events={kind: len(kept[kind].events) for kind in Kind if kept[kind].events},
        view_record=_indices(kept[Kind.VIEW]),
        order_record=_indices(kept[Kind.PURCHASE]),
        session_record=_indices(kept[Kind.SESSION]),
        product_record=_indices(kept[Kind.PRODUCT]),
        profile_record=_indices(kept[Kind.PROFILE]),
    )


def decode_events(events: Iterable[Event]) -> EventColumns:
    """The columns of events that are valid already, as those of an event log; nothing is judged again.

    Raises FreshetError for a catalogue or profile event without a timestamp: outside Kafka nothing supplies one.
    """
    by_kind: dict[Kind, list[Any]] = {kind: [] for kind in Kind}
    for event in events:
        by_kind[KIND_OF[type(event)]].append(event)
    for event in by_kind[Kind.PRODUCT] + by_kind[Kind.PROFILE]:
        if event.timestamp is None:
            raise FreshetError(
                f"{KIND_OF[type(event)].value} {owner_of(event)!r} has no timestamp: an event log has to state it"
            )
    return _columns(by_kind)


# --- parts --------------------------------------------------------------------------------------


def _plain_decoders(kind: Kind) -> dict[Headers, tuple[Format, Callable[[bytes], Event]]]:
    if kind in (Kind.PRODUCT, Kind.PROFILE):
        return {}  # their time may come from the record
    of_format = {Format.JSON: JSON_DECODERS[kind].decode, Format.MSGPACK: MSGPACK_DECODERS[kind].decode}
    return {headers: (form, of_format[form]) for headers, form in _PLAIN_HEADERS.items()}


_DECODERS = {kind: _plain_decoders(kind) for kind in Kind}


def _parse_all(
    records: Sequence[Record], rows_of: dict[str, _Rows], limits: DecodeLimits, rejected: dict[int, Rejection]
) -> None:
    """Sort the records' events into rows by kind."""
    value_bytes_max = limits.value_bytes_max
    for i, record in enumerate(records):
        topic, _, _, _, _, value, headers = record
        rows = rows_of.get(topic)
        if rows is None:
            raise FreshetError(f"topic {topic!r} is not among the topics to decode: {', '.join(rows_of)}")
        kind, decoders, events, indices = rows
        event: Event | Rejection
        plain = decoders.get(headers)
        if plain is None or not value or len(value) > value_bytes_max:
            event = parse(record, kind, limits)
        else:
            try:
                event = plain[1](value)
            except FAILURES as error:
                event = explain_failure(error, value, kind, plain[0])
        if type(event) is Rejection:
            rejected[i] = event
        else:
            events.append(event)
            indices.append(i)


def _judge(
    rows: _Rows, records: Sequence[Record], limits: DecodeLimits, rejected: dict[int, Rejection]
) -> _Rows:
    """The rows that can be used; the others go to `rejected`."""
    kind, _, events, indices = rows
    if not events:
        return rows
    found = len(rejected)
    suspicious = _suspicious(rows, records, limits)
    for j in np.flatnonzero(suspicious).tolist():
        record = records[indices[j]]
        reason = check_envelope(events[j], Context(record.key, record.timestamp_ms, limits))
        if reason:
            rejected[indices[j]] = reason
    for event, i in _with_doubtful_body(rows, limits):
        if i not in rejected and (reason := check_body(event, limits)):
            rejected[i] = reason
    if len(rejected) == found:
        return rows
    keep = [j for j, i in enumerate(indices) if i not in rejected]
    return _Rows(kind, rows.decoders, [events[j] for j in keep], [indices[j] for j in keep])


def _suspicious(rows: _Rows, records: Sequence[Record], limits: DecodeLimits) -> Bool:
    """Which events may fail `check_envelope`, [n] bool; never misses one that does."""
    events, indices = rows.events, rows.records
    owners = [e.product_id for e in events] if rows.kind is Kind.PRODUCT else [e.user_id for e in events]
    keys = [records[i].key for i in indices]
    encoded = [owner.encode() for owner in owners]
    if encoded == keys:
        suspicious = np.zeros(len(events), dtype=np.bool_)
    else:
        suspicious = np.array([a != b for a, b in zip(encoded, keys, strict=True)], dtype=np.bool_)

    record_ms = np.fromiter((records[i].timestamp_ms for i in indices), np.int64, len(events))
    time = _times(events)
    bound = np.where(
        record_ms > 0, np.minimum(record_ms, TIMESTAMP_MS_MAX) + limits.event_future_ms_max, TIMESTAMP_MS_MAX
    )
    suspicious |= (time < TIMESTAMP_MS_MIN) | (time > np.minimum(bound, TIMESTAMP_MS_MAX))

    ids = owners + [text for name in _ID_FIELDS[rows.kind] for e in events if (text := getattr(e, name))]
    if rows.kind in (Kind.PURCHASE, Kind.SESSION):
        ids += [item.product_id for e in events for item in e.items or ()]
    if not "".join(ids).isascii() and max(map(len, ids)) > ID_BYTES_MAX // 4:
        suspicious[:] = True  # rare: some id is long and holds characters of several bytes
    return suspicious


_ID_FIELDS: dict[Kind, tuple[str, ...]] = {
    Kind.VIEW: ("event_id", "product_id"),
    Kind.PURCHASE: ("event_id", "product_id", "order_id"),
    Kind.SESSION: ("event_id", "session_id"),
    Kind.PRODUCT: (),
    Kind.PROFILE: (),
}


def _with_doubtful_body(rows: _Rows, limits: DecodeLimits) -> Iterable[tuple[Event, int]]:
    """The events whose body has to be judged: of views, the bulk of a stream, only what NumPy finds odd."""
    if rows.kind is not Kind.VIEW:
        return zip(rows.events, rows.records, strict=True)
    dwell = np.array([e.dwell_time_s for e in rows.events], dtype=np.float64)
    with np.errstate(over="ignore"):
        odd = np.flatnonzero(np.isinf(dwell.astype(np.float32))).tolist()
    return [(rows.events[j], rows.records[j]) for j in odd]


def _times(events: list[Any]) -> I64:
    """Times [n]; -1 where there is none, and what int64 cannot hold cut to the latest time there is."""
    times = [e.timestamp for e in events]
    try:
        return np.array(times, dtype=np.int64)
    except (OverflowError, TypeError):
        return np.array([-1 if t is None else min(t, TIMESTAMP_MS_MAX + 1) for t in times], dtype=np.int64)


def _indices(rows: _Rows) -> I64:
    return np.array(rows.records, dtype=np.int64)


def _columns(by_kind: Mapping[Kind, list[Any]]) -> EventColumns:
    views: list[View] = by_kind[Kind.VIEW]
    purchases: list[Purchase] = by_kind[Kind.PURCHASE]
    sessions: list[Session] = by_kind[Kind.SESSION]
    products: list[Product] = by_kind[Kind.PRODUCT]
    profiles: list[Profile] = by_kind[Kind.PROFILE]
    return EventColumns(
        views=view_columns(views),
        purchases=purchase_columns(purchases),
        sessions=session_columns(sessions),
        products=product_columns(products),
        profiles=profile_columns(profiles),
    )
