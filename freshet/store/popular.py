"""What is popular now: a rate for each product, from the times of its newest purchases and views.

Counts would not survive an event applied twice; the list of a product's newest entries does, and how far
back its entries reach is a rate. With few entries the rate leans on the frozen count of the bundle:

    rate = (entries + prior_rate * tau) / (age of the oldest entry + tau)

which is the mean of a gamma posterior with a prior worth `tau` of observation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freshet.store.columns import I32
from freshet.store.graph import GraphStore
from freshet.store.lists import NeighborLists

DAY_MS = 86_400_000
PRIOR_WINDOW_MS = 28 * DAY_MS


@dataclass(frozen=True)
class PopularSettings:
    """How the list of popular products is made."""

    popular_max: int = 200
    popular_tick_ms: int = 3_600_000
    """The list moves when event time passes a multiple of this, never with the wall clock."""
    popular_prior_ms: int = DAY_MS
    """How much observed time the frozen count of the bundle is worth."""
    view_weight: float = 0.05
    """What a view counts for, against a purchase."""


def popular(
    graph: GraphStore, prior_count: NDArray[np.float64], at_ms: int, settings: PopularSettings
) -> tuple[I32, NDArray[np.float64]]:
    """The most popular products at the event time `at_ms`: numbers and rates (events a day), best first.

    `prior_count` [products]: purchases in the 28 days before the bundle's cut. Withdrawn products are
    left out. Ties go to the greater id hash.
    """
    n = len(graph.products)
    prior = np.zeros(n)
    prior[: min(n, prior_count.shape[0])] = prior_count[:n] / PRIOR_WINDOW_MS
    rate = _rate(graph.purchased_by, n, prior, at_ms, settings.popular_prior_ms)
    rate += settings.view_weight * _rate(graph.viewed_by, n, np.zeros(n), at_ms, settings.popular_prior_ms)
    ranked = np.lexsort((graph.products.hash, rate))[::-1]
    order: I32 = ranked[rate[ranked] > 0][: 4 * settings.popular_max].astype(np.int32)
    offered: I32 = order[~graph.is_withdrawn(order)][: settings.popular_max]
    return offered, rate[offered] * DAY_MS


def _rate(lists: NeighborLists, n: int, prior: NDArray[np.float64], at_ms: int, tau_ms: int) -> NDArray[np.float64]:
    shape = (n, lists.capacity)
    time = lists.time[: n * lists.capacity].reshape(shape)
    flag = lists.flag[: n * lists.capacity].reshape(shape)
    ring = (np.arange(lists.capacity) - lists.head[:n, None].astype(np.int64)) % lists.capacity
    counts = (ring < lists.length[:n, None]) & (flag == 0) & (time <= at_ms)
    entries = counts.sum(axis=1)
    oldest = np.where(counts, time, at_ms).min(axis=1, initial=at_ms)
    rate: NDArray[np.float64] = (entries + prior * tau_ms) / (at_ms - oldest + tau_ms)
    return rate
