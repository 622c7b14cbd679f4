"""The list of popular products that readers offer to a user nobody knows, as it is kept in the store.

Several workers of items each know the popularity of their own shard. Readers find one list all the same: the worker of
the first shard joins what the others wrote of theirs.
"""

from __future__ import annotations

import msgspec

from freshet.store.embeddings import ServingState
from freshet.store.graph import GraphStore
from freshet.store.popular import Entries, PopularSettings, join_popular, popular, read_popular
from freshet.store.popularity import Levels
from freshet.stream.completeness import popular_blob
from freshet.stream.rewriting import items_scope
from freshet.stream.sharding import Shard
from freshet.stream.sink import Sink


class PopularList:
    """Writes the list of one worker's products, and for the first of several shards that of all."""

    def __init__(
        self, graph: GraphStore, levels: Levels, sink: Sink, serving: ServingState, shard: Shard,
        settings: PopularSettings | None = None,
    ) -> None:  # fmt: skip
        self.graph, self.levels = graph, levels
        self.sink, self.serving = sink, serving
        self.settings, self.shard = settings or PopularSettings(), shard
        self._own: Entries = []
        self._joined: Entries | None = None
        self._tick: int | None = None

    def lost(self) -> None:
        """The store may not have it any more."""
        self._tick = self._joined = None

    def publish(self) -> None:
        """Write it when event time has passed a tick, or another shard's worker has written its own."""
        if self.levels.at_ms != self._tick:
            self._tick = self.levels.at_ms
            numbers, found = popular(self.graph, self.levels.values(), self.settings)
            names = [name or "" for name in self.graph.products.names(numbers)]
            self._own = list(zip(names, found.round(4).tolist(), strict=True))
            if self.shard.of == 1:
                self._write("popular", self._own)
            elif not self.shard.is_first:
                self._write(popular_blob(self.shard.scope), self._own)
        if self.shard.of > 1 and self.shard.is_first:
            self._join()

    def _join(self) -> None:
        others = [self._read(popular_blob(items_scope(k, self.shard.of))) for k in range(1, self.shard.of)]
        if None in others and self._read("popular") is not None:
            return  # all that readers have is more than a part of it
        joined = join_popular([self._own, *(entries or [] for entries in others)], self.settings)
        if joined != self._joined:
            self._write("popular", joined)
            self._joined = joined

    def _read(self, name: str) -> Entries | None:
        blob = self.sink.insist(lambda: self.serving.get_blob(f"{self.sink.model_version}:{name}"))
        return read_popular(blob)

    def _write(self, name: str, entries: Entries) -> None:
        self.sink.write_blob(name, msgspec.msgpack.encode(entries), self.serving)
