"""Which model answers: planning against a bench and a clock that the test moves; and the metrics it goes by."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from freshet.store.columns import EventColumns, PurchaseColumns
from freshet.store.history import History
from freshet.stream.query import validation
from freshet.stream.query.plan import DAY_ZERO, TRAIN_S_MIN, Candidate, Measured, choose

A, B = Candidate("a"), Candidate("b")


@dataclass
class FakeBench:
    """Models are (candidate, holdout); qualities and seconds by name. Making and measuring move the clock."""

    quality: dict[str, float]
    users: int = 100
    fit_s: dict[str, float] = field(default_factory=dict)
    measure_s: float = 1.0
    fails: frozenset[str] = frozenset()
    now_s: float = 0.0
    made: list[tuple[str, bool, float]] = field(default_factory=list)

    def clock_s(self) -> float:
        return self.now_s

    def validation(self) -> tuple[int, str]:
        return self.users, "a week"

    def fit(self, candidate: Candidate, holdout: bool, budget_s: float) -> tuple[str, bool]:
        if candidate.name in self.fails:
            raise ValueError("too few edges")
        self.made.append((candidate.name, holdout, budget_s))
        self.now_s += self.fit_s.get(candidate.name, budget_s if candidate.trained else 2.0)
        return candidate.name, holdout

    def measure(self, model: tuple[str, bool]) -> Measured:
        assert model[1], "only a model that did not see the window is measured"
        self.now_s += self.measure_s
        return Measured(self.quality[model[0]], 0.0, self.users)


def test_without_a_budget_it_is_day_zero_and_nothing_is_compared() -> None:
    bench = FakeBench({})
    found = choose(bench, [A, B], None, bench.clock_s, 0.0)
    assert found.model == ("day zero", False)
    assert bench.made == [("day zero", False, 0.0)]
    assert "no budget" in found.reasons[0]


@pytest.mark.parametrize("best", ["day zero", "a", "b"])
def test_the_best_on_validation_is_made_again_from_everything_within_the_budget(best: str) -> None:
    bench = FakeBench({"day zero": 0.3, "a": 0.3, "b": 0.3} | {best: 0.4})
    found = choose(bench, [A, B], 200.0, bench.clock_s, 0.0)
    assert found.model == (best, False)
    assert found.candidate == best
    assert "0.4000" in found.reasons[0]
    assert found.reasons[-1] == "made again from all events"
    assert bench.now_s <= 200.0
    assert [t.candidate for t in found.trials] == ["day zero", "a", "b"]


def test_of_equal_ones_the_cheapest_answers() -> None:
    bench = FakeBench({"day zero": 0.3, "a": 0.3, "b": 0.3})
    assert choose(bench, [A, B], 200.0, bench.clock_s, 0.0).candidate == "day zero"


def test_a_small_budget_tries_one_candidate_and_says_what_it_did_not_try() -> None:
    bench = FakeBench({"day zero": 0.3, "a": 0.4, "b": 0.9})
    found = choose(bench, [A, B], 40.0, bench.clock_s, 0.0)
    assert found.candidate == "a"
    assert "not tried" in found.trials[2].note
    assert bench.now_s <= 40.0


def test_a_training_that_ends_early_leaves_time_for_the_others() -> None:
    bench = FakeBench({"day zero": 0.3, "a": 0.4, "b": 0.9}, fit_s={"a": 1.0, "b": 1.0})
    assert choose(bench, [A, B], 40.0, bench.clock_s, 0.0).candidate == "b"


def test_time_spent_before_counts() -> None:
    bench = FakeBench({"day zero": 0.3}, now_s=50.0)
    found = choose(bench, [A], 60.0, bench.clock_s, 0.0)
    assert found.model == ("day zero", False)
    assert "too small" in found.reasons[0]
    assert "50.0 s" in found.reasons[0]
    assert not found.trials


def test_a_budget_below_the_least_training_is_too_small() -> None:
    bench = FakeBench({"day zero": 0.3})
    found = choose(bench, [A], TRAIN_S_MIN - 1, bench.clock_s, 0.0)
    assert found.candidate == DAY_ZERO.name
    assert "too small" in found.reasons[0]


def test_a_slow_day_zero_that_uses_up_the_budget_answers_as_it_was_compared() -> None:
    bench = FakeBench({"day zero": 0.3}, fit_s={"day zero": 30.0})
    found = choose(bench, [A], 35.0, bench.clock_s, 0.0)
    assert found.model == ("day zero", True)
    assert "not tried" in found.trials[1].note
    assert "no other" in found.reasons[0]
    assert "30 s" in found.reasons[1]


def test_a_training_that_overran_is_not_repeated() -> None:
    bench = FakeBench({"day zero": 0.3, "a": 0.4}, fit_s={"a": 55.0})
    found = choose(bench, [A], 60.0, bench.clock_s, 0.0)
    assert found.model == ("a", True)
    assert "as it was compared" in found.reasons[1]


def test_too_few_users_to_compare_by() -> None:
    bench = FakeBench({}, users=9)
    found = choose(bench, [A], 600.0, bench.clock_s, 0.0)
    assert found.model == ("day zero", False)
    assert "10 users" in found.reasons[0]


def test_a_candidate_that_fails_is_noted_and_the_others_go_on() -> None:
    bench = FakeBench({"day zero": 0.3, "b": 0.5}, fails=frozenset({"a"}))
    found = choose(bench, [A, B], 200.0, bench.clock_s, 0.0)
    assert found.candidate == "b"
    assert found.trials[1].note == "failed: too few edges"


# --- metrics ------------------------------------------------------------------------------------


def history(lines: list[tuple[str, str, int]]) -> History:
    """Purchases as (user, product, time), an order each."""
    n = len(lines)
    user, product, time = ([row[i] for row in lines] for i in range(3))
    columns = PurchaseColumns(
        list(user), list(product), np.array(time, np.int64), np.arange(n, dtype=np.uint64), np.ones(n, np.float32),
        np.zeros(n, np.bool_), np.arange(n + 1, dtype=np.int64),
    )  # fmt: skip
    return History.of([EventColumns(purchases=columns)])


def test_targets_are_what_known_users_bought_in_the_last_quarter_of_a_short_log() -> None:
    found = history([("u", "a", 0), ("v", "b", 10), ("u", "b", 80), ("u", "b", 90), ("new", "a", 95), ("v", "a", 99)])
    targets = validation.Targets.of(found)
    assert (targets.from_ms, targets.until_ms) == (75, 100)
    assert found.users.names(targets.users) == ["u", "v"]
    assert found.products.names(targets.product) == ["b", "a"]
    assert targets.ptr.tolist() == [0, 1, 2]


def test_targets_of_a_long_log_are_its_last_seven_days() -> None:
    day = validation.DAY_MS
    targets = validation.Targets.of(history([("u", "a", 0), ("u", "b", 100 * day)]))
    assert targets.until_ms - targets.from_ms == 7 * day


def test_recall_and_map_by_hand() -> None:
    """One user, three targets out of 25 products, ranked 1st, 3rd and 25th.

    Recall: 2 of 3. MAP: (1/1 + 2/3) / 3.
    """
    targets = validation.Targets(
        0, 1, np.zeros(1, np.int32), np.array([0, 3], np.int64), np.array([0, 2, 24], np.int32)
    )
    scores = np.arange(25, 0, -1, dtype=np.float32)[:, None]
    found = validation.measure(targets, np.ones((1, 1), np.float32), scores)
    assert found.recall == pytest.approx(2 / 3)
    assert found.map == pytest.approx((1 + 2 / 3) / 3)
    assert found.users == 1


def test_recall_is_over_the_lesser_of_twenty_and_the_targets() -> None:
    targets = validation.Targets(
        0, 1, np.zeros(1, np.int32), np.array([0, 30], np.int64), np.arange(30, dtype=np.int32)
    )
    found = validation.measure(targets, np.ones((1, 1), np.float32), np.ones((40, 1), np.float32))
    assert (found.recall, found.map) == (1.0, 1.0)


def test_top_k_is_exact_and_breaks_ties_by_place() -> None:
    rng = np.random.default_rng(0)
    scores = rng.permutation(np.repeat(np.arange(50), 2)).astype(np.float32)[None].repeat(3, axis=0)
    place, value = validation.top_k(scores, 7)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :6]  # the seventh is one of two equal ones
    np.testing.assert_array_equal(place[:, :6], best)
    np.testing.assert_array_equal(value, np.take_along_axis(scores, place, axis=1))
    assert validation.top_k(scores[:, :3], 7)[0].shape == (3, 3)
