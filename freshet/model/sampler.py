"""Mini-batches around training edges, with no neighbour newer than the edge that is predicted.

A batch is a run of edges that are contiguous in time. A seed user's own lists end strictly before the
seed's own time, so an order's lines never see each other. Everything else (the second hop, and the item
tower's whole side) ends strictly before the oldest seed of the batch, so that its nodes can be shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.loader import LinkLoader
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    HeteroSamplerOutput,
    NegativeSampling,
    NodeSamplerInput,
)

from freshet.model.config import FeatureConfig, TowerConfig
from freshet.model.features import ProductCodes, UserCodes, session_codes
from freshet.model.neighborhood import EdgeType, Neighborhood, Walk, named_devices, walk
from freshet.model.towers import LAYERS, ROLES, edge_types
from freshet.store.columns import F32, I32, I64
from freshet.store.history import History, PairHistory
from freshet.store.lists import Block, Gather
from freshet.store.sessions import SessionBlock

SEED_EDGE = ("user", "buys", "item")
"""The edge type of the seeds."""


@dataclass(frozen=True)
class Seeds:
    """Training edges in order of time: `user`, `product` [n] int32, `time` [n] ms, `weight` [n] float32."""

    user: I32
    product: I32
    time: I64
    weight: F32

    @staticmethod
    def of(history: History, after_ms: int, until_ms: int, view_weight: float = 0.2) -> Seeds:
        """Purchases, and views of weight `view_weight`, with `after_ms < time <= until_ms`, not cancelled."""
        parts = []
        for lines, weight in ((history.purchases, 1.0), (history.views, view_weight)):
            inside = (lines.time > after_ms) & (lines.time <= until_ms) & (lines.flag == 0)
            chosen = lines.take(inside) if weight > 0 else lines.take(inside & False)
            parts.append((chosen.user, chosen.product, chosen.time, np.full(chosen.user.shape[0], weight, np.float32)))
        user, product, time, weights = (np.concatenate(c) for c in zip(*parts, strict=True))
        order = np.lexsort((product, user, time))
        return Seeds(user[order], product[order], time[order], weights[order])

    def __len__(self) -> int:
        return int(self.user.shape[0])


class HistoryReader:
    """Lists as they stood: the targets' (role `user`) before `target_ms` [q], all others before `oldest_ms`."""

    def __init__(self, history: History, pairs: PairHistory, target_ms: I64, oldest_ms: int) -> None:
        self.history, self.pairs = history, pairs
        self.target_ms, self.oldest_ms = target_ms, oldest_ms

    def block(self, role: str, relation: str, nodes: I32, gather: Gather) -> Block:
        before = self.target_ms if role == "user" else np.full(nodes.shape[0], self.oldest_ms, dtype=np.int64)
        if relation == "co_purchased":
            return self.pairs.top(nodes, before, gather.num_neighbors)
        h = self.history
        lists = {
            "purchased": h.purchased,
            "viewed": h.viewed,
            "purchased_by": h.purchased_by,
            "viewed_by": h.viewed_by,
        }
        return lists[relation].recent(nodes, before, gather)

    def sessions(self, users: I32, num_sessions: int, num_items: int) -> SessionBlock:
        return self.history.sessions.recent(users, self.target_ms, num_sessions, num_items)

    def device_names(self, devices: I32) -> Sequence[str | None]:
        return named_devices(self.history.devices.all_names(), devices)


@dataclass(frozen=True)
class NegativePool:
    """Products drawn for a whole batch: `draws` times by `share` [products] (popularity to a power), of
    which each positive gets `each`."""

    share: np.ndarray
    draws: int
    each: int

    @staticmethod
    def of(count: I64, power: float, draws: int, each: int) -> NegativePool:
        """Products never bought are drawn as if bought half a time, so that cold ones are pushed apart, too."""
        weight = np.maximum(count, 0.5) ** power
        return NegativePool(weight / weight.sum(), draws, each)


