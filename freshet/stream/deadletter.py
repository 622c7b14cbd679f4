"""A rejected record to a record of the dead-letter topic, and back.

A dead letter can always be produced: what is too large for one record is cut, and the headers say so. A record that
is sent again carries where it was first and how often it was sent again, so that a letter about it, if it is rejected
once more, is known as the newest state of the same thing and not as another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from freshet.errors import FreshetError
from freshet.stream.records import Outgoing, Record
from freshet.stream.rejection import MESSAGE_CHARS_MAX, Rejection

ORIGINAL_PREFIX = "orig."
REASON = "freshet-reason"
MESSAGE = "freshet-message"
TOPIC = "freshet-topic"
PARTITION = "freshet-partition"
OFFSET = "freshet-offset"
TIMESTAMP = "freshet-timestamp"
TRUNCATED = "freshet-truncated"
VALUE_BYTES = "freshet-value-bytes"
ORIGIN = "freshet-origin"
REPLAYS = "freshet-replays"
REPLAYED = "freshet-replayed"
REPAIRS = "freshet-repairs"

_ADDRESS = re.compile(r"([A-Za-z0-9._-]{1,249}):([0-9]{1,10}):([0-9]{1,19})")
_COUNT = re.compile(rb"[0-9]{1,9}")


class DeadLetterError(FreshetError):
    """A record is no dead letter, or one that cannot be replayed."""


class Address(NamedTuple):
    """Where a record stands: `TOPIC:PARTITION:OFFSET` as text. A topic's name holds no colon."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"

    @staticmethod
    def parse(text: str) -> Address:
        """The inverse of `str`. Raises DeadLetterError."""
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise DeadLetterError(
                f"{text!r} is no address of a record: write TOPIC:PARTITION:OFFSET as `freshet deadletter list` does"
            )
        return Address(found[1], int(found[2]), int(found[3]))


@dataclass(frozen=True)
class DeadLetterLimits:
    """How much of a rejected record is kept; the rest of a broker's 1 MiB is for Freshet's own headers."""

    deadletter_value_bytes_max: int = 900 * 1024
    """Most bytes of value, key and original headers together; the value is cut to what the others leave."""
    deadletter_key_bytes_max: int = 16 * 1024
    """Longest key that is kept whole."""
    deadletter_header_bytes_max: int = 64 * 1024
    """Most bytes of original headers, names included; more are left out altogether."""
    deadletter_replays_max: int = 3
    """How often `freshet deadletter replay` sends a record that comes back each time, unless it is named by address."""


