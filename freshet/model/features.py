"""Attributes to feature codes, and codes to feature vectors. NumPy only: a serving process reads this, too.

A code is a row of one of the bundle's tables. Row 0 of every table stands for "absent" and has a learned
vector of its own. Strings are hashed (xxh3), so codes are the same in every process and on every machine
and a value never seen in training still has a row.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from freshet.model.config import FeatureConfig
from freshet.store.columns import F32, I32, I64, Bool, ProductAttributes, UserAttributes
from freshet.store.lists import grown

Weights = Mapping[str, F32]

NOTHING = -1
"""A code that adds nothing to the sum (not the same as row 0, "absent", which is learned)."""

PATH_SEPARATOR = "\x1f"

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Vocabulary:
    """What the features need to know of the training data.

    `row_of` maps a product id to its row of `product.id` (1 and up; every other product has row 0).
    `price_edges` and `signup_edges` (days since the epoch) are increasing bucket borders, at most the
    number of buckets less 2.
    """

    row_of: Mapping[str, int] = field(default_factory=dict)
    price_edges: tuple[float, ...] = ()
    signup_edges: tuple[float, ...] = ()


@dataclass(frozen=True)
class ProductCodes:
    """Codes of n products, int32: `category` [n, levels] and `token` [n, tokens] (-1 adds nothing), `brand`,
    `price`, `id` [n]. `description` [n, dim] float32 and `described` [n] bool, None when the bundle has
    no description vectors."""

    category: I32
    brand: I32
    price: I32
    token: I32
    id: I32
    description: F32 | None = None
    described: Bool | None = None

    def __len__(self) -> int:
        return int(self.id.shape[0])

    def take(self, rows: I32 | slice) -> ProductCodes:
        """The codes of some of the products."""
        return ProductCodes(
            self.category[rows], self.brand[rows], self.price[rows], self.token[rows], self.id[rows],
            None if self.description is None else self.description[rows],
            None if self.described is None else self.described[rows],
        )  # fmt: skip


@dataclass(frozen=True)
class UserCodes:
    """Codes of n users, int32 [n] each."""

    age: I32
    geo: I32
    signup: I32

    def take(self, rows: I32 | slice) -> UserCodes:
        """The codes of some of the users."""
        return UserCodes(self.age[rows], self.geo[rows], self.signup[rows])

    def joint(self) -> I64:
        """One number a user, [n] int64: the same for the same codes. Tables have 2^21 rows at the most."""
        joint: I64 = (self.age.astype(np.int64) << 42) | (self.geo.astype(np.int64) << 21) | self.signup
        return joint

    @staticmethod
    def absent(n: int) -> UserCodes:
        """The codes of n users without a profile."""
        return UserCodes(*(np.zeros(n, dtype=np.int32) for _ in range(3)))

    def grown(self, n: int) -> UserCodes:
        """With room for n users at least; the new ones have no profile."""
        return UserCodes(grown(self.age, n), grown(self.geo, n), grown(self.signup, n))

    def put(self, rows: I32, codes: UserCodes) -> None:
        """Write the codes of some of the users."""
        self.age[rows], self.geo[rows], self.signup[rows] = codes.age, codes.geo, codes.signup


@dataclass(frozen=True)
class SessionCodes:
    """Codes of n sessions, int32 [n] each."""

    device: I32
    duration: I32


def hashed(text: str, buckets: int) -> int:
    """A row of a table with `buckets` rows, never row 0."""
    return 1 + xxhash.xxh3_64_intdigest(text.encode()) % (buckets - 1)


def tokens(description: str, most: int) -> list[str]:
    """The first `most` distinct lower-cased words of a description, in order."""
    return list(dict.fromkeys(_WORD.findall(description.lower())))[:most]


def quantile_edges(values: Sequence[float], buckets: int) -> tuple[float, ...]:
    """Borders that put about as many of `values` in each of `buckets` - 1 buckets (row 0 is "absent")."""
    if not len(values):
        return ()
    at = np.linspace(0, 1, buckets)[1:-1]
    return tuple(float(v) for v in np.unique(np.quantile(np.asarray(values, dtype=np.float64), at)))


def product_codes(
    ids: Sequence[str | None],
    attributes: Sequence[ProductAttributes | None],
    features: FeatureConfig,
    vocabulary: Vocabulary,
) -> ProductCodes:
    """Codes of n products. Attributes may be None (never in the catalogue, or withdrawn): all absent.

    A `description_emb` of another length than `description_dim` counts as absent.
    """
    n = len(ids)
    category = np.full((n, features.category_levels), NOTHING, dtype=np.int32)
    token = np.full((n, features.tokens_max), NOTHING, dtype=np.int32)
    brand, price = np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)
    category[:, 0] = token[:, 0] = 0
    width = features.description_dim
    description = np.zeros((n, width), dtype=np.float32) if width else None
    described = np.zeros(n, dtype=np.bool_) if width else None
    of_path: dict[tuple[str, ...], list[int]] = {}
    of_word: dict[str, int] = {}
    of_brand: dict[str, int] = {}
    for i, a in enumerate(attributes):
        if a is None:
            continue
        if a.category:
            if a.category not in of_path:
                of_path[a.category] = _path_codes(a.category, features)
            found = of_path[a.category]
            category[i, : len(found)] = found
        if a.brand is not None:
            if a.brand not in of_brand:
                of_brand[a.brand] = hashed(a.brand, features.brand_buckets)
            brand[i] = of_brand[a.brand]
        if a.price is not None:
            price[i] = _bucket(a.price, vocabulary.price_edges, features.price_buckets)
        if a.description:
            for j, word in enumerate(tokens(a.description, features.tokens_max)):
                if word not in of_word:
                    of_word[word] = hashed(word, features.token_buckets)
                token[i, j] = of_word[word]
        if description is not None and described is not None and a.description_emb is not None:
            if len(a.description_emb) == width:
                description[i] = a.description_emb
                described[i] = True
    row_of = vocabulary.row_of
    row = np.fromiter((row_of.get(p, 0) if p is not None else 0 for p in ids), dtype=np.int32, count=n)
    return ProductCodes(category, brand, price, token, row, description, described)


def user_codes(
    attributes: Sequence[UserAttributes | None], features: FeatureConfig, vocabulary: Vocabulary
) -> UserCodes:
    """Codes of n users; None means that no profile is known."""
    n = len(attributes)
    age, geo, signup = (np.zeros(n, dtype=np.int32) for _ in range(3))
    for i, a in enumerate(attributes):
        if a is None:
            continue
        if a.age_bucket is not None:
            age[i] = hashed(a.age_bucket, features.age_buckets)
        if a.geo is not None:
            geo[i] = hashed(a.geo, features.geo_buckets)
        if a.signup_day is not None:
            signup[i] = _bucket(a.signup_day, vocabulary.signup_edges, features.signup_buckets)
    return UserCodes(age, geo, signup)


def session_codes(devices: Sequence[str | None], duration_s: F32, features: FeatureConfig) -> SessionCodes:
    """Codes of n sessions: the device's name, and the duration in powers of two of a second (NaN absent)."""
    device = np.fromiter(
        (0 if d is None else hashed(d, features.device_buckets) for d in devices),
        dtype=np.int32,
        count=len(devices),
    )
    known = ~np.isnan(duration_s)
    power = np.log2(1.0 + np.where(known, duration_s, 0.0)).astype(np.int32)
    duration = np.where(known, 1 + np.minimum(power, features.duration_buckets - 2), 0).astype(np.int32)
    return SessionCodes(device, duration)


