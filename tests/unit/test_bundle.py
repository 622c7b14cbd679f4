"""Bundles: what is saved comes back, and what is damaged is refused by name."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from freshet.model.bundle import Bundle, BundleError, Fixture, FrozenPairs
from freshet.model.config import FeatureConfig, TowerConfig
from freshet.model.features import Vocabulary
from freshet.model.weights import weight_shapes
from freshet.store.columns import (
    EventColumns,
    ProductAttributes,
    ProductColumns,
    ProfileColumns,
    PurchaseColumns,
    SessionColumns,
    UserAttributes,
    ViewColumns,
)
from freshet.store.graph import GraphStore
from freshet.store.ranker import Ranker, RankerWeights


def events() -> EventColumns:
    return EventColumns(
        views=ViewColumns(
            ["u"], ["p"], np.array([5]), np.array([2**63 + 1], np.uint64), np.array([np.nan], np.float32)
        ),
        purchases=PurchaseColumns(
            ["u", "u"], ["p", "q"], np.array([6, 6]), np.array([7, 7], np.uint64),
            np.array([1, np.nan], np.float32), np.array([False, True]), np.array([0, 2]),
        ),
        sessions=SessionColumns(
            ["u"], ["s"], [None], np.array([9]), np.array([1], np.uint64), np.array([3], np.float32),
            np.array([0, 1]), ["p"], np.array([-1], np.int32), np.array([1], np.int8),
        ),
        products=ProductColumns(
            ["p", "q"], np.array([0, 1]), np.array([3, 4], np.uint64),
            [ProductAttributes(category=("a", "b"), price=2.5, description_emb=(0.5, 1.0)), None],
        ),
        profiles=ProfileColumns(["u"], np.array([1]), np.array([8], np.uint64), [UserAttributes("30-39", None, 17000)]),
    )  # fmt: skip


def bundle() -> Bundle:
    rng = np.random.default_rng(0)
    return Bundle(
        kind="trained",
        config=TowerConfig(dim=4),
        features=FeatureConfig(),
        weights={
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in weight_shapes(TowerConfig(dim=4), FeatureConfig(), 3).items()
        },
        vocabulary=Vocabulary({"p": 1, "q": 2}, (1.0, 2.0), (17000.0,)),
        cut_ms=1000,
        pairs=FrozenPairs(
            ["q", "ü", "p"],
            np.array([0, 2, 2, 3]),
            np.array([1, 2, 0], np.int32),
            np.array([5, 3, 3], np.float32),
            np.array([7, 8, 9], np.float32),
        ),
        popular=[("p", 9.5), ("q", 2.0)],
        ranker=Ranker(RankerWeights(score=3.0), {"ü": 0.25}),
        card={"recall@20": 0.5},
        page="<p>½</p>",
        fixture=Fixture(events(), ["u"], ["p", "q"], np.ones((1, 4), np.float32), np.zeros((2, 4), np.float32)),
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = bundle()
    saved.save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b")
    assert loaded.config == saved.config and loaded.features == saved.features
    assert loaded.vocabulary == saved.vocabulary and loaded.popular == saved.popular
    assert loaded.model_version == saved.model_version and loaded.cut_ms == 1000
    assert (loaded.card, loaded.page) == ({"recall@20": 0.5}, "<p>½</p>")
    assert loaded.ranker == Ranker(RankerWeights(score=3.0), {"ü": 0.25})
    np.testing.assert_array_equal(loaded.weights["product.id"], saved.weights["product.id"])
    assert loaded.fixture is not None
    want, got = events(), loaded.fixture.events
    assert got.products.attributes == want.products.attributes
    assert got.profiles.attributes == want.profiles.attributes
    assert got.sessions.device == [None] and got.purchases.user == ["u", "u"]
    for table in ("views", "purchases", "sessions"):
        for name, value in vars(getattr(want, table)).items():
            if isinstance(value, np.ndarray):
                again = getattr(getattr(got, table), name)
                assert again.dtype == value.dtype
                np.testing.assert_array_equal(again, value)


def test_version_is_a_function_of_the_content() -> None:
    a, b = bundle(), bundle()
    assert a.model_version == b.model_version
    other = Bundle(**{**vars(a), "weights": {"product.id": a.weights["product.id"] + 1}, "model_version": ""})
    assert other.model_version != a.model_version
    assert a.with_ranker(Ranker(RankerWeights(score=4.0))).model_version not in (a.model_version, other.model_version)
    assert a.with_ranker(a.ranker).model_version == a.model_version


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    bundle().save(tmp_path / "b")
    bundle().save(tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]
    Bundle.load(tmp_path / "b")


def test_frozen_counts_take_the_numbers_of_the_graph() -> None:
    graph = GraphStore()
    graph.intern_products(["other", "p"])
    counts = bundle().frozen_counts(graph)
    number = {name: graph.products.get(name) for name in ("other", "p", "q", "ü")}
    partners = {}
    for name, row in number.items():
        assert row is not None
        a, b = counts.slices(np.array([row], np.int32))
        partners[name] = {graph.products.name(int(counts.nbr[i])): float(counts.count[i]) for i in range(a[0], b[0])}
    assert partners == {"other": {}, "p": {"q": 3.0}, "q": {"ü": 5.0, "p": 3.0}, "ü": {}}
    assert counts.cut_ms == 1000
    orders = {name: float(counts.orders[number[name]]) for name in ("other", "p", "q", "ü")}
    assert orders == {"other": 0.0, "p": 9.0, "q": 7.0, "ü": 8.0}
    left = bundle().frozen_popularity(graph)
    assert left.of(np.array([number["q"], number["p"], 99], np.int32), 2000, 1000).tolist() == [1.0, 4.75, 0.0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    bundle().save(tmp_path / "b")
    for name in ("weights.safetensors", "bundle.json", "popular.json", "ranker.json"):
        broken = tmp_path / f"without-{name}"
        bundle().save(broken)
        (broken / name).unlink()
        with pytest.raises(BundleError, match=f"{name} is missing"):
            Bundle.load(broken)


def test_another_format_version_is_named(tmp_path: Path) -> None:
    bundle().save(tmp_path / "b")
    head = json.loads((tmp_path / "b/bundle.json").read_text())
    (tmp_path / "b/bundle.json").write_text(json.dumps(head | {"format_version": 99}))
    with pytest.raises(BundleError, match="format version 99"):
        Bundle.load(tmp_path / "b")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    bundle().save(tmp_path / "b")
    path = tmp_path / "b/weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"weights.safetensors does not match its checksum"):
        Bundle.load(tmp_path / "b")


def test_a_changed_head_is_found(tmp_path: Path) -> None:
    bundle().save(tmp_path / "b")
    head = json.loads((tmp_path / "b/bundle.json").read_text())
    (tmp_path / "b/bundle.json").write_text(json.dumps(head | {"cut_ms": 7}))
    with pytest.raises(BundleError, match=r"bundle.json does not match its checksum"):
        Bundle.load(tmp_path / "b")


def test_a_fixture_that_does_not_come_out_is_named(tmp_path: Path) -> None:
    bundle().save(tmp_path / "b")
    want = bundle().fixture
    assert want is not None
    Bundle.load(tmp_path / "b", lambda b, f: (want.user_embedding, want.product_embedding))
    wrong = want.product_embedding.copy()
    wrong[1, 2] += 1e-3
    with pytest.raises(BundleError, match="product 'q' is off"):
        Bundle.load(tmp_path / "b", lambda b, f: (want.user_embedding, wrong))
    wrong[1, 2] = np.nan
    with pytest.raises(BundleError, match="product 'q' is off"):
        Bundle.load(tmp_path / "b", lambda b, f: (want.user_embedding, wrong))


def test_no_space_is_said_and_the_old_bundle_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle().save(tmp_path / "b")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"no space left.*MiB"):
        bundle().save(tmp_path / "b")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["b"]
    Bundle.load(tmp_path / "b")
