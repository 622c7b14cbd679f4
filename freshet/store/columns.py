"""Columns: how a batch of events crosses from the stream into the store.

Ids are strings here and become dense integers inside the store. Times are milliseconds since the
epoch (int64). An `event_hash` is the 64-bit hash of the event's id (uint64); the store mixes in user
and product, so one event with many lines gives every line a key of its own. NaN means absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Bool = NDArray[np.bool_]


def _empty(dtype: type) -> NDArray:  # type: ignore[type-arg]
    return np.empty(0, dtype=dtype)


@dataclass
class ViewColumns:
    """n views: `user`, `product` [n] str; `time` [n] ms; `event_hash` [n]; `dwell_s` [n], NaN absent."""

    user: list[str] = field(default_factory=list)
    product: list[str] = field(default_factory=list)
    time: I64 = field(default_factory=lambda: _empty(np.int64))
    event_hash: U64 = field(default_factory=lambda: _empty(np.uint64))
    dwell_s: F32 = field(default_factory=lambda: _empty(np.float32))


@dataclass
class PurchaseColumns:
    """n purchase lines of m orders; the lines of one order are adjacent and name a product once.

    `user`, `product` [n] str; `time` [n] ms; `event_hash` [n]; `quantity` [n], NaN absent;
    `cancelled` [n]; `order_start` [m + 1] int64, line offsets of each order (CSR).
    """

    user: list[str] = field(default_factory=list)
    product: list[str] = field(default_factory=list)
    time: I64 = field(default_factory=lambda: _empty(np.int64))
    event_hash: U64 = field(default_factory=lambda: _empty(np.uint64))
    quantity: F32 = field(default_factory=lambda: _empty(np.float32))
    cancelled: Bool = field(default_factory=lambda: _empty(np.bool_))
    order_start: I64 = field(default_factory=lambda: np.zeros(1, dtype=np.int64))


@dataclass
class SessionColumns:
    """m sessions with n items: `user`, `session`, `device` [m] str (device may be None); `time` [m] ms;
    `event_hash` [m]; `duration_s` [m], NaN absent; `item_start` [m + 1] (CSR); `product` [n] str;
    `position` [n] int32, -1 absent; `click` [n] int8, -1 absent, else 0 or 1.
    """

    user: list[str] = field(default_factory=list)
    session: list[str] = field(default_factory=list)
    device: list[str | None] = field(default_factory=list)
    time: I64 = field(default_factory=lambda: _empty(np.int64))
    event_hash: U64 = field(default_factory=lambda: _empty(np.uint64))
    duration_s: F32 = field(default_factory=lambda: _empty(np.float32))
    item_start: I64 = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    product: list[str] = field(default_factory=list)
    position: I32 = field(default_factory=lambda: _empty(np.int32))
    click: NDArray[np.int8] = field(default_factory=lambda: _empty(np.int8))


@dataclass(frozen=True)
class ProductAttributes:
    """A product's attributes as the catalogue gave them; None means absent."""

    category: tuple[str, ...] | None = None
    brand: str | None = None
    price: float | None = None
    description: str | None = None
    description_emb: tuple[float, ...] | None = None


@dataclass(frozen=True)
class UserAttributes:
    """A user's attributes as the profile gave them; None means absent. `signup_day`: days since epoch."""

    age_bucket: str | None = None
    geo: str | None = None
    signup_day: int | None = None


@dataclass
class ProductColumns:
    """m catalogue records: `product` [m] str; `time` [m] ms; `key` [m] uint64 (hash of the content);
    `attributes` [m], None where the record withdraws the product."""

    product: list[str] = field(default_factory=list)
    time: I64 = field(default_factory=lambda: _empty(np.int64))
    key: U64 = field(default_factory=lambda: _empty(np.uint64))
    attributes: list[ProductAttributes | None] = field(default_factory=list)


@dataclass
class ProfileColumns:
    """m profiles: `user` [m] str; `time` [m] ms; `key` [m] uint64 (hash of the content);
    `attributes` [m], None where the record forgets the user up to and including `time`."""

    user: list[str] = field(default_factory=list)
    time: I64 = field(default_factory=lambda: _empty(np.int64))
    key: U64 = field(default_factory=lambda: _empty(np.uint64))
    attributes: list[UserAttributes | None] = field(default_factory=list)


@dataclass
class EventColumns:
    """A batch of decoded events, one table a kind. The order of rows carries no meaning."""

    views: ViewColumns = field(default_factory=ViewColumns)
    purchases: PurchaseColumns = field(default_factory=PurchaseColumns)
    sessions: SessionColumns = field(default_factory=SessionColumns)
    products: ProductColumns = field(default_factory=ProductColumns)
    profiles: ProfileColumns = field(default_factory=ProfileColumns)

    @property
    def event_count(self) -> int:
        """Events in the batch; an order or a session is one."""
        orders = int(self.purchases.order_start.shape[0]) - 1
        return (
            len(self.views.user) + orders + len(self.sessions.user) + len(self.products.product)
            + len(self.profiles.user)
        )  # fmt: skip
