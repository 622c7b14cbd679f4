"""The layers of the towers and the name and shape of every weight they have. No torch: a bundle is checked by this."""

from __future__ import annotations

from typing import Literal

from freshet.model.config import FeatureConfig, Reads, TowerConfig
from freshet.model.features import table_rows

Tower = Literal["user", "item"]
Layer = Literal["outer", "inner"]

ROLES: dict[tuple[Tower, Layer], dict[str, str]] = {
    ("user", "inner"): {"user": "user", "user_product": "product", "session": "session"},
    ("user", "outer"): {"user": "user"},
    ("item", "inner"): {"item_product": "product", "item_user": "user"},
    ("item", "outer"): {"item": "product"},
}
"""The roles that each layer computes, and their node types."""

SOURCE_OF_RELATION: dict[tuple[Tower, Layer], dict[str, str]] = {
    ("user", "inner"): dict.fromkeys(("purchased", "viewed", "co_purchased", "contains"), "product"),
    ("user", "outer"): {"purchased": "user_product", "viewed": "user_product", "has_session": "session"},
    ("item", "inner"): dict.fromkeys(("purchased", "viewed", "co_purchased"), "product"),
    ("item", "outer"): {"co_purchased": "item_product", "purchased_by": "item_user", "viewed_by": "item_user"},
}
"""The role whose states a relation carries into each layer."""

LAYERS: tuple[tuple[Tower, Layer], ...] = (
    ("user", "inner"),
    ("user", "outer"),
    ("item", "inner"),
    ("item", "outer"),
)


def reads_of(tower: Tower, layer: Layer, node: str, config: TowerConfig) -> Reads:
    """What nodes of one type read; relations that the layer has no source for are refused."""
    reads = config.reads(tower, layer, node)
    unknown = set(reads) - set(SOURCE_OF_RELATION[tower, layer])
    if unknown:
        raise ValueError(f"the {layer} layer of the {tower} tower cannot read {', '.join(sorted(unknown))}")
    return reads


def weight_shapes(config: TowerConfig, features: FeatureConfig, id_rows: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a bundle with this configuration."""
    shapes: dict[str, tuple[int, ...]] = {
        name: (rows, config.dim) for name, rows in table_rows(features, id_rows).items()
    }
    if features.description_dim:
        shapes["product.description_absent"] = (config.dim,)
    if config.popularity is not None:
        shapes["popularity.weight"] = (1,)
    for tower, layer in LAYERS:
        for node in ROLES[tower, layer].values():
            shapes[f"{tower}.{layer}.self.{node}"] = (config.dim, config.dim)
            shapes[f"{tower}.{layer}.bias.{node}"] = (config.dim,)
            for relation in reads_of(tower, layer, node, config):
                shapes[f"{tower}.{layer}.{relation}"] = (config.dim, config.dim)
    return shapes
