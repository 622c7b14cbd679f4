"""The products offered to a user nobody knows: those of greatest popularity (`popularity.py`) at the last tick."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freshet.store.columns import F32, I32
from freshet.store.graph import GraphStore


@dataclass(frozen=True)
class PopularSettings:
    """How the list of popular products is made."""

    popular_max: int = 200


def popular(graph: GraphStore, popularity: F32, settings: PopularSettings) -> tuple[I32, F32]:
    """The most popular products, greatest first: numbers [n] int32 and popularities [n] float32.

    `popularity` [products]. Withdrawn products are left out. Ties go to the greater id hash.
    """
    ranked = np.lexsort((graph.products.hash[: popularity.shape[0]], popularity))[::-1]
    order: I32 = ranked[popularity[ranked] > 0].astype(np.int32)
    offered: I32 = order[~graph.is_withdrawn(order)][: settings.popular_max]
    return offered, popularity[offered]
