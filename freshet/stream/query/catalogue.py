"""What conditions read: the catalogue as columns, and which of its products a condition holds for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.store.attributes import Registers
from freshet.store.columns import Bool, ProductAttributes, ProductColumns
from freshet.store.ids import IdMap
from freshet.stream.query.language import Between, Both, Compare, Condition, Either, Negated, OneOf

LEVELS = "/"
"""Joins the levels of a category in a query."""
NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "=": np.equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


@dataclass(frozen=True)
class Catalogue:
    """n products: `product` ids; `category` paths, empty where absent; `brand`, None where absent; `price` [n]
    float64, NaN where absent."""

    product: list[str]
    category: list[tuple[str, ...]]
    brand: list[str | None]
    price: NDArray[np.float64]

    @staticmethod
    def of(names: Sequence[str], attributes: Sequence[ProductAttributes | None]) -> Catalogue:
        """Products with the attributes they have; None where nobody gave any."""
        known = [a if a is not None else ProductAttributes() for a in attributes]
        prices = [np.nan if a.price is None else a.price for a in known]
        return Catalogue(
            list(names),
            [a.category or () for a in known],
            [a.brand for a in known],
            np.array(prices, dtype=np.float64),
        )

    @staticmethod
    def read(parts: Iterable[ProductColumns]) -> Catalogue:
        """The newest record of every product that is not withdrawn."""
        ids, registers = IdMap(), Registers[ProductAttributes]()
        for rows in parts:
            numbers = ids.intern(rows.product)
            registers.reserve(len(ids))
            registers.merge(numbers, rows.time, rows.key, list(rows.attributes))
        everything = registers.take(np.arange(len(ids), dtype=np.int32))
        kept = [(name, a) for name, a in zip(ids.all_names(), everything, strict=True) if a is not None]
        return Catalogue.of([name for name, _ in kept], [a for _, a in kept])

    def matching(self, condition: Condition) -> Bool:
        """[n] bool: the products that the condition holds for. A comparison with an absent value does not hold."""
        if isinstance(condition, Both):
            return reduce(np.logical_and, map(self.matching, condition.parts))
        if isinstance(condition, Either):
            return reduce(np.logical_or, map(self.matching, condition.parts))
        if isinstance(condition, Negated):
            return ~self.matching(condition.part)
        if isinstance(condition, Between):
            return (self.price >= condition.low) & (self.price <= condition.high)
        if isinstance(condition, OneOf):
            return reduce(np.logical_or, [self._equal(condition.column, value) for value in condition.values])
        return self._compared(condition)

    def notes(self, condition: Condition) -> list[str]:
        """What a person may have meant, where a condition names a category or brand that no product has."""
        if isinstance(condition, Both | Either):
            return [note for part in condition.parts for note in self.notes(part)]
        if isinstance(condition, Negated):
            return self.notes(condition.part)
        if isinstance(condition, Between) or condition.column == "price":
            return []
        values = condition.values if isinstance(condition, OneOf) else (condition.value,)
        whole = isinstance(condition, Compare) and condition.operator == "is"
        return [self._unknown(condition.column, str(v), whole) for v in values if not self._has(condition, str(v))]

    def _has(self, condition: Compare | OneOf, value: str) -> bool:
        whole = isinstance(condition, Compare) and condition.operator == "is"
        found = self._whole(value) if whole else self._equal(condition.column, value)
        return bool(found.any())

    def _compared(self, condition: Compare) -> Bool:
        column, operator, value = condition.column, condition.operator, condition.value
        if operator == "is":
            return self._whole(str(value))
        if operator == "!=":
            return self._present(column) & ~self._equal(column, value)
        if column == "price":
            held: Bool = NUMBERS[operator](self.price, value)
            return held
        return self._equal(column, value)

    def _present(self, column: str) -> Bool:
        if column == "price":
            return ~np.isnan(self.price)
        column_values: Sequence[object] = self.category if column == "category" else self.brand
        return np.array([bool(v) for v in column_values], dtype=np.bool_)

    def _equal(self, column: str, value: str | float) -> Bool:
        if column == "price":
            return np.equal(self.price, value)
        if column == "brand":
            return np.array([b == value for b in self.brand], dtype=np.bool_)
        text = str(value)
        return self._paths(lambda path: text in path or f"{LEVELS.join(path)}{LEVELS}".startswith(f"{text}{LEVELS}"))

    def _whole(self, value: str) -> Bool:
        return self._paths(lambda path: LEVELS.join(path) == value and bool(path))

    def _paths(self, holds: Callable[[tuple[str, ...]], bool]) -> Bool:
        """A test of each distinct path, then of the products by theirs."""
        found = {path: bool(path) and holds(path) for path in set(self.category)}
        return np.array([found[path] for path in self.category], dtype=np.bool_)

    def _unknown(self, column: str, value: str, whole: bool) -> str:
        if column == "brand":
            known = {b for b in self.brand if b is not None}
        elif whole:
            known = {LEVELS.join(path) for path in self.category if path}
        else:
            known = {level for path in self.category for level in path}
            known |= {LEVELS.join(path[:i]) for path in set(self.category) for i in range(2, len(path) + 1)}
        if not known:
            return f"no product has a {column}: product.{column} = {value!r} holds for none"
        lowered = {name.lower(): name for name in sorted(known)}
        close = get_close_matches(value.lower(), lowered, 1)
        hint = f"; did you mean {lowered[close[0]]!r}?" if close else ""
        return f"no product has the {column} {value!r}{hint}"

    def dump(self) -> bytes:
        """As bytes; `load` reads them."""
        return msgspec.msgpack.encode((self.product, self.category, self.brand, self.price.tobytes()))

    @staticmethod
    def load(data: bytes) -> Catalogue:
        """What `dump` wrote. Raises msgspec.MsgspecError for anything else."""
        kind = tuple[list[str], list[tuple[str, ...]], list[str | None], bytes]
        product, category, brand, price = msgspec.msgpack.decode(data, type=kind)
        return Catalogue(product, category, brand, np.frombuffer(price, dtype=np.float64))
