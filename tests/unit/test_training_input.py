"""Logs at the edge, and beyond it: what training and day zero make of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freshet.model.at_time import TowersAt
from freshet.model.bundle import Bundle
from freshet.model.config import DAY_MS
from freshet.model.evaluation import final
from freshet.model.fit_ranker import FitRankerConfig
from freshet.store.graph import GraphLimits
from freshet.store.history import History
from freshet.store.ranker import Ranker
from freshet.stream.cli import EXIT_USAGE
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Event, Line, Product, Purchase, View
from freshet.stream.modelling import TrainOrder, dayzero_bundle, read_history, train_bundle
from freshet.stream.progress import Bars
from freshet.stream.settings import Settings
from freshet.stream.sink import SinkSettings
from tests.unit.query_logs import START_MS, write_log
from tests.unit.test_cli import one_line, run


def order(number: int, user: str, at_ms: int, *products: str) -> Purchase:
    return Purchase(f"o{number}", user, START_MS + at_ms, items=tuple(Line(p) for p in products))


EDGES: dict[str, list[Event]] = {
    "one user": [order(i, "a", i * DAY_MS, f"p{i % 7}", f"p{(i + 1) % 7}") for i in range(40)],
    "one product": [order(i, f"u{i % 7}", i * DAY_MS, "x") for i in range(40)],
    "one event": [order(0, "a", 0, "x")],
    "one view": [View("v", "a", "x", START_MS)],
    "one timestamp": [order(i, f"u{i}", 0, f"p{i % 5}", f"p{i % 3 + 5}") for i in range(40)],
    "every product cold": [order(i, f"u{i % 3}", i * DAY_MS, f"p{i}") for i in range(40)],
    "a catalogue alone beside one order": [
        *(Product(f"p{i}", START_MS, ("c",), price=1.0) for i in range(30)), order(0, "a", DAY_MS, "p0"),
    ],
}  # fmt: skip
SETTINGS = {"train": {"epochs": 1, "runs": 2, "threads": 1, "pool_draws": 16}, "towers": {"dim": 8}}


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(SETTINGS))
    return path


@pytest.mark.parametrize("name", EDGES)
def test_a_log_at_the_edge_is_trained_on_or_refused_with_the_remedy(name: str, tmp_path: Path, settings: Path) -> None:
    log = write_log(tmp_path / "log", EDGES[name])
    asked = TrainOrder(log, tmp_path / "bundle", settings=settings)
    try:
        train_bundle(asked, Bars.silent())
    except Exception as e:
        assert name in ("one event", "one view", "one timestamp", "a catalogue alone beside one order"), e
        assert "there is nothing to train on; set a later split, or make a day-zero bundle" in str(e)
        train_bundle(replace(asked, before="2025-08-01"), Bars.silent())  # as the message says: nothing to validate by
    made = Bundle.load(tmp_path / "bundle")
    assert all(np.isfinite(value).all() for value in made.weights.values())


@pytest.mark.parametrize("name", EDGES)
def test_day_zero_takes_any_log(name: str, tmp_path: Path) -> None:
    dayzero_bundle(write_log(tmp_path / "log", EDGES[name]), tmp_path / "bundle", None, Bars.silent())
    made = Bundle.load(tmp_path / "bundle")
    assert all(np.isfinite(value).all() for value in made.weights.values())


def test_a_log_without_a_purchase_or_view_is_refused_by_train(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [Product("p", START_MS)])
    done = run("train", log, "--bundle", tmp_path / "bundle")
    assert done.returncode == EXIT_USAGE
    assert "has no purchase and no view: there is nothing to train on" in one_line(done)


def test_without_a_validation_period_the_last_weights_are_kept(tmp_path: Path, settings: Path) -> None:
    log = write_log(tmp_path / "log", EDGES["one user"])
    made = train_bundle(TrainOrder(log, tmp_path / "bundle", before="2025-08-01", settings=settings), Bars.silent())
    training = made["card"]["training"]
    assert training["averaged"] == 2
    assert not [row for row in training["trace"] if "all" in row]
    assert not made["card"]["windows"]


@pytest.mark.parametrize("price", ["NaN", "Infinity", "-1.0", "1e400"])
def test_a_price_that_is_no_number_is_refused_with_its_line(tmp_path: Path, price: str) -> None:
    log = write_log(tmp_path / "log", [Product("p0", START_MS, price=1.5), *EDGES["one user"]])
    products = log / "product.jsonl"
    products.write_text(products.read_text().replace("1.5", price))
    done = run("train", log, "--bundle", tmp_path / "bundle")
    assert done.returncode == EXIT_USAGE
    said = one_line(done)
    assert "product.jsonl" in said and re.search("price|JSON", said), said


def test_a_product_without_any_price_does_not_make_prices_nan(tmp_path: Path, settings: Path) -> None:
    log = write_log(tmp_path / "log", [Product("p0", START_MS, price=0.0), Product("p1", START_MS), *EDGES["one user"]])
    history = read_history(EventLog(log), None, Bars.silent())
    assert len(history.products) == 7
    train_bundle(TrainOrder(log, tmp_path / "bundle", settings=settings), Bars.silent())
    assert all(np.isfinite(value).all() for value in Bundle.load(tmp_path / "bundle").weights.values())


def test_a_bundle_of_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    dayzero_bundle(write_log(tmp_path / "log", EDGES["one user"]), path, None, Bars.silent())
    head = path / "bundle.json"
    raw = head.read_text()
    changed = raw.replace('"co_purchased"', '"bought_along"')
    assert changed != raw
    head.write_text(changed)
    done = run("card", path)
    assert done.returncode == EXIT_USAGE
    assert str(path) in one_line(done)


@pytest.mark.parametrize("how", ["train", "dayzero"])
def test_a_ranker_is_fitted_to_the_lists_that_workers_will_keep(
    how: str, tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[FitRankerConfig] = []
    whole = final.ranker_of

    def looked_at(towers: TowersAt, history: History, at_ms: int, config: FitRankerConfig) -> Ranker:
        fitted.append(config)
        return whole(towers, history, at_ms, config)

    monkeypatch.setattr(final, "ranker_of", looked_at)
    log, bundle = write_log(tmp_path / "log", EDGES["one user"]), tmp_path / "bundle"
    serving = Settings(graph=GraphLimits(purchased_max=9), sink=SinkSettings(bought_max=5, recent_max=3))
    if how == "train":
        train_bundle(TrainOrder(log, bundle, settings=settings, serving=serving), Bars.silent())
    else:
        dayzero_bundle(log, bundle, None, Bars.silent(), serving)
    assert [(c.lines_max, c.bought_max, c.recent_max) for c in fitted] == [(9, 5, 3)]


@pytest.mark.parametrize("how", ["train", "dayzero"])
def test_the_commands_take_the_lists_from_the_environment(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRESHET_GRAPH_PURCHASED_MAX", "many")
    done = run(how, write_log(tmp_path / "log", EDGES["one user"]), "--bundle", tmp_path / "bundle")
    assert done.returncode == EXIT_USAGE
    assert "FRESHET_GRAPH_PURCHASED_MAX" in one_line(done)
