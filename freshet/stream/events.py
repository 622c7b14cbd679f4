"""The event schema: what producers publish, field by field.

One frozen struct a record. `docs/contracts.md` is the same contract for people; the golden files
under `tests/contract/golden` are the same contract for other languages. Structs refuse unknown
fields, so that a misspelt field is an error and never silently ignored. None can be part of a circle,
so the collector of circles need not look at them (`gc=False`): it took a seventh of reading a log.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

ID_BYTES_MAX = 256
"""Longest id in UTF-8 bytes (user, product, session, order and event ids)."""

Id = Annotated[str, Meta(min_length=1, max_length=ID_BYTES_MAX)]
TimestampMs = Annotated[int, Meta(ge=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Label = Annotated[str, Meta(min_length=1, max_length=256)]


class Kind(StrEnum):
    """The five kinds of record; each has a topic and a file in an event log."""

    VIEW = "view"
    PURCHASE = "purchase"
    SESSION = "session"
    PRODUCT = "product"
    PROFILE = "profile"


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A user looked at a product. `dwell_time_s` in seconds, absent when unknown."""

    event_id: Id
    user_id: Id
    product_id: Id
    timestamp: TimestampMs
    dwell_time_s: NonNegative | None = None


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One line of an order. `price` is what one unit cost; `cancelled` takes the line back."""

    product_id: Id
    quantity: NonNegative | None = None
    price: NonNegative | None = None
    cancelled: bool = False


class Purchase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A purchase: either one product (`product_id`, `quantity`, `price`) or `items`, never both.

    A cancellation is the same event again (same `event_id`, `user_id`, `timestamp` and lines) with
    `cancelled: true` on the event, or on the lines taken back. It may arrive before the purchase.
    """

    event_id: Id
    user_id: Id
    timestamp: TimestampMs
    product_id: Id | None = None
    quantity: NonNegative | None = None
    price: NonNegative | None = None
    items: tuple[Line, ...] | None = None
    order_id: Id | None = None
    cancelled: bool = False


class SessionItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One product shown in a session: its `position` from 0, and whether it was clicked."""

    product_id: Id
    position: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    click: bool | None = None


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A user's session with all its items so far; a newer event of the same session replaces it."""

    event_id: Id
    user_id: Id
    session_id: Id
    timestamp: TimestampMs
    device: Label | None = None
    duration_s: NonNegative | None = None
    items: tuple[SessionItem, ...] = ()


class Product(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A catalogue record; the newest by `timestamp` wins whole. An empty value withdraws.

    Without `timestamp` the Kafka record's own timestamp counts. `withdrawn: true` says in a value
    what an empty value says in a topic (an event log has no empty values).
    """

    product_id: Id
    timestamp: TimestampMs | None = None
    category: tuple[Label, ...] | None = None
    brand: Label | None = None
    price: NonNegative | None = None
    description: Annotated[str, Meta(max_length=65_536)] | None = None
    description_emb: tuple[float, ...] | None = None
    withdrawn: bool = False


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A user's profile; the newest by `timestamp` wins whole. An empty value forgets the user.

    `signup_date` is an ISO date (`2017-03-01`). `forgotten: true` says in a value what an empty
    value says in a topic: everything about the user up to `timestamp` is dropped.
    """

    user_id: Id
    timestamp: TimestampMs | None = None
    age_bucket: Label | None = None
    geo: Label | None = None
    signup_date: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    forgotten: bool = False


Event = View | Purchase | Session | Product | Profile

STRUCT_OF: dict[Kind, type[View] | type[Purchase] | type[Session] | type[Product] | type[Profile]] = {
    Kind.VIEW: View,
    Kind.PURCHASE: Purchase,
    Kind.SESSION: Session,
    Kind.PRODUCT: Product,
    Kind.PROFILE: Profile,
}
