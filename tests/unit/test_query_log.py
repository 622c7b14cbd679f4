"""`freshet query` on event logs: answers, files, the cache, and logs that have little in them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.stream.events import Event, Line, Product, Profile, Purchase, Session, SessionItem, View
from freshet.stream.progress import Bars
from freshet.stream.query import candidates as models
from freshet.stream.query.answer import Answer
from freshet.stream.query.language import QueryError
from freshet.stream.query.run import run_on_log
from freshet.stream.settings import Settings
from tests.commands import freshet, freshet_process
from tests.unit.query_logs import DAY_MS, START_MS, shop, write_log
from tests.unit.test_query_language import examples

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny_log"
EVERYTHING = "USING user, product, purchase, view, session"

Ask = Callable[..., Answer]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ask(cache: Path) -> Ask:
    """Ask a log, with a cache that the tests share and a clock that stands still."""

    def asked(text: str, log: Path = TINY, bundle: Path | None = None, out: Path | None = None) -> Answer:
        bars = Bars(Console(file=open(os.devnull, "w")))  # noqa: SIM115
        return run_on_log(text, log, Settings(), bundle, cache, out, bars, lambda: 0.0)[1]

    return asked


def ids(answer: Answer, user: int = 0) -> list[str]:
    return [item[0] for item in answer.predictions[user].items]


def test_a_user_gets_what_their_history_says(ask: Ask) -> None:
    found = ask(f"PREDICT product_id FOR user 'ada' {EVERYTHING}")
    assert ids(found)[0] == "tea-green"
    assert "tea-black" not in ids(found), "it was withdrawn"
    assert found.predictions[0].known
    scores = [item[1] for item in found.predictions[0].items]
    assert scores == sorted(scores, reverse=True)


def test_conditions_exclusions_and_top_are_applied(ask: Ask) -> None:
    assert ids(ask(f"PREDICT product_id FOR user 'ada' {EVERYTHING} WHERE product.category = 'tea'")) == ["tea-green"]
    assert ids(ask(f"PREDICT product_id FOR user 'ada' {EVERYTHING} WHERE product.price > 20")) == ["pot-1l"]
    assert len(ids(ask(f"PREDICT product_id FOR user 'ada' {EVERYTHING} TOP 1"))) == 1
    # ada bought tea-green and saw pot-1l, whose purchase was cancelled
    assert set(ids(ask(f"PREDICT product_id FOR user 'ada' {EVERYTHING} EXCLUDING bought"))) == {"pot-1l", "mug-blue"}
    assert ids(ask(f"PREDICT product_id FOR user 'ada' {EVERYTHING} EXCLUDING seen")) == ["mug-blue"]


def test_an_unknown_user_is_offered_what_is_popular_and_told_so(ask: Ask) -> None:
    found = ask(f"PREDICT product_id FOR user 'nobody' {EVERYTHING} WHERE product.price < 20")
    assert not found.predictions[0].known
    # one purchase each; tea-green has a view more and is a day older: (1 + 2 / 20) 2^(-1/7) is less than 1 + 1 / 20
    assert ids(found) == ["mug-blue", "tea-green"]
    assert {item[2] for item in found.predictions[0].items} == {"popular"}
    assert any("nobody is unknown" in note for note in found.notes)


def test_nothing_qualifies(ask: Ask) -> None:
    found = ask(f"PREDICT product_id FOR user 'ada', 'nobody' {EVERYTHING} WHERE product.category = 'te'")
    assert ids(found) == ids(found, 1) == []
    assert any("did you mean 'tea'" in note for note in found.notes)
    assert any("none of 3 products" in note for note in found.notes)


def test_the_cache_answers_what_differs_in_nothing_that_decides_the_model(
    ask: Ask, cache: Path, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log", shop(days=10, users=8))
    first = ask("PREDICT product_id FOR user 'u1' USING product, purchase", log)
    again = ask("PREDICT product_id FOR user 'u1', 'u2' USING purchase, product TOP 3 WHERE product.price < 8", log)
    assert (first.model["from_cache"], again.model["from_cache"]) == (False, True)
    assert first.model["version"] == again.model["version"]
    some = [item for item in first.predictions[0].items if item in again.predictions[0].items]
    assert some
    assert not ask("PREDICT product_id FOR user 'u1' USING product, purchase, view", log).model["from_cache"]
    as_of = "PREDICT product_id FOR user 'u1' USING product, purchase AS OF '2025-06-20'"
    assert not ask(as_of, log).model["from_cache"]
    assert Bundle.load(first.model["bundle"]).model_version == first.model["version"]
    os.utime(log / "purchase.jsonl", ns=(1, 1))
    assert not ask("PREDICT product_id FOR user 'u1' USING product, purchase", log).model["from_cache"]
    damaged = Path(first.model["bundle"]).parent / "encoded.npz"
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert ask("PREDICT product_id FOR user 'u1' USING purchase, product", log).predictions


def test_using_decides_what_is_read(ask: Ask, tmp_path: Path) -> None:
    """Everybody buys tea and views pots."""
    times = [START_MS + i * DAY_MS for i in range(60)]
    shelf = {"tea": range(6), "pot": range(6)}
    log = write_log(
        tmp_path / "log",
        [
            *(Product(f"{name}{p}", START_MS, (name,)) for name, places in shelf.items() for p in places),
            *(Purchase(f"o{i}", f"u{i % 9}", at, items=(Line(f"tea{i % 6}"),)) for i, at in enumerate(times)),
            *(View(f"v{i}", f"u{i % 9}", f"pot{i % 6}", at) for i, at in enumerate(times)),
        ],
    )
    for table, wanted in (("purchase", "tea"), ("view", "pot")):
        found = ask(f"PREDICT product_id FOR user 'u1', 'nobody' USING product, {table} TOP 2", log)
        assert {name[:3] for user in (0, 1) for name in ids(found, user)} == {wanted}


def test_as_of_looks_at_nothing_later(ask: Ask) -> None:
    found = ask(f"PREDICT product_id FOR user 'ben' {EVERYTHING} AS OF '2026-01-01T12:00'")
    assert "mug-blue" not in ids(found)
    with pytest.raises(QueryError, match="no events before"):
        ask(f"PREDICT product_id FOR user 'ben' {EVERYTHING} AS OF '2020-01-01'")


@pytest.mark.parametrize("name", ["all.jsonl", "all.parquet"])
def test_all_users_go_to_a_file(ask: Ask, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    found = ask(f"PREDICT product_id FOR user {EVERYTHING} TOP 2", out=out)
    assert (found.out, found.users) == (out, 2)
    if name.endswith(".parquet"):
        table = pl.read_parquet(out)
        assert table.columns == ["user_id", "rank", "product_id", "score", "reason"]
        assert table.filter(pl.col("user_id") == "ada")["rank"].to_list() == [1, 2]
        first = table.filter(pl.col("user_id") == "ada")["product_id"][0]
    else:
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert sorted(line["user_id"] for line in lines) == ["ada", "ben"]
        first = next(line for line in lines if line["user_id"] == "ada")["items"][0]["product_id"]
    assert first == ids(ask(f"PREDICT product_id FOR user 'ada' {EVERYTHING} TOP 2"))[0]
    assert os.listdir(tmp_path) == [name]


def test_a_file_that_cannot_be_meant(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = f"PREDICT product_id FOR user {EVERYTHING}"
    with pytest.raises(FreshetError, match=r"\.jsonl or \.parquet"):
        ask(everyone, out=tmp_path / "all.csv")
    with pytest.raises(FreshetError, match="no folder"):
        ask(everyone, out=tmp_path / "nowhere" / "all.jsonl")
    with pytest.raises(FreshetError, match="all users"):
        ask(f"PREDICT product_id FOR user 'ada' {EVERYTHING}", out=tmp_path / "all.jsonl")
    monkeypatch.chdir(tmp_path)
    assert ask(everyone).out == Path("predictions.jsonl")
    with pytest.raises(FreshetError, match="--out"):
        ask(everyone)


def test_a_budget_compares_trained_towers_with_day_zero(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path / "log", shop(days=30, users=24, views=False))
    first = models.candidates(frozenset({"purchase"}))[:1]
    monkeypatch.setattr(models, "candidates", lambda tables: first)
    found = ask("EXPLAIN PREDICT product_id FOR user 'u1' USING product, purchase TOP 12 WITHIN 60 s", log)
    assert [t.candidate for t in found.trials] == ["day zero", "trained towers"]
    for trial in found.trials:
        assert trial.measured is not None, trial.note
        assert 0.5 < trial.measured.recall <= 1.0, "tastes are plain to see"
        assert trial.measured.users >= 10
    assert any("the greatest of 2" in line for line in found.explanation)
    own = {f"p{i}" for i in range(12, 24)}
    assert len(own & set(ids(found))) >= 9
    again = ask("PREDICT product_id FOR user 'u2' USING product, purchase WITHIN 60 s", log)
    assert again.model["from_cache"]
    assert again.trials == found.trials


def test_a_given_bundle_answers(ask: Ask, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", shop(days=10, users=8))
    made = ask("PREDICT product_id FOR user 'u1' USING product, purchase, view", log)
    given = ask("PREDICT product_id FOR user 'u1' USING product, purchase, view", log, Path(made.model["bundle"]))
    assert ids(given) == ids(made)
    assert "--bundle names it" in "\n".join(given.explanation)
    with pytest.raises(QueryError, match="one of the two"):
        ask("PREDICT product_id FOR user 'u1' USING purchase WITHIN 9 s", log, Path(made.model["bundle"]))
    with pytest.raises(FreshetError, match="bundle"):
        ask("PREDICT product_id FOR user 'u1' USING purchase", log, tmp_path / "nowhere")


# --- logs with little in them -------------------------------------------------------------------

ONE = [Purchase("o1", "u1", START_MS, items=(Line("p1"),))]
LITTLE: dict[str, list[Event]] = {
    "one event": ONE,
    "one user": [Purchase(f"o{i}", "u1", START_MS + i * DAY_MS, items=(Line(f"p{i % 3}"),)) for i in range(30)],
    "one product": [Purchase(f"o{i}", f"u{i}", START_MS + i * DAY_MS, items=(Line("p1"),)) for i in range(30)],
    "one moment": [Purchase(f"o{i}", f"u{i % 7}", START_MS, items=(Line(f"p{i % 5}"),)) for i in range(30)],
    "views alone": [View(f"v{i}", f"u{i % 7}", f"p{i % 5}", START_MS + i * DAY_MS) for i in range(30)],
    "sessions alone": [
        Session(f"s{i}", f"u{i % 7}", f"s{i}", START_MS + i, items=(SessionItem(f"p{i % 5}"),)) for i in range(9)
    ],
    "all cancelled": [Purchase("o1", "u1", START_MS, items=(Line("p1", cancelled=True),)), *ONE],
}


@pytest.mark.parametrize("budget", ["", "WITHIN 60 s"])
@pytest.mark.parametrize("what", LITTLE)
def test_a_log_with_little_in_it_is_answered(ask: Ask, tmp_path: Path, what: str, budget: str) -> None:
    log = write_log(tmp_path / "log", LITTLE[what])
    found = ask(f"PREDICT product_id FOR user 'u1', 'nobody' USING purchase, view, session {budget}", log)
    assert found.predictions[0].known
    assert not found.predictions[1].known
    products = {"p1"} if what in ("one event", "one product", "all cancelled") else {f"p{i}" for i in range(5)}
    assert set(ids(found)) <= products
    if what != "all cancelled":
        assert ids(found)
        assert ids(found, 1)


def test_one_user_is_too_few_to_choose_by_and_the_reason_says_so(ask: Ask, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", LITTLE["one user"])
    found = ask("EXPLAIN PREDICT product_id FOR user 'u1' USING purchase WITHIN 60 s", log)
    assert found.model["chosen"] == "day zero"
    assert any("1 known users" in line and "10 users" in line for line in found.explanation)


def test_a_log_without_events_and_one_without_those_that_are_used(ask: Ask, tmp_path: Path) -> None:
    empty = write_log(tmp_path / "empty", [Product("p1", START_MS), Profile("u1", START_MS)])
    with pytest.raises(FreshetError, match="nothing to predict from"):
        ask("PREDICT product_id FOR user 'u1' USING purchase", empty)
    log = write_log(tmp_path / "log", ONE)
    with pytest.raises(QueryError, match=r"purchase \(1\)"):
        ask("PREDICT product_id FOR user 'u1' USING view, session", log)


def test_forgotten_users_are_unknown(ask: Ask, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [*shop(days=5, users=8), Profile("u1", START_MS + 99 * DAY_MS, forgotten=True)])
    assert not ask("PREDICT product_id FOR user 'u1' USING purchase", log).predictions[0].known


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bars = Bars(Console(file=open(os.devnull, "w")))  # noqa: SIM115
    text = "PREDICT product_id FOR user 'ada' USING purchase"
    _, found = run_on_log(text, TINY, Settings(), None, tmp_path / "file", None, bars, lambda: 0.0)
    assert found.predictions[0].items
    assert any("could not be kept" in note for note in found.notes)


# --- the command --------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    with chdir(ROOT):
        return freshet("query", *arguments)


def commands() -> list[str]:
    return [line for block in examples("sh") for line in block.splitlines()]


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_page_run(line: str, cache: Path) -> None:
    text, log = line.removeprefix('freshet query "').rsplit('" ', 1)
    done = run(text, log, "--cache", cache)
    assert done.returncode == 0, done.stderr
    assert "tea-green" in done.stdout
    assert ("chosen:" in done.stdout) == text.startswith("EXPLAIN")


def test_the_error_of_the_page_is_the_error() -> None:
    (error,) = examples("text")
    done = run("PREDICT product_id FOR user 'ada' USING user, produc", TINY)
    assert done.returncode == 2
    assert done.stderr == error
    assert done.stdout == ""


def test_one_json_object(cache: Path) -> None:
    done = run(f"EXPLAIN PREDICT product_id FOR user 'ada' {EVERYTHING} TOP 1", TINY, "--json", "--cache", cache)
    found = json.loads(done.stdout)
    assert found["predictions"][0]["items"][0]["product_id"] == "tea-green"
    assert found["predictions"][0]["user_known"] is True
    assert found["model"]["kind"] == "dayzero"
    assert found["explain"]["lines"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("PREDICT product_id FOR user 'a' USING purchase", "/nowhere"), "/nowhere"),
        (("PREDICT product_id FOR user 'a' USING purchase", TINY, "--redis", "redis://x"), "give one of the two"),
        (("PREDICT product_id FOR user 'a' USING purchase", "--bundle", "b"), "give a LOG"),
        (("PREDICT product_id FOR user 'a' USING purchase WITHIN 5 s",), "frozen model"),
        (("PREDICT product_id FOR user 'a' USING purchase AS OF '2020-01-01'",), "present"),
        (("PREDICT product_id FOR user '[/]' USING [bold]",), "[bold]"),
    ],
)
def test_a_call_that_cannot_be_meant(arguments: tuple[object, ...], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_parser_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "lark.py").write_text("raise ModuleNotFoundError(\"No module named 'lark'\", name='lark')")
    asked = "PREDICT product_id FOR user 'a' USING purchase"
    done = freshet_process("query", asked, TINY, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "freshet[query]" in done.stderr
