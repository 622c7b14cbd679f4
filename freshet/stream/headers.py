"""What a record's headers say about its value: content type and CloudEvents attributes (binary mode)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Annotated, NamedTuple

import msgspec

from freshet.stream.events import Kind
from freshet.stream.rejection import Reason, Rejection, reject

EVENT_TYPE_OF: dict[Kind, str] = {kind: f"freshet.{kind.value}" for kind in Kind}
"""The CloudEvents type (`ce_type`) of each kind of record."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS = {name: kind for kind, name in EVENT_TYPE_OF.items()}
_Rfc3339 = Annotated[datetime, msgspec.Meta(tz=True)]


class Format(Enum):
    """How a value is encoded."""

    JSON = "json"
    MSGPACK = "msgpack"


class Envelope(NamedTuple):
    """What the headers add to a value; None where they say nothing."""

    format: Format = Format.JSON
    event_id: str | None = None
    time_ms: int | None = None


_FORMAT_OF = {
    b"application/json": Format.JSON,
    b"text/json": Format.JSON,
    b"application/msgpack": Format.MSGPACK,
    b"application/x-msgpack": Format.MSGPACK,
    b"application/vnd.msgpack": Format.MSGPACK,
}
_SUFFIXES = {b"+json": Format.JSON, b"+msgpack": Format.MSGPACK}
_CHARSETS = {b"utf-8", b"utf8", b"us-ascii", b"ascii"}


def parse_headers(kind: Kind, headers: Iterable[tuple[str, bytes | None]]) -> Envelope | Rejection:
    """What `headers` of a record of `kind` mean; other headers than content type and `ce_*` are ignored.

    Names are compared without regard to case; of a repeated header the last one counts; an empty or null
    header says nothing. `content-type` goes before `ce_datacontenttype`.
    """
    known = {name.lower(): value for name, value in headers if value}
    stated = known.get("content-type") or known.get("ce_datacontenttype")
    content = content_format(stated) if stated else Format.JSON
    if isinstance(content, Rejection):
        return content
    event_id: str | None = None
    time_ms: int | None = None
    try:
        if (version := known.get("ce_specversion")) and not version.startswith(b"1."):
            return reject(
                Reason.BAD_HEADER,
                f"header ce_specversion is {_quoted(version)}: CloudEvents 1.0 is understood",
            )
        if (event_type := known.get("ce_type")) and event_type.startswith(b"freshet."):
            wrong = _check_type(kind, event_type)
            if wrong:
                return wrong
        if (raw_id := known.get("ce_id")) is not None:
            event_id = raw_id.decode()
    except UnicodeDecodeError:
        return reject(Reason.BAD_HEADER, "header ce_id or ce_type is not UTF-8: send it as UTF-8 text")
    if (stamp := known.get("ce_time")) is not None:
        time_ms = rfc3339_ms(stamp)
        if time_ms is None:
            return reject(
                Reason.BAD_HEADER,
                f"header ce_time is {_quoted(stamp)}: send an RFC 3339 time with a zone, as 2026-11-23T08:00:00Z",
            )
    return Envelope(content, event_id, time_ms)


def content_format(stated: bytes) -> Format | Rejection:
    """The encoding that a content type names, as `application/json; charset=utf-8`."""
    found = _FORMAT_OF.get(stated)
    if found:
        return found
    media, *parameters = stated.lower().split(b";")
    media = media.strip()
    found = _FORMAT_OF.get(media)
    if found is None and not media.startswith(b"application/cloudevents"):
        found = next((fmt for suffix, fmt in _SUFFIXES.items() if media.endswith(suffix)), None)
    if found is None:
        hint = " (CloudEvents: binary mode only)" if media.startswith(b"application/cloudevents") else ""
        return reject(
            Reason.UNSUPPORTED_CONTENT_TYPE,
            f"content-type is {_quoted(stated)}: send application/json or application/msgpack{hint}",
        )
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"charset" and value.strip(b' "') not in _CHARSETS:
            return reject(
                Reason.UNSUPPORTED_CONTENT_TYPE, f"content-type is {_quoted(stated)}: text has to be UTF-8"
            )
    return found


def rfc3339_ms(stamp: bytes) -> int | None:
    """Milliseconds since the epoch (rounded down), or None where `stamp` is no RFC 3339 time with a zone."""
    try:
        moment = msgspec.convert(stamp.decode(), type=_Rfc3339)
    except (msgspec.ValidationError, UnicodeDecodeError):
        return None
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _check_type(kind: Kind, stated: bytes) -> Rejection | None:
    found = _KINDS.get(stated.decode())
    if found is None:
        return reject(
            Reason.UNKNOWN_EVENT_TYPE,
            f"header ce_type is {_quoted(stated)}: known types are {', '.join(_KINDS)}",
        )
    if found is not kind:
        return reject(
            Reason.EVENT_TYPE_MISMATCH,
            f"header ce_type is {_quoted(stated)}, but the topic carries {EVENT_TYPE_OF[kind]}: "
            "send the record to the topic of its type",
        )
    return None


def _quoted(value: bytes) -> str:
    text = value[:60].decode(errors="backslashreplace")
    return repr(text + ("…" if len(value) > 60 else ""))
