"""Mini-batches around training edges, with no neighbour newer than the edge that is predicted.

A batch is a run of orders that are contiguous in time. A seed user's own lists end strictly before the
seed's own time, but for a share of the orders a random part of the basket is given and the rest predicted.
Everything else (the second hop, and the item tower's whole side) ends strictly before the oldest seed of the
batch, so that its nodes can be shared.
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

from freshet.model.config import DAY_MS, FeatureConfig, TowerConfig
from freshet.model.features import ProductCodes, UserCodes, session_codes
from freshet.model.neighborhood import EdgeType, Neighborhood, Walk, named_devices, walk
from freshet.model.towers import edge_types
from freshet.model.weights import LAYERS, ROLES
from freshet.store.columns import F32, I32, I64
from freshet.store.history import History, PairHistory, TimedLists
from freshet.store.lists import Block, Gather
from freshet.store.popularity import PopularityConfig, of_history
from freshet.store.sessions import SessionBlock

SEED_EDGE = ("user", "buys", "item")
"""The edge type of the seeds."""


@dataclass(frozen=True)
class Seeds:
    """Training edges sorted by time, then user: `user`, `product` [n] int32, `time` [n] ms, `weight` [n] float32.

    The edges of one user at one time are an *order*. `order_start` [orders + 1] int64.
    """

    user: I32
    product: I32
    time: I64
    weight: F32
    order_start: I64

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
        user, product, time, weights = user[order], product[order], time[order], weights[order]
        first = np.flatnonzero((np.diff(time, prepend=-1) != 0) | (np.diff(user, prepend=-1) != 0))
        return Seeds(user, product, time, weights, np.append(first, user.shape[0]).astype(np.int64))

    def __len__(self) -> int:
        return int(self.user.shape[0])


class PairSnapshots:
    """Co-purchases as they were counted at each of several times, for training to read the last before an edge.

    Counted over the whole of the training time at once they would tell an order its own lines.
    """

    def __init__(self, history: History, cuts_ms: Sequence[int], top_n: int) -> None:
        self._cuts = np.array(cuts_ms, dtype=np.int64)
        self._pairs = [history.pairs_since(f, f.cut_ms) for f in history.freeze_each(cuts_ms, top_n)]

    def before(self, time_ms: int) -> PairHistory:
        """Those of the newest snapshot that holds nothing of `time_ms` or later; the first one if none does."""
        return self._pairs[max(0, int(np.searchsorted(self._cuts, time_ms)) - 1)]


class PopularityHistory:
    """Levels of popularity as they were at any day of a history, [products] float32."""

    def __init__(self, history: History, config: PopularityConfig) -> None:
        self._history, self._config = history, config
        self._known: dict[int, F32] = {}

    def before(self, time_ms: int) -> F32:
        """Levels of what happened before the day of `time_ms`."""
        day = time_ms // DAY_MS
        if day not in self._known:
            self._known[day] = self._config.level(of_history(self._history, day * DAY_MS, self._config))
        return self._known[day]


@dataclass(frozen=True)
class Given:
    """What the targets' lists show besides their past, and what they do not: `shown` [q, g] int32 are products of
    the order itself (-1 empty), `dropout` is the share of entries dropped, drawn by `rng`."""

    shown: I32
    dropout: float
    rng: np.random.Generator

    def purchased(self, lists: TimedLists, users: I32, before_ms: I64, gather: Gather) -> Block:
        """The newest purchases before `before_ms` [q] behind what is shown, as if that had been bought just then."""
        past = lists.recent(users, before_ms, gather)
        if not self.shown.shape[1]:
            return self.thinned(past)
        weight = past.weight / np.maximum(past.weight.max(axis=1, keepdims=True), 1e-12)
        if gather.half_life_ms > 0 and lists.time.shape[0]:
            first, lengths = lists.window(users, before_ms)
            newest = lists.time[np.maximum(first + lengths - 1, 0)]
            weight *= 2.0 ** (-(before_ms - newest) / gather.half_life_ms)[:, None]
        nbr = past.nbr.copy()
        if gather.distinct:  # a loop over what is shown, at most an order's lines
            for column in self.shown.T:
                nbr[(nbr == column[:, None]) & (column >= 0)[:, None]] = -1
        nbr = np.concatenate([self.shown, nbr], axis=1)
        weight = np.concatenate([np.ones(self.shown.shape, np.float32), weight], axis=1)
        order = np.argsort(nbr < 0, axis=1, kind="stable")[:, : gather.num_neighbors]
        return self.thinned(Block(np.take_along_axis(nbr, order, 1), np.take_along_axis(weight, order, 1)))

    def thinned(self, block: Block) -> Block:
        """The block less what is dropped; weights sum to 1 again."""
        kept = block.nbr >= 0
        if self.dropout > 0:
            kept &= self.rng.random(block.nbr.shape, dtype=np.float32) >= self.dropout
        weight = np.where(kept, block.weight, np.float32(0.0)).astype(np.float32)
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
        return Block(np.where(kept, block.nbr, -1).astype(np.int32), weight)


class HistoryReader:
    """Lists as they stood: the targets' (role `user`) before `target_ms` [q], all others before `oldest_ms`.

    With `given` the targets' lists show and drop what it says.
    """

    def __init__(
        self, history: History, pairs: PairHistory, target_ms: I64, oldest_ms: int,
        given: Given | None = None, popularity: PopularityHistory | None = None,
    ) -> None:  # fmt: skip
        self.history, self.pairs, self.given, self.popularity = history, pairs, given, popularity
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
        if role != "user" or self.given is None:
            return lists[relation].recent(nodes, before, gather)
        if relation == "purchased":
            return self.given.purchased(h.purchased, nodes, before, gather)
        return self.given.thinned(lists[relation].recent(nodes, before, gather))

    def sessions(self, users: I32, num_sessions: int, num_items: int) -> SessionBlock:
        return self.history.sessions.recent(users, self.target_ms, num_sessions, num_items)

    def device_names(self, devices: I32) -> Sequence[str | None]:
        return named_devices(self.history.devices.all_names(), devices)

    def levels(self, products: I32) -> F32:
        if self.popularity is None:
            raise ValueError("these towers read popularity: give the reader a PopularityHistory")
        return self.popularity.before(self.oldest_ms)[products]


@dataclass(frozen=True)
class Candidates:
    """The products that a batch's orders are told apart from.

    Full: every product in `products`. Otherwise those the batch buys and `draws` of `products`, each drawn
    with `share` [products] (popularity to a power). For BPR each positive gets `each` of the draws.
    """

    products: I32
    share: F32
    draws: int
    each: int
    full: bool

    @staticmethod
    def of(count: I64, power: float, draws: int, each: int, full_max: int) -> Candidates:
        """`count` [all products]: how often each was bought or viewed; only those that were are candidates."""
        products = np.flatnonzero(count > 0).astype(np.int32)
        weight = count[products] ** power
        share = (weight / max(weight.sum(), 1e-12)).astype(np.float32)
        return Candidates(products, share, draws, each, products.shape[0] <= full_max)


@dataclass(frozen=True)
class Drawn:
    """`items` [t] int32 are a batch's candidates, `log_q` [t] float32 the log of the chance that each is one,
    `negative` [draws] their places in `items`."""

    items: I32
    log_q: F32
    negative: I64


class TemporalSampler(BaseSampler):  # type: ignore[misc]
    """PyG's sampler over a `History`. Draws depend on `seed`, `epoch` and the batch's first edge alone.

    `basket_share`: of the orders of two lines and more, the share of which a random part is given; `dropout`: of
    the entries of the targets' lists, the share that is dropped.
    """

    def __init__(
        self, history: History, pairs: PairSnapshots, config: TowerConfig, candidates: Candidates, bought: F32,
        seed: int, basket_share: float = 0.0, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self.history, self.pairs, self.config, self.candidates = history, pairs, config, candidates
        self.bought = bought / max(1e-9, float(bought.sum()))
        self.seed, self.epoch = seed, 0
        self.basket_share, self.dropout = basket_share, dropout
        self.popularity = PopularityHistory(history, config.popularity) if config.popularity else None
        self._cumulative = np.cumsum(candidates.share, dtype=np.float64)

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
        draw the negatives (the sampler does)."""
        if inputs.time is None or neg_sampling is not None:
            raise ValueError("seeds need edge_label_time, and negatives come from the sampler's own candidates")
        user, product, time = inputs.row.numpy(), inputs.col.numpy(), inputs.time.numpy()
        rng = np.random.default_rng([self.seed, self.epoch, int(inputs.input_id.min())])
        asked, query = np.unique(np.stack([time, user], axis=1), axis=0, return_inverse=True)
        query = query.reshape(-1)
        held, given = self._split(query, product, rng)
        query, product = query[held], product[held]
        drawn = self._draw(product, rng)
        reader = HistoryReader(
            self.history, self.pairs.before(int(time.min())), asked[:, 0].copy(), int(time.min()), given,
            self.popularity,
        )  # fmt: skip
        found = walk(reader, self.config, asked[:, 1].astype(np.int32), drawn.items, len(self.history.products))
        places = np.searchsorted(drawn.items, product)
        negative = drawn.negative if drawn.negative.shape[0] else places
        batch = {
            "walk": found,
            "negative": torch.from_numpy(rng.choice(negative, (product.shape[0], self.candidates.each))),
            "log_q": torch.from_numpy(drawn.log_q),
            "held": torch.from_numpy(held),
            "weight": torch.from_numpy(_weights(inputs.label.numpy()[held], query, found)),
        }
        return _sampler_output(found, inputs, torch.from_numpy(np.stack([query, places])), batch)

    def _split(self, query: I64, product: I64, rng: np.random.Generator) -> tuple[I64, Given]:
        """Which edges are predicted (places, sorted), and what the lists show of the rest."""
        sizes = np.bincount(query)
        shared = (rng.random(sizes.shape[0]) < self.basket_share) & (sizes > 1)
        shown = np.where(shared, rng.integers(1, np.maximum(sizes, 2)), 0)
        order = np.lexsort(np.stack([rng.random(query.shape[0]), query]))
        nth = np.empty(query.shape[0], dtype=np.int64)
        nth[order] = np.arange(query.shape[0]) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        held = np.flatnonzero(nth >= shown[query])
        given = np.flatnonzero(nth < shown[query])
        table = np.full((sizes.shape[0], int(shown.max(initial=0))), -1, dtype=np.int32)
        table[query[given], nth[given]] = product[given]
        return held, Given(table, self.dropout, rng)

    def _draw(self, product: I64, rng: np.random.Generator) -> Drawn:
        c = self.candidates
        if c.full:
            items = np.union1d(c.products, product).astype(np.int32)
            negative = np.searchsorted(items, c.products[self._picks(c.draws, rng)])
            return Drawn(items, np.zeros(items.shape[0], np.float32), negative)
        drawn = c.products[self._picks(c.draws, rng)]
        items = np.unique(np.concatenate([product, drawn])).astype(np.int32)
        share = np.zeros(len(self.history.products), dtype=np.float64)
        share[c.products] = c.share
        expected = c.draws * share[items] + product.shape[0] * self.bought[items]
        log_q: F32 = np.log(np.maximum(-np.expm1(-expected), 1e-12)).astype(np.float32)
        return Drawn(items, log_q, np.searchsorted(items, drawn))

    def _picks(self, draws: int, rng: np.random.Generator) -> I64:
        if not self._cumulative.shape[0]:
            return np.zeros(0, dtype=np.int64)
        found = np.searchsorted(self._cumulative, rng.random(draws) * self._cumulative[-1])
        places: I64 = np.minimum(found, self._cumulative.shape[0] - 1)
        return places


