"""Synthetic events with a shop's skew: few users and products make most of the traffic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from freshet.stream.events import Event, Kind, Line, Product, Purchase, Session, SessionItem, View

START_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Shop:
    """Size and mix of a shop. `skew` is the exponent of the Zipf law of users and of products."""

    users: int = 20_000
    products: int = 10_000
    skew: float = 0.8
    view_share: float = 0.90
    purchase_share: float = 0.06
    lines_max: int = 4
    seed: int = 0


def zipf(rng: np.random.Generator, n: int, size: int, skew: float) -> np.ndarray:
    """`size` draws of 0..n-1 with probability proportional to rank ** -skew."""
    weight = np.cumsum(np.arange(1, n + 1, dtype=np.float64) ** -skew)
    return np.searchsorted(weight, rng.random(size) * weight[-1])


def catalogue(shop: Shop) -> Iterator[Product]:
    """Every product of the shop, with category, brand and price."""
    rng = np.random.default_rng(shop.seed + 1)
    category, brand = rng.integers(0, 200, shop.products), rng.integers(0, 500, shop.products)
    price = np.exp(rng.normal(2.5, 1.0, shop.products))
    for i in range(shop.products):
        path = (f"d{category[i] % 20}", f"c{category[i]}")
        yield Product(f"p{i}", timestamp=START_MS, category=path, brand=f"b{brand[i]}", price=round(float(price[i]), 2))


def events(shop: Shop, count: int, start_ms: int = START_MS, first: int = 0) -> Iterator[Event]:
    """`count` events, a millisecond apart, ids counting from `first`."""
    rng = np.random.default_rng(shop.seed + 7 + first)
    user = zipf(rng, shop.users, count, shop.skew)
    product = zipf(rng, shop.products, (count * shop.lines_max), shop.skew).reshape(count, shop.lines_max)
    what, lines = rng.random(count), rng.integers(1, shop.lines_max + 1, count)
    for i in range(count):
        name, at, event = f"u{user[i]}", start_ms + i, f"e{first + i}"
        if what[i] < shop.view_share:
            yield View(event, name, f"p{product[i, 0]}", at, dwell_time_s=3.0)
        elif what[i] < shop.view_share + shop.purchase_share:
            items = tuple(Line(f"p{p}", quantity=1.0) for p in np.unique(product[i, : lines[i]]))
            yield Purchase(event, name, at, items=items)
        else:
            items_s = tuple(SessionItem(f"p{p}", position=j) for j, p in enumerate(product[i]))
            yield Session(event, name, f"s{first + i}", at, device="phone", items=items_s)


KIND_OF = {View: Kind.VIEW, Purchase: Kind.PURCHASE, Session: Kind.SESSION, Product: Kind.PRODUCT}
