"""Any text is a query or a `QueryError` that shows its place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from freshet.stream.query.build import read_query
from freshet.stream.query.language import Query, QueryError
from freshet.stream.query.parse import DEPTH_MAX, QUERY_CHARS_MAX
from tests.fuzz.budget import fuzzed

QUERIES = [
    "EXPLAIN PREDICT product_id FOR user 'u1', 'u2' USING purchase, view, product TOP 20",
    "PREDICT product_id FOR user USING user, product, purchase, view, session WHERE product.category IS 'a' AND NOT "
    "(product.price BETWEEN 1 AND 2.5 OR product.brand IN ('x', \"y\")) EXCLUDING bought, seen WITHIN 5 min "
    "AS OF '2017-12-01T08:00' ;",
]
PIECES = [
    "'", '"', "\\", "\\x", "''", "(", ")", ",", ".", ";", "=", "<>", "<=", "NOT", "AND", "OR", "IN", "BETWEEN", "TOP",
    "WHERE", "AS OF", "WITHIN", "9" * 400, "-1", "1e5", "0.0000001", "²", "٣", "\x00", "\ud800", "’", "\n",
    "\u2028", "product",
    "product.price", "h", "'9999-12-31'", "'0001-01-01T00:00+23:59'", "(" * 150, "NOT " * 150, "'" + "a" * 3_000 + "'",
]  # fmt: skip


@st.composite
def spoilt_queries(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(QUERIES))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 20))
        put = draw(st.sampled_from(PIECES) | st.text(max_size=5))
        cut = draw(st.sampled_from([0, length]))
        text = text[:at] + draw(st.sampled_from([put, f" {put} "])) + text[at + cut :]
    return text


def asked(text: str) -> None:
    try:
        found = read_query(text)
    except QueryError as error:
        assert 0 <= error.place.start <= error.place.end <= len(text) + 1
        assert len(str(error)) < 3_000
    else:
        assert isinstance(found, Query)


def test_the_originals_are_queries() -> None:
    for text in QUERIES:
        read_query(text)


@fuzzed(500)
@given(spoilt_queries())
def test_spoilt_queries(text: str) -> None:
    asked(text)


@fuzzed(200)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    asked(text)


def test_long_and_deep_texts_end_soon() -> None:
    start = "PREDICT product_id FOR user USING purchase, product WHERE "
    for text in (
        "'" * QUERY_CHARS_MAX, "'\\" * (QUERY_CHARS_MAX // 2), "(" * QUERY_CHARS_MAX, " " * QUERY_CHARS_MAX + "x",
        start + "NOT " * 4_000, start + "(" * DEPTH_MAX + "product.price = 1" + ")" * DEPTH_MAX,
        start + " OR ".join(["product.price = 1"] * 900), start + "product.price IN (" + "1," * 9_000 + "1)",
        "PREDICT product_id FOR user " + ",".join(f"'{i}'" for i in range(2_500)) + " USING view",
        "\n" * QUERY_CHARS_MAX, "x" * 10_000_000, start + "product.price = " + "9" * 19_000,
        "PREDICT product_id FOR user USING view TOP " + "9" * 19_000, start + "product.category = '" + "''" * 9_000,
    ):  # fmt: skip
        asked(text)
