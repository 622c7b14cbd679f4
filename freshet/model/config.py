"""What a bundle says about its towers: dimensions, relations and list lengths. No tensors here.

Each tower is two layers of GraphSAGE over several relations. With `h` a table of node states,

    layer(n) = h[n] @ W_self[type of n] + b[type of n] + sum over relations r of
               (sum over j of weight[n, r, j] * h[nbr[n, r, j]]) @ W_r

The inner layer reads feature vectors `x` and ends in `activation`; the outer layer reads inner states and
ends in L2 normalisation. With `popularity`, the last coordinate of an embedding is not the layer's: it is 1 for
every user, and the product's level of popularity times a learned weight, so that an inner product is
`cosine + weight * level`. The inner layer reads products only (a product's users would bring it their
profiles and nothing else, and cost a ripple for each of their changes). `user` lists are purchased, viewed,
has_session; `product` lists are co_purchased, purchased_by, viewed_by; a session's list is `contains`. A
relation that is not named is not read, and costs nothing when it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from freshet.store.lists import Gather
from freshet.store.popularity import PopularityConfig

Reads = Mapping[str, Gather]
"""Relation -> how it is read. For has_session, `num_neighbors` sessions; for contains, items a session."""

NODE_OF_RELATION = {
    "purchased": "user",
    "viewed": "user",
    "has_session": "user",
    "co_purchased": "product",
    "purchased_by": "product",
    "viewed_by": "product",
    "contains": "session",
}
"""The node type that owns each relation's lists."""

NEIGHBOR_OF_RELATION = {
    "purchased": "product",
    "viewed": "product",
    "has_session": "session",
    "co_purchased": "product",
    "purchased_by": "user",
    "viewed_by": "user",
    "contains": "product",
}
"""The node type that each relation's lists name."""

DAY_MS = 86_400_000


@dataclass(frozen=True)
class LayerReads:
    """The relations a tower reads in its outer layer (from the target) and its inner layer (everywhere else).

    In the inner layer of the user tower, users are read themselves, too (their own first-layer state);
    in that of the item tower, products.
    """

    outer: Reads
    inner: Reads


def _user_tower() -> LayerReads:
    """What earns its keep on validation data (`docs/decisions/towers.md`)."""
    return LayerReads(
        outer={
            "purchased": Gather(100, distinct=True),
            "viewed": Gather(20, half_life_ms=30 * DAY_MS, distinct=True),
        },
        inner={},
    )


def _item_tower() -> LayerReads:
    return LayerReads(outer={"co_purchased": Gather(20)}, inner={})


@dataclass(frozen=True)
class TowerConfig:
    """`dim` of every state and of the embeddings, the activation of the inner layer, what is read, and how
    popularity enters (None: not at all)."""

    dim: int = 128
    activation: Literal["normalise", "relu", "none"] = "normalise"
    user: LayerReads = field(default_factory=_user_tower)
    item: LayerReads = field(default_factory=_item_tower)
    popularity: PopularityConfig | None = field(default_factory=PopularityConfig)

    def reads(self, tower: Literal["user", "item"], layer: Literal["outer", "inner"], node: str) -> Reads:
        """What nodes of type `node` read in one layer of one tower."""
        layers = self.user if tower == "user" else self.item
        chosen = layers.outer if layer == "outer" else layers.inner
        return {r: g for r, g in chosen.items() if NODE_OF_RELATION[r] == node}


@dataclass(frozen=True)
class FeatureConfig:
    """How attributes become codes; code 0 of every table is "absent" and has a learned vector of its own."""

    category_levels: int = 4
    category_buckets: int = 8192
    brand_buckets: int = 4096
    price_buckets: int = 32
    tokens_max: int = 12
    token_buckets: int = 16384
    description_dim: int = 0
    age_buckets: int = 64
    geo_buckets: int = 1024
    signup_buckets: int = 64
    device_buckets: int = 64
    duration_buckets: int = 16
