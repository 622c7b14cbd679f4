"""From the tree of a query to a `Query`: names, types and ranges are checked here, each error at its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches

from freshet.stream.query.language import (
    COLUMNS,
    ENTITY,
    EVENT_TABLES,
    EXCLUDED,
    TABLES,
    TARGET,
    TOP_DEFAULT,
    TOP_MAX,
    Between,
    Both,
    Compare,
    Condition,
    Either,
    Negated,
    OneOf,
    Place,
    Query,
    QueryError,
)
from freshet.stream.query.parse import Node, Word, parse

SECONDS_OF = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
ESCAPES = {"n": "\n", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


def read_query(text: str) -> Query:
    """The query that `text` says. Raises QueryError, which shows the place."""
    return _Builder(text).query(parse(text))


class _Builder:
    def __init__(self, text: str) -> None:
        self.text = text
        self.places: dict[str, Place] = {}

    def query(self, root: Node) -> Query:
        target, entity = root.words()
        parts = {part.name: part for part in root.parts if isinstance(part, Node)}
        self._known(target, (TARGET,), "cannot be predicted")
        self._known(entity, (ENTITY,), "is nothing to predict for")
        tables = self._set("using", parts["tables"].words(), TABLES, "is no table")
        users = tuple(dict.fromkeys(self._string(word) for word in parts["users"].words()))
        if "" in users:
            raise self._error("a user's id is empty", parts["users"].words()[users.index("")], "an id such as 'u42'")
        clauses = self._clauses(root)
        query = Query(
            text=self.text,
            tables=tables,
            users=users or None,
            explain="explain" in parts,
            top=self._top(clauses["top"].words()[1]) if "top" in clauses else TOP_DEFAULT,
            where=self._where(clauses["where"]) if "where" in clauses else None,
            excluding=(
                self._set("excluding", clauses["excluding"].words()[1:], EXCLUDED, "cannot be excluded")
                if "excluding" in clauses
                else frozenset()
            ),
            within_s=self._within(clauses["within"].words()) if "within" in clauses else None,
            as_of_ms=self._as_of(clauses["as_of"].words()[1]) if "as_of" in clauses else None,
            places=self.places,
        )
        self._agrees(query)
        return query

    def _clauses(self, root: Node) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for part in root.parts:
            if isinstance(part, Node) and part.name in ("top", "where", "excluding", "within", "as_of"):
                keyword = part.words()[0]
                if part.name in found:
                    raise self._error(f"{keyword.text.upper()} is there twice", keyword, "each clause once at most")
                found[part.name] = part
                self.places[part.name] = keyword.place
        return found

    def _agrees(self, query: Query) -> None:
        """Clauses that read a table need it in USING."""
        if not query.tables & set(EVENT_TABLES):
            raise query.refuse("USING names no events", "using", f"at least one of {', '.join(EVENT_TABLES)}")
        if query.where is not None and "product" not in query.tables:
            raise query.refuse("WHERE reads product, which USING does not name", "where", "product in USING")
        if "bought" in query.excluding and "purchase" not in query.tables:
            raise query.refuse("bought reads purchase, which USING does not name", "excluding", "purchase in USING")
        if "seen" in query.excluding and not query.tables & {"purchase", "view"}:
            raise query.refuse(
                "seen reads purchase and view, of which USING names neither", "excluding", "view or purchase in USING"
            )

    # --- names ----------------------------------------------------------------------------------

    def _error(self, what: str, word: Word, expected: str = "") -> QueryError:
        return QueryError(what, self.text, word.place, expected)

    def _known(self, word: Word, known: Sequence[str], why: str) -> str:
        name = word.text.lower()
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise self._error(f"{word.text!r} {why}{hint}", word, ", ".join(known))
        return name

    def _set(self, clause: str, words: Sequence[Word], known: Sequence[str], why: str) -> frozenset[str]:
        names = [self._known(word, known, why) for word in words]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise self._error(f"{name} is there twice", words[i], "each name once")
        self.places[clause] = Place(words[0].place.start, words[-1].place.end)
        return frozenset(names)

    # --- values ---------------------------------------------------------------------------------

    def _string(self, word: Word) -> str:
        quote, body = word.text[0], word.text[1:-1]
        out, i = [], 0
        while i < len(body):
            if body[i] == "\\":
                if body[i + 1] not in ESCAPES:
                    at = word.place.start + 1 + i
                    raise QueryError(
                        f"\\{body[i + 1]} stands for nothing", self.text, Place(at, at + 2),
                        "one of \\\\ \\' \\\" \\n \\t (write \\\\ for a backslash)",
                    )  # fmt: skip
                out.append(ESCAPES[body[i + 1]])
                i += 2
            else:
                out.append(body[i])
                i += 2 if body[i] == quote else 1  # a doubled quote is one
        return "".join(out)

    def _number(self, word: Word) -> float:
        value = float(word.text)
        if not math.isfinite(value):
            raise self._error(f"{word.text[:20]}… is too large", word, "a smaller number")
        return value

    def _top(self, word: Word) -> int:
        if not word.text.lstrip("+").isdigit() or not 1 <= float(word.text) <= TOP_MAX:
            expected = f"a whole number from 1 to {TOP_MAX}"
            raise self._error(f"{word.text} is no number of products to ask for", word, expected)
        return int(word.text)

    def _within(self, words: Sequence[Word]) -> float:
        _, number, unit = words
        close = get_close_matches(unit.text.lower(), SECONDS_OF, 1)
        if unit.text.lower() not in SECONDS_OF:
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise self._error(f"{unit.text!r} is no unit of time{hint}", unit, "s, min or h")
        seconds = self._number(number) * SECONDS_OF[unit.text.lower()]
        if not 0 < seconds <= 24 * 3600:
            expected = "more than 0 s and at most 24 h (without WITHIN nothing is trained)"
            raise self._error("this budget cannot be kept", number, expected)
        return seconds

    def _as_of(self, word: Word) -> int:
        text = self._string(word)
        try:
            moment = datetime.fromisoformat(text)
            milliseconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e3)
        except (ValueError, OverflowError):
            raise self._error(
                f"{text!r} is no date", word, "a date such as '2017-12-01' or '2017-12-01T08:00'"
            ) from None
        if milliseconds <= 0:
            raise self._error(f"{text!r} is before 1970", word, "a date after 1970-01-01")
        return milliseconds

    # --- conditions -----------------------------------------------------------------------------

    def _where(self, clause: Node) -> Condition:
        return self._condition(next(part for part in clause.parts if isinstance(part, Node)))

    def _condition(self, node: Node) -> Condition:
        nodes = [part for part in node.parts if isinstance(part, Node)]
        if node.name in ("both", "either"):
            parts = tuple(self._condition(part) for part in nodes)
            return Both(parts) if node.name == "both" else Either(parts)
        if node.name == "negated":
            return Negated(self._condition(nodes[0]))
        column, words = self._column(nodes[0]), node.words()
        if node.name == "one_of":
            return OneOf(column, tuple(self._value(column, word) for word in words))
        if node.name == "between":
            if COLUMNS[column] is not float:
                raise self._error(f"{column} is a text, and BETWEEN compares numbers", nodes[0].words()[1], "price")
            low, high = (float(self._value(column, word)) for word in words)
            if low > high:
                raise self._error("nothing lies between a number and a smaller one", words[1], f"{low:g} or more")
            return Between(column, low, high)
        return self._compare(column, words[0], words[1])

    def _compare(self, column: str, operator: Word, value: Word) -> Compare:
        sign = {"<>": "!="}.get(operator.text, operator.text.lower())
        if sign == "is" and column != "category":
            raise self._error(f"IS compares a whole category; {column} is compared with =", operator, "=")
        if sign in ("<", "<=", ">", ">=") and COLUMNS[column] is not float:
            raise self._error(f"{column} is a text: it has no order", operator, "=, != or IN")
        return Compare(column, sign, self._value(column, value))

    def _column(self, node: Node) -> str:
        table, column = node.words()
        self._known(table, ("product",), "has no columns to compare")
        return self._known(column, tuple(COLUMNS), "is no column of product")

    def _value(self, column: str, word: Word) -> str | float:
        if COLUMNS[column] is float:
            if word.kind != "NUMBER":
                raise self._error(f"{column} is a number, and this is a text", word, "a number without quotes")
            return self._number(word)
        if word.kind != "STRING":
            raise self._error(f"{column} is a text, and this is a number", word, f"a text in quotes: '{word.text}'")
        return self._string(word)
