"""A bundle with random weights: every table and matrix that its configuration calls for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from freshet.model.bundle import Bundle, FrozenPairs
from freshet.model.config import FeatureConfig, LayerReads, TowerConfig
from freshet.model.features import Vocabulary, table_rows
from freshet.store.lists import Gather
from freshet.store.popularity import PopularityConfig

FEATURES = FeatureConfig(
    category_buckets=64, brand_buckets=32, price_buckets=8, token_buckets=64, geo_buckets=16, description_dim=4
)

ALL_READS = TowerConfig(
    dim=16,
    activation="relu",
    popularity=PopularityConfig(half_life_ms=40, tick_ms=7, view_weight=0.5, steps=64),
    user=LayerReads(
        outer={
            "purchased": Gather(4, half_life_ms=50.0),
            "viewed": Gather(3, weigh_value=True),
            "has_session": Gather(2),
        },
        inner={
            "purchased": Gather(4, half_life_ms=50.0),
            "viewed": Gather(2),
            "contains": Gather(3),
            "co_purchased": Gather(3),
        },
    ),
    item=LayerReads(
        outer={"co_purchased": Gather(3), "purchased_by": Gather(4, half_life_ms=20.0), "viewed_by": Gather(2)},
        inner={"co_purchased": Gather(2), "purchased": Gather(3, weigh_value=True), "viewed": Gather(3)},
    ),
)
"""Every relation in every place where one may stand."""

OF_SHARDS = replace(
    ALL_READS,
    user=LayerReads(ALL_READS.user.outer, {r: g for r, g in ALL_READS.user.inner.items() if r != "co_purchased"}),
    item=LayerReads(ALL_READS.item.outer, {r: g for r, g in ALL_READS.item.inner.items() if r != "co_purchased"}),
)
"""Every relation but those by which a product's state would read what may be in another shard."""

LAYERS = (
    ("user", "outer", ("user",)),
    ("user", "inner", ("user", "product", "session")),
    ("item", "outer", ("product",)),
    ("item", "inner", ("product", "user")),
)


def random_bundle(
    seed: int = 0,
    config: TowerConfig = ALL_READS,
    features: FeatureConfig = FEATURES,
    products: tuple[str, ...] = (),
    pairs: FrozenPairs | None = None,
    cut_ms: int = -1,
) -> Bundle:
    """`products` get rows of their own in the id table."""
    rng = np.random.default_rng(seed)
    dim = config.dim

    def table(*shape: int) -> np.ndarray:
        return rng.normal(0, 1 / np.sqrt(shape[0] if shape[0] == dim else 4), shape).astype(np.float32)

    weights = {name: table(rows, dim) for name, rows in table_rows(features, len(products) + 1).items()}
    if features.description_dim:
        weights["product.description_absent"] = table(dim)
    if config.popularity is not None:
        weights["popularity.weight"] = np.array([0.1], dtype=np.float32)
    for tower, layer, nodes in LAYERS:
        for node in nodes:
            weights[f"{tower}.{layer}.self.{node}"] = table(dim, dim)
            weights[f"{tower}.{layer}.bias.{node}"] = table(dim) * np.float32(0.1)
            for relation in config.reads(tower, layer, node):  # type: ignore[arg-type]
                weights[f"{tower}.{layer}.{relation}"] = table(dim, dim)
    return Bundle(
        kind="trained",
        config=config,
        features=features,
        weights=weights,
        vocabulary=Vocabulary({p: i + 1 for i, p in enumerate(products)}, (1.0, 5.0, 10.0), (17_000.0, 17_200.0)),
        cut_ms=cut_ms,
        pairs=pairs or FrozenPairs.none(),
        popular=[(product, 2.0 + i) for i, product in enumerate(products)],
    )
