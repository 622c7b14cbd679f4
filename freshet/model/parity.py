"""The parity fixture of a bundle: a small log of every kind of event, and what the plain layers make of it."""

from __future__ import annotations

import numpy as np

from freshet.model.bundle import Bundle, Fixture
from freshet.model.offline import encode_fixture
from freshet.store.columns import (
    EventColumns,
    ProductAttributes,
    ProductColumns,
    ProfileColumns,
    PurchaseColumns,
    SessionColumns,
    UserAttributes,
    ViewColumns,
)

USERS, PRODUCTS, ORDERS, VIEWS = 6, 16, 24, 30


def make_fixture(bundle: Bundle, seed: int = 0) -> Fixture:
    """A log of six users and sixteen products, half of them known to the bundle, with absent attributes, a
    cancellation, a user and a product that nothing happened to, and some without a profile or record."""
    rng = np.random.default_rng(seed)
    known = list(bundle.vocabulary.row_of)[: PRODUCTS // 2]
    products = [*known, *(f"fixture-product-{i}" for i in range(PRODUCTS - len(known)))]
    users = [f"fixture-user-{i}" for i in range(USERS)]
    events = EventColumns(
        views=_views(rng, users[:-1], products[:-1], bundle.cut_ms),
        purchases=_purchases(rng, users[:-1], products[:-1], bundle.cut_ms),
        sessions=_sessions(rng, users[:-1], products[:-1], bundle.cut_ms),
        products=_catalogue(products, bundle),
        profiles=_profiles(users),
    )
    none = np.zeros((0, bundle.config.dim), dtype=np.float32)
    asked = Fixture(events, users, products, none, none)
    user, product = encode_fixture(bundle.thin(products), asked)
    return Fixture(events, users, products, user, product)


def _views(rng: np.random.Generator, users: list[str], products: list[str], cut_ms: int) -> ViewColumns:
    dwell = rng.uniform(0, 90, VIEWS).astype(np.float32)
    dwell[::3] = np.nan
    return ViewColumns(
        [users[i] for i in rng.integers(len(users), size=VIEWS)],
        [products[i] for i in rng.integers(len(products), size=VIEWS)],
        cut_ms + rng.integers(1, 10**9, VIEWS),
        rng.integers(1, 2**62, VIEWS).astype(np.uint64),
        dwell,
    )


def _purchases(rng: np.random.Generator, users: list[str], products: list[str], cut_ms: int) -> PurchaseColumns:
    sizes = rng.integers(1, 5, ORDERS)
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    n = int(start[-1])
    cancelled = np.zeros(n, dtype=np.bool_)
    cancelled[n // 2] = True
    return PurchaseColumns(
        [users[u] for u, size in zip(rng.integers(len(users), size=ORDERS), sizes, strict=True) for _ in range(size)],
        [products[p] for size in sizes for p in rng.choice(len(products), size, replace=False)],
        np.repeat(cut_ms + rng.integers(1, 10**9, ORDERS), sizes),
        np.repeat(rng.integers(1, 2**62, ORDERS).astype(np.uint64), sizes),
        rng.integers(1, 5, n).astype(np.float32),
        cancelled,
        start,
    )


def _sessions(rng: np.random.Generator, users: list[str], products: list[str], cut_ms: int) -> SessionColumns:
    n = len(users)
    sizes = np.arange(n)
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    items = int(start[-1])
    return SessionColumns(
        users,
        [f"fixture-session-{i}" for i in range(n)],
        [None if i % 2 else "phone" for i in range(n)],
        cut_ms + rng.integers(1, 10**9, n),
        rng.integers(1, 2**62, n).astype(np.uint64),
        np.where(np.arange(n) % 3, 60.0, np.nan).astype(np.float32),
        start,
        [products[i] for i in rng.integers(len(products), size=items)],
        np.arange(items, dtype=np.int32),
        rng.integers(-1, 2, items).astype(np.int8),
    )


def _catalogue(products: list[str], bundle: Bundle) -> ProductColumns:
    width = bundle.features.description_dim
    rows = [
        ProductAttributes(
            category=(("food", "bread", f"kind {i % 3}")[: 1 + i % 3]) if i % 4 else None,
            brand=f"brand {i % 5}" if i % 3 else None,
            price=0.5 * i if i % 5 else None,
            description=f"Fixture {i}: words, {'more ' * (i % 3)}words" if i % 2 else None,
            description_emb=tuple(0.01 * (i + j) for j in range(width)) if width and i % 3 else None,
        )
        for i in range(len(products) - 2)
    ]
    n = len(rows)
    return ProductColumns(
        [*products[: n - 1], products[-1]], np.zeros(n, dtype=np.int64), np.arange(n, dtype=np.uint64), list(rows)
    )


def _profiles(users: list[str]) -> ProfileColumns:
    rows = [UserAttributes("25-34" if i % 2 else None, "north" if i % 3 else None, 17_000 + i) for i in range(4)]
    return ProfileColumns(
        [*users[:3], users[-1]], np.zeros(4, dtype=np.int64), np.arange(4, dtype=np.uint64), list(rows)
    )
