"""The only file that imports polars: transaction lines to baskets, and tables to rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from freshet.stream.convert.sources import SourceError


@dataclass(frozen=True)
class Baskets:
    """m baskets with n lines, in order of time and then basket; a product is in one line of a basket.

    `basket`, `user`: [m] str; `time_ms`: [m]; `line_start`: [m + 1] line offsets (CSR);
    `product` [n] str; `quantity` [n]; `price` [n], what one unit cost, None where no unit was counted.
    """

    basket: list[str]
    user: list[str]
    time_ms: list[int]
    line_start: list[int]
    product: list[str]
    quantity: list[int]
    price: list[float | None]


def baskets(path: Path) -> Baskets:
    """The baskets of completejourney's `transactions.parquet`. Raises SourceError for another file."""
    try:
        return _baskets(_lines(path))
    except pl.exceptions.PolarsError as error:
        raise SourceError(f"{path}: cannot be read as completejourney's transactions: {error}") from None


def _lines(path: Path) -> pl.DataFrame:
    return (
        pl.scan_parquet(path)
        .select(
            "basket_id",
            "household_id",
            "product_id",
            "quantity",
            "sales_value",
            pl.col("transaction_timestamp").dt.timestamp("ms").alias("time_ms"),
        )
        # `product_id` last: the order of rows after a group_by means nothing, and the log has to be the same each time
        .group_by("time_ms", "basket_id", "household_id", "product_id")
        .agg(pl.col("quantity").sum(), pl.col("sales_value").sum())
        .sort("time_ms", "basket_id", "household_id", "product_id")
        .with_columns(
            pl.when(pl.col("quantity") > 0).then((pl.col("sales_value") / pl.col("quantity")).round(4)).alias("price"),
            new=pl.struct("time_ms", "basket_id", "household_id").rle_id(),
        )
        .collect()
    )


def _baskets(lines: pl.DataFrame) -> Baskets:
    starts = lines.with_row_index("line").group_by("new", maintain_order=True).first()
    return Baskets(
        basket=starts["basket_id"].cast(pl.String).to_list(),
        user=starts["household_id"].cast(pl.String).to_list(),
        time_ms=starts["time_ms"].to_list(),
        line_start=[*starts["line"].to_list(), len(lines)],
        product=lines["product_id"].cast(pl.String).to_list(),
        quantity=lines["quantity"].to_list(),
        price=lines["price"].to_list(),
    )


def rows(path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of a parquet file as tuples of `columns`, in its order; None where there is no value."""
    try:
        return pl.read_parquet(path, columns=columns).select(columns).iter_rows()
    except pl.exceptions.PolarsError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from None


def write_columns(columns: dict[str, list[Any]], path: Path) -> None:
    """Write columns of one length as a parquet file. Raises OSError where it cannot be written."""
    pl.DataFrame(columns).write_parquet(path)
