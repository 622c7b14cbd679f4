"""What a query says, as plain values, and the error that shows where one is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from freshet.errors import FreshetError

TARGET = "product_id"
"""What can be predicted: the products that a user buys next."""
ENTITY = "user"
"""Whom it can be predicted for."""
TABLES = ("user", "product", "purchase", "view", "session")
"""What a query can use: profiles, the catalogue, and three kinds of events."""
EVENT_TABLES = ("purchase", "view", "session")
COLUMNS = {"category": str, "brand": str, "price": float}
"""Columns of `product` that a condition can read, with the type of their values."""
EXCLUDED = ("bought", "seen")
"""What can be left out of the answer: bought before; bought or viewed before."""
TOP_DEFAULT, TOP_MAX = 10, 1000
EXCERPT_CHARS = 72
"""Most characters of a line that an error shows."""
WORDS_CHARS_MAX = 240
"""Most characters in which an error says what is wrong."""


@dataclass(frozen=True)
class Place:
    """Characters `start` to `end` (not included) of a query."""

    start: int
    end: int


class QueryError(FreshetError):
    """A query that cannot be understood: what is wrong, the line, a caret under the place, what was expected."""

    def __init__(self, what: str, text: str, place: Place, expected: str = "") -> None:
        what, expected = _short(what), _short(expected)  # both may quote a word of any length
        lines = [what, *excerpt(text, place)]
        if expected:
            lines.append(f"  expected: {expected}")
        super().__init__("\n".join(lines))
        self.what, self.place, self.expected = what, place, expected


def _short(text: str) -> str:
    cut = WORDS_CHARS_MAX // 2
    return text if len(text) <= WORDS_CHARS_MAX else f"{text[:cut]}…{text[-cut:]}"


def excerpt(text: str, place: Place) -> list[str]:
    """The line of `text` that holds the place (its surroundings, where it is long), and carets under the place."""
    start = text.rfind("\n", 0, place.start) + 1
    end = text.find("\n", place.start)
    line = text[start : end if end >= 0 else len(text)].expandtabs(1)
    at, length = place.start - start, max(1, min(place.end, start + len(line)) - place.start)
    first = max(0, min(at - EXCERPT_CHARS // 2, len(line) - EXCERPT_CHARS))
    shown = line[first : first + EXCERPT_CHARS]
    before = "…" if first else ""
    after = "…" if first + EXCERPT_CHARS < len(line) else ""
    carets = "^" * max(1, min(length, len(shown) - (at - first)))
    number = text.count("\n", 0, place.start) + 1
    label = f"  line {number}: " if "\n" in text.strip() else "  "
    return [f"{label}{before}{shown}{after}", " " * (len(label) + len(before) + at - first) + carets]


@dataclass(frozen=True)
class Compare:
    """`column operator value`; the operator is one of = != < <= > >= and `is`."""

    column: str
    operator: str
    value: str | float


@dataclass(frozen=True)
class OneOf:
    """The column equals one of the values."""

    column: str
    values: tuple[str | float, ...]


@dataclass(frozen=True)
class Between:
    """`low <= column <= high`."""

    column: str
    low: float
    high: float


@dataclass(frozen=True)
class Both:
    """All of the parts hold."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Either:
    """At least one of the parts holds."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Negated:
    """The part does not hold."""

    part: Condition


Condition = Compare | OneOf | Between | Both | Either | Negated


@dataclass(frozen=True)
class Query:
    """A query that makes sense by itself.

    `users` None means every user. `tables` are those it uses, `where` restricts the products, `excluding` names
    what is left out, `within_s` is the budget in seconds (None: no training), `as_of_ms` the time (ms since the
    epoch) from which on events are not looked at. `places` says where the clauses stand in `text`.
    """

    text: str
    tables: frozenset[str]
    users: tuple[str, ...] | None = None
    explain: bool = False
    top: int = TOP_DEFAULT
    where: Condition | None = None
    excluding: frozenset[str] = frozenset()
    within_s: float | None = None
    as_of_ms: int | None = None
    places: Mapping[str, Place] = field(default_factory=dict)

    def refuse(self, what: str, clause: str, expected: str = "") -> QueryError:
        """An error that points at a clause."""
        return QueryError(what, self.text, self.places.get(clause, Place(0, len(self.text))), expected)
