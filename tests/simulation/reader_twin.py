"""A reader of the changelog of products, whose reading meets no faults."""

from __future__ import annotations

import random
from typing import Any

from freshet.store.index import ItemIndex, MemoryItemIndex
from freshet.stream.follower import IndexFollower, ProductIndexes
from freshet.stream.records import Record
from tests.simulation.broker_twin import Broker
from tests.simulation.shop import DIM, TOPICS


class Follower(IndexFollower):
    """A reader's index; its reading meets no faults."""

    def __init__(self, broker: Broker, partitions: int, version: str) -> None:
        self.broker, self.version = broker, version
        self._at: dict[tuple[str, int], int] = {}
        super().__init__(self, TOPICS.embeddings_products, partitions, ProductIndexes(MemoryItemIndex))  # type: ignore[arg-type]

    @property
    def index(self) -> ItemIndex:
        """What it holds of the one version there is."""
        return self.indexes.of(self.version) or MemoryItemIndex(DIM)

    def watermarks(self, places: Any) -> dict[tuple[str, int], tuple[int, int]]:
        """As of a consumer."""
        return self.broker.marks(places)

    def assign(self, positions: Any) -> None:
        """As of a consumer."""
        self._at = dict(positions)

    def read(self, share: float, rng: random.Random) -> None:
        """Take some of what has come."""
        found: list[Record] = []
        for tp, at in self._at.items():
            end = at + round((self.broker.high(tp) - at) * share * rng.random()) if share < 1 else self.broker.high(tp)
            found += self.broker.log[tp][at:end]
            self._at[tp] = end
        if found:
            self._apply(found)
