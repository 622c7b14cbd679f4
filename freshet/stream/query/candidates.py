"""The models that a query can be answered with; the only file here that knows how models are made and encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from freshet.model.bundle import Bundle
from freshet.model.config import LayerReads, TowerConfig
from freshet.model.frozen import FrozenTowers
from freshet.store.columns import F32, I32
from freshet.store.graph import GraphStore
from freshet.store.history import History
from freshet.stream.query.plan import Candidate

TABLE_OF_RELATION = {
    "purchased": "purchase",
    "purchased_by": "purchase",
    "co_purchased": "purchase",
    "viewed": "view",
    "viewed_by": "view",
    "has_session": "session",
    "contains": "session",
}
SMALL_DIM = 64

Progress = Callable[[str, float], None]


def candidates(tables: frozenset[str]) -> list[Candidate]:
    """The trained models worth trying with these tables of events that the log has, the most promising first."""
    found = [Candidate("trained towers"), Candidate(f"trained towers, {SMALL_DIM} dimensions", dim=SMALL_DIM)]
    if "purchase" in tables and len(tables) > 1:
        only = Candidate("trained towers that read purchases only", tables=frozenset({"purchase"}))
        found.insert(1, only)
    return found


def fit(
    candidate: Candidate, history: History, tables: frozenset[str], before_ms: int, budget_s: float,
    clock_s: Callable[[], float], progress: Progress,
) -> Bundle:  # fmt: skip
    """A bundle of the events before `before_ms`. Raises ValueError where they are too few."""
    if not candidate.trained:
        from freshet.model.dayzero import dayzero  # torch is loaded when it is needed

        return dayzero(history, cut_ms=before_ms - 1)
    from freshet.model.train import train
    from freshet.model.train_config import TrainConfig

    config = reading(TowerConfig(), tables if candidate.tables is None else tables & candidate.tables)
    if candidate.dim:
        config = replace(config, dim=candidate.dim)
    settings = TrainConfig(time_budget_s=budget_s)
    return train(history, settings, config, split_ms=before_ms, progress=progress, clock_s=clock_s)


def reading(config: TowerConfig, tables: frozenset[str]) -> TowerConfig:
    """The same towers without the relations of other tables."""

    def kept(layers: LayerReads) -> LayerReads:
        outer = {r: g for r, g in layers.outer.items() if TABLE_OF_RELATION[r] in tables}
        inner = {r: g for r, g in layers.inner.items() if TABLE_OF_RELATION[r] in tables}
        return LayerReads(outer=outer, inner=inner)

    return replace(config, user=kept(config.user), item=kept(config.item))


def encode(bundle: Bundle, graph: GraphStore, users: I32, products: I32) -> tuple[F32, F32]:
    """Embeddings of `users` and `products` (numbers of the graph) as the graph has them, by the path that serves."""
    towers = FrozenTowers(bundle, graph)
    return towers.encode_users(users), towers.encode_products(products)


def numbers(graph: GraphStore) -> tuple[I32, I32]:
    """Users that were not forgotten, and products that were not withdrawn."""
    users = [graph.users.get(name) for name in graph.users.all_names()]
    products = np.arange(len(graph.products), dtype=np.int32)
    return np.array(users, dtype=np.int32), products[~graph.is_withdrawn(products)]
