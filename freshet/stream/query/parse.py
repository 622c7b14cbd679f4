"""Text to a tree of plain values; the only file that imports lark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from freshet.stream.query.language import (
    COLUMNS,
    ENTITY,
    EXCLUDED,
    TABLES,
    TARGET,
    Place,
    QueryError,
)

QUERY_CHARS_MAX = 20_000
"""Longest query: a longer one is a mistake, such as a file in place of a query."""
DEPTH_MAX = 100
"""Deepest nesting of a condition: what reads the tree is recursive."""
END = "$END"
IN_WORDS = {
    "STRING": "a text in quotes",
    "NUMBER": "a number",
    "OPERATOR": "= != < <= > >=",
    "COMMA": "','",
    "LPAR": "'('",
    "RPAR": "')'",
    "DOT": "'.'",
    "SEMICOLON": "';'",
    "AS": "AS OF",
    END: "the end of the query",
}
"""Terminals of the grammar as a person calls them; keywords are called what they are."""
NAMES_AFTER = {
    "PREDICT": TARGET,
    "FOR": ENTITY,
    "USING": ", ".join(TABLES),
    "EXCLUDING": " or ".join(EXCLUDED),
    "WITHIN": "s, min or h",
    "WHERE": "a column such as product.category, NOT or '('",
}
"""Which names may stand after the last keyword of their clause."""


@dataclass(frozen=True)
class Word:
    """A name, number, text in quotes or keyword, as it stands in the query."""

    kind: str
    text: str
    place: Place


@dataclass(frozen=True)
class Node:
    """A rule of the grammar with what it consists of."""

    name: str
    parts: tuple[Node | Word, ...]

    def words(self) -> list[Word]:
        """The words directly below."""
        return [part for part in self.parts if isinstance(part, Word)]


def parse(text: str) -> Node:
    """The tree of a query. Raises QueryError."""
    if not text.strip():
        raise QueryError("the query is empty", "", Place(0, 0), "EXPLAIN or PREDICT")
    if len(text) > QUERY_CHARS_MAX:
        raise QueryError(f"the query has {len(text)} characters; at most {QUERY_CHARS_MAX} are read", text, Place(0, 1))
    steps = _parser().parse_interactive(text)
    read: list[Token] = []
    try:
        depth = 0
        for token in steps.iter_parse():
            read.append(token)
            depth += (token.type in ("LPAR", "_NOT")) - (token.type == "RPAR")
            if depth > DEPTH_MAX:
                raise QueryError(f"conditions are nested more than {DEPTH_MAX} deep", text, _place(token))
        tree: Tree[Token] = steps.feed_eof(read[-1] if read else None)
        return _node(tree)
    except UnexpectedInput as error:
        raise _explained(error, text, read, steps.accepts()) from None


@cache
def _parser() -> Lark:
    grammar = (Path(__file__).parent / "grammar.lark").read_text()
    return Lark(grammar, start="query", parser="lalr", lexer="contextual")


def _node(tree: Tree[Token]) -> Node:
    return Node(
        str(tree.data),
        tuple(Word(p.type, str(p), _place(p)) if isinstance(p, Token) else _node(p) for p in tree.children),
    )


def _place(token: Token) -> Place:
    return Place(token.start_pos or 0, token.end_pos or 0)


def _explained(error: UnexpectedInput, text: str, read: list[Token], accepted: Iterable[str]) -> QueryError:
    accepted = {name.lstrip("_") if name != END else END for name in accepted}
    expected = _in_words(accepted, read)
    if isinstance(error, UnexpectedCharacters):
        at = error.pos_in_stream or 0
        return QueryError(_odd_character(text[at]), text, Place(at, at + 1), expected)
    assert isinstance(error, UnexpectedToken)
    token = error.token
    if token.type == END:
        end = len(text.rstrip())
        return QueryError("the query ends too early", text, Place(end, end + 1), expected)
    keywords = [name for name in accepted if name.isalpha() and name not in IN_WORDS and name != "NAME"]
    close = get_close_matches(str(token).upper(), keywords, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return QueryError(f"{str(token)!r} cannot stand here{hint}", text, _place(token), expected)


def _odd_character(character: str) -> str:
    if character in "'\"":
        return "a text in quotes is not closed"
    if character in "‘’“”´`":
        return f"{character} is not a quote here: write texts in straight quotes, 'like this'"
    return f"{character!r} cannot stand here"


def _in_words(accepted: set[str], read: list[Token]) -> str:
    """What may come next, for a person."""
    words = []
    last = next((k for t in reversed(read) if (k := t.type.lstrip("_")) in NAMES_AFTER), "")
    for name in sorted(accepted, key=lambda n: (n == END, n not in IN_WORDS, n)):
        if name == "NAME":
            after_dot = bool(read) and read[-1].type == "DOT"
            words.append(", ".join(COLUMNS) if after_dot else NAMES_AFTER.get(last, "a name"))
        elif name == "SEMICOLON" or (last == "WHERE" and "NAME" in accepted and name in ("LPAR", "NOT")):
            continue
        else:
            words.append(IN_WORDS.get(name, name))
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else "".join(words)
