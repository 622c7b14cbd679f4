"""Settings of the item index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class IndexSettings:
    """Which item index a process holds. Flat is exact and moves a vector for the price of a copy; HNSW
    searches in less than linear time, but moving a product costs what inserting one costs."""

    kind: Literal["flat", "hnsw"] = "flat"
    """`flat` up to a few hundred thousand products, `hnsw` beyond."""
    hnsw_m: int = 32
    """Links of a product in the HNSW graph, on each level above the lowest (which has twice as many)."""
    hnsw_ef_construction: int = 80
    """Candidates that are looked at when a product is inserted."""
    hnsw_ef_search: int = 128
    """Candidates that a search looks at; raised to what the search asks for, if that is more."""
    hnsw_tombstone_share_max: float = 0.25
    """Share of dead rows above which the graph is rebuilt in the background."""
    hnsw_tombstones_min: int = 1_000
    """Dead rows below which it is never rebuilt."""
    hnsw_rows_per_lock: int = 32
    """Rows inserted under one lock: searches wait no longer than these take (about 0.1 ms each)."""
    hnsw_exact_below_rows: int = 2_000
    """A search among at most so many products is exact: it costs no more than walking the graph."""
    hnsw_exact_below_share: float = 0.1
    """So is one restricted to less than this share of all: the graph loses its way among the forbidden."""

    def __post_init__(self) -> None:
        if self.kind not in ("flat", "hnsw"):
            raise ValueError(f"kind is {self.kind!r}: it has to be 'flat' or 'hnsw'")
        if not 2 <= self.hnsw_m <= 512:
            raise ValueError(f"hnsw_m is {self.hnsw_m}: it has to be between 2 and 512")
        for name in ("hnsw_ef_construction", "hnsw_ef_search", "hnsw_tombstones_min", "hnsw_rows_per_lock"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1")
        if not 0.0 < self.hnsw_tombstone_share_max < 1.0:
            raise ValueError(
                f"hnsw_tombstone_share_max is {self.hnsw_tombstone_share_max}: it has to be between 0 and 1"
            )
        if not 0.0 <= self.hnsw_exact_below_share <= 1.0:
            raise ValueError(f"hnsw_exact_below_share is {self.hnsw_exact_below_share}: it has to be from 0 to 1")
        if self.hnsw_exact_below_rows < 0:
            raise ValueError(f"hnsw_exact_below_rows is {self.hnsw_exact_below_rows}: it cannot be negative")
