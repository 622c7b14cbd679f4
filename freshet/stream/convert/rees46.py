"""rees46: a multi-category shop's clickstream of views, carts and purchases with its own sessions."""

from __future__ import annotations

from pathlib import Path

from freshet.stream.convert.sources import (
    Progress,
    Row,
    SourceError,
    content_id,
    csv_file,
    csv_rows,
    non_negative,
    time_ms,
)
from freshet.stream.convert.visits import Visit
from freshet.stream.eventlog_writer import EventLogWriter
from freshet.stream.events import Product, Purchase, View

COLUMNS = (
    "event_time",
    "event_type",
    "product_id",
    "category_id",
    "category_code",
    "brand",
    "price",
    "user_id",
    "user_session",
)
CLICKS = {"view": False, "cart": True, "purchase": True}
PROGRESS_ROWS = 5_000


def convert(source: Path | None, writer: EventLogWriter, progress: Progress) -> None:
    """Write the CSV file `source` (or the one in that folder) to `writer`.

    Raises SourceError for a missing file, another data set, or an event type that the set does not have.
    """
    rows = csv_rows(csv_file(source, "*.csv*"), COLUMNS)
    rows.sort(key=lambda row: row["event_time"])
    visits: dict[tuple[str, str], Visit] = {}
    seen: set[str] = set()
    without_session = 0
    for i, row in enumerate(rows):
        _write(row, writer, seen)
        if row["user_session"]:
            _visit(row, visits)
        else:
            without_session += 1
        if i % PROGRESS_ROWS == 0:
            progress(i, len(rows))
    for visit in sorted(visits.values(), key=lambda visit: visit.last_ms):
        # not the session's id alone: the set has a session of two users
        writer.write(visit.session(content_id("session", visit.session_id, visit.user_id)))
    writer.note("rows", len(rows))
    writer.note("rows_without_session", without_session)
    writer.note("rows_repeated", len(rows) - len({tuple(row.values()) for row in rows}))
    progress(len(rows), len(rows))


def _write(row: Row, writer: EventLogWriter, seen: set[str]) -> None:
    """The event of one row, and the catalogue record of a product that is new."""
    at, product, kind = time_ms(row["event_time"]), row["product_id"], row["event_type"]
    # a price of 0.00 is an unknown one
    price = non_negative(row["price"]) or None
    if product not in seen:
        seen.add(product)
        path = tuple(level for level in row["category_code"].split(".") if level)
        writer.write(Product(product, at, category=path or None, brand=row["brand"] or None, price=price))
    event_id = content_id(*(row[name] for name in COLUMNS))
    if kind == "view":
        writer.write(View(event_id, row["user_id"], product, at))
    elif kind == "purchase":
        writer.write(Purchase(event_id, row["user_id"], at, product_id=product, price=price))
    elif kind not in CLICKS:
        raise SourceError(f"event_type {kind!r} is none of {', '.join(CLICKS)}; this is another data set")


def _visit(row: Row, visits: dict[tuple[str, str], Visit]) -> None:
    at, session, user = time_ms(row["event_time"]), row["user_session"], row["user_id"]
    visit = visits.setdefault((session, user), Visit(session, user, at, at))
    visit.add(row["product_id"], at, CLICKS[row["event_type"]])
