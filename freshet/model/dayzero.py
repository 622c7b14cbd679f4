"""A bundle without training: closed-form product vectors, propagated over the same neighbourhoods.

Products get the leading singular vectors of the user-product matrix. What their attributes explain of them
goes into the attribute tables (shrunken means, one table after the other), the rest into `product.id`, so
that a product nobody has bought is placed by its attributes alone. A user is the mean of what they
bought. One coordinate, which users do not read, brings every product to the same length, so that cosine
ranks as the inner product does. The same weights are where training starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as fn

from freshet.model.bundle import Bundle, FrozenPairs
from freshet.model.config import FeatureConfig, TowerConfig
from freshet.model.features import ProductCodes, Vocabulary, product_codes, quantile_edges, table_rows
from freshet.model.parity import make_fixture
from freshet.model.towers import weight_shapes
from freshet.store.columns import F32, I32, I64, Bool
from freshet.store.copurchase import FrozenCounts
from freshet.store.history import History, Lines
from freshet.store.popularity import PopularityConfig, of_history

POPULARITY_MIN = 0.01
"""Less than this is no popularity."""


@dataclass(frozen=True)
class DayZeroConfig:
    """`purchases_min`: purchases from which a product has an id row of its own. `item_power`, `user_power`: how far
    popular products and busy users are toned down in the matrix (0 not at all). `spectrum_power`: weight of
    the leading singular vectors. `shrinkage`: how many products without any vector each attribute's mean
    counts in. `co_purchased_share`: what a product takes of its partners. `views_share`: what a view counts
    against a purchase. `partners_max`: frozen partners kept a product. `seed`: of everything random.
    """

    purchases_min: int = 5
    item_power: float = 0.3
    user_power: float = 0.5
    spectrum_power: float = 0.5
    shrinkage: float = 3.0
    co_purchased_share: float = 0.1
    views_share: float = 0.3
    partners_max: int = 32
    seed: int = 0


def dayzero(
    history: History,
    config: TowerConfig | None = None,
    features: FeatureConfig | None = None,
    settings: DayZeroConfig | None = None,
    cut_ms: int | None = None,
) -> Bundle:
    """A bundle from the history up to `cut_ms` (all of it by default), in seconds. An empty history is
    fine: attributes then get random vectors, so that products of like attributes lie together."""
    settings = settings or DayZeroConfig()
    config = TowerConfig(activation="none", popularity=None) if config is None else config
    features = features or FeatureConfig()
    if config.activation != "none" or config.popularity is not None:
        raise ValueError(
            "a day-zero bundle propagates features: TowerConfig.activation must be 'none', and popularity None"
        )
    last = max((int(lines.time[-1]) for lines in (history.purchases, history.views) if lines.time.shape[0]), default=0)
    cut_ms = last if cut_ms is None else cut_ms
    vocabulary = vocabulary_of(history, cut_ms, settings.purchases_min)
    codes = history_codes(history, features, vocabulary)
    bundle = Bundle(
        kind="dayzero",
        config=config,
        features=features,
        weights=closed_form(history, config, features, settings, vocabulary, codes, cut_ms),
        vocabulary=vocabulary,
        cut_ms=cut_ms,
        pairs=frozen_pairs(history, history.freeze(cut_ms, settings.partners_max)),
        popular=frozen_popularity(history, cut_ms, config.popularity or PopularityConfig()),
    )
    return replace(bundle, fixture=make_fixture(bundle))


def vocabulary_of(history: History, cut_ms: int, purchases_min: int) -> Vocabulary:
    """Products with at least `purchases_min` purchases up to the cut, most bought first, and bucket borders."""
    count = counts_until(history, cut_ms)
    rows = np.lexsort((history.products.hash, -count))
    rows = rows[count[rows] >= purchases_min]
    ids = [name for name in history.products.names(rows.astype(np.int32)) if name is not None]
    prices = [a.price for a in history.product_attributes.take(_all(history)) if a and a.price is not None]
    users = np.arange(len(history.users), dtype=np.int32)
    signups = [a.signup_day for a in history.user_attributes.take(users) if a and a.signup_day is not None]
    return Vocabulary(
        {p: i + 1 for i, p in enumerate(ids)},
        quantile_edges(prices, FeatureConfig.price_buckets),
        quantile_edges(signups, FeatureConfig.signup_buckets),
    )


def history_codes(history: History, features: FeatureConfig, vocabulary: Vocabulary) -> ProductCodes:
    """Codes of every product of the history, by its number."""
    everything = _all(history)
    attributes = history.product_attributes.take(everything)
    return product_codes(history.products.names(everything), attributes, features, vocabulary)


def closed_form(
    history: History, config: TowerConfig, features: FeatureConfig, settings: DayZeroConfig,
    vocabulary: Vocabulary, codes: ProductCodes, cut_ms: int,
) -> dict[str, F32]:  # fmt: skip
    """All weights of a bundle: the attribute and id tables, and layers that propagate."""
    rng = np.random.default_rng(settings.seed)
    shapes = weight_shapes(config, features, len(vocabulary.row_of) + 1)
    weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    wide = config.dim - 1
    vector = _tables(weights, history, settings, codes, cut_ms, wide)
    if vector.shape[0]:
        known = np.flatnonzero(codes.id > 0)
        length = float(np.quantile(np.linalg.norm(vector, axis=1), 0.999))
        rest = np.sqrt(np.maximum(length**2 - (vector**2).sum(axis=1), 0.0))
        weights["product.id"][codes.id[known], wide] = rest
        weights["product.id"][0, wide] = length
    _jitter(weights, rng, wide)
    _propagating_layers(weights, config, settings)
    return weights


def closed_form_tables(
    history: History, features: FeatureConfig, settings: DayZeroConfig, vocabulary: Vocabulary,
    codes: ProductCodes, dim: int, cut_ms: int,
) -> dict[str, F32]:  # fmt: skip
    """The feature tables alone, scaled so that products have a typical length of one: where training may start."""
    rows = table_rows(features, len(vocabulary.row_of) + 1)
    tables = {name: np.zeros((n, dim), dtype=np.float32) for name, n in rows.items()}
    vector = _tables(tables, history, settings, codes, cut_ms, dim)
    typical = float(np.median(np.linalg.norm(vector, axis=1))) if vector.shape[0] else 0.0
    return {name: table / np.float32(typical or 1.0) for name, table in tables.items()}


def _tables(
    weights: Mapping[str, F32], history: History, settings: DayZeroConfig, codes: ProductCodes, cut_ms: int, wide: int
) -> F32:
    """Spread the singular vectors of the known products over the tables; returns them, [known, wide]."""
    known = np.flatnonzero(codes.id > 0)
    if not known.shape[0]:
        return np.zeros((0, wide), dtype=np.float32)
    vector = _singular_vectors(history, settings, wide, cut_ms)[known]
    _explain(weights, codes.take(known.astype(np.int32)), vector, settings.shrinkage)
    return vector


def frozen_pairs(history: History, counts: FrozenCounts) -> FrozenPairs:
    """Frozen counts in a numbering of their own, with the ids of the products that have any."""
    there = np.zeros(len(history.products), dtype=np.bool_)
    there[: counts.ptr.shape[0] - 1] = np.diff(counts.ptr)[: there.shape[0]] > 0
    there[counts.nbr] = True
    rows = np.flatnonzero(there)
    place = np.full(there.shape[0], -1, dtype=np.int32)
    place[rows] = np.arange(rows.shape[0])
    start, end = counts.slices(rows.astype(np.int32))
    ptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(end - start)])
    ids = [name for name in history.products.names(rows.astype(np.int32)) if name is not None]
    return FrozenPairs(ids, ptr, place[counts.nbr], counts.count, counts.orders[rows])


def frozen_popularity(history: History, cut_ms: int, config: PopularityConfig) -> list[tuple[str, float]]:
    """Popularities of what happened up to the cut, greatest first; those that round to nothing are left out."""
    found = of_history(history, cut_ms + 1, config)
    rows = np.lexsort((history.products.hash, found))[::-1].astype(np.int32)
    rows = rows[found[rows] >= POPULARITY_MIN]
    names = history.products.names(rows)
    return [(p, round(float(n), 4)) for p, n in zip(names, found[rows], strict=True) if p is not None]


def counts_until(history: History, cut_ms: int, after_ms: int = -1, views: bool = False) -> I64:
    """Purchases (or views) of each product with `after_ms < time <= cut_ms`, [products] int64."""
    lines = history.views if views else history.purchases
    inside = (lines.time <= cut_ms) & (lines.time > after_ms) & (lines.flag == 0)
    return np.bincount(lines.product[inside], minlength=len(history.products))


def _all(history: History) -> I32:
    return np.arange(len(history.products), dtype=np.int32)


def _singular_vectors(history: History, settings: DayZeroConfig, dim: int, cut_ms: int) -> F32:
    """[products, dim]: right singular vectors of the weighted user-product matrix, times a power of their values."""
    products = len(history.products)
    parts = [(history.purchases, 1.0), (history.views, settings.views_share)]
    pair = np.concatenate([_cells(lines.user, lines.product, products) for lines, _ in parts])
    share = np.concatenate([np.where(_counts(lines, cut_ms), s, 0.0) for lines, s in parts])
    cell, where = np.unique(pair, return_inverse=True)
    value = np.log1p(np.bincount(where, share))
    user, product = cell // products, cell % products
    of_user = np.bincount(user, value, minlength=len(history.users))
    of_product = np.bincount(product, value, minlength=products)
    scale = np.maximum(of_user, 1.0)[user] ** settings.user_power
    value = (value / scale / np.maximum(of_product, 1.0)[product] ** settings.item_power).astype(np.float32)
    forward = _Sparse(user, product, value, len(history.users))
    order = np.lexsort((user, product))
    backward = _Sparse(product[order], user[order], value[order], products)
    draw = torch.Generator().manual_seed(settings.seed)
    rank = min(dim + 16, len(history.users))
    basis = torch.linalg.qr(forward @ torch.randn(products, rank, generator=draw))[0]
    for _ in range(4):
        basis = torch.linalg.qr(forward @ torch.linalg.qr(backward @ basis)[0])[0]
    left, sigma, _ = torch.linalg.svd(backward @ basis, full_matrices=False)
    out = np.zeros((products, dim), dtype=np.float32)
    found = (left * sigma**settings.spectrum_power)[:, :dim].numpy()
    out[:, : found.shape[1]] = found
    return out


class _Sparse:
    """A sparse matrix, sorted by row: `self @ dense`."""

    def __init__(self, row: I64, column: I64, value: F32, rows: int) -> None:
        sizes = np.bincount(row, minlength=rows)
        self.offset = torch.from_numpy(np.cumsum(sizes) - sizes)
        self.column, self.value = torch.from_numpy(column), torch.from_numpy(value)

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        return fn.embedding_bag(self.column, dense, self.offset, mode="sum", per_sample_weights=self.value)


def _cells(user: I32, product: I32, products: int) -> I64:
    return user.astype(np.int64) * products + product


def _counts(lines: Lines, cut_ms: int) -> Bool:
    inside: Bool = (lines.time <= cut_ms) & (lines.flag == 0)
    return inside


def _explain(weights: Mapping[str, F32], codes: ProductCodes, vector: F32, shrinkage: float) -> None:
    """Spread `vector` [n, d] over the tables: each takes the shrunken mean of what is left; writes `weights`."""
    wide = vector.shape[1]
    left = vector.copy()
    groups = [("product.category", codes.category[:, level]) for level in range(codes.category.shape[1])]
    for name, code in [*groups, ("product.brand", codes.brand)]:
        at = np.flatnonzero(code >= 0)
        if not at.shape[0]:
            continue
        total = _grouped(code[at], left[at], weights[name].shape[0])
        count = np.bincount(code[at], minlength=weights[name].shape[0])
        mean = total / (count + shrinkage)[:, None]
        weights[name][:, :wide] += mean
        left[at] -= mean[code[at]]
    weights["product.id"][codes.id, :wide] = left


def _grouped(code: I32, rows: F32, size: int) -> F32:
    out = torch.zeros(size, rows.shape[1])
    out.index_add_(0, torch.from_numpy(code.astype(np.int64)), torch.from_numpy(np.ascontiguousarray(rows)))
    return out.numpy()


def _jitter(weights: Mapping[str, F32], rng: np.random.Generator, wide: int) -> None:
    """Small random vectors in the attribute tables, so that values never seen in training differ."""
    typical = float(np.abs(weights["product.id"][1:, :wide]).mean()) if weights["product.id"].shape[0] > 1 else 1.0
    for name in ("product.category", "product.brand", "product.price", "product.token"):
        table = weights[name]
        table[:, :wide] += (0.1 * typical * rng.standard_normal((table.shape[0], wide))).astype(np.float32)
    if "product.description" in weights:
        rows = weights["product.description"]
        rows[:, :wide] = 0.1 * typical * rng.standard_normal((rows.shape[0], wide)) / np.sqrt(rows.shape[0])


def _propagating_layers(weights: Mapping[str, F32], config: TowerConfig, settings: DayZeroConfig) -> None:
    """Scaled identities: a user is what they bought (and viewed), a product is itself and a little of its partners."""
    one = np.eye(config.dim, dtype=np.float32)
    taste = one.copy()
    taste[-1, -1] = 0.0  # users do not read the coordinate that evens out lengths
    own = {"user.inner.self.product", "item.inner.self.product", "item.outer.self.product"}
    shares = {
        "user.outer.purchased": 1.0,
        "user.outer.viewed": settings.views_share,
        "user.outer.has_session": settings.views_share,
        "user.inner.contains": 1.0,
        "item.outer.co_purchased": settings.co_purchased_share,
    }
    for name in own & weights.keys():
        weights[name][:] = one
    for name in shares.keys() & weights.keys():
        weights[name][:] = shares[name] * taste