class TemporalSampler(BaseSampler):  # type: ignore[misc]
    """PyG's sampler over a `History`. Draws depend on `seed`, `epoch` and the batch's first edge alone."""

    def __init__(
        self, history: History, pairs: PairHistory, config: TowerConfig, pool: NegativePool, bought: F32, seed: int
    ) -> None:
        self.history, self.pairs, self.config, self.pool = history, pairs, config, pool
        self.bought = bought / max(1e-9, float(bought.sum()))
        self.seed, self.epoch = seed, 0
        self._cumulative = np.cumsum(pool.share)

    @property
    def edge_permutation(self) -> None:
        return None

    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: Any) -> HeteroSamplerOutput:
        """Not offered: training starts from edges."""
        raise NotImplementedError("sample from edges: the sampler predicts interactions")

    def sample_from_edges(
        self, inputs: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> HeteroSamplerOutput:
        """The neighbourhood of a batch. Raises ValueError when the seeds carry no time, or when PyG is to
        draw the negatives (the pool does)."""
        if inputs.time is None or neg_sampling is not None:
            raise ValueError("seeds need edge_label_time, and negatives come from the sampler's own pool")
        user, product, time = inputs.row.numpy(), inputs.col.numpy(), inputs.time.numpy()
        rng = np.random.default_rng([self.seed, self.epoch, int(inputs.input_id.min())])
        asked, query = np.unique(np.stack([time, user], axis=1), axis=0, return_inverse=True)
        drawn = np.searchsorted(self._cumulative, rng.random(self.pool.draws) * self._cumulative[-1])
        drawn = np.minimum(drawn, self._cumulative.shape[0] - 1)
        items = np.unique(np.concatenate([product, drawn])).astype(np.int32)
        reader = HistoryReader(self.history, self.pairs, asked[:, 0].copy(), int(time.min()))
        found = walk(reader, self.config, asked[:, 1].astype(np.int32), items, len(self.history.products))
        negative = rng.choice(np.searchsorted(items, drawn), (product.shape[0], self.pool.each))
        edge_label_index = np.stack([query.reshape(-1), np.searchsorted(items, product)])
        batch = {
            "walk": found,
            "negative": torch.from_numpy(negative),
            "log_q": torch.from_numpy(self._log_inclusion(items, product.shape[0])),
        }
        return _sampler_output(found, inputs, torch.from_numpy(edge_label_index), batch)

    def _log_inclusion(self, items: I32, seeds: int) -> F32:
        """Log of the chance of each item to be a candidate in a batch of `seeds` edges, [n] float32."""
        expected = self.pool.draws * self.pool.share[items] + seeds * self.bought[items]
        found: F32 = np.log(np.maximum(-np.expm1(-expected), 1e-12)).astype(np.float32)
        return found


class TemporalLoader(LinkLoader):  # type: ignore[misc]
    """PyG's `LinkLoader` over contiguous runs of seeds, the runs in the order given by `batches`.

    Each batch is a `HeteroData` of the roles (see `Neighborhood`) with `edge_weight` on every edge type and,
    on `SEED_EDGE`, `edge_label_index` [2, n], `edge_label` (weights), `negative` [n, each], and `log_q` on
    `item`.
    """

    def __init__(self, seeds: Seeds, sampler: TemporalSampler, batches: Sequence[I64]) -> None:
        super().__init__(
            _skeleton(sampler.config, sampler.history),
            sampler,
            edge_label_index=(SEED_EDGE, torch.from_numpy(np.stack([seeds.user, seeds.product]).astype(np.int64))),
            edge_label=torch.from_numpy(seeds.weight),
            edge_label_time=torch.from_numpy(seeds.time),
            batch_sampler=batches,
        )

    def filter_fn(self, out: HeteroSamplerOutput) -> HeteroData:
        data = super().filter_fn(out)
        batch = out.metadata[4]
        found: Walk = batch["walk"]
        for edge_type, (_, _, weight) in found.edge.items():
            data[edge_type].edge_weight = torch.from_numpy(weight)
        for role, place in found.origin.items():
            data[role].origin = torch.from_numpy(place)
        data["session"].device, data["session"].duration_s = found.device, found.duration_s
        data[SEED_EDGE].negative, data["item"].log_q = batch["negative"], batch["log_q"]
        return data


def time_runs(seeds: int, batch_size: int, rng: np.random.Generator, shuffle: bool = True) -> list[I64]:
    """Cut seeds 0..n, sorted by time, into runs of `batch_size` and shuffle the runs, never the edges."""
    offset = int(rng.integers(batch_size)) if seeds > batch_size else 0
    borders = [0, *range(offset, seeds, batch_size), seeds]
    runs = [np.arange(a, b) for a, b in pairwise(borders) if b > a]
    return [runs[i] for i in rng.permutation(len(runs))] if shuffle else runs


def batch_neighborhood(
    data: HeteroData, products: ProductCodes, users: UserCodes, features: FeatureConfig
) -> Neighborhood:
    """What the towers read of a loader's batch; `products` and `users` hold the codes of every number."""
    kinds = [e for e in data.edge_types if e != SEED_EDGE]
    return Neighborhood(
        {e: data[e].edge_index for e in kinds},
        {e: data[e].edge_weight for e in kinds},
        {role: data[role].origin for role in ("user_product", "item_product", "item")},
        products.take(data["product"].n_id.numpy()),
        users.take(data["user"].n_id.numpy()),
        users.take(data["item_user"].n_id.numpy()),
        session_codes(data["session"].device, data["session"].duration_s, features),
    )


def _sampler_output(
    found: Walk, inputs: EdgeSamplerInput, edge_label_index: Tensor, batch: dict[str, Any]
) -> HeteroSamplerOutput:
    none = torch.empty(0, dtype=torch.long)
    edges: dict[EdgeType, tuple[Tensor, Tensor]] = {
        e: (torch.from_numpy(source), torch.from_numpy(owner)) for e, (source, owner, _) in found.edge.items()
    }
    return HeteroSamplerOutput(
        node={role: torch.from_numpy(ids.astype(np.int64)) for role, ids in found.node.items()},
        row={e: row for e, (row, _) in edges.items()} | {SEED_EDGE: none},
        col={e: col for e, (_, col) in edges.items()} | {SEED_EDGE: none},
        edge=dict.fromkeys([*edges, SEED_EDGE]),
        metadata=(inputs.input_id, edge_label_index, inputs.label, inputs.time, batch),
    )


def _skeleton(config: TowerConfig, history: History) -> HeteroData:
    """Node and edge types without content: features are looked up by id, lists are read from the history."""
    data = HeteroData()
    users, products = len(history.users), len(history.products)
    for role in ("product", "item"):
        data[role].num_nodes = products
    for layer in LAYERS:
        for role, node in ROLES[layer].items():
            data[role].num_nodes = {"user": users, "product": products, "session": 0}[node]
        for edge_type in edge_types(*layer, config):
            data[edge_type].edge_index = torch.empty((2, 0), dtype=torch.long)
    data[SEED_EDGE].edge_index = torch.empty((2, 0), dtype=torch.long)
    return data
