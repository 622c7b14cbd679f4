"""How popular each product is: its purchases and views, counted with a half-life, at ticks of event time.

A counter would not survive an event applied twice, so nothing is counted up. The newest entries of a product's
lists are summed, the bundle's frozen value stands for the time up to its cut, and where a list is full, what
was evicted from it is taken to have come at the rate of the entries that are left:

    popularity(at) = frozen * 2^(-(at - cut) / h) + sum over entries of 2^(-age / h)
                   + rate * integral over the evicted time of 2^(-age / h),   rate = entries / (span + 1 day)

So it is a function of the state alone, exact while a product's entries since the cut fit into its list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freshet.store import kernels
from freshet.store.columns import F32, I32
from freshet.store.graph import GraphStore
from freshet.store.history import History
from freshet.store.lists import NeighborLists, grown

DAY_MS = 86_400_000


@dataclass(frozen=True)
class PopularityConfig:
    """How popularity decays, when it moves, and in which steps; part of a model, since embeddings hold it."""

    half_life_ms: int = 7 * DAY_MS
    tick_ms: int = 3_600_000
    """Popularity is that of the newest multiple of this that event time has reached."""
    view_weight: float = 0.05
    """What a view counts for, against a purchase."""
    steps: int = 8
    """A level is log1p(popularity) in steps of 1 / `steps`: between two ticks few levels move."""

    def tick(self, event_time_ms: int, cut_ms: int) -> int:
        """The time that popularity is taken at, never before the cut."""
        return max(cut_ms, event_time_ms // self.tick_ms * self.tick_ms)

    def level(self, popularity: F32) -> F32:
        """Levels of popularities, float32."""
        found: F32 = (np.round(np.log1p(popularity) * self.steps) / self.steps).astype(np.float32)
        return found


@dataclass(frozen=True)
class FrozenPopularity:
    """Popularity of the products of a graph at `cut_ms`; [n] float32, products past its end have none."""

    cut_ms: int
    value: F32

    def of(self, products: I32, at_ms: int, half_life_ms: int) -> F32:
        """What is left of it at `at_ms`."""
        if not self.value.shape[0]:
            return np.zeros(products.shape[0], dtype=np.float32)
        value = self.value[np.minimum(products, self.value.shape[0] - 1)]
        left = 2.0 ** (-(at_ms - self.cut_ms) / half_life_ms)
        found: F32 = np.where(products < self.value.shape[0], value * left, 0.0).astype(np.float32)
        return found


def popularity(graph: GraphStore, products: I32, at_ms: int, frozen: FrozenPopularity, config: PopularityConfig) -> F32:
    """Popularity of `products` [n] int32 of what happened before `at_ms`, [n] float32."""
    found = frozen.of(products, at_ms, config.half_life_ms).astype(np.float64)
    found += _live(graph.purchased_by, products, at_ms, frozen.cut_ms, config)
    if config.view_weight:
        found += config.view_weight * _live(graph.viewed_by, products, at_ms, frozen.cut_ms, config)
    return found.astype(np.float32)


def of_history(history: History, at_ms: int, config: PopularityConfig) -> F32:
    """The same over a whole history, where nothing is evicted: every product, of what happened before `at_ms`."""
    found = np.zeros(len(history.products))
    for lines, weight in ((history.purchases, 1.0), (history.views, config.view_weight)):
        some = slice(0, int(np.searchsorted(lines.time, at_ms)))  # lines are sorted by time
        share = np.where(lines.flag[some] == 0, weight, 0.0)
        share *= 2.0 ** ((lines.time[some] - at_ms) / config.half_life_ms)
        found += np.bincount(lines.product[some], share, minlength=found.shape[0])
    return found.astype(np.float32)


class Levels:
    """The level of every product of a graph as it stands in the embeddings, to tell which a tick moves."""

    def __init__(self, graph: GraphStore, frozen: FrozenPopularity, config: PopularityConfig) -> None:
        self.graph, self.frozen, self.config = graph, frozen, config
        self.at_ms = frozen.cut_ms
        self._level = np.zeros(0, dtype=np.float32)

    def read(self, products: I32) -> F32:
        """The levels of `products` at the tick, [n] float32; they are remembered."""
        found = self.config.level(popularity(self.graph, products, self.at_ms, self.frozen, self.config))
        self._level = grown(self._level, len(self.graph.products))
        self._level[products] = found
        return found

    def values(self) -> F32:
        """The popularity of every product at the tick, [products] float32."""
        everything = np.arange(len(self.graph.products), dtype=np.int32)
        return popularity(self.graph, everything, self.at_ms, self.frozen, self.config)

    def move(self) -> I32:
        """Go on to the newest tick; returns the products whose level it moves, [n] int32."""
        at_ms = self.config.tick(self.graph.event_time_max, self.frozen.cut_ms)
        if at_ms <= self.at_ms:
            return np.zeros(0, dtype=np.int32)
        self.at_ms = at_ms
        everything = np.arange(len(self.graph.products), dtype=np.int32)
        before = grown(self._level, everything.shape[0])[: everything.shape[0]].copy()
        moved: I32 = np.flatnonzero(self.read(everything) != before).astype(np.int32)
        return moved


def _live(lists: NeighborLists, products: I32, at_ms: int, cut_ms: int, config: PopularityConfig) -> F32:
    out = np.empty(products.shape[0], dtype=np.float32)
    kernels.decayed_entries(
        products, lists.capacity, lists.head, lists.length, lists.time, lists.flag, at_ms, cut_ms,
        float(config.half_life_ms), DAY_MS, out,
    )  # fmt: skip
    return out
