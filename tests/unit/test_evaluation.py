"""Evaluation: targets, metrics and systems by hand, the choice of settings, and what the command says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from freshet.errors import FreshetError
from freshet.model.config import DAY_MS
from freshet.model.dayzero import dayzero
from freshet.model.evaluation import metrics
from freshet.model.evaluation.boosted import BoostedRanker
from freshet.model.evaluation.catalogue import entries
from freshet.model.evaluation.embeddings import Kept, MadeTowers, TwoTower, day_zero, trained
from freshet.model.evaluation.factorization import Factorization
from freshet.model.evaluation.final import FinalRanker
from freshet.model.evaluation.past import Past
from freshet.model.evaluation.ranking import first_ranks, tie_ranks, top_k
from freshet.model.evaluation.report import report, tables
from freshet.model.evaluation.run import Entry, EvaluateConfig, evaluate, rank
from freshet.model.evaluation.sparse import EASE, ItemKNN, matrix
from freshet.model.evaluation.systems import OwnHistory, Popularity
from freshet.model.evaluation.targets import KINDS, Targets, Window, WindowError, Windows
from freshet.model.train_config import TrainConfig
from freshet.store.columns import F32, I32, EventColumns, PurchaseColumns
from freshet.store.history import History
from freshet.stream.cli import app
from freshet.stream.evaluating import Asked, windows_of
from tests.unit.query_logs import shop as shop_events
from tests.unit.query_logs import write_log
from tests.unit.test_train import FEATURES, shop

Line = tuple[str, str, int]
TEST = Window(66 * DAY_MS, 80 * DAY_MS)
WINDOWS = Windows(66 * DAY_MS, TEST, Window(52 * DAY_MS, 66 * DAY_MS))
SMALL = EvaluateConfig(resamples=200, draws=20, chunk_users=7)


def history_of(lines: list[Line]) -> History:
    n = len(lines)
    purchases = PurchaseColumns(
        [u for u, _, _ in lines], [p for _, p, _ in lines], np.array([t for _, _, t in lines], np.int64),
        np.arange(1, n + 1, dtype=np.uint64), np.ones(n, np.float32), np.zeros(n, np.bool_), np.arange(n + 1),
    )  # fmt: skip
    return History.of([EventColumns(purchases=purchases)])


@pytest.fixture(scope="module")
def history() -> History:
    return History.of([shop()])


class Fixed:
    """Scores given beforehand."""

    name = "fixed"

    def __init__(self, scores: F32) -> None:
        self.given = scores

    def fit(self, history: History, until_ms: int) -> None:
        pass

    def scores(self, users: I32, at_ms: int) -> F32:
        return self.given[users].copy()


# --- targets --------------------------------------------------------------------------------------


def test_every_target_is_of_its_kinds() -> None:
    history = history_of([("a", "x", 1), ("a", "y", 2), ("b", "y", 3), ("a", "x", 11), ("a", "z", 12), ("b", "x", 13),
                          ("new", "y", 14), ("new", "z", 15)])  # fmt: skip
    targets = Targets.of(history, Window(10, 20), 10)
    found = {}
    for kind in KINDS:
        rows, ptr, product = targets.kind(kind)
        names = history.products.names(product)
        found[kind] = {
            history.users.names(targets.users[[row]])[0]: names[ptr[i] : ptr[i + 1]] for i, row in enumerate(rows)
        }
    assert found["all"] == {"a": ["x"], "b": ["x"]}  # z is cold
    assert found["repeat"] == {"a": ["x"]}
    assert found["novel"] == {"b": ["x"]}
    assert found["new_users"] == {"new": ["y"]}
    assert found["cold"] == {"a": ["z"], "new": ["z"]}


def test_what_is_known_may_end_before_the_test() -> None:
    history = history_of([("a", "x", 1), ("b", "x", 1), ("a", "y", 8), ("b", "y", 2), ("a", "y", 12)])
    novel = [Targets.of(history, Window(10, 20), 5, known).is_novel.tolist() for known in (5, 10)]
    assert novel == [[True], [False]]


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (lambda: Windows(5, Window(10, 10)), "--test-until is not after --test-from"),
        (lambda: Windows(15, Window(10, 20)), "--train-before is after --test-from"),
        (lambda: Windows(5, Window(10, 20), Window(4, 4)), "--validate-until is not after --validate-from"),
        (lambda: Windows(5, Window(10, 20), Window(5, 11)), "settings would be chosen on the test period"),
        (lambda: Windows(5, Window(10, 20), None, 12), "--known-until is not between"),
    ],
)
def test_windows_that_make_no_sense_are_refused(windows: object, message: str) -> None:
    with pytest.raises(WindowError, match=message):
        windows()  # type: ignore[operator]


# --- metrics and ranking --------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    hits = np.array([[True, False, True, False], [False, False, False, True]])
    count = np.array([3, 1])
    assert metrics.recall(hits, count, 2).tolist() == [0.5, 0.0]
    assert metrics.recall(hits, count, 4).tolist() == pytest.approx([2 / 3, 1.0])
    assert metrics.average_precision(hits, count, 4).tolist() == pytest.approx([(1 + 2 / 3) / 3, 0.25])
    best = 1 + 1 / np.log2(3) + 1 / 2
    assert metrics.ndcg(hits, count, 4).tolist() == pytest.approx([(1 + 0.5) / best, 1 / np.log2(5)])
    assert metrics.hit_rate(hits, 3).tolist() == [1.0, 0.0]
    assert metrics.reciprocal_rank(np.array([1, 4, 0])).tolist() == [1.0, 0.25, 0.0]
    top = np.array([[0, 1], [1, -1]], np.int32)
    assert metrics.coverage(top, 2, 4) == 0.5
    percentile = metrics.popularity_percentile(np.array([5.0, 1.0, 1.0, 0.0]))
    assert percentile.tolist() == [0.875, 0.5, 0.5, 0.125]
    assert metrics.mean_percentile(top, percentile, 2).tolist() == [0.6875, 0.5]


def test_auroc_is_the_share_of_pairs_won() -> None:
    positive, owner = np.array([3.0, 1.0, 2.0], np.float32), np.array([0, 0, 1])
    negative = np.array([[1.0, 2.0, 9.0], [2.0, 0.0, 0.0]], np.float32)
    valid = np.array([[True, True, False], [True, True, True]])
    # user 0: 3 beats both, 1 ties one and loses one; user 1: 2 ties one and beats two
    assert metrics.auroc(positive, owner, negative, valid).tolist() == pytest.approx([2.5 / 4, 2.5 / 3])
    nothing = metrics.auroc(positive[:1], owner[:1], negative[:1], np.zeros((1, 3), np.bool_))
    assert np.isnan(nothing).all()


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = rng.exponential(size=(80, 1))
        low, high = metrics.Resamples.draw(80, 300, seed).interval(values)
        covered += int(low[0] <= 1.0 <= high[0])
    assert 170 <= covered <= 198


def test_top_k_is_a_full_sort_with_ties_by_rank() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 5, size=(20, 30)).astype(np.float32)
    scores[3] = -np.inf
    scores[4, :10] = np.nan
    ties = tie_ranks(rng.integers(0, 2**63, 30).astype(np.uint64))
    for k in (1, 7, 30, 40):
        found = top_k(scores, ties, k)
        for row, got in zip(scores, found, strict=True):
            keys = [(-s, t, j) for j, (s, t) in enumerate(zip(row, ties, strict=True)) if s > -np.inf]
            want = [j for _, _, j in sorted(keys)][:k]
            assert got.tolist() == want + [-1] * (k - len(want))
    full = top_k(scores[:3], ties, 30)
    first = first_ranks(scores[:3], ties, np.array([0, 0, 2]), np.array([4, 9, 1], np.int32))
    places = [full[0].tolist().index(4) + 1, full[0].tolist().index(9) + 1, full[2].tolist().index(1) + 1]
    assert first.tolist() == [min(places[:2]), 0, places[2]]


def test_a_ranking_by_hand_gives_its_metrics() -> None:
    """Novel targets: what the user has is left out; the first of two targets is then in the first place."""
    history = history_of([("a", "w", 1), ("a", "x", 2), ("b", "y", 3), ("b", "z", 4), ("a", "y", 11), ("a", "z", 12)])
    w, x, y, z = (history.products.get(p) for p in "wxyz")
    scores = np.zeros((2, 4), np.float32)
    scores[0, [w, y, x, z]] = 4, 3, 2, 1
    targets = Targets.of(history, Window(10, 20), 10)
    ranked = rank(history, Fixed(scores), targets, EvaluateConfig(draws=50))
    named = {kind: dict(zip(metrics.PER_USER, v[0], strict=True)) for kind, v in ranked.values.items() if v.shape[0]}
    assert set(named) == {"all", "novel"}
    assert named["novel"]["recall@10"] == named["novel"]["map@12"] == named["novel"]["mrr"] == 1.0
    assert named["all"]["mrr"] == 0.5
    assert named["all"]["map@12"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert np.isnan(named["all"]["auroc"])  # every product is a target or was bought
    assert ranked.top["novel"][0][:3].tolist() == [y, z, -1]


# --- systems --------------------------------------------------------------------------------------


def test_the_past_counts_what_was_before() -> None:
    history = history_of([("a", "x", 1), ("a", "x", 5), ("a", "y", 6), ("b", "x", 7)])
    past = Past.of(history, 6)
    assert past.count.tolist() == [2.0] and past.last_ms.tolist() == [5]
    a = history.users.get("a")
    assert past.dense(np.array([a], np.int32), past.count)[0, history.products.get("x")] == 2.0


def test_own_history_first_then_popularity() -> None:
    lines = [("a", "x", 1), ("a", "x", 2), ("a", "y", 3), ("b", "z", 4), ("c", "z", 5), ("b", "w", 6)]
    history = history_of(lines)
    system = OwnHistory("own")
    system.fit(history, 10)
    row = system.scores(np.array([history.users.get("a")], np.int32), 10)[0]
    order = history.products.names(np.argsort(-row).astype(np.int32))
    assert order[:3] == ["x", "y", "z"]


@pytest.mark.parametrize("side", ["users", "products"])
def test_ease_is_its_textbook_formula(side: str) -> None:
    rng = np.random.default_rng(0)
    users, products = (6, 15) if side == "users" else (15, 6)
    lines = [(f"u{u}", f"p{p}", 1) for u in range(users) for p in range(products) if rng.random() < 0.4]
    history = history_of(lines)
    system = EASE("ease", penalty=2.0)
    system.fit(history, 10)
    x = matrix(Past.of(history, 10)).toarray().astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + 2.0 * np.eye(x.shape[1]))
    b = -inverse / np.diag(inverse)[None, :]
    np.fill_diagonal(b, 0.0)
    some = np.arange(len(history.users), dtype=np.int32)
    np.testing.assert_allclose(system.scores(some, 10), x @ b, atol=1e-4)


def test_low_rank_ease_adds_popularity_of_its_half_life() -> None:
    lines = [("a", "x", 1), ("a", "y", 9), ("b", "x", 9), ("b", "z", 5), ("c", "z", 13)]
    history = history_of([(user, product, day * DAY_MS) for user, product, day in lines])
    found = []
    for weight in (0.0, 0.5):
        system = EASE("low", 2.0, rank=2, popularity=weight, popularity_days=4.0)
        system.fit(history, 17 * DAY_MS)
        found.append(system.scores(np.arange(3, dtype=np.int32), 17 * DAY_MS))
    popular = {"x": 2 ** (-16 / 4) + 0.25, "y": 0.25, "z": 2 ** (-12 / 4) + 0.5}
    want = [0.5 * np.log1p(popular[p]) for p in history.products.all_names() if p is not None]
    np.testing.assert_allclose(found[1] - found[0], [want, want, want], atol=1e-6)


def test_item_knn_is_a_sum_of_cosines() -> None:
    history = history_of([("a", "x", 1), ("a", "y", 1), ("b", "x", 1), ("b", "z", 1), ("c", "z", 1)])
    system = ItemKNN("knn")
    system.fit(history, 10)
    x = matrix(Past.of(history, 10)).toarray()
    unit = x / np.linalg.norm(x, axis=0)
    np.testing.assert_allclose(system.scores(np.arange(3, dtype=np.int32), 10), x @ (unit.T @ unit), atol=1e-5)


def test_every_system_finds_tastes_and_beats_popularity(history: History) -> None:
    targets = Targets.of(history, TEST, TEST.from_ms)
    column = metrics.PER_USER.index("recall@20")
    popular = Popularity("popular", 30.0)
    popular.fit(history, TEST.from_ms)
    least = rank(history, popular, targets, SMALL).values["all"][:, column].mean()
    make = Kept(trained(TrainConfig(batch_size=32, epochs=1, threads=1, interactions_min=2)))
    for system in (
        OwnHistory("own"), ItemKNN("knn"), EASE("ease", 10.0), EASE("low", 10.0, rank=8),
        Factorization("als", factors=8),
        Factorization("bpr", "bpr", factors=8, iterations=200), BoostedRanker(rounds=20),
        MadeTowers("towers", make), FinalRanker("ranker", make), MadeTowers("day_zero", day_zero),
    ):  # fmt: skip
        system.fit(history, TEST.from_ms)
        ranked = rank(history, system, targets, SMALL)
        assert ranked.values["all"][:, column].mean() > least + 0.2, system.name
        assert np.isfinite(ranked.values["all"]).all(), system.name


def test_a_bundle_that_saw_the_test_is_refused(history: History) -> None:
    bundle = dayzero(history, features=FEATURES, cut_ms=70 * DAY_MS)
    run = evaluate(history, WINDOWS, [Entry("late", {"": lambda: TwoTower("late", bundle)})], SMALL)
    assert "make it anew with --before" in run.left_out["late"] and not run.ranked


def test_trained_towers_read_nothing_of_the_test(history: History) -> None:
    other = shop()
    assert other.purchases is not None
    for i in np.flatnonzero(other.purchases.time >= TEST.from_ms):
        other.purchases.product[i] = f"p{(int(other.purchases.product[i][1:]) + 7) % 80}"
    found = []
    for each in (history, History.of([other])):
        system = FinalRanker("ranker", trained(TrainConfig(batch_size=32, epochs=1, threads=1, interactions_min=2)))
        system.fit(each, TEST.from_ms)
        users = each.users.intern([f"u{i}" for i in range(20)])
        order = each.products.intern([f"p{i}" for i in range(80)])
        found.append(system.scores(users, TEST.from_ms)[:, order])
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


# --- the run --------------------------------------------------------------------------------------


def test_settings_are_chosen_on_validation_and_the_test_is_read_once(history: History) -> None:
    asked: list[tuple[str, int]] = []

    class Spy(OwnHistory):
        def scores(self, users: I32, at_ms: int) -> F32:
            asked.append((self.name, at_ms))
            out = super().scores(users, at_ms)
            return -out if self.name == "worse" else out

    entry = Entry("own", {"worse": lambda: Spy("worse"), "better": lambda: Spy("better")})
    run = evaluate(history, WINDOWS, [entry], EvaluateConfig(resamples=50, chunk_users=1000))
    assert run.chosen == {"own": "better"}
    assert asked == [("worse", 52 * DAY_MS), ("better", 52 * DAY_MS), ("better", 66 * DAY_MS)]
    assert run.validation["own"]["better"] > run.validation["own"]["worse"]


def test_the_report_says_who_is_first_and_how_sure_that_is(history: History) -> None:
    several = [
        Entry("own", {"": lambda: OwnHistory("own")}),
        Entry("own_again", {"": lambda: OwnHistory("own_again")}),
        Entry("popular", {"": lambda: Popularity("popular")}),
    ]
    found = report(evaluate(history, WINDOWS, several, SMALL))
    repeat = found["paired"]["repeat"]["recall@20"]
    assert repeat["best"] == "own" and not repeat["first"]
    assert repeat["against"]["own_again"] == {"difference": 0.0, "interval": [0.0, 0.0]}
    assert repeat["against"]["popular"]["interval"][0] > 0
    for name in ("own", "popular"):
        for kind, scored in found["systems"][name].items():
            for metric, value in scored.items():
                low, high = found["intervals"][name][kind][metric]
                assert low <= value + 1e-9 and value <= high + 1e-9, (name, kind, metric)
    json.dumps(found, allow_nan=False)
    assert [title.split(":")[0] for title, _, _ in tables(found)] == [k for k in KINDS if found["targets"][k]["users"]]


def test_every_name_of_the_catalogue_makes_that_system(history: History) -> None:
    known = entries("purchases", 0, 1.0, {})
    assert len(known) == 18
    for name, entry in known.items():
        for make in entry.settings.values():
            assert make().name == name or name in ("day_zero", "two_tower")


# --- bad input ------------------------------------------------------------------------------------

DEGENERATE = {
    "one user": [("a", f"p{i % 7}", i * DAY_MS) for i in range(60)],
    "one product": [(f"u{i % 7}", "x", i * DAY_MS) for i in range(60)],
    "every product cold": [(f"u{i % 3}", f"p{i}", i * DAY_MS) for i in range(60)],
}


@pytest.mark.parametrize("lines", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_shops_at_the_edge_are_ranked(lines: list[Line]) -> None:
    history = history_of(lines)
    windows = windows_of(history, Asked(), "purchases")
    known = entries("purchases", 0, 2.0, {})
    names = ["popular_recent", "own_history_tuned", "item_knn", "ease", "ease_low_rank", "als", "lightgbm", "day_zero",
             "final_ranker"]  # fmt: skip
    found = report(evaluate(history, windows, [known[n] for n in names], SMALL))
    assert not found["left_out"]
    assert set(found["systems"]) == set(names)
    json.dumps(found, allow_nan=False)


def test_windows_by_default_are_the_last_two_weeks() -> None:
    history = history_of([("a", f"p{i}", i * DAY_MS) for i in range(60)])
    windows = windows_of(history, Asked(), "purchases")
    end = 59 * DAY_MS + 1
    assert windows == Windows(
        end - 14 * DAY_MS, Window(end - 7 * DAY_MS, end), Window(end - 14 * DAY_MS, end - 7 * DAY_MS)
    )
    month = windows_of(history, Asked("1970-02-01", "1970-02-01", "1970-02-11"), "purchases")
    assert month.validation == Window(21 * DAY_MS, 31 * DAY_MS) and month.validation_cut_ms == 21 * DAY_MS
    early = windows_of(history, Asked("1970-01-05", "1970-01-05", "1970-01-20"), "purchases")
    assert early.validation is None  # no time before it: every system runs with its first setting


@pytest.mark.parametrize(
    ("lines", "asked", "message"),
    [
        ([], Asked(), "nothing to evaluate"),
        ([("a", "x", 5), ("b", "y", 5)], Asked(), "nothing happened before --train-before"),
        (DEGENERATE["one user"], Asked(test_from="1971-01-01", test_until="1971-02-01"), "no purchases in"),
        (DEGENERATE["one user"], Asked(test_from="soon"), "--test-from 'soon' is not a date"),
        (DEGENERATE["one user"], Asked(validate_from="1970-01-01", validate_until="1970-01-04"),
         "nothing happened before --validate-from"),
    ],
)  # fmt: skip
def test_logs_and_windows_that_cannot_be_evaluated(lines: list[Line], asked: Asked, message: str) -> None:
    history = history_of(lines)
    with pytest.raises(FreshetError, match=message):
        evaluate(history, windows_of(history, asked, "purchases"), [], SMALL)


def test_the_command_ends_in_one_line_of_json(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", shop_events())
    result = CliRunner().invoke(
        app,
        ["evaluate", str(log), "--systems", "popular_recent,own_history,day_zero", "--json"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert set(found["systems"]) == {"popular_recent", "own_history", "day_zero"}
    assert {"recall@20", "map@12"} <= set(found["systems"]["day_zero"]["all"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--systems", "magic"], "--systems: magic not known; there are popular_all_time"),
        (["--targets", "clicks"], "--targets 'clicks' is not known"),
        (["--train-before", "yesterday"], "--train-before 'yesterday' is not a date"),
    ],
)
def test_the_command_names_the_option_that_is_wrong(tmp_path: Path, options: list[str], message: str) -> None:
    log = write_log(tmp_path / "log", shop_events())
    result = CliRunner().invoke(app, ["evaluate", str(log), *options])
    assert result.exit_code != 0
    assert message in (result.output + str(result.exception))
