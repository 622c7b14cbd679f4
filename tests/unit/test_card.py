"""The evaluation card: its slices by hand, its page, and what the command says."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.card import PAYS_FROM_ORDERS, remarks
from freshet.model.config import DAY_MS
from freshet.model.dayzero import dayzero
from freshet.model.evaluation.card import CardConfig, make_card, slices_of
from freshet.model.evaluation.page import page_of
from freshet.model.evaluation.run import Entry, EvaluateConfig, evaluate
from freshet.model.evaluation.targets import Window, Windows
from freshet.store.columns import F32, I32
from freshet.store.history import History
from freshet.stream.cli import app
from tests.unit.test_evaluation import history_of
from tests.unit.test_train import FEATURES, shop


class First:
    """Puts one product first and all others level."""

    name = "first"

    def __init__(self, product: str) -> None:
        self.product = product

    def fit(self, history: History, until_ms: int) -> None:
        self.place = history.products.get(self.product)
        self.size = len(history.products)

    def scores(self, users: I32, at_ms: int) -> F32:
        out = np.full((users.shape[0], self.size), -np.inf, np.float32)
        out[:, self.place] = 1.0
        return out


def test_slices_by_hand() -> None:
    day = DAY_MS
    lines = [("a", "old", 0), ("b", "old", day), ("a", "new", 98 * day), ("b", "other", 40 * day)]
    lines += [("a", f"x{i}", 50 * day) for i in range(6)]  # a knows eight products, b two
    lines += [("a", "other", 101 * day), ("b", "new", 102 * day), ("b", "old", 103 * day)]
    history = history_of(lines)
    windows = Windows(100 * day, Window(100 * day, 107 * day), None, 100 * day)
    run = evaluate(history, windows, [Entry("first", {"": lambda: First("new")})], EvaluateConfig(resamples=10))
    found = slices_of(run, history)
    novel, every = found["by_history"]["novel"], found["by_history"]["all"]
    assert novel["groups"] == ["1 to 5", "6 to 20", "21 to 50", "51 to 100", "101 and more"]
    assert novel["count"] == [1, 1, 0, 0, 0]
    assert novel["recall@20"]["first"] == [[1.0, 0.0], [0.0, 0.0], None, None, None]  # b bought new, a bought other
    assert every["recall@20"]["first"][:2] == [[0.5, 0.0], [0.0, 0.0]]  # b bought old, too
    age = found["by_age"]["all"]
    assert age["groups"] == ["0 to 6 days", "7 to 29 days", "30 to 89 days", "90 days and more"]
    assert (age["count"], age["recall@20"]["first"]) == ([1, 0, 1, 1], [[1.0, 0.0], None, [0.0, 0.0], [0.0, 0.0]])
    popular = found["by_popularity"]["all"]
    assert sum(popular["count"]) == 3
    assert popular["recall@20"]["first"][9] == [1.0, 0.0]  # what was bought once in the last 30 days is at the top


@pytest.fixture(scope="module")
def made() -> Bundle:
    history = History.of([shop()])
    bundle = dayzero(history, features=FEATURES, cut_ms=66 * DAY_MS - 1)
    card = make_card(bundle, history, CardConfig(resamples=20))
    trace = [{"step": 0, "all": 0.1, "novel": 0.2}, {"step": 5, "all": 0.3, "novel": 0.2, "loss": 2.0}]
    card["training"] = {"trace": trace}
    return replace(bundle, card=card, page=page_of(card))


class Tags(HTMLParser):
    """Counts what is opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1


def test_the_page_stands_alone_and_shows_every_slice(made: Bundle) -> None:
    tags = Tags()
    tags.feed(made.page)
    slices = made.card["slices"]
    assert tags.seen["svg"] == sum(len(slices[by]) for by in ("by_history", "by_age", "by_popularity")) + 1
    assert not re.search(r"(src|href)=[\"']?(http|//|file)", made.page.replace("xlink:href=\"#", ""))
    assert "final_ranker" in made.page and made.model_version in made.page
    assert page_of(made.card) == made.page


def test_names_are_escaped(made: Bundle) -> None:
    assert "<script>" not in page_of({**made.card, "model_version": "<script>alert(1)</script>"})


def test_a_bundle_that_nothing_came_after_says_so(tmp_path: Path) -> None:
    history = History.of([shop()])
    bundle = dayzero(history, features=FEATURES)
    card = make_card(bundle, history)
    assert card["windows"] == {} and card["slices"] == {}
    assert "nothing to measure with" in page_of(card)
    replace(bundle, card=card, page=page_of(card)).save(tmp_path / "b")
    shown = CliRunner().invoke(app, ["card", str(tmp_path / "b")])
    assert shown.exit_code == 0 and "nothing to measure with" in shown.output


def test_the_command_shows_the_card_and_writes_the_page(made: Bundle, tmp_path: Path) -> None:
    made.save(tmp_path / "b")
    shown = CliRunner().invoke(app, ["card", str(tmp_path / "b"), "--html", str(tmp_path / "card.html")])
    assert shown.exit_code == 0, shown.output
    assert "final_ranker" in shown.output and "test: " in shown.output
    assert (tmp_path / "card.html").read_text() == made.page
    told = CliRunner().invoke(app, ["card", str(tmp_path / "b"), "--json"])
    assert msgspec.json.decode(told.output)["windows"].keys() == {"validation", "test"}
    lost = CliRunner().invoke(app, ["card", str(tmp_path / "b"), "--html", str(tmp_path / "no" / "where.html")])
    assert isinstance(lost.exception, FreshetError) and "--html" in str(lost.exception)
    replace(made, card={}).save(tmp_path / "bare")
    bare = CliRunner().invoke(app, ["card", str(tmp_path / "bare")])
    assert isinstance(bare.exception, FreshetError) and "has no card" in str(bare.exception)


def test_a_card_of_day_zero_says_when_training_pays(made: Bundle) -> None:
    few, many = ({**made.card, "kind": "dayzero", "orders": n} for n in (PAYS_FROM_ORDERS - 1, PAYS_FROM_ORDERS))
    assert "it pays from 300" in remarks(few)[0] and "299 orders" in remarks(few)[0]
    assert "freshet train should pay" in remarks(many)[0]
    assert remarks({**many, "kind": "trained"}) == []
    assert "it pays from 300" in page_of(few)
