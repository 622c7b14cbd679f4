"""The language of `freshet query`: what is understood, and how an error shows its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.stream.query.build import read_query
from freshet.stream.query.language import Between, Both, Compare, Either, Negated, OneOf, QueryError

PAGE = (Path(__file__).parents[2] / "docs" / "query.md").read_text()
FOR = "PREDICT product_id FOR user 'u1' USING product, purchase"
ALL = "PREDICT product_id FOR user USING product, purchase"


def examples(language: str) -> list[str]:
    """The blocks of a language in the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def queries() -> list[str]:
    return [query.strip() for block in examples("sql") for query in block.split("\n\n") if query.strip()]


def refused(text: str) -> QueryError:
    with pytest.raises(QueryError) as raised:
        read_query(text)
    return raised.value


def test_the_page_has_examples() -> None:
    assert len(queries()) >= 8


@pytest.mark.parametrize("text", queries())
def test_every_example_of_the_page_is_understood(text: str) -> None:
    assert read_query(text).text == text


def test_the_query_of_the_first_line() -> None:
    found = read_query(
        "PREDICT product_id FOR user 'u42' USING user, product, purchase, view, session "
        "TOP 10 WHERE product.category = 'tea'"
    )
    assert found.users == ("u42",)
    assert found.tables == {"user", "product", "purchase", "view", "session"}
    assert found.top == 10
    assert found.where == Compare("category", "=", "tea")
    assert (found.within_s, found.as_of_ms, found.excluding, found.explain) == (None, None, frozenset(), False)


def test_every_clause_in_any_order_and_case() -> None:
    found = read_query(
        "explain predict PRODUCT_ID for User using Purchase, view as of '2017-12-01' within 2min excluding seen top 3;"
    )
    assert found.explain
    assert found.users is None
    assert (found.top, found.within_s, found.as_of_ms) == (3, 120.0, 1_512_086_400_000)
    assert found.excluding == {"seen"}


def test_not_binds_before_and_and_and_before_or() -> None:
    found = read_query(
        f"{ALL} WHERE NOT product.price < 2 AND product.brand = 'a' OR product.price BETWEEN 1 AND 2.5 "
        "AND product.category IN ('x', 'y')"
    )
    assert found.where == Either(
        (
            Both((Negated(Compare("price", "<", 2.0)), Compare("brand", "=", "a"))),
            Both((Between("price", 1.0, 2.5), OneOf("category", ("x", "y")))),
        )
    )


def test_parentheses_bind_first_and_two_signs_mean_unequal() -> None:
    found = read_query(f"{ALL} WHERE product.price <> 1 AND (product.price > 2 OR product.category IS 'a/b')")
    inner = Either((Compare("price", ">", 2.0), Compare("category", "is", "a/b")))
    assert found.where == Both((Compare("price", "!=", 1.0), inner))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"'it''s'", "it's"), (r"'it\'s'", "it's"), ('"it\'s"', "it's"), (r'"a ""b"""', 'a "b"'),
        (r"'a\\b'", r"a\b"), (r"'two\nlines'", "two\nlines"), ("'WHERE'", "WHERE"), ("'茶'", "茶"),
    ],
)  # fmt: skip
def test_texts_in_quotes(written: str, meant: str) -> None:
    assert read_query(f"PREDICT product_id FOR user {written} USING view").users == (meant,)


@given(st.text(min_size=1, max_size=40))
def test_any_id_can_be_written(user: str) -> None:
    quoted = "'" + user.replace("\\", "\\\\").replace("'", "''") + "'"
    assert read_query(f"PREDICT product_id FOR user {quoted} USING view").users == (user,)


@given(st.text(max_size=60))
def test_any_text_is_a_query_or_an_error_that_shows_a_place_in_it(text: str) -> None:
    try:
        read_query(text)
    except QueryError as error:
        assert 0 <= error.place.start <= len(text) + 1


