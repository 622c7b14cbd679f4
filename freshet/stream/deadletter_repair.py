"""What can be repaired in a rejected record without guessing, rule by rule.

A key follows from the body; a unit of time from the bounds that times have; a misspelt field from its spelling. A
wrong number does not follow from anything, and a field that nobody knows may be a known one in disguise: both are left
to a person (`--set`). Whatever was changed, the record is judged as the worker will judge it before it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import msgspec

from freshet.stream.codec import FAILURES, decode_record, untyped
from freshet.stream.deadletter import DeadLetter, DeadLetterError, replay
from freshet.stream.events import STRUCT_OF, Kind, Line, SessionItem
from freshet.stream.headers import Format, parse_headers
from freshet.stream.records import Outgoing, Record
from freshet.stream.rejection import DecodeLimits, Reason, Rejection
from freshet.stream.validate import TIMESTAMP_MS_MIN, future_bound_ms

SPELLING_RATIO_MIN = 0.8
"""Likeness (difflib) from which on a name with as many words counts as a misspelling of a field."""
TIME_MAX = 1e21
"""No unit makes a time of a number beyond this."""
_ITEM_OF: dict[Kind, type[Line | SessionItem]] = {Kind.PURCHASE: Line, Kind.SESSION: SessionItem}
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_PER_MS = {"microseconds": 1_000, "nanoseconds": 1_000_000}

Body = dict[Any, Any]


@dataclass(frozen=True)
class Repairs:
    """What may be changed: by the rules (`fix`), and fields of the body by hand (`changes`: name and value, None to
    leave the field out)."""

    fix: bool = False
    changes: tuple[tuple[str, Any], ...] = ()


class Repaired(NamedTuple):
    """A record to be sent, and what was done to it, one text a change."""

    record: Outgoing
    done: tuple[str, ...]


def parse_change(text: str) -> tuple[str, Any]:
    """The field and the value that `FIELD=JSON` names. Raises DeadLetterError."""
    name, equals, value = text.partition("=")
    try:
        if name and equals:
            return name, msgspec.json.decode(value)
    except FAILURES:
        pass
    raise DeadLetterError(
        f"{text!r} sets nothing: write FIELD=VALUE with a value in JSON, as quantity=1 or 'device=\"mobile\"'; "
        "null leaves the field out"
    )


def repair(letter: DeadLetter, kind: Kind, repairs: Repairs, limits: DecodeLimits) -> Repaired:
    """The record of `letter` with its repairs, valid.

    Raises DeadLetterError, which says why, where a part of the record is missing or it would be rejected again.
    """
    again = replay(letter)
    done: list[str] = []
    envelope = parse_headers(kind, letter.headers)
    if isinstance(envelope, Rejection):
        raise _refused(envelope)
    body = _body(again.value, envelope.format)
    if body is None and repairs.changes:
        raise DeadLetterError("there are no fields to be set in its value")
    if body is not None:
        for name, value in repairs.changes:
            done += _set(body, name, value, kind, envelope.event_id)
        if repairs.fix:
            done += _spell(body, kind)
            done += _time(body, letter, limits)
        if done:
            again = again._replace(value=_encoded(body, envelope.format))
        if repairs.fix:
            again = _keyed(again, body, kind, done)
    record = Record(letter.topic, 0, 0, letter.timestamp_ms, again.key, again.value, again.headers)
    outcome = decode_record(record, kind, limits)
    if isinstance(outcome, Rejection):
        raise _refused(outcome)
    if letter.reason == Reason.WRONG_PARTITION:
        done.append("goes to the partition that murmur2 of its key gives")
    return Repaired(again, tuple(done))


# --- rules --------------------------------------------------------------------------------------


def _set(body: Body, name: str, value: Any, kind: Kind, event_id: str | None) -> list[str]:
    fields = STRUCT_OF[kind].__struct_fields__
    if name == "event_id" and (body.get(name) or event_id):
        raise DeadLetterError("event_id names what happened and is kept: another one would count it twice")
    if value is None:
        return [f"{name} left out"] if body.pop(name, None) is not None else []
    if name not in fields:
        raise DeadLetterError(f"--set {name}: a {kind.value} has no such field, but {', '.join(fields)}")
    body[name] = value
    return [f"{name} set to {msgspec.json.encode(value).decode()}"]


def _spell(body: Body, kind: Kind) -> list[str]:
    done = _respell(body, STRUCT_OF[kind].__struct_fields__, "")
    item, items = _ITEM_OF.get(kind), body.get("items")
    if item is not None and isinstance(items, list):
        for i, entry in enumerate(items):
            if isinstance(entry, dict):
                done += _respell(entry, item.__struct_fields__, f"items[{i}].")
    return done


def _respell(body: Body, fields: Sequence[str], path: str) -> list[str]:
    """Rename the fields that can only be one other, which is not there."""
    odd = [name for name in body if isinstance(name, str) and name not in fields]
    meant = {name: likely_fields(name, fields) for name in odd}
    done = []
    for name, likely in meant.items():
        rivals = [other for other, options in meant.items() if options == likely]
        if len(likely) == 1 and len(rivals) == 1 and body.get(likely[0]) is None:
            body[likely[0]] = body.pop(name)
            done.append(f"{path}{name} is {path}{likely[0]}")
    return done


def likely_fields(name: str, fields: Sequence[str]) -> list[str]:
    """The fields that `name` may be a misspelling of, and not another word: `userId` and `usr_id` are `user_id`;
    `total_price` is not `price`, and `dwell_time_ms` is not `dwell_time_s`."""
    words = [word.lower() for word in _WORDS.findall(name[:64])]
    same = [field for field in fields if field.replace("_", "") == "".join(words)]
    return same or [field for field in fields if _is_like(words, field.split("_"))]


def _is_like(words: list[str], field: list[str]) -> bool:
    if len(words) != len(field) or ("s" in (words[-1], field[-1]) and words[-1] != field[-1]):  # another unit
        return False
    return SequenceMatcher(None, "".join(words), "".join(field)).ratio() >= SPELLING_RATIO_MIN


def _time(body: Body, letter: DeadLetter, limits: DecodeLimits) -> list[str]:
    stated = body.get("timestamp")
    found = in_ms(stated, future_bound_ms(letter.timestamp_ms, limits))
    if found is None:
        return []
    unit, body["timestamp"] = found
    return [f"timestamp {stated} in {unit} is {body['timestamp']} ms"]


def in_ms(stated: object, latest_ms: int) -> tuple[str, int] | None:
    """The unit of a time that is not in whole milliseconds, and the time in ms; None where it is, or where no unit or
    more than one puts it between 1990 and `latest_ms`."""
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not abs(stated) < TIME_MAX:
        return None  # NaN, too

    def possible(time_ms: float) -> bool:
        return TIMESTAMP_MS_MIN <= time_ms <= latest_ms

    if possible(stated):
        return ("milliseconds", int(stated)) if isinstance(stated, float) and stated.is_integer() else None
    times = {"seconds": round(stated * 1_000), **{unit: int(stated // n) for unit, n in _PER_MS.items()}}
    found = [(unit, time_ms) for unit, time_ms in times.items() if possible(time_ms)]
    return found[0] if len(found) == 1 else None


def _keyed(record: Outgoing, body: Body, kind: Kind, done: list[str]) -> Outgoing:
    """With the key that the body asks for, which decides the partition."""
    name = "product_id" if kind is Kind.PRODUCT else "user_id"
    owner = body.get(name)
    if not isinstance(owner, str) or not owner or owner.encode() == record.key:
        return record
    shown = "missing" if record.key is None else repr(record.key[:60].decode(errors="backslashreplace"))
    done.append(f"key was {shown}, now it is {name} {owner[:60]!r}")
    return record._replace(key=owner.encode())


# --- parts --------------------------------------------------------------------------------------


def _body(value: bytes | None, encoding: Format) -> Body | None:
    """The fields of a value; None where it has none, or none that can be read."""
    try:
        raw = untyped(value, encoding) if value else None
    except FAILURES:
        return None
    return raw if isinstance(raw, dict) else None


def _encoded(body: Body, encoding: Format) -> bytes:
    try:
        return msgspec.json.encode(body) if encoding is Format.JSON else msgspec.msgpack.encode(body)
    except (msgspec.EncodeError, OverflowError, TypeError, ValueError) as error:
        raise DeadLetterError(f"the repaired value cannot be written: {error}") from None


def _refused(rejection: Rejection) -> DeadLetterError:
    return DeadLetterError(f"would be rejected again: {rejection.reason}: {rejection.message}")
