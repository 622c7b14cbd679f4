"""Kafka records as plain values, free of any client library.

A client turns what its library delivers into :class:`Record` and produces :class:`Outgoing`; everything that decodes,
rejects or routes records works on these two types alone and can be tested without a broker.
"""

from __future__ import annotations

from typing import NamedTuple


class Record(NamedTuple):
    """One consumed Kafka record; ``timestamp_ms`` is the record's own timestamp in milliseconds since 1970 UTC."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Outgoing(NamedTuple):
    """One record to be produced; ``timestamp_ms`` None leaves the timestamp to the client or broker."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None
