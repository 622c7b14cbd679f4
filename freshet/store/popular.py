"""The products offered to a user nobody knows: those of greatest popularity (`popularity.py`) at the last tick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from freshet.store.columns import F32, I32
from freshet.store.graph import GraphStore
from freshet.store.ids import hash_ids

Entries = list[tuple[str, float]]
"""Product ids with their popularity, most popular first."""


@dataclass(frozen=True)
class PopularSettings:
    """How the list of popular products is made."""

    popular_max: int = 200


def popular(graph: GraphStore, popularity: F32, settings: PopularSettings) -> tuple[I32, F32]:
    """The most popular products, greatest first: numbers [n] int32 and popularities [n] float32.

    `popularity` [products]. Withdrawn products are left out, and those of which the graph keeps no lists. Ties go to
    the greater id hash.
    """
    ranked = np.lexsort((graph.products.hash[: popularity.shape[0]], popularity))[::-1]
    order: I32 = ranked[popularity[ranked] > 0].astype(np.int32)
    if graph.keeps is not None:
        order = order[graph.keeps(order)]
    offered: I32 = order[~graph.is_withdrawn(order)][: settings.popular_max]
    return offered, popularity[offered]


def read_popular(blob: bytes | None) -> Entries | None:
    """The entries of a written list; None where there is none, or nothing that can be read."""
    try:
        return None if blob is None else msgspec.msgpack.decode(blob, type=Entries)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def join_popular(lists: Sequence[Entries], settings: PopularSettings) -> Entries:
    """One list of those of several parts of the products, as `popular` orders it."""
    entries = [entry for entries in lists for entry in entries]
    hashes = hash_ids([name for name, _ in entries]).tolist()
    best = sorted(zip(entries, hashes, strict=True), key=lambda one: (one[0][1], one[1]), reverse=True)
    return [entry for entry, _ in best[: settings.popular_max]]
