"""One record's bytes and headers to a typed event and back: JSON, MessagePack, CloudEvents binary mode."""

from __future__ import annotations

from typing import Any

import msgspec

from freshet.stream.events import STRUCT_OF, Event, Kind, Product, Profile
from freshet.stream.explain import explain, not_finite_json
from freshet.stream.headers import EVENT_TYPE_OF, Envelope, Format, content_format, parse_headers
from freshet.stream.records import Record
from freshet.stream.rejection import DecodeLimits, Reason, Rejection, reject
from freshet.stream.validate import Context, check, validate

__all__ = [
    "EVENT_TYPE_OF",
    "JSON",
    "MSGPACK",
    "DecodeLimits",
    "Reason",
    "Rejection",
    "decode_record",
    "encode",
    "encode_record_key",
    "parse",
    "validate",
]

JSON = "application/json"
MSGPACK = "application/msgpack"

JSON_DECODERS: dict[Kind, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(struct) for kind, struct in STRUCT_OF.items()
}
MSGPACK_DECODERS: dict[Kind, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(struct) for kind, struct in STRUCT_OF.items()
}
_JSON_ENCODER = msgspec.json.Encoder()
_MSGPACK_ENCODER = msgspec.msgpack.Encoder()
_TOMBSTONE_KINDS = (Kind.PRODUCT, Kind.PROFILE)
FAILURES = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that decoding bytes from anywhere can raise."""


def encode(event: Event, content_type: str = JSON) -> bytes:
    """The bytes of `event`; absent fields are left out. Does not validate: see `validate`.

    Raises ValueError for a content type that is neither JSON nor MessagePack.
    """
    found = content_format(content_type.encode())
    if isinstance(found, Rejection):
        raise ValueError(found.message)
    return _JSON_ENCODER.encode(event) if found is Format.JSON else _MSGPACK_ENCODER.encode(event)


def encode_record_key(event: Event) -> bytes:
    """The key of the event's record: user id, or product id of a catalogue record, in UTF-8."""
    return (event.product_id if isinstance(event, Product) else event.user_id).encode()


def decode_record(record: Record, kind: Kind, limits: DecodeLimits | None = None) -> Event | Rejection:
    """The typed, valid event of one record, with its time filled in, or why there is none. Never raises.

    An empty value of a catalogue or profile record gives `withdrawn` or `forgotten` with the id from the key.
    """
    limits = limits or DecodeLimits()
    event = parse(record, kind, limits)
    if isinstance(event, Rejection):
        return event
    return check(event, Context(record.key, record.timestamp_ms, limits)) or event


def parse(record: Record, kind: Kind, limits: DecodeLimits) -> Event | Rejection:
    """The typed event of one record, with the schema's types but not yet checked further."""
    value = record.value or b""
    if len(value) > limits.value_bytes_max:
        return reject(
            Reason.VALUE_TOO_LARGE,
            f"the value has {len(value)} bytes, value_bytes_max is {limits.value_bytes_max}: send less in one record",
        )
    envelope = parse_headers(kind, record.headers) if record.headers else Envelope()
    if isinstance(envelope, Rejection):
        return envelope
    if value:
        event = _decode(value, kind, envelope)
    elif kind in _TOMBSTONE_KINDS:
        event = _tombstone(record.key, kind)
    else:
        event = reject(
            Reason.EMPTY_VALUE, f"the value is empty: a {kind.value} record has to carry its event"
        )
    if isinstance(event, Product | Profile) and event.timestamp is None:
        time_ms = envelope.time_ms if envelope.time_ms is not None else record.timestamp_ms
        return msgspec.structs.replace(event, timestamp=time_ms) if time_ms > 0 else event
    return event


def _decode(value: bytes, kind: Kind, envelope: Envelope) -> Event | Rejection:
    decoder = (JSON_DECODERS if envelope.format is Format.JSON else MSGPACK_DECODERS)[kind]
    fill = _filled_by_headers(kind, envelope)
    try:
        if not fill:
            return decoder.decode(value)  # type: ignore[no-any-return]
        raw = untyped(value, envelope.format)
        if isinstance(raw, dict):
            raw = fill | raw
        return msgspec.convert(raw, type=STRUCT_OF[kind])
    except FAILURES as error:
        return explain_failure(error, value, kind, envelope.format, fill)


def _filled_by_headers(kind: Kind, envelope: Envelope) -> dict[str, object]:
    """What the headers know of an event's own fields; the body goes before them."""
    if kind in _TOMBSTONE_KINDS:
        return {}
    fill: dict[str, object] = {}
    if envelope.event_id is not None:
        fill["event_id"] = envelope.event_id
    if envelope.time_ms is not None:
        fill["timestamp"] = envelope.time_ms
    return fill


def explain_failure(
    error: Exception, value: bytes, kind: Kind, encoding: Format, fill: dict[str, object] | None = None
) -> Rejection:
    """Why `value` could not be decoded, after the decoder raised `error`."""
    if encoding is Format.JSON and (found := not_finite_json(value)):
        return found
    raw: object = None
    try:
        raw = untyped(value, encoding)
    except msgspec.ValidationError:
        pass  # a number beyond float64, which `error` names by its field
    except FAILURES as broken:
        # Types are judged while bytes are read: bytes that are broken further on are not decodable first of all.
        return explain(_undecodable(broken), STRUCT_OF[kind])
    if fill and isinstance(raw, dict):
        raw = fill | raw
    return explain(error, STRUCT_OF[kind], raw)


def _undecodable(error: Exception) -> Exception:
    """The error without the look of a schema error."""
    return ValueError("it is nested too deeply") if isinstance(error, RecursionError) else error


def untyped(value: bytes, encoding: Format) -> object:
    """A value as plain maps, lists and scalars. Raises one of `FAILURES`."""
    return msgspec.json.decode(value) if encoding is Format.JSON else msgspec.msgpack.decode(value)


def _tombstone(key: bytes | None, kind: Kind) -> Event | Rejection:
    """What an empty value means; its id, having no value to stand in, is held to the same schema."""
    if key is None:
        return reject(
            Reason.MISSING_KEY, "the record has neither key nor value: send the id in UTF-8 as the key"
        )
    name, flag = ("product_id", "withdrawn") if kind is Kind.PRODUCT else ("user_id", "forgotten")
    raw: object = None
    try:
        raw = {name: key.decode(), flag: True}
        return msgspec.convert(raw, type=STRUCT_OF[kind])
    except UnicodeDecodeError:
        return reject(Reason.KEY_MISMATCH, f"the record's key is not UTF-8: send {name} in UTF-8 as the key")
    except msgspec.ValidationError as error:
        return explain(error, STRUCT_OF[kind], raw)