@dataclass(frozen=True)
class DeadLetter:
    """A rejected record with where it came from and why it was rejected.

    `timestamp_ms`: that of the original record. `truncated`: which of "value", "key", "headers" are not
    whole; `value_bytes`: the length the value had. `origin`: where the record stood when it was rejected first,
    and `replays`: how often it was sent again since.
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
    origin: Address
    replays: int = 0
    truncated: tuple[str, ...] = ()

    @property
    def address(self) -> Address:
        """Where the record stood that this letter is about."""
        return Address(self.topic, self.partition, self.offset)


@dataclass(frozen=True)
class Receipt:
    """The record of the dead-letter topic which says that the letters about `origin` were sent again for the
    `replays`th time, and what was repaired in it ("" nothing)."""

    origin: Address
    replays: int
    repairs: str = ""


def to_deadletter(
    record: Record, rejection: Rejection, deadletter_topic: str, limits: DeadLetterLimits | None = None
) -> Outgoing:
    """The dead letter of `record`: its key and bytes untouched, its headers under `orig.`.

    A null header becomes an empty one. The dead letter gets a timestamp of its own when it is produced, so
    that the retention of the topic counts from the rejection. What `replay` added to a record's headers becomes
    headers of the letter itself.
    """
    limits = limits or DeadLetterLimits()
    truncated: list[str] = []
    history, others = _history(record.headers)
    headers = tuple((ORIGINAL_PREFIX + name, value or b"") for name, value in others)
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
    if history:
        own |= {ORIGIN: str(history[0]), REPLAYS: str(history[1])}
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
        reason, message = own[REASON].decode(), own[MESSAGE].decode()
        here = Address(own[TOPIC].decode(), int(own[PARTITION]), int(own[OFFSET]))
        history, _ = _history(tuple(own.items()))
        return DeadLetter(
            reason=reason,
            message=message,
            topic=here.topic,
            partition=here.partition,
            offset=here.offset,
            origin=history[0] if history else here,
            replays=history[1] if history else 0,
            timestamp_ms=int(own[TIMESTAMP]),
            key=record.key,
            value=record.value,
            headers=_originals(record.headers),
            value_bytes=int(own.get(VALUE_BYTES, value_bytes)),
            truncated=tuple(truncated.split(",")) if truncated else (),
        )
    except KeyError as missing:
        raise DeadLetterError(f"{_where(record)} is no dead letter: header {missing.args[0]} is missing") from None
    except ValueError as error:
        raise DeadLetterError(
            f"{_where(record)} is no dead letter: a freshet-* header cannot be read: {error}"
        ) from None


def replay(deadletter: DeadLetter) -> Outgoing:
    """The original record once more, for its original topic, with its key, headers and timestamp, and with two
    headers more: where it stood first (`freshet-origin`), and how often it has been sent again (`freshet-replays`).

    Raises DeadLetterError where a part of it is not whole.
    """
    if deadletter.truncated:
        raise DeadLetterError(
            f"the record at {deadletter.address} cannot be replayed: "
            f"its dead letter does not hold the whole {' and '.join(deadletter.truncated)}; send it from its source"
        )
    history = ((ORIGIN, str(deadletter.origin).encode()), (REPLAYS, b"%d" % (deadletter.replays + 1)))
    return Outgoing(
        deadletter.topic,
        deadletter.key,
        deadletter.value,
        deadletter.headers + history,
        deadletter.timestamp_ms if deadletter.timestamp_ms > 0 else None,
    )


def to_receipt(receipt: Receipt, deadletter_topic: str) -> Outgoing:
    """The record that states a receipt. It has no key and no bytes: it is about a letter and holds none."""
    repairs = receipt.repairs[:MESSAGE_CHARS_MAX]
    stated = {REPLAYED: str(receipt.origin), REPLAYS: str(receipt.replays), REPAIRS: repairs}
    headers = tuple((name, text.encode(errors="backslashreplace")) for name, text in stated.items() if text)
    return Outgoing(deadletter_topic, None, b"", headers)


def from_receipt(record: Record) -> Receipt | None:
    """The receipt that a record of the dead-letter topic states; None where it is something else."""
    own = {name: value or b"" for name, value in record.headers}
    origin = _ADDRESS.fullmatch(own.get(REPLAYED, b"").decode(errors="replace"))
    count = own.get(REPLAYS, b"")
    if origin is None or not _COUNT.fullmatch(count):
        return None
    return Receipt(Address.parse(origin[0]), int(count), own.get(REPAIRS, b"").decode(errors="replace"))


Headers = Sequence[tuple[str, bytes | None]]


def _history(headers: Headers) -> tuple[tuple[Address, int] | None, Headers]:
    """Origin and number of replays as `replay` wrote them, and the other headers. What a producer may have put there
    itself, and cannot be read, is a header like any other."""
    found = {name: value or b"" for name, value in headers if name in (ORIGIN, REPLAYS)}
    origin = _ADDRESS.fullmatch(found.get(ORIGIN, b"").decode(errors="replace"))
    count = found.get(REPLAYS, b"")
    if origin is None or not _COUNT.fullmatch(count):
        return None, headers
    others = tuple((name, value) for name, value in headers if name not in found)
    return (Address.parse(origin[0]), int(count)), others


def _where(record: Record) -> str:
    return str(Address(record.topic, record.partition, record.offset))


def _originals(headers: Headers) -> tuple[tuple[str, bytes], ...]:
    cut = len(ORIGINAL_PREFIX)
    return tuple((name[cut:], value or b"") for name, value in headers if name.startswith(ORIGINAL_PREFIX))
