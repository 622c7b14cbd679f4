"""Feature codes: the same everywhere, absent is row 0, and vectors are the sums the codes say."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from freshet.model.config import FeatureConfig
from freshet.model.features import (
    Vocabulary,
    embed_products,
    embed_sessions,
    embed_users,
    hashed,
    product_codes,
    quantile_edges,
    session_codes,
    table_rows,
    tokens,
    user_codes,
)
from freshet.store.columns import ProductAttributes, UserAttributes

FEATURES = FeatureConfig(description_dim=3)
VOCABULARY = Vocabulary({"p": 1, "q": 2}, (1.0, 2.0), (17_000.0,))


def weights(dim: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    out = {n: rng.normal(size=(r, dim)).astype(np.float32) for n, r in table_rows(FEATURES, 3).items()}
    return out | {"product.description_absent": rng.normal(size=dim).astype(np.float32)}


def test_hashes_do_not_depend_on_the_process() -> None:
    code = "from freshet.model.features import hashed; print(hashed('Brötchen', 4096), hashed('x', 64))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [int(v) for v in found] == [hashed("Brötchen", 4096), hashed("x", 64)]


def test_hash_is_pinned() -> None:
    """A change here changes the meaning of every bundle that was ever written."""
    assert hashed("grocery", 8192) == 1 + 17685565228343322853 % 8191


def test_a_hash_is_never_the_absent_row() -> None:
    assert {hashed(str(i), 3) for i in range(200)} == {1, 2}


def test_importing_features_and_bundle_loads_no_torch() -> None:
    code = "import sys, freshet.model.features, freshet.model.bundle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_everything_absent_is_row_zero() -> None:
    codes = product_codes(["x", "y"], [None, ProductAttributes()], FEATURES, VOCABULARY)
    w = weights()
    want = sum(w[f"product.{t}"][0] for t in ("category", "brand", "price", "token", "id"))
    for row in embed_products(w, codes):
        np.testing.assert_allclose(row, want + w["product.description_absent"], rtol=1e-5)
    user = user_codes([None], FEATURES, VOCABULARY)
    np.testing.assert_allclose(embed_users(w, user)[0], w["user.age"][0] + w["user.geo"][0] + w["user.signup"][0])


def test_a_product_is_the_sum_of_its_parts() -> None:
    a = ProductAttributes(("a", "b"), "brand", 1.5, "Two words, TWO", (1.0, 0.0, 2.0))
    row = embed_products(weights(), product_codes(["q"], [a], FEATURES, VOCABULARY))[0]
    w = weights()
    path = [hashed("a", FEATURES.category_buckets), hashed("a\x1fb", FEATURES.category_buckets)]
    words = [hashed(t, FEATURES.token_buckets) for t in ("two", "words")]
    want = (
        w["product.category"][path].sum(axis=0)
        + w["product.brand"][hashed("brand", FEATURES.brand_buckets)]
        + w["product.price"][2]
        + w["product.token"][words].mean(axis=0)
        + w["product.id"][2]
        + np.array([1.0, 0.0, 2.0], np.float32) @ w["product.description"]
    )
    np.testing.assert_allclose(row, want, rtol=1e-5)


def test_a_description_vector_of_another_length_counts_as_absent() -> None:
    codes = product_codes(["p"], [ProductAttributes(description_emb=(1.0,))], FEATURES, VOCABULARY)
    assert codes.described is not None and not codes.described[0]


def test_category_and_token_limits() -> None:
    small = FeatureConfig(category_levels=2, tokens_max=2)
    a = ProductAttributes(category=("a", "b", "c"), description="one two three")
    codes = product_codes(["p"], [a], small, VOCABULARY)
    assert codes.category.shape == (1, 2) and (codes.category > 0).all()
    assert codes.token.shape == (1, 2) and (codes.token > 0).all()


def test_sessions() -> None:
    codes = session_codes([None, "phone"], np.array([np.nan, 1e12], np.float32), FEATURES)
    assert codes.device.tolist() == [0, hashed("phone", FEATURES.device_buckets)]
    assert codes.duration.tolist() == [0, FEATURES.duration_buckets - 1]
    assert embed_sessions(weights(), codes).shape == (2, 4)


def test_buckets() -> None:
    edges = quantile_edges(list(range(1000)), 32)
    assert len(edges) <= 30
    prices = [ProductAttributes(price=p) for p in (-1.0, 0.0, 500.0, 1e9)]
    codes = product_codes(["a"] * 4, prices, FEATURES, Vocabulary({}, edges)).price
    assert codes[0] == 1 and codes[3] == 31 and 1 < codes[2] < 31
    assert quantile_edges([], 32) == ()
    assert user_codes([UserAttributes(signup_day=17_001)], FEATURES, VOCABULARY).signup[0] == 2


def test_tokens() -> None:
    assert tokens("Crème brûlée 2x100 g; CRÈME", 12) == ["crème", "brûlée", "2x100", "g"]