@pytest.mark.parametrize(
    ("text", "marked", "said"),
    [
        ("", "", "empty"),
        ("SELECT * FROM user", "SELECT", "PREDICT"),
        ("PREDICT price FOR user USING view", "price", "expected: product_id"),
        ("PREDICT product_id FOR users USING view", "users", "did you mean user?"),
        ("PREDICT product_id FOR user USING views", "views", "did you mean view?"),
        ("PREDICT product_id FOR user USING view, view", "view", "twice"),
        ("PREDICT product_id FOR user USING user, product", "user, product", "purchase, view, session"),
        (f"{FOR} TOPP 3", "TOPP", "did you mean TOP?"),
        (f"{FOR} TOP 0", "0", "from 1 to 1000"),
        (f"{FOR} TOP 1001", "1001", "from 1 to 1000"),
        (f"{FOR} TOP 2.5", "2.5", "whole number"),
        (f"{FOR} TOP -3", "-3", "whole number"),
        (f"{FOR} TOP ten", "ten", "expected: a number"),
        (f"{FOR} TOP 3 TOP 4", "TOP", "twice"),
        (f"{FOR} WITHIN 0 s", "0", "more than 0 s"),
        (f"{FOR} WITHIN 25 h", "25", "24 h"),
        (f"{FOR} WITHIN 5 parsecs", "parsecs", "s, min or h"),
        (f"{FOR} AS OF 'noon'", "'noon'", "2017-12-01"),
        (f"{FOR} AS OF '1960-01-01'", "'1960-01-01'", "1970"),
        (f"{FOR} EXCLUDING bougt", "bougt", "did you mean bought?"),
        ("PREDICT product_id FOR user USING view EXCLUDING bought", "bought", "purchase in USING"),
        ("PREDICT product_id FOR user USING session EXCLUDING seen", "seen", "view or purchase in USING"),
        ("PREDICT product_id FOR user USING view WHERE product.price < 1", "WHERE", "product in USING"),
        (f"{FOR} WHERE product.prize < 1", "prize", "did you mean price?"),
        (f"{FOR} WHERE prodct.price < 1", "prodct", "did you mean product?"),
        (f"{FOR} WHERE user.age = '3'", "user", "expected: product"),
        (f"{FOR} WHERE product.price = 'a'", "'a'", "without quotes"),
        (f"{FOR} WHERE product.brand = 7", "7", "in quotes"),
        (f"{FOR} WHERE product.brand < 'a'", "<", "no order"),
        (f"{FOR} WHERE product.brand IS 'a'", "IS", "expected: ="),
        (f"{FOR} WHERE product.brand BETWEEN 'a' AND 'b'", "brand", "price"),
        (f"{FOR} WHERE product.price BETWEEN 2 AND 1", "1", "2 or more"),
        (f"{FOR} WHERE product.price IN ()", ")", "a number or a text in quotes"),
        (f"{FOR} WHERE (product.price < 1", " ", "')'"),
        ("PREDICT product_id FOR user '' USING view", "''", "an id"),
        ("PREDICT product_id FOR user 'u1 USING view", "'", "not closed"),
        ("PREDICT product_id FOR user ‘u1’ USING view", "‘", "straight quotes"),
        (r"PREDICT product_id FOR user 'a\q' USING view", r"\q", "backslash"),
        (f"{FOR} WHERE {'(' * 101}product.price < 1{')' * 101}", "(", "nested"),
    ],
)  # fmt: skip
def test_an_error_marks_its_place_and_says_what_was_expected(text: str, marked: str, said: str) -> None:
    error = refused(text)
    assert said in str(error)
    place = (text + " ")[error.place.start : error.place.end]
    assert place == marked
    *_, line, carets = [part for part in str(error).split("\n") if not part.startswith("  expected")]
    at = carets.index("^")
    assert set(carets.strip()) == {"^"}
    if text:
        assert (line + " " * 9)[at : at + len(carets.strip())] == marked


def test_the_line_of_a_long_query_is_cut_around_the_place() -> None:
    text = f"{FOR} WHERE " + " OR ".join(f"product.brand = 'brand {i}'" for i in range(300)) + " OR product.prise < 1"
    line, carets = str(refused(text)).split("\n")[1:3]
    assert line.startswith("  …")
    assert len(line) < 80
    assert line[carets.index("^") : carets.index("^") + 5] == "prise"


def test_a_query_of_several_lines_names_the_line() -> None:
    error = refused("PREDICT product_id\nFOR user 'u1'\nUSING view TOP x")
    label, carets = str(error).split("\n")[1:3]
    assert label.startswith("  line 3: ")
    assert label[carets.index("^")] == "x"


def test_a_file_in_place_of_a_query_is_refused() -> None:
    assert "20000" in str(refused("x" * 20_001))