def embed_products(weights: Weights, codes: ProductCodes) -> F32:
    """Feature vectors of n products, [n, D] float32."""
    x = weights["product.brand"][codes.brand] + weights["product.price"][codes.price]
    x += weights["product.id"][codes.id]
    for level in range(codes.category.shape[1]):
        _add_rows(x, weights["product.category"], codes.category[:, level], None)
    share = 1.0 / np.maximum(1, (codes.token >= 0).sum(axis=1)).astype(np.float32)
    for place in range(codes.token.shape[1]):
        _add_rows(x, weights["product.token"], codes.token[:, place], share)
    if codes.description is not None and codes.described is not None:
        absent = weights["product.description_absent"]
        x += np.where(codes.described[:, None], codes.description @ weights["product.description"], absent)
    return np.ascontiguousarray(x, dtype=np.float32)


def embed_users(weights: Weights, codes: UserCodes) -> F32:
    """Feature vectors of n users, [n, D] float32."""
    return weights["user.age"][codes.age] + weights["user.geo"][codes.geo] + weights["user.signup"][codes.signup]


def embed_sessions(weights: Weights, codes: SessionCodes) -> F32:
    """Feature vectors of n sessions, [n, D] float32."""
    return weights["session.device"][codes.device] + weights["session.duration"][codes.duration]


def table_rows(features: FeatureConfig, id_rows: int) -> dict[str, int]:
    """Rows of every feature table (all are [rows, D]); `id_rows` counts row 0."""
    rows = {
        "product.category": features.category_buckets,
        "product.brand": features.brand_buckets,
        "product.price": features.price_buckets,
        "product.token": features.token_buckets,
        "product.id": id_rows,
        "user.age": features.age_buckets,
        "user.geo": features.geo_buckets,
        "user.signup": features.signup_buckets,
        "session.device": features.device_buckets,
        "session.duration": features.duration_buckets,
    }
    if features.description_dim:
        rows["product.description"] = features.description_dim
    return rows


def _path_codes(path: tuple[str, ...], features: FeatureConfig) -> list[int]:
    return [
        hashed(PATH_SEPARATOR.join(path[: level + 1]), features.category_buckets)
        for level in range(min(len(path), features.category_levels))
    ]


def _bucket(value: float, edges: tuple[float, ...], buckets: int) -> int:
    if math.isnan(value):
        return 0
    return min(buckets - 1, 1 + bisect_right(edges, value))


def _add_rows(x: F32, table: F32, code: I32, share: F32 | None) -> None:
    """Add `table[code]` (times `share` [n]) where there is a code; writes `x`."""
    where = np.flatnonzero(code >= 0)
    if where.shape[0]:
        rows = table[code[where]]
        x[where] += rows if share is None else rows * share[where, None]
