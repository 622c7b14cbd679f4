"""jd: a large shop's traffic of six action types, with real repeats: a quarter of the rows is there twice.

Repeated rows stay, as one event delivered twice: they have the same `event_id`. Times are Beijing's clock,
taken for UTC; a session ends with 30 minutes without an action.
"""

from __future__ import annotations

from pathlib import Path

from freshet.stream.convert.sources import (
    Progress,
    Row,
    SourceError,
    content_id,
    csv_file,
    csv_rows,
    integer,
    iso_date,
    time_ms,
)
from freshet.stream.convert.visits import Visit
from freshet.stream.eventlog_writer import EventLogWriter
from freshet.stream.events import Product, Profile, Purchase, View

ACTION_COLUMNS = ("user_id", "sku_id", "time", "model_id", "type", "cate", "brand")
PRODUCT_COLUMNS = ("sku_id", "a1", "a2", "a3")
USER_COLUMNS = ("user_id", "age", "user_reg_tm")
BROWSE, CART, UNCART, ORDER, FOLLOW, CLICK = "123456"
GAP_MS = 30 * 60 * 1000
"""A user's next action later than this begins a new session."""
BEIJING_MS = 8 * 3600 * 1000
"""Registration times are midnights of Beijing in UTC; this gives the date that was meant."""
UNKNOWN = ("", "-1")
PROGRESS_ROWS = 5_000


def convert(source: Path | None, writer: EventLogWriter, progress: Progress) -> None:
    """Write `actions.csv`, `products.csv` and `users.csv` (plain, .gz or .xz) of the folder `source` to `writer`.

    Raises SourceError for a missing file, another data set, or an action type that the set does not have.
    """
    actions = csv_rows(csv_file(source, "actions.csv*"), ACTION_COLUMNS)
    attributes = {row["sku_id"]: row for row in csv_rows(csv_file(source, "products.csv*"), PRODUCT_COLUMNS)}
    users = {integer(row["user_id"]): row for row in csv_rows(csv_file(source, "users.csv*"), USER_COLUMNS)}
    actions.sort(key=lambda row: row["time"])
    first_ms: dict[str, int] = {}
    open_visits: dict[str, Visit] = {}
    visits: list[Visit] = []
    seen: set[str] = set()
    for i, row in enumerate(actions):
        at, user, sku = time_ms(row["time"]), integer(row["user_id"]), row["sku_id"]
        first_ms.setdefault(user, at)
        if sku not in seen:
            seen.add(sku)
            writer.write(_product(row, attributes.get(sku), at))
        _write(row, user, at, writer)
        visit = open_visits.get(user)
        if visit is None or at - visit.last_ms > GAP_MS:
            visit = open_visits[user] = Visit(f"{user}-{at}", user, at, at)
            visits.append(visit)
        visit.add(sku, at, row["type"] in (CART, ORDER))
        if i % PROGRESS_ROWS == 0:
            progress(i, len(actions))
    for visit in sorted(visits, key=lambda visit: visit.last_ms):
        writer.write(visit.session(f"s{visit.session_id}"))
    profiles = [_profile(user, users[user], at) for user, at in first_ms.items() if user in users]
    writer.write_many(profiles)
    writer.note("rows", len(actions))
    writer.note("rows_repeated", len(actions) - len({tuple(row.values()) for row in actions}))
    writer.note("profiles_without_signup_date", sum(profile.signup_date is None for profile in profiles))
    progress(len(actions), len(actions))


def _write(row: Row, user: str, at: int, writer: EventLogWriter) -> None:
    """The event of one row, for the types that are one; the others stand in the session only."""
    kind = row["type"]
    if kind not in (BROWSE, CLICK, ORDER):
        if kind not in (CART, UNCART, FOLLOW):
            raise SourceError(f"type {kind!r} is none of 1 to 6; this is another data set")
        return
    event_id = content_id(*(row[name] for name in ACTION_COLUMNS))
    if kind == ORDER:
        writer.write(Purchase(event_id, user, at, product_id=row["sku_id"]))
    else:
        writer.write(View(event_id, user, row["sku_id"], at))


def _product(row: Row, attributes: Row | None, at: int) -> Product:
    """The catalogue record of a product at its first action."""
    known = [(name, attributes[name]) for name in ("a1", "a2", "a3")] if attributes else []
    return Product(
        row["sku_id"],
        at,
        category=None if row["cate"] in UNKNOWN else (row["cate"],),
        brand=None if row["brand"] in UNKNOWN else row["brand"],
        description=" ".join(f"{name}={value}" for name, value in known if value not in UNKNOWN) or None,
    )


def _profile(user: str, row: Row, first_ms: int) -> Profile:
    """The profile at the user's first action; a registration after it is an error of the set, and left out."""
    signup = iso_date(int(row["user_reg_tm"]) + BEIJING_MS) if row["user_reg_tm"] not in UNKNOWN else None
    return Profile(
        user,
        first_ms,
        age_bucket=None if row["age"] in UNKNOWN else row["age"],
        signup_date=None if signup is None or signup > iso_date(first_ms) else signup,
    )
