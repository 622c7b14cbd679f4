"""Tuning: what is tried, what is kept, and when it ends."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freshet.model import tune as tuning
from freshet.model.config import DAY_MS
from freshet.model.settings_file import Chosen, Towers
from freshet.model.tune import SPACE, Tuned, tune
from freshet.store.history import History
from tests.unit.test_train import SMALL, shop

SPLIT_MS = 66 * DAY_MS
BASE = Chosen(replace(SMALL, epochs=1), Towers(dim=16))


@pytest.fixture(scope="module")
def history() -> History:
    return History.of([shop()])


@pytest.fixture(scope="module")
def tuned(history: History) -> Tuned:
    return tune(history, BASE, SPLIT_MS, tries_max=3)


def test_every_value_that_is_tried_can_be_trained_with_and_the_default_is_one() -> None:
    for name, values in SPACE.items():
        part, setting = name.split(".")
        for value in values:
            made = replace(getattr(Chosen(), part), **{setting: value})
            if part == "towers":
                made.config()
        towers = {"dim": 128, "purchases": 50, "partners": 20, "popularity_days": 7.0}
        default = towers.get(setting, getattr(Chosen().train, setting, None))
        assert default in values, name


def test_the_settings_as_they_are_are_tried_first_and_every_try_differs(tuned: Tuned) -> None:
    assert [one.changed for one in tuned.tries].count(BASE.changed()) == 1
    assert tuned.tries[0].changed == BASE.changed()
    assert len({str(one.changed) for one in tuned.tries}) == 3
    for one in tuned.tries:
        assert one.score == pytest.approx(one.recall["all"] + 4 * one.recall["novel"])
        assert one.score > 0 and one.seconds > 0


def test_one_seed_tries_the_same(history: History, tuned: Tuned) -> None:
    again = tune(history, BASE, SPLIT_MS, tries_max=3)
    assert [(one.changed, one.score) for one in again.tries] == [(one.changed, one.score) for one in tuned.tries]
    assert again.chosen == tuned.chosen


def test_tuning_ends_when_the_next_try_would_not_fit(monkeypatch: pytest.MonkeyPatch, history: History) -> None:
    monkeypatch.setattr(tuning, "_recall", lambda history, chosen, split_ms: {"all": 0.2, "novel": 0.0})
    ticks = iter(np.arange(0.0, 10_000.0, 10.0))  # every look at the clock is ten seconds later
    found = tune(history, BASE, SPLIT_MS, tries_max=50, budget_s=200.0, clock_s=lambda: float(next(ticks)))
    assert 1 <= len(found.tries) < 10


def of_scores(monkeypatch: pytest.MonkeyPatch, history: History, *scores: float) -> Tuned:
    left = iter(scores)

    def recall(history: History, chosen: Chosen, split_ms: int | None) -> dict[str, float]:
        score = next(left)
        if score < 0:
            raise ValueError("cannot be trained")
        return {"all": score, "novel": 0.0} if score else {}

    monkeypatch.setattr(tuning, "_recall", recall)
    return tune(history, BASE, SPLIT_MS, tries_max=len(scores))


def test_the_best_is_chosen_and_less_than_noise_is_not_better(
    monkeypatch: pytest.MonkeyPatch, history: History
) -> None:
    found = of_scores(monkeypatch, history, 0.2, 0.3, 0.25)
    assert not found.kept
    assert found.chosen.changed() == found.tries[1].changed
    found = of_scores(monkeypatch, history, 0.2, 0.201, 0.2)
    assert found.kept
    assert found.chosen == BASE


def test_a_try_that_fails_is_noted_and_the_search_goes_on(monkeypatch: pytest.MonkeyPatch, history: History) -> None:
    found = of_scores(monkeypatch, history, 0.2, -1.0, 0.3)
    assert [one.note for one in found.tries] == ["", "cannot be trained", ""]
    assert found.chosen.changed() == found.tries[2].changed


def test_nothing_to_judge_by_is_said(monkeypatch: pytest.MonkeyPatch, history: History) -> None:
    with pytest.raises(ValueError, match="nothing was bought after the split"):
        tune(history, BASE, 90 * DAY_MS, tries_max=2)
    with pytest.raises(ValueError, match="cannot be trained"):
        of_scores(monkeypatch, history, -1.0, 0.3)


def test_the_page_on_training_lists_what_is_tried() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    rows = re.findall(r"\| `(\w+\.\w+)` \| (.*) \|", page)
    listed = {name: tuple(map(float, values.split(", "))) for name, values in rows}
    assert listed == {name: tuple(map(float, values)) for name, values in SPACE.items()}
