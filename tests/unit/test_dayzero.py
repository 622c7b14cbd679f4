"""The closed form: what it knows of tastes, of products without purchases, and of how sure it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from freshet.model.config import DAY_MS, TowerConfig
from freshet.model.dayzero import DayZeroConfig, _ridge, _Sparse, dayzero
from freshet.model.offline import encode_products_offline, encode_users_offline
from freshet.store.columns import EventColumns, ProductAttributes, ProductColumns
from freshet.store.graph import GraphStore
from freshet.store.history import History
from tests.unit.test_train import FEATURES, shop

CUT_MS = 66 * DAY_MS - 1


@pytest.fixture(scope="module")
def history() -> History:
    return History.of([shop()])


def new_product(attributes: ProductAttributes) -> EventColumns:
    """p80, which nobody has bought."""
    return EventColumns(products=ProductColumns(["p80"], np.array([1]), np.array([1], np.uint64), [attributes]))


def test_users_find_products_of_their_taste(history: History) -> None:
    bundle = dayzero(history, features=FEATURES, cut_ms=CUT_MS)
    graph = GraphStore()
    graph.apply(shop())
    products = encode_products_offline(bundle, graph, graph.products.intern([f"p{i}" for i in range(80)]))
    users = encode_users_offline(bundle, graph, graph.users.intern([f"u{i}" for i in range(60)]))
    best = np.argsort(-(users @ products.T), axis=1)[:, :5]
    assert np.mean(best // 20 == (np.arange(60) % 4)[:, None]) > 0.9


@pytest.mark.parametrize(
    "attributes",
    [ProductAttributes(category=("c1",)), ProductAttributes(description="taste1 blue")],
    ids=["category", "words"],
)
def test_a_cold_product_goes_by_its_attributes(attributes: ProductAttributes) -> None:
    columns = shop()
    assert columns.products is not None
    for i, given in enumerate(columns.products.attributes):
        if given is not None and attributes.description:
            colour = ("red", "blue")[i % 2]
            columns.products.attributes[i] = replace(given, category=None, description=f"taste{i // 20} {colour}")
    history = History.of([columns])
    bundle = dayzero(history, features=replace(FEATURES, token_buckets=512), cut_ms=CUT_MS)
    graph = GraphStore()
    graph.apply(columns)
    graph.apply(new_product(attributes))
    products = encode_products_offline(bundle, graph, graph.products.intern([f"p{i}" for i in range(81)]))
    nearest = np.argsort(-(products[:80, :-1] @ products[80, :-1]))[:10]
    assert np.mean(nearest // 20 == 1) > 0.7


def test_what_nothing_is_known_of_stands_out_to_nobody(history: History) -> None:
    """A product with neither purchases nor attributes ranks in the middle of the catalogue's spread, for all users."""
    bundle = dayzero(history, features=FEATURES, cut_ms=CUT_MS)
    graph = GraphStore()
    graph.apply(shop())
    graph.apply(new_product(ProductAttributes()))
    products = encode_products_offline(bundle, graph, graph.products.intern([f"p{i}" for i in range(81)]))
    users = encode_users_offline(bundle, graph, graph.users.intern([f"u{i}" for i in range(60)]))
    cosines = users[:, :-1] @ products[:, :-1].T
    assert np.abs(cosines[:, 80]).max() < 0.5 * cosines[:, :80].std()


def test_popular_products_go_first_where_taste_says_nothing(history: History) -> None:
    bundle = dayzero(history, features=FEATURES, cut_ms=CUT_MS)
    assert bundle.weights["popularity.weight"][0] > 0
    none = dayzero(history, TowerConfig(popularity=None), FEATURES, cut_ms=CUT_MS)
    assert "popularity.weight" not in none.weights


def test_nothing_after_the_cut_matters(history: History) -> None:
    late = shop()
    assert late.purchases is not None
    rows = np.flatnonzero(late.purchases.time > CUT_MS)
    for i in rows:
        late.purchases.product[i] = "p7"
    a, b = (dayzero(h, features=FEATURES, cut_ms=CUT_MS) for h in (history, History.of([late])))
    for name, value in a.weights.items():
        np.testing.assert_allclose(value, b.weights[name], atol=1e-5, err_msg=name)


def test_an_empty_shop_gets_a_bundle_too() -> None:
    bundle = dayzero(History.of([]), features=FEATURES)
    assert bundle.kind == "dayzero" and bundle.fixture is not None and bundle.popular == []
    assert all(np.isfinite(value).all() for value in bundle.weights.values())


@pytest.mark.parametrize("keep", [1, 2, 5], ids=lambda n: f"{n} lines")
def test_a_shop_of_a_few_lines_gets_one(keep: int) -> None:
    columns = shop()
    assert columns.purchases is not None
    few = columns.purchases
    some = type(few)(
        few.user[:keep], few.product[:keep], few.time[:keep], np.arange(1, keep + 1, dtype=np.uint64),
        few.quantity[:keep], few.cancelled[:keep], np.arange(keep + 1),
    )  # fmt: skip
    bundle = dayzero(History.of([EventColumns(purchases=some)]), features=FEATURES)
    assert all(np.isfinite(value).all() for value in bundle.weights.values())


def test_another_activation_is_refused(history: History) -> None:
    with pytest.raises(ValueError, match="activation must be 'normalise'"):
        dayzero(history, TowerConfig(activation="relu"), FEATURES)


def test_rare_products_lean_on_their_attributes(history: History) -> None:
    """The more purchases an attribute counts for, the nearer products lie to others of their category."""
    near = []
    for shrinkage in (0.0, 1000.0):
        bundle = dayzero(history, features=FEATURES, settings=DayZeroConfig(id_shrinkage=shrinkage), cut_ms=CUT_MS)
        near.append(np.linalg.norm(bundle.weights["product.id"][1:, :-2]))
    assert near[1] < 0.2 * near[0]


def test_ridge_is_what_a_dense_solver_finds() -> None:
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((40, 6)) < 0.3, rng.normal(size=(40, 6)), 0.0).astype(np.float32)
    target = rng.normal(size=(40, 3)).astype(np.float32)
    row, column = np.nonzero(dense)
    found = _ridge(_Sparse(row, column, dense[row, column], (40, 6)), torch.from_numpy(target), 2.0)
    want = np.linalg.solve(dense.T @ dense + 2.0 * np.eye(6), dense.T @ target)
    np.testing.assert_allclose(found.numpy(), want, atol=1e-4)


def test_prices_are_cut_into_as_many_buckets_as_the_features_have(history: History) -> None:
    few = dayzero(history, features=replace(FEATURES, price_buckets=4))
    assert len(few.vocabulary.price_edges) <= 3
    assert few.weights["product.price"].shape[0] == 4
    assert len(dayzero(history, features=FEATURES).vocabulary.price_edges) > 3


def test_a_product_that_is_only_viewed_has_an_id_of_its_own(history: History) -> None:
    seen = replace(history, purchases=history.views.take(np.zeros(0, np.int64)), views=history.purchases)
    bundle = dayzero(seen, features=FEATURES, cut_ms=CUT_MS)
    assert bundle.vocabulary.row_of == dayzero(history, features=FEATURES, cut_ms=CUT_MS).vocabulary.row_of
    assert len(bundle.vocabulary.row_of) == 80
