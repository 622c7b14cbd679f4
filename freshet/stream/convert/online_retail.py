"""online_retail: invoices of a UK giftware shop, with real cancellations. Purchases only.

An invoice is an order and a session. A cancellation invoice (`C...`) names no purchase, so each of its lines is
matched to one: the customer's latest earlier line of that product of which at least so much is left. A line of
which nothing is left is cancelled, by the purchase's event again (the contract's form of a cancellation), which
therefore stands at the time of the purchase. A line that went back only in part stays as it was bought.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from freshet.stream.convert.sources import (
    Progress,
    Row,
    csv_file,
    csv_rows,
    integer,
    iso_date,
    non_negative,
    time_ms,
)
from freshet.stream.eventlog_writer import EventLogWriter
from freshet.stream.events import Line, Product, Profile, Purchase, Session, SessionItem

COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
NOT_PRODUCTS = {
    "POST": "postage",
    "DOT": "postage of the web shop",
    "C2": "carriage",
    "M": "manual correction",
    "D": "discount",
    "S": "samples sent out",
    "B": "bad debt",
    "BANK CHARGES": "fees",
    "AMAZONFEE": "fees",
    "CRUK": "commission to a charity",
}
"""Stock codes (in upper case) that stand for money, not for goods. Any other code is a product."""
UNKNOWN_COUNTRY = "Unspecified"
PROGRESS_ROWS = 20_000


@dataclass
class _Sale:
    """Units of one product in one invoice."""

    bought: int = 0
    paid: float = 0.0
    left: int = 0


@dataclass
class _Invoice:
    invoice: str
    user: str
    country: str
    time_ms: int
    sales: dict[str, _Sale] = field(default_factory=dict)

    def purchase(self, restated: bool = False) -> Purchase:
        """The order, as it was placed or, `restated`, with what went back cancelled."""
        lines = tuple(
            Line(product, sale.bought, round(sale.paid / sale.bought, 4), restated and not sale.left)
            for product, sale in self.sales.items()
        )
        return Purchase(self.invoice, self.user, self.time_ms, items=lines, order_id=self.invoice)


def convert(source: Path | None, writer: EventLogWriter, progress: Progress) -> None:
    """Write the CSV file `source` (or the one in that folder) to `writer`. Raises SourceError."""
    rows = csv_rows(csv_file(source, "*.csv*"), COLUMNS)
    rows.sort(key=lambda row: row["InvoiceDate"])
    dropped: Counter[str] = Counter()
    invoices: dict[str, _Invoice] = {}
    sold: dict[tuple[str, str], list[_Sale]] = {}
    seen: set[str] = set()
    for i, row in enumerate(_kept(rows, dropped)):
        if row["InvoiceNo"].startswith("C"):
            dropped[_take_back(row, sold)] += 1
            continue
        invoice = _sell(row, invoices, sold)
        if row["StockCode"] not in seen:
            seen.add(row["StockCode"])
            writer.write(_product(row, invoice.time_ms))
        if i % PROGRESS_ROWS == 0:
            progress(i, len(rows))
    ordered = sorted(invoices.values(), key=lambda invoice: invoice.time_ms)
    writer.write_many(_profiles(ordered))
    restated = 0
    for invoice in ordered:
        writer.write(invoice.purchase())
        if not all(sale.left for sale in invoice.sales.values()):
            writer.write(invoice.purchase(restated=True))
            restated += 1
        items = tuple(map(SessionItem, invoice.sales))
        writer.write(Session(f"s{invoice.invoice}", invoice.user, invoice.invoice, invoice.time_ms, items=items))
    writer.note("rows", len(rows))
    writer.note("orders_restated", restated)
    writer.note("cancellations", "stand at the time of the purchase: a replay knows of a return before it happened")
    for name in sorted(dropped):
        writer.note(name, dropped[name])
    progress(len(rows), len(rows))


def _kept(rows: list[Row], dropped: Counter[str]) -> Iterator[Row]:
    """The rows that say who bought or gave back which product; the others are counted."""
    for row in rows:
        # the same code in both cases is one product: 85123a and 85123A
        row["StockCode"] = row["StockCode"].strip().upper()
        if row["StockCode"] in NOT_PRODUCTS:
            dropped["lines_not_products"] += 1
        elif not row["CustomerID"]:
            dropped["lines_without_customer"] += 1
        elif not non_negative(row["UnitPrice"]):
            dropped["lines_without_price"] += 1
        elif row["InvoiceNo"].startswith("C") == (int(row["Quantity"]) > 0) or not int(row["Quantity"]):
            dropped["lines_with_odd_quantity"] += 1
        else:
            yield row


def _sell(row: Row, invoices: dict[str, _Invoice], sold: dict[tuple[str, str], list[_Sale]]) -> _Invoice:
    """Add a line to its invoice, whose time is that of its first line."""
    user, quantity = integer(row["CustomerID"]), int(row["Quantity"])
    invoice = invoices.get(row["InvoiceNo"])
    if invoice is None:
        invoice = _Invoice(row["InvoiceNo"], user, row["Country"], time_ms(row["InvoiceDate"]))
        invoices[invoice.invoice] = invoice
    sale = invoice.sales.get(row["StockCode"])
    if sale is None:
        sale = invoice.sales[row["StockCode"]] = _Sale()
        sold.setdefault((user, row["StockCode"]), []).append(sale)
    sale.bought += quantity
    sale.left += quantity
    sale.paid += quantity * float(row["UnitPrice"])
    return invoice


def _take_back(row: Row, sold: dict[tuple[str, str], list[_Sale]]) -> str:
    """Take a returned line off the sale it matches; gives under which name it is counted."""
    returned = -int(row["Quantity"])
    for sale in reversed(sold.get((integer(row["CustomerID"]), row["StockCode"]), ())):
        if sale.left >= returned:
            sale.left -= returned
            return "returns_in_part" if sale.left else "returns_in_full"
    return "returns_unmatched"


def _product(row: Row, at: int) -> Product:
    description = row["Description"].strip() or None
    return Product(row["StockCode"], at, price=non_negative(row["UnitPrice"]), description=description)


def _profiles(ordered: list[_Invoice]) -> Iterator[Profile]:
    """Each customer at the first invoice, and again where a later one is from another country."""
    signup: dict[str, str] = {}
    country: dict[str, str] = {}
    for invoice in ordered:
        if country.get(invoice.user) != invoice.country:
            country[invoice.user] = invoice.country
            yield Profile(
                invoice.user,
                invoice.time_ms,
                geo=None if invoice.country in ("", UNKNOWN_COUNTRY) else invoice.country,
                signup_date=signup.setdefault(invoice.user, iso_date(invoice.time_ms)),
            )
