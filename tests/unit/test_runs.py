"""Several runs of a training, and the average of their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freshet.model.bundle import Bundle
from freshet.model.config import DAY_MS
from freshet.model.score import score_of
from freshet.model.train import train
from freshet.model.train_config import TrainConfig
from freshet.model.validation import Validation
from freshet.store.history import History
from tests.unit.test_checkpoint import Interrupted, PullThePlug
from tests.unit.test_train import FEATURES, SMALL, shop

SPLIT_MS = 66 * DAY_MS
THREE = replace(SMALL, runs=3, epochs=1, start_share=0.0)


@pytest.fixture(scope="module")
def history() -> History:
    return History.of([shop()])


def trained(history: History, settings: TrainConfig, **more: object) -> Bundle:
    return train(history, settings, features=FEATURES, split_ms=SPLIT_MS, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def averaged(history: History) -> Bundle:
    return trained(history, replace(THREE, validate=False))


def test_the_weights_are_the_mean_of_runs_that_differ_in_their_seeds(history: History, averaged: Bundle) -> None:
    alone = [trained(history, replace(THREE, runs=1, validate=False, seed=seed)).weights for seed in (0, 1, 2)]
    assert not np.array_equal(alone[0]["product.id"], alone[1]["product.id"])
    for name, value in averaged.weights.items():
        np.testing.assert_allclose(value, np.mean([one[name] for one in alone], axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("runs", [1, 3])
def test_a_share_of_the_start_stays_in_the_weights(history: History, averaged: Bundle, runs: int) -> None:
    settings = replace(THREE, runs=runs, validate=False)
    start = trained(history, replace(settings, epochs=0)).weights
    ended = averaged.weights if runs == 3 else trained(history, settings).weights
    mixed = trained(history, replace(settings, start_share=0.3)).weights
    assert not np.allclose(mixed["product.id"], ended["product.id"], atol=1e-3)
    for name, value in mixed.items():
        np.testing.assert_allclose(value, 0.7 * ended[name] + 0.3 * start[name], rtol=1e-4, atol=1e-6)


def test_only_the_closed_form_is_worth_a_share() -> None:
    with pytest.raises(ValueError, match="start has to be closed_form, or start_share 0"):
        TrainConfig(start="random", start_share=0.3)
    with pytest.raises(ValueError, match=r"start_share is 1\.5"):
        TrainConfig(start_share=1.5)


def test_the_card_has_the_trace_of_every_run_and_of_their_average(history: History) -> None:
    training = trained(history, THREE).card["training"]
    assert training["averaged"] in (1, 3)
    trace = training["trace"]
    assert sorted({row["run"] for row in trace if "run" in row}) == [0, 1, 2]
    assert [row["step"] for row in trace] == sorted(row["step"] for row in trace)
    assert trace[-1]["averaged"] == 3 and score_of(trace[-1]) > 0


def test_the_start_that_runs_share_is_validated_once(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, recall = [], Validation.recall

    def counted(self: Validation) -> dict[str, float]:
        asked.append(recall(self))
        return asked[-1]

    monkeypatch.setattr(Validation, "recall", counted)
    trace = trained(history, THREE).card["training"]["trace"]
    starts = [(row["all"], row["novel"]) for row in trace if row["step"] == 0 or row["share"] == 0]
    assert len(starts) == 3 and len(set(starts)) == 1
    assert len(asked) == len(trace) - 2


def test_an_average_that_is_worse_than_its_runs_is_not_kept(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    from freshet.model import runs

    def nonsense(weights: list[dict[str, object]]) -> object:
        return {name: value * 0 - 1 for name, value in weights[0].items()}  # type: ignore[operator]

    monkeypatch.setattr(runs, "_mean", nonsense)
    made = trained(history, THREE)
    assert made.card["training"]["averaged"] == 1
    each = [trained(history, replace(THREE, runs=1, seed=seed)).weights["product.id"].tobytes() for seed in (0, 1, 2)]
    assert made.weights["product.id"].tobytes() in each
    assert THREE.until_best(made.card["training"]).runs == 1


@pytest.mark.parametrize("steps", [3, 25, 40])
def test_an_interruption_in_any_run_changes_nothing(
    history: History, averaged: Bundle, tmp_path: Path, steps: int
) -> None:
    settings = replace(THREE, validate=False, checkpoint_every_s=0.0)
    plug, path = PullThePlug(steps), tmp_path / "state"
    with pytest.raises(Interrupted):
        trained(history, settings, progress=plug, checkpoint=path)
    again = trained(history, settings, checkpoint=path)
    assert {n: v.tobytes() for n, v in again.weights.items()} == {n: v.tobytes() for n, v in averaged.weights.items()}
    said = list[str]()
    trained(history, settings, checkpoint=path, progress=lambda what, share: said.append(what))
    assert not [what for what in said if what.startswith("training")], "what is over is not done again"


def test_the_whole_is_trained_as_the_kept_weights_were() -> None:
    rows = [{"share": 1.0, "all": 0.2, "novel": 0.1, "step": 9, "run": 0},
            {"share": 0.5, "all": 0.3, "novel": 0.2, "step": 18, "averaged": 3}]  # fmt: skip
    settings = TrainConfig(epochs=6, runs=3, time_budget_s=90.0)
    whole = settings.until_best({"trace": rows, "averaged": 3})
    assert (whole.epochs, whole.runs, whole.time_budget_s, whole.validate) == (3, 3, 45.0, False)
    one = settings.until_best({"trace": rows, "averaged": 1})
    assert (one.epochs, one.runs, one.time_budget_s) == (6, 1, 30.0)
