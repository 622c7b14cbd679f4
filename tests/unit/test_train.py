"""Towers, training and day zero: round trips, determinism, and that learning learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from freshet.model.at_time import TowersAt
from freshet.model.bundle import Bundle, BundleError
from freshet.model.config import DAY_MS, FeatureConfig, TowerConfig
from freshet.model.evaluation.card import CardConfig, make_card
from freshet.model.evaluation.embeddings import TwoTower
from freshet.model.evaluation.metrics import PER_USER
from freshet.model.evaluation.run import EvaluateConfig, rank
from freshet.model.evaluation.targets import Targets, Window
from freshet.model.features import Vocabulary
from freshet.model.offline import OfflineTowers, encode_fixture
from freshet.model.towers import BagSAGEConv, Towers, WeightedSAGEConv
from freshet.model.train import train
from freshet.model.train_config import TrainConfig
from freshet.model.validation import Validation
from freshet.model.weights import weight_shapes
from freshet.store.columns import EventColumns, ProductAttributes, ProductColumns, PurchaseColumns
from freshet.store.graph import GraphStore
from freshet.store.history import History

FEATURES = FeatureConfig(category_buckets=64, brand_buckets=32, token_buckets=64, geo_buckets=16, description_dim=2)
SMALL = TrainConfig(
    batch_size=32, pool_draws=40, window_days=60, epochs=3, runs=1, threads=1, learning_rate=3e-4,
    validation_users_max=0, validations=3, interactions_min=2,
)  # fmt: skip


def shop(seed: int = 0, days: int = 80) -> EventColumns:
    """Users of four tastes; a user buys one to three products of the own taste, now and then."""
    rng = np.random.default_rng(seed)
    user, product, time, sizes = [], [], [], []
    for day in range(days):
        for u in range(60):
            if rng.random() < 0.35:
                size = int(rng.integers(1, 4))
                user += [f"u{u}"] * size
                product += [f"p{(u % 4) * 20 + p}" for p in rng.choice(20, size, replace=False)]
                time += [day * DAY_MS + u * 1000 + 1] * size
                sizes.append(size)
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    event = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.uint64), sizes)
    n = len(user)
    lines = PurchaseColumns(user, product, np.array(time), event, np.ones(n, np.float32), np.zeros(n, np.bool_), start)
    attributes = [
        ProductAttributes(category=(f"c{i // 20}",), price=float(i), description="some words" if i % 2 else None)
        for i in range(81)
    ]
    catalogue = ProductColumns(
        [f"p{i}" for i in range(81)], np.zeros(81, np.int64), np.arange(81, dtype=np.uint64), list(attributes)
    )
    return EventColumns(purchases=lines, products=catalogue)


@pytest.fixture(scope="module")
def history() -> History:
    return History.of([shop()])


@pytest.fixture(scope="module")
def trained(history: History) -> Bundle:
    return train(history, SMALL, features=FEATURES, split_ms=66 * DAY_MS)


def random_bundle(config: TowerConfig, seed: int = 0) -> Bundle:
    rng = np.random.default_rng(seed)
    shapes = weight_shapes(config, FEATURES, 9)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Bundle("trained", config, FEATURES, weights, Vocabulary({f"p{i}": i + 1 for i in range(8)}), -1)


def test_weights_go_in_and_come_out_unchanged() -> None:
    bundle = random_bundle(TowerConfig(dim=8))
    towers = Towers(bundle.config, FEATURES, 9).load(bundle.weights)
    found = towers.export()
    assert {n: v.shape for n, v in found.items()} == weight_shapes(bundle.config, FEATURES, 9)
    for name, value in bundle.weights.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].flags["C_CONTIGUOUS"]


def test_weights_that_do_not_fit_are_named() -> None:
    bundle = random_bundle(TowerConfig(dim=8))
    less = {k: v for k, v in bundle.weights.items() if k != "user.outer.purchased"}
    with pytest.raises(KeyError, match=r"user\.outer\.purchased"):
        Towers(bundle.config, FEATURES, 9).load(less)
    wrong = {**bundle.weights, "user.age": np.zeros((3, 8), np.float32)}
    with pytest.raises(ValueError, match=r"user\.age has shape"):
        Towers(bundle.config, FEATURES, 9).load(wrong)


def test_a_layer_is_what_the_configuration_says() -> None:
    """Weighted means and matrices by hand, over one owner with two neighbours and one with none."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(5, 4)).astype(np.float32))
    owners = torch.zeros(2, 4)
    index, weight = torch.tensor([[3, 1], [0, 0]]), torch.tensor([0.75, 0.25])
    for conv in (WeightedSAGEConv(4), BagSAGEConv(4)):
        want = (0.75 * x[3] + 0.25 * x[1]) @ conv.lin_l.weight.T
        torch.testing.assert_close(conv((x, owners), index, weight), torch.stack([want, torch.zeros(4)]))


