"""How the item index is kept; free of the vendor's library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class IndexSettings:
    """Which index, and how an approximate one is built."""

    kind: Literal["flat", "hnsw"] = "flat"
    """`flat` is exact and moves a vector for the price of a copy; `hnsw` pays from a few hundred thousand products."""
    hnsw_links: int = 32
    hnsw_ef_construction: int = 80
    hnsw_ef_search: int = 96
    tombstone_share_max: float = 0.3
    """Of an HNSW index, the share of removed and moved vectors at which it is rebuilt in the background."""