def _weights(weight: F32, query: I64, found: Walk) -> F32:
    """Each order counts with the square root of its lines, and not at all when the user's lists are empty."""
    lines = np.bincount(query, minlength=found.node["user"].shape[0])
    read = np.zeros(found.node["user"].shape[0], dtype=np.bool_)
    for (_, _, role), (_, owner, _) in found.edge.items():
        if role == "user":
            read[owner] = True
    out: F32 = np.where(read[query], weight / np.sqrt(lines[query]), 0.0).astype(np.float32)
    return out


class TemporalLoader(LinkLoader):  # type: ignore[misc]
    """PyG's `LinkLoader` over contiguous runs of seeds, the runs in the order given by `batches`.

    Each batch is a `HeteroData` of the roles (see `Neighborhood`) with `edge_weight` on every edge type and,
    on `SEED_EDGE`, `edge_label_index` [2, n], `edge_label` (weights), `negative` [n, each], and `log_q` and
    `level` on `item`.
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
        data["item"].level = torch.from_numpy(found.level)
        return data


def order_runs(seeds: Seeds, orders: int, rng: np.random.Generator, shuffle: bool = True) -> list[I64]:
    """Cut the seeds into runs of whole orders, `orders` each, and shuffle the runs, never the orders."""
    count = seeds.order_start.shape[0] - 1
    offset = int(rng.integers(orders)) if count > orders else 0
    borders = seeds.order_start[np.unique([0, *range(offset, count, orders), count])].tolist()
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
        data["item"].level,
    )


def _sampler_output(
    found: Walk, inputs: EdgeSamplerInput, edge_label_index: Tensor, batch: dict[str, Any]
) -> HeteroSamplerOutput:
    none, held = torch.empty(0, dtype=torch.long), batch["held"]
    edges: dict[EdgeType, tuple[Tensor, Tensor]] = {
        e: (torch.from_numpy(source), torch.from_numpy(owner)) for e, (source, owner, _) in found.edge.items()
    }
    return HeteroSamplerOutput(
        node={role: torch.from_numpy(ids.astype(np.int64)) for role, ids in found.node.items()},
        row={e: row for e, (row, _) in edges.items()} | {SEED_EDGE: none},
        col={e: col for e, (_, col) in edges.items()} | {SEED_EDGE: none},
        edge=dict.fromkeys([*edges, SEED_EDGE]),
        metadata=(inputs.input_id[held], edge_label_index, batch["weight"], inputs.time[held], batch),
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
