"""Why a record cannot be used, and the limits it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

MESSAGE_CHARS_MAX = 400
"""Longest message of a rejection in characters: it may quote what a producer sent."""


class Reason(StrEnum):
    """Machine-readable reasons; `docs/contracts.md` explains every one."""

    EMPTY_VALUE = "empty_value"
    VALUE_TOO_LARGE = "value_too_large"
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type"
    BAD_HEADER = "bad_header"
    UNKNOWN_EVENT_TYPE = "unknown_event_type"
    EVENT_TYPE_MISMATCH = "event_type_mismatch"
    UNDECODABLE = "undecodable"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    WRONG_TYPE = "wrong_type"
    NEGATIVE_NUMBER = "negative_number"
    NOT_FINITE = "not_finite"
    NUMBER_TOO_LARGE = "number_too_large"
    EMPTY_ID = "empty_id"
    ID_TOO_LONG = "id_too_long"
    EMPTY_TEXT = "empty_text"
    TEXT_TOO_LONG = "text_too_long"
    BAD_DATE = "bad_date"
    MISSING_KEY = "missing_key"
    KEY_MISMATCH = "key_mismatch"
    WRONG_PARTITION = "wrong_partition"
    TIMESTAMP_TOO_OLD = "timestamp_too_old"
    TIMESTAMP_IN_FUTURE = "timestamp_in_future"
    NO_PRODUCT = "no_product"
    PRODUCT_AND_ITEMS = "product_and_items"
    EMPTY_ITEMS = "empty_items"
    TOO_MANY_ITEMS = "too_many_items"
    CATEGORY_TOO_DEEP = "category_too_deep"
    EMBEDDING_TOO_LONG = "embedding_too_long"


class Rejection(NamedTuple):
    """Why one record cannot be used; `message` names the field and says what to do about it."""

    reason: Reason
    message: str


def reject(reason: Reason, message: str) -> Rejection:
    """A rejection whose message is cut to `MESSAGE_CHARS_MAX`."""
    return Rejection(
        reason, message if len(message) <= MESSAGE_CHARS_MAX else message[: MESSAGE_CHARS_MAX - 1] + "…"
    )


@dataclass(frozen=True)
class DecodeLimits:
    """What a record may be at most; anything beyond is a dead letter."""

    value_bytes_max: int = 1024 * 1024
    """Longest value of a record."""
    event_future_ms_max: int = 24 * 3600 * 1000
    """How far an event's time may lie after the Kafka timestamp of its own record."""
    items_max: int = 1000
    """Most lines of an order, and most items of a session."""
    category_levels_max: int = 8
    """Deepest category path."""
    embedding_dim_max: int = 4096
    """Longest `description_emb`."""