def test_fused_and_plain_layers_agree_on_every_relation(history: History) -> None:
    bundle = random_bundle(TowerConfig(dim=8))
    graph = GraphStore()
    graph.apply(shop())
    offline = OfflineTowers(bundle, graph)
    users = np.arange(len(graph.users), dtype=np.int32)
    products = np.arange(len(graph.products), dtype=np.int32)
    plain = offline.encode_users(users), offline.encode_products(products)
    offline.towers = Towers(bundle.config, FEATURES, 9, fused=True).load(bundle.weights)
    np.testing.assert_allclose(offline.encode_users(users), plain[0], atol=1e-5)
    np.testing.assert_allclose(offline.encode_products(products), plain[1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(plain[0][:, :-1], axis=1), 1.0, atol=1e-5)
    assert (plain[0][:, -1] == 1.0).all()


def test_the_same_seed_gives_the_same_bytes(history: History, trained: Bundle) -> None:
    again = train(History.of([shop()]), SMALL, features=FEATURES, split_ms=66 * DAY_MS)
    for name, value in trained.weights.items():
        assert value.tobytes() == again.weights[name].tobytes(), name
    assert again.model_version == trained.model_version


def test_nothing_after_the_split_reaches_the_weights(history: History, trained: Bundle) -> None:
    """Other events after the split (and one validation only) leave what is trained as it was."""
    other = shop(seed=0)
    late = np.flatnonzero(other.purchases.time >= 66 * DAY_MS)
    for i in late:
        other.purchases.product[i] = f"p{(int(other.purchases.product[i][1:]) + 7) % 80}"
    settings = TrainConfig(**{**vars(SMALL), "validations": 1, "epochs": 1})
    a = train(history, settings, features=FEATURES, split_ms=66 * DAY_MS)
    b = train(History.of([other]), settings, features=FEATURES, split_ms=66 * DAY_MS)
    assert a.pairs.product and sorted(a.pairs.product) == sorted(b.pairs.product)
    assert a.card["training"]["trace"][-1]["loss"] == pytest.approx(b.card["training"]["trace"][-1]["loss"], rel=1e-5)
    assert a.popular == b.popular


def test_training_beats_popularity_and_the_card_says_so(history: History, trained: Bundle) -> None:
    card = make_card(trained, history, CardConfig(resamples=50))
    for window in ("validation", "test"):
        found = card["windows"][window]["systems"]
        assert set(found) == {"two_tower", "final_ranker", "popular_recent", "own_history"}
        for kind in ("novel", "all"):
            assert found["two_tower"][kind]["recall@20"] > found["popular_recent"][kind]["recall@20"]
    assert card["slices"]["window"] == "test"


@pytest.mark.parametrize("loss", ["softmax", "in_batch", "bpr"])
def test_the_loss_goes_down(history: History, loss: str) -> None:
    settings = TrainConfig(**{**vars(SMALL), "loss": loss, "epochs": 6, "validations": 6, "patience": 9})
    trace = train(history, settings, features=FEATURES, split_ms=66 * DAY_MS).card["training"]["trace"]
    losses = [row["loss"] for row in trace if "loss" in row]
    assert losses[-1] < losses[0]


def test_a_time_budget_stops_training(history: History) -> None:
    now = iter(range(10**6))
    settings = TrainConfig(**{**vars(SMALL), "epochs": 1000, "time_budget_s": 20.0})
    bundle = train(history, settings, features=FEATURES, split_ms=66 * DAY_MS, clock_s=lambda: float(next(now)))
    assert 0 < bundle.card["training"]["trace"][-1]["step"] < 25


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        train(History.of([]), SMALL, features=FEATURES)


def test_the_fixture_checks_the_bundle(trained: Bundle, tmp_path: Path) -> None:
    trained.save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b", encode_fixture)
    weights = {k: v.copy() for k, v in loaded.weights.items()}
    weights["user.outer.purchased"][0, 0] += 0.5
    Bundle(**{**vars(loaded), "weights": weights}).save(tmp_path / "wrong")
    with pytest.raises(BundleError, match="parity fixture fails"):
        Bundle.load(tmp_path / "wrong", encode_fixture)


@pytest.mark.parametrize("start", ["closed_form", "random"])
def test_both_starts_learn(history: History, start: str) -> None:
    settings = TrainConfig(**{**vars(SMALL), "start": start, "start_share": 0.0, "epochs": 2, "learning_rate": 3e-3})
    trace = train(history, settings, features=FEATURES, split_ms=66 * DAY_MS).card["training"]["trace"]
    assert max(row["novel"] for row in trace) > 0.2
    assert (trace[0]["step"] == 0) == (start == "closed_form")


def test_training_never_ends_below_the_closed_form(history: History) -> None:
    """Steps that only do harm are left out: what is kept is what training began with."""
    settings = TrainConfig(**{**vars(SMALL), "epochs": 1, "learning_rate": 100.0})
    kept = train(history, settings, features=FEATURES, split_ms=66 * DAY_MS)
    trace = kept.card["training"]["trace"]
    best = max(row["all"] + 4 * row["novel"] for row in trace)
    again = Validation.of(TowersAt.of(kept, history), 66 * DAY_MS, 7 * DAY_MS, 0, 0)
    assert again is not None
    found = again.recall()
    assert trace[-1]["novel"] < trace[0]["novel"]
    assert found["all"] + 4 * found["novel"] == pytest.approx(best)


def test_recall_of_validation_is_that_of_the_evaluation(history: History, trained: Bundle) -> None:
    """Two ways to the same figure: the one that training is stopped by, and the one that is reported."""
    at_ms = 66 * DAY_MS
    found = Validation.of(TowersAt.of(trained, history), at_ms, 7 * DAY_MS, 0, 0)
    assert found is not None
    system = TwoTower("towers", trained)
    system.fit(history, at_ms)
    targets = Targets.of(history, Window(at_ms, at_ms + 7 * DAY_MS), at_ms)
    ranked = rank(history, system, targets, EvaluateConfig())
    column = PER_USER.index("recall@20")
    want = {kind: ranked.values[kind][:, column].mean() for kind in ("all", "novel")}
    assert found.recall() == pytest.approx(want)
