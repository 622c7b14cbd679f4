"""A failed decode in the words of the contract: which field, what is wrong, what to do.

Off the hot path: only a record that already failed comes here. msgspec says what it expected and where;
`tests/unit/test_codec.py` fails if a version of it words that differently.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from typing import Any

import msgspec

from freshet.stream.events import ID_BYTES_MAX, Event, Line, SessionItem
from freshet.stream.rejection import Reason, Rejection, reject

_PATH = re.compile(r" - at `(?:key` in `)?\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]*)`")
_UNKNOWN = re.compile(r"unknown field `(.*?)`(?: - at `|$)", re.DOTALL)
_TYPES = re.compile(r"Expected `([^`]*)`, got `([^`]*)`")
_LONGEST = re.compile(r"of length <= (\d+)")
_IDS = {"event_id", "user_id", "product_id", "session_id", "order_id"}
_ITEM_OF: dict[str, type[Line | SessionItem]] = {"Purchase": Line, "Session": SessionItem}
_JSON_NAMES = {"object": "map", "str": "string", "array": "list"}


def explain(error: Exception, struct: type[Event], raw: object = None) -> Rejection:
    """The rejection for what msgspec raised while it decoded a `struct`; `raw`: the value untyped, if known."""
    if not isinstance(error, msgspec.ValidationError):
        return reject(Reason.UNDECODABLE, f"the value cannot be decoded: {error}")
    text = str(error)
    where = _PATH.search(text)
    path = where.group(1) if where else ""
    if " - at `key` in" in text:
        return reject(Reason.WRONG_TYPE, f"a field name of {path or 'the value'} is no string: send strings")
    if found := _MISSING.search(text):
        name = f"{path}.{found.group(1)}" if path else found.group(1)
        return reject(Reason.MISSING_FIELD, f"{name} is missing: send it")
    if found := _UNKNOWN.search(text):
        return _unknown(found.group(1), path, struct)
    field = path.rpartition(".")[2]
    if "of length >= " in text:
        if field in _IDS:
            return reject(
                Reason.EMPTY_ID, f"{path} is empty: send an id of 1 to {ID_BYTES_MAX} bytes in UTF-8"
            )
        return reject(Reason.EMPTY_TEXT, f"{path} is empty: send text, or leave the field out")
    if found := _LONGEST.search(text):
        return _too_long(path, field, found.group(1))
    if "matching regex" in text:
        return reject(Reason.BAD_DATE, f"{path} is no ISO date: send it as 2017-03-01")
    if "Integer value out of range" in text:
        return reject(Reason.NUMBER_TOO_LARGE, f"{path} does not fit into 64 bits: send a smaller number")
    if "Number out of range" in text:
        return reject(
            Reason.NOT_FINITE, f"{path} is no finite number: send a finite one, or leave the field out"
        )
    if ">= 0" in text:
        return _below_zero(path, _at(raw, path))
    if "<= " in text:
        most = text.partition("<= ")[2].partition(" -")[0]
        return reject(Reason.NUMBER_TOO_LARGE, f"{path} is too large: send at most {most}")
    if found := _TYPES.search(text):
        return _wrong_type(path, found.group(1), found.group(2))
    return reject(Reason.WRONG_TYPE, f"{path or 'the value'}: {text}")


def not_finite_json(value: bytes) -> Rejection | None:
    """A rejection where the only fault of JSON is a literal NaN or Infinity, which JSON does not have."""
    if b"NaN" not in value and b"Infinity" not in value:
        return None
    seen: list[str] = []
    try:
        json.loads(value, parse_constant=lambda name: seen.append(name))
    except (ValueError, RecursionError):
        return None
    if not seen:
        return None
    return reject(
        Reason.NOT_FINITE,
        f"the value holds the number {seen[0]}: send finite numbers, or leave the field out",
    )


def _unknown(name: str, path: str, struct: type[Event]) -> Rejection:
    target: type[Any] = _ITEM_OF.get(struct.__name__, struct) if path else struct
    fields = target.__struct_fields__
    close = difflib.get_close_matches(name[:64], fields, 1)
    hint = f"did you mean {close[0]}?" if close else f"known fields are {', '.join(fields)}"
    shown = f"{path}.{name[:64]}" if path else name[:64]
    return reject(Reason.UNKNOWN_FIELD, f"{shown} is not a field of {target.__name__.lower()}: {hint}")


def _too_long(path: str, field: str, most: str) -> Rejection:
    if field in _IDS:
        return reject(
            Reason.ID_TOO_LONG,
            f"{path} is longer than {ID_BYTES_MAX} bytes in UTF-8: send an id of at most {ID_BYTES_MAX} bytes, "
            "or its hash",
        )
    return reject(Reason.TEXT_TOO_LONG, f"{path} is longer than {most} characters: send a shorter text")


def _below_zero(path: str, value: object) -> Rejection:
    if isinstance(value, float) and math.isnan(value):
        return reject(Reason.NOT_FINITE, f"{path} is nan: send a finite number, or leave the field out")
    if path == "timestamp":
        return reject(
            Reason.TIMESTAMP_TOO_OLD,
            "timestamp is negative: milliseconds since 1970 UTC, after 1990, are expected",
        )
    shown = f" ({value})" if isinstance(value, int | float) else ""
    return reject(
        Reason.NEGATIVE_NUMBER, f"{path} is negative{shown}: send 0 or more, or leave the field out"
    )


def _wrong_type(path: str, expected: str, got: str) -> Rejection:
    names = [_JSON_NAMES.get(n, n) for n in expected.split(" | ")]
    return reject(
        Reason.WRONG_TYPE,
        f"{path or 'the value'} is of type {_JSON_NAMES.get(got, got)}: send {' or '.join(names)}",
    )


def _at(raw: object, path: str) -> object:
    """What stands at `path`, as `items[0].quantity`, in a decoded value."""
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(raw, dict):
            raw = raw.get(step)
        elif isinstance(raw, list | tuple) and step.isdigit() and int(step) < len(raw):
            raw = raw[int(step)]
        else:
            return None
    return raw
