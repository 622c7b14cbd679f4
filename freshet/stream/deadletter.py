"""A rejected record to a record of the dead-letter topic, and back.

A dead letter can always be produced: what is too large for one record is cut, and the headers say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freshet.errors import FreshetError
from freshet.stream.records import Outgoing, Record
from freshet.stream.rejection import Rejection

ORIGINAL_PREFIX = "orig."
REASON = "freshet-reason"
MESSAGE = "freshet-message"
TOPIC = "freshet-topic"
PARTITION = "freshet-partition"
OFFSET = "freshet-offset"
TIMESTAMP = "freshet-timestamp"
TRUNCATED = "freshet-truncated"
VALUE_BYTES = "freshet-value-bytes"


class DeadLetterError(FreshetError):
    """A record is no dead letter, or one that cannot be replayed."""


@dataclass(frozen=True)
class DeadLetterLimits:
    """How much of a rejected record is kept; the rest of a broker's 1 MiB is for Freshet's own headers."""

    deadletter_value_bytes_max: int = 900 * 1024
    """Most bytes of value, key and original headers together; the value is cut to what the others leave."""
    deadletter_key_bytes_max: int = 16 * 1024
    """Longest key that is kept whole."""
    deadletter_header_bytes_max: int = 64 * 1024
    """Most bytes of original headers, names included; more are left out altogether."""


@dataclass(frozen=True)
class DeadLetter:
    """A rejected record with where it came from and why it was rejected.

    `timestamp_ms`: that of the original record. `truncated`: which of "value", "key", "headers" are not
    whole; `value_bytes`: the length the value had.
    """

    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    value_bytes: int
    truncated: tuple[str, ...] = ()


def to_deadletter(
    record: Record, rejection: Rejection, deadletter_topic: str, limits: DeadLetterLimits | None = None
) -> Outgoing:
    """The dead letter of `record`: its key and bytes untouched, its headers under `orig.`.

    A null header becomes an empty one. The dead letter gets a timestamp of its own when it is produced, so
    that the retention of the topic counts from the rejection.
    """
    limits = limits or DeadLetterLimits()
    truncated: list[str] = []
    headers = tuple((ORIGINAL_PREFIX + name, value or b"") for name, value in record.headers)
    header_bytes = sum(len(name.encode()) + len(value) for name, value in headers)
    if header_bytes > limits.deadletter_header_bytes_max:
        headers, header_bytes = (), 0
        truncated.append("headers")
    key = record.key
    if key is not None and len(key) > limits.deadletter_key_bytes_max:
        key = key[: limits.deadletter_key_bytes_max]
        truncated.append("key")
    room = max(0, limits.deadletter_value_bytes_max - header_bytes - len(key or b""))
    value = record.value
    if value is not None and len(value) > room:
        value = value[:room]
        truncated.append("value")
    own = {
        REASON: str(rejection.reason),
        MESSAGE: rejection.message,
        TOPIC: record.topic,
        PARTITION: str(record.partition),
        OFFSET: str(record.offset),
        TIMESTAMP: str(record.timestamp_ms),
    }
    if truncated:
        own |= {TRUNCATED: ",".join(truncated), VALUE_BYTES: str(len(record.value or b""))}
    # A message may quote what cannot be UTF-8; it is for people, so it is made to fit.
    stated = tuple((name, text.encode(errors="backslashreplace")) for name, text in own.items())
    return Outgoing(deadletter_topic, key, value, stated + headers)


def from_deadletter(record: Record) -> DeadLetter:
    """The dead letter that a record of the dead-letter topic holds.

    Raises DeadLetterError where the record was not written by `to_deadletter`.
    """
    own = {name: value or b"" for name, value in record.headers if not name.startswith(ORIGINAL_PREFIX)}
    value_bytes = len(record.value or b"")
    try:
        truncated = own.get(TRUNCATED, b"").decode()
        return DeadLetter(
            reason=own[REASON].decode(),
            message=own[MESSAGE].decode(),
            topic=own[TOPIC].decode(),
            partition=int(own[PARTITION]),
            offset=int(own[OFFSET]),
            timestamp_ms=int(own[TIMESTAMP]),
            key=record.key,
            value=record.value,
            headers=_originals(record.headers),
            value_bytes=int(own.get(VALUE_BYTES, value_bytes)),
            truncated=tuple(truncated.split(",")) if truncated else (),
        )
    except KeyError as missing:
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        raise DeadLetterError(f"{where} is no dead letter: header {missing.args[0]} is missing") from None
    except ValueError as error:
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        raise DeadLetterError(
            f"{where} is no dead letter: a freshet-* header cannot be read: {error}"
        ) from None


def replay(deadletter: DeadLetter) -> Outgoing:
    """The original record once more, for its original topic, with its key, headers and timestamp.

    Raises DeadLetterError where a part of it is not whole.
    """
    if deadletter.truncated:
        raise DeadLetterError(
            f"the record at {deadletter.topic}[{deadletter.partition}]@{deadletter.offset} cannot be replayed: "
            f"its dead letter does not hold the whole {' and '.join(deadletter.truncated)}; send it from its source"
        )
    return Outgoing(
        deadletter.topic,
        deadletter.key,
        deadletter.value,
        deadletter.headers,
        deadletter.timestamp_ms if deadletter.timestamp_ms > 0 else None,
    )


def _originals(headers: Sequence[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes], ...]:
    cut = len(ORIGINAL_PREFIX)
    return tuple((name[cut:], value or b"") for name, value in headers if name.startswith(ORIGINAL_PREFIX))
