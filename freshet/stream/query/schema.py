"""What a log holds, found by reading it: which tables, how much of each, which attributes, from when to when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from freshet.store.columns import (
    EventColumns,
    ProductAttributes,
    PurchaseColumns,
    SessionColumns,
    UserAttributes,
    ViewColumns,
)
from freshet.stream.query.language import EVENT_TABLES, TABLES

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "user": ("age_bucket", "geo", "signup_day"),
    "product": ("category", "brand", "price", "description", "description_emb"),
}


@dataclass
class Schema:
    """`rows`: records of `user` and `product`, and lines of purchases, views and sessions, by table;
    `present`: how many records have each attribute, by 'table.attribute'; `first_ms`, `last_ms`: times of the
    oldest and the newest event (None without events)."""

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    present: dict[str, int] = field(default_factory=dict)
    first_ms: int | None = None
    last_ms: int | None = None

    @property
    def events(self) -> int:
        """Rows of the tables of events."""
        return sum(self.rows[table] for table in EVENT_TABLES)

    def add(self, events: EventColumns) -> None:
        """Count a chunk of a log."""
        self.rows["user"] += len(events.profiles.user)
        self.rows["product"] += len(events.products.product)
        parts = (("purchase", events.purchases.time), ("view", events.views.time), ("session", events.sessions.time))
        for table, time in parts:
            self.rows[table] += time.shape[0]
            if time.shape[0]:
                first, last = int(time.min()), int(time.max())
                self.first_ms = first if self.first_ms is None else min(self.first_ms, first)
                self.last_ms = last if self.last_ms is None else max(self.last_ms, last)
        self._count("user", events.profiles.attributes)
        self._count("product", events.products.attributes)

    def _count(self, table: str, records: Iterable[object]) -> None:
        for record in records:
            for name in ATTRIBUTES[table]:
                if getattr(record, name, None) is not None:
                    key = f"{table}.{name}"
                    self.present[key] = self.present.get(key, 0) + 1

    def describe(self) -> list[str]:
        """A line a table."""
        lines = []
        for table in TABLES:
            names = [n for n in ATTRIBUTES.get(table, ()) if f"{table}.{n}" in self.present]
            shown = f" with {', '.join(names)}" if names else ""
            what = "lines" if table == "purchase" else "records"
            lines.append(f"{table}: {self.rows[table]:,} {what}{shown}" if self.rows[table] else f"{table}: none")
        if self.first_ms is not None and self.last_ms is not None:
            lines.append(f"events from {day(self.first_ms)} to {day(self.last_ms)}")
        return lines

    def notes(self, tables: frozenset[str]) -> list[str]:
        """Tables that a query uses and the log does not have."""
        return [
            f"{table} in USING contributes nothing: the log has none"
            for table in TABLES
            if table in tables and not self.rows[table]
        ]


def restricted(events: EventColumns, tables: frozenset[str]) -> EventColumns:
    """The events without the tables that are not named.

    Without `user` or `product` their attributes are taken out; that a user was forgotten or a product
    withdrawn stays.
    """
    profiles, products = events.profiles, events.products
    if "user" not in tables:
        profiles = replace(profiles, attributes=[a and UserAttributes() for a in profiles.attributes])
    if "product" not in tables:
        products = replace(products, attributes=[a and ProductAttributes() for a in products.attributes])
    return EventColumns(
        views=events.views if "view" in tables else ViewColumns(),
        purchases=events.purchases if "purchase" in tables else PurchaseColumns(),
        sessions=events.sessions if "session" in tables else SessionColumns(),
        products=products,
        profiles=profiles,
    )


def day(ms: int) -> str:
    """The date of a time in ms since the epoch, UTC."""
    return str(np.datetime64(ms, "ms").astype("datetime64[D]"))
