"""Flat cost: the same events over a shop and over one ten times its size, in one process, in turn.

    python -m bench.scale --users 20000 --products 10000

Decode, apply, first layer, encode, ripples and the item index; the stores are in memory, so that what is
measured is Freshet's own work per event.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from bench.report import result, table
from bench.synthetic import KIND_OF, START_MS, Shop, catalogue, events
from freshet.model.dayzero import dayzero
from freshet.model.frozen import FrozenTowers
from freshet.store.faiss_index import make_index
from freshet.store.graph import GraphStore
from freshet.store.history import History
from freshet.store.memory_store import MemoryEmbeddingStore
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.decode import decode_events
from freshet.stream.ownership import Ownership
from freshet.stream.records import Record
from freshet.stream.settings import Settings
from freshet.stream.sink import Sink
from freshet.stream.updater import Updater

BATCH = 500


class Measured:
    """One shop with a live updater, filled with `history` events."""

    def __init__(self, shop: Shop, history: int) -> None:
        settings = Settings()
        bundle = dayzero(History.of([decode_events(catalogue(shop))]))
        self.graph = GraphStore()
        towers = FrozenTowers(bundle, self.graph)
        index = make_index(settings.index, bundle.config.dim)
        sink = Sink(
            self.graph, MemoryEmbeddingStore(), index, None, "", bundle.model_version, bundle.config.dim,
            Ownership.of_all(self.graph.users), 1,
        )  # fmt: skip
        self.kinds = {kind.value: kind for kind in KIND_OF.values()}
        self.updater = Updater(self.graph, towers, sink, self.kinds)
        self.shop, self.sent = shop, history
        self.updater.absorb(decode_events(catalogue(shop)))
        self.updater.absorb(decode_events(events(shop, history)))
        self.updater.write_all()

    def run(self, count: int) -> dict[str, float]:
        """Seconds by stage, and in all, for `count` further events, ripples included."""
        made = events(self.shop, count, START_MS + self.sent, first=self.sent)
        records = [
            Record(KIND_OF[type(e)].value, 0, i, (e.timestamp or 0) + 1, encode_record_key(e), encode(e))
            for i, e in enumerate(made)
        ]
        self.sent += count
        self.updater.totals.seconds.clear()
        start = time.perf_counter()
        for i in range(0, count, BATCH):
            self.updater.step(records[i : i + BATCH])
            self.updater.ripple(5.0)
        self.updater.drain()
        return {"all": time.perf_counter() - start, **self.updater.totals.seconds}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    small_shop = Shop(users=args.users, products=args.products)
    large_shop = replace(small_shop, users=10 * args.users, products=10 * args.products)
    small, large = Measured(small_shop, 10 * args.users), Measured(large_shop, 100 * args.users)
    small.run(2_000), large.run(2_000)
    pairs = [(small.run(args.events), large.run(args.events)) for _ in range(args.rounds)]
    ratio = sorted(b["all"] / a["all"] for a, b in pairs)[len(pairs) // 2]
    rows = [
        (f"round {i + 1}", args.events / a["all"], args.events / b["all"], b["all"] / a["all"])
        for i, (a, b) in enumerate(pairs)
    ]
    table(("", "events/s", "events/s, 10x", "cost ratio"), rows)
    per_event = [
        (stage, *(1e6 * min(pair[i].get(stage, 0.0) for pair in pairs) / args.events for i in (0, 1)))
        for stage in pairs[0][1]
    ]
    print()
    table(("stage", "us/event", "us/event, 10x", "more"), [(s, a, b, b - a) for s, a, b in per_event])
    result(
        {
            "users": [len(small.graph.users), len(large.graph.users)],
            "products": [len(small.graph.products), len(large.graph.products)],
            "cost_ratio_median": round(ratio, 3),
        }
    )


if __name__ == "__main__":
    main()
