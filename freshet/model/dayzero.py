"""A bundle without training: closed-form product vectors, propagated over the same neighbourhoods.

Products get the directions of the leading right singular vectors of the user-product matrix X = U S V'. What
their attributes explain of them goes into the attribute tables (shrunken means, one table after the other), the
rest into `product.id`, so that a product nobody has bought is placed by its attributes alone. A user is the mean
of what they bought, each singular direction weighted s^2 / (s^2 + ridge) as in ridge regression of X on itself
(EASE, Steck 2019, is that with a zero diagonal), times a small power of s. Popularity enters with a weight in
units of the spread of the cosines. `docs/decisions/dayzero.md` has the figures; the same weights are where
training starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as fn

from freshet.model.bundle import Bundle, FrozenPairs
from freshet.model.config import FeatureConfig, TowerConfig
from freshet.model.features import ProductCodes, Vocabulary, product_codes, quantile_edges
from freshet.model.parity import make_fixture
from freshet.model.weights import weight_shapes
from freshet.store.columns import F32, I32, I64, Bool
from freshet.store.copurchase import FrozenCounts
from freshet.store.history import History, Lines
from freshet.store.popularity import PopularityConfig, of_history

POPULARITY_MIN = 0.01
"""Less than this is no popularity."""

RIDGE_STEPS = 20
"""Steps of conjugate gradients: words need no more to be told apart."""

SPREAD_SAMPLE = 1024
"""Users and products whose cosines are looked at."""


@dataclass(frozen=True)
class DayZeroConfig:
    """`interactions_min`: purchases and views from which a product has an id row of its own (with less, only its
    attributes speak for it). `item_power`: how far popular products are toned down in the matrix (0 not at all).
    `ridge`: singular directions of which less than its root is known count little. `spectrum_power`: weight of the
    leading ones in a user. `popularity_weight`: of a level of popularity, in standard deviations of the cosines.
    `shrinkage`: how many products without any vector each attribute's mean counts in; `id_shrinkage`: how many
    interactions its attributes count for against a product's own vector. `co_purchased_share`: what a product takes of
    its partners. `views_share`: what a view counts against a purchase. `partners_max`: frozen partners kept a product.
    `seed`: of everything random.
    """

    interactions_min: int = 2
    item_power: float = 0.15
    ridge: float = 300.0
    spectrum_power: float = 0.25
    popularity_weight: float = 1.35
    shrinkage: float = 3.0
    id_shrinkage: float = 3.0
    co_purchased_share: float = 0.1
    views_share: float = 0.3
    partners_max: int = 64
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
    config = config or TowerConfig()
    features = features or FeatureConfig()
    if config.activation != "normalise":
        raise ValueError("a day-zero bundle propagates directions: TowerConfig.activation must be 'normalise'")
    if cut_ms is None:
        cut_ms = (history.span_ms or (0, 0))[1]
    vocabulary = vocabulary_of(history, cut_ms, settings.interactions_min, features)
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


def vocabulary_of(
    history: History, cut_ms: int, interactions_min: int, features: FeatureConfig | None = None
) -> Vocabulary:
    """Products with at least `interactions_min` purchases and views up to the cut, most of them first, and bucket
    borders."""
    features = features or FeatureConfig()
    count = interactions_until(history, cut_ms)
    rows = np.lexsort((history.products.hash, -count))
    rows = rows[count[rows] >= interactions_min]
    ids = [name for name in history.products.names(rows.astype(np.int32)) if name is not None]
    prices = [a.price for a in history.product_attributes.take(_all(history)) if a and a.price is not None]
    users = np.arange(len(history.users), dtype=np.int32)
    signups = [a.signup_day for a in history.user_attributes.take(users) if a and a.signup_day is not None]
    return Vocabulary(
        {p: i + 1 for i, p in enumerate(ids)},
        quantile_edges(prices, features.price_buckets),
        quantile_edges(signups, features.signup_buckets),
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
    """All weights of a bundle: the attribute and id tables, and layers that propagate.

    One coordinate, which users do not read, brings what the tables say of a product to length one: the less they
    know of it, the less its cosines stand out.
    """
    rng = np.random.default_rng(settings.seed)
    shapes = weight_shapes(config, features, len(vocabulary.row_of) + 1)
    weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    wide = config.dim - (config.popularity is not None) - 1
    taste = np.ones(wide, dtype=np.float32)
    known = np.flatnonzero(codes.id > 0)
    if known.shape[0]:
        matrix = _matrix(history, settings, cut_ms)
        vector, taste = _singular_directions(matrix, settings, wide)
        count = interactions_until(history, cut_ms)[known]
        trust = (count / (count + settings.id_shrinkage)).astype(np.float32)
        placed = _explain(weights, codes.take(known.astype(np.int32)), vector[known], trust, settings.shrinkage)
        unsure = np.sqrt(np.maximum(1.0 - (placed**2).sum(axis=1), 0.0))
        weights["product.id"][codes.id[known], wide] = unsure
        weights["product.id"][0, wide] = 1.0
        if config.popularity is not None:
            weights["popularity.weight"][:] = settings.popularity_weight * _spread(
                matrix, vector, taste, known, settings
            )
    _jitter(weights, rng, wide)
    _propagating_layers(weights, config, settings, taste)
    return weights


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


def interactions_until(history: History, cut_ms: int) -> I64:
    """Purchases and views of each product up to the cut that were not cancelled, [products] int64."""
    parts = [lines.product[_counts(lines, cut_ms)] for lines in (history.purchases, history.views)]
    return np.bincount(np.concatenate(parts), minlength=len(history.products))


def _all(history: History) -> I32:
    return np.arange(len(history.products), dtype=np.int32)


def _matrix(history: History, settings: DayZeroConfig, cut_ms: int) -> _Sparse:
    """Users by products up to the cut: 1 for what was bought, `views_share` for what was only viewed, toned down."""
    products = max(1, len(history.products))
    parts = [(history.purchases, 1.0), (history.views, settings.views_share)]
    pair = np.concatenate([_cells(lines.user, lines.product, products)[_counts(lines, cut_ms)] for lines, _ in parts])
    share = np.concatenate([np.full(int(_counts(lines, cut_ms).sum()), s) for lines, s in parts])
    cell, where = np.unique(pair, return_inverse=True)
    value = np.zeros(cell.shape[0])
    np.maximum.at(value, where, share)
    user, product = cell // products, cell % products
    of_product = np.bincount(product, value, minlength=products)
    value /= np.maximum(of_product, 1.0)[product] ** settings.item_power
    if value.shape[0]:
        value *= np.sqrt(np.sum(of_product) / np.sum(value**2))  # so that `ridge` means the same
    return _Sparse(user, product, value.astype(np.float32), (len(history.users), products))


def _singular_directions(matrix: _Sparse, settings: DayZeroConfig, dim: int) -> tuple[F32, F32]:
    """Rows of V at length one, [products, dim], and the weight of each direction in a user, [dim], at most 1."""
    users, products = matrix.shape
    draw = torch.Generator().manual_seed(settings.seed)
    rank = min(dim + 16, users, products)
    basis = torch.linalg.qr(matrix @ torch.randn(products, rank, generator=draw))[0]
    for _ in range(4):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.transposed @ basis)[0])[0]
    left, sigma, _ = torch.linalg.svd(matrix.transposed @ basis, full_matrices=False)
    kept = min(dim, rank)
    vector = np.zeros((products, dim), dtype=np.float32)
    vector[:, :kept] = fn.normalize(left[:, :kept], dim=1).numpy()
    energy = sigma[:kept].numpy() ** 2
    weight = energy / (energy + settings.ridge) * energy**settings.spectrum_power
    taste = np.zeros(dim, dtype=np.float32)
    taste[:kept] = weight / max(float(weight.max()), 1e-12)
    return vector, taste


def _spread(matrix: _Sparse, vector: F32, taste: F32, known: NDArray[np.int64], settings: DayZeroConfig) -> float:
    """Standard deviation of the cosines of some users and products."""
    user = fn.normalize((matrix @ torch.from_numpy(vector)) * torch.from_numpy(taste), dim=1)
    rng = np.random.default_rng(settings.seed)
    rows = rng.permutation(user.shape[0])[:SPREAD_SAMPLE]
    some = torch.from_numpy(vector[rng.permutation(known)[:SPREAD_SAMPLE]])
    return float((user[torch.from_numpy(rows)] @ some.T).std(correction=0))


class _Sparse:
    """A sparse matrix, of cells sorted by row and column: `self @ dense`."""

    def __init__(self, row: I64, column: I64, value: F32, shape: tuple[int, int]) -> None:
        self.shape, self._cells = shape, (row, column, value)
        sizes = np.bincount(row, minlength=shape[0])
        self._offset = torch.from_numpy(np.cumsum(sizes) - sizes)
        self._column, self._value = torch.from_numpy(column), torch.from_numpy(value)

    @cached_property
    def transposed(self) -> _Sparse:
        row, column, value = self._cells
        order = np.lexsort((row, column))
        return _Sparse(column[order], row[order], value[order], self.shape[::-1])

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        return fn.embedding_bag(self._column, dense, self._offset, mode="sum", per_sample_weights=self._value)


def _cells(user: I32, product: I32, products: int) -> I64:
    return user.astype(np.int64) * products + product


def _counts(lines: Lines, cut_ms: int) -> Bool:
    inside: Bool = (lines.time <= cut_ms) & (lines.flag == 0)
    return inside


def _explain(weights: Mapping[str, F32], codes: ProductCodes, vector: F32, trust: F32, shrinkage: float) -> F32:
    """Spread `vector` [n, d] over the tables: each takes the shrunken mean of what is left, words and description
    by ridge regression, and the id the share `trust` [n] of the rest; writes `weights`, returns the sums [n, d]."""
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
    if codes.description is not None and codes.described is not None and codes.described.any():
        given, rest = codes.description[codes.described], left[codes.described]
        ridge = (shrinkage / given.shape[1]) * np.eye(given.shape[1], dtype=np.float32)
        found = np.linalg.solve(given.T @ given + ridge, given.T @ rest).astype(np.float32)
        weights["product.description"][:, :wide] = found
        left[codes.described] -= given @ found
    row, place = np.nonzero(codes.token >= 0)
    if row.shape[0]:
        share = 1.0 / np.bincount(row, minlength=left.shape[0])[row]
        used, column = np.unique(codes.token[row, place], return_inverse=True)  # the others get nothing
        words = _Sparse(row, column, share.astype(np.float32), (left.shape[0], used.shape[0]))
        found = _ridge(words, torch.from_numpy(left), shrinkage).numpy()
        weights["product.token"][used, :wide] += found
        left -= (words @ torch.from_numpy(found)).numpy()
    own = left * trust[:, None]
    weights["product.id"][codes.id, :wide] = own
    return vector - left + own


def _ridge(matrix: _Sparse, target: torch.Tensor, penalty: float) -> torch.Tensor:
    """The w [columns, d] of least |matrix w - target|^2 + penalty |w|^2, by conjugate gradients (Hestenes and Stiefel
    1952), every column of `target` [rows, d] on its own."""
    found = torch.zeros(matrix.shape[1], target.shape[1])
    rest = matrix.transposed @ target
    step, size = rest.clone(), (rest * rest).sum(dim=0)
    for _ in range(RIDGE_STEPS):
        curved = matrix.transposed @ (matrix @ step) + penalty * step
        rate = size / (step * curved).sum(dim=0).clamp_min(1e-12)
        found, rest = found + rate * step, rest - rate * curved
        after = (rest * rest).sum(dim=0)
        step, size = rest + after / size.clamp_min(1e-12) * step, after
    return found


def _grouped(code: I32, rows: F32, size: int) -> F32:
    out = torch.zeros(size, rows.shape[1])
    out.index_add_(0, torch.from_numpy(code.astype(np.int64)), torch.from_numpy(np.ascontiguousarray(rows)))
    return out.numpy()


def _jitter(weights: Mapping[str, F32], rng: np.random.Generator, wide: int) -> None:
    """Small random vectors in the attribute tables, so that values never seen in training differ."""
    typical = float(np.abs(weights["product.id"][1:, :wide]).mean()) if weights["product.id"].shape[0] > 1 else 1.0
    for name in ("product.category", "product.brand", "product.price", "product.token"):
        table = weights[name]
        unseen = np.flatnonzero(~table.any(axis=1))
        table[unseen, :wide] = 0.1 * typical * rng.standard_normal((unseen.shape[0], wide))
    if "product.description" in weights and not weights["product.description"].any():
        rows = weights["product.description"]
        rows[:, :wide] = 0.1 * typical * rng.standard_normal((rows.shape[0], wide)) / np.sqrt(rows.shape[0])


def _propagating_layers(weights: Mapping[str, F32], config: TowerConfig, settings: DayZeroConfig, taste: F32) -> None:
    """Scaled identities: a user is what they bought (and viewed), a product is itself and a little of its partners."""
    one = np.eye(config.dim, dtype=np.float32)
    read = np.zeros_like(one)
    read[np.arange(taste.shape[0]), np.arange(taste.shape[0])] = taste
    own = {"user.inner.self.product", "item.inner.self.product", "item.outer.self.product"}
    shares = {
        "user.outer.purchased": read,
        "user.outer.viewed": settings.views_share * read,
        "user.outer.has_session": settings.views_share * read,
        "user.inner.contains": one,
        "item.outer.co_purchased": settings.co_purchased_share * one,
    }
    for name in own & weights.keys():
        weights[name][:] = one
    for name in shares.keys() & weights.keys():
        weights[name][:] = shares[name]
