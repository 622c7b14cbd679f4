"""How old events are when their embeddings can be read."""

from __future__ import annotations

import numpy as np


class Freshness:
    """Milliseconds from a record's timestamp in Kafka to its user's embedding being readable."""

    def __init__(self, size: int = 65_536) -> None:
        self._ring = np.zeros(size, dtype=np.float32)
        self._count = 0

    def add(self, ages_ms: np.ndarray) -> None:
        """Note n ages; the newest `size` are kept."""
        ages = ages_ms[-self._ring.shape[0] :]
        places = (self._count + np.arange(ages.shape[0])) % self._ring.shape[0]
        self._ring[places] = ages
        self._count += ages.shape[0]

    def percentiles(self) -> dict[str, float]:
        """p50 and p99 of the ages kept."""
        kept = self._ring[: min(self._count, self._ring.shape[0])]
        if not kept.shape[0]:
            return {}
        p50, p99 = np.percentile(kept, [50, 99])
        return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
