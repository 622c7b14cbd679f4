"""What a recommendation costs in the shop's own process: the index alone against `Reader.recommend`, in turns.

    python -m bench.reader

One thread, one user at a time, a flat index of 20,000 products over the embedded Redis. Asks a second are of this
machine; the ratio is what compares.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import msgspec
import numpy as np

from bench.report import result, table
from freshet.reader import Reader
from freshet.store.faiss_index import FaissFlatIndex
from freshet.store.ranker import Ranker, dump_ranker
from freshet.store.redis_settings import RedisSettings
from freshet.store.redis_store import RedisStore
from freshet.store.value import Seq, decode_value, encode_value
from freshet.stream.embedded import EmbeddedRedis

DIM, VERSION, DAY_MS = 128, "bench", 86_400_000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    item = _unit(rng, args.products)
    index = FaissFlatIndex(DIM)
    names = [f"product-{i}" for i in range(args.products)]
    index.upsert(names, item)
    with EmbeddedRedis(port=0) as server:
        store = RedisStore(RedisSettings(url=server.url))
        users = [f"u{i}" for i in range(args.users)]
        store.upsert(VERSION, users, [_value(rng, row, names) for row in _unit(rng, args.users)])
        popular = msgspec.msgpack.encode([(name, 1.0) for name in names[:200]])
        store.put_blob(f"{VERSION}:popular", Seq(1, 1), popular)
        store.put_blob(f"{VERSION}:ranker", Seq(1, 2), dump_ranker(Ranker()))
        store.set_current(VERSION)
        reader = Reader.over(store, store, index, model_version=VERSION)

        def read(user: str) -> None:
            decode_value(store.get(VERSION, [user])[0] or b"")

        def search(user: str) -> None:
            index.search(decode_value(store.get(VERSION, [user])[0] or b"").vector[None], 20)

        ways: dict[str, Callable[[str], object]] = {
            "read the value": read,
            "and search the index": search,
            "recommend, new products": lambda user: reader.recommend(user, 20),
            "recommend, with what is bought again": lambda user: reader.recommend(user, 20, exclude_seen=False),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, ask in ways.items():
                start = time.perf_counter()
                for user in users:
                    ask(user)
                taken[name].append((time.perf_counter() - start) / len(users))
        store.close()
    best = {name: min(seconds) * 1e6 for name, seconds in taken.items()}
    base = best["and search the index"]
    table(["", "us a request", "against a search"], [[name, us, us / base] for name, us in best.items()])
    us, ratio = {n: round(u, 1) for n, u in best.items()}, {n: round(u / base, 2) for n, u in best.items()}
    result({"us": us, "ratio": ratio})


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.normal(size=(count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _value(rng: np.random.Generator, row: np.ndarray, names: list[str]) -> bytes:
    own = [names[i] for i in rng.choice(len(names), 128, replace=False)]
    bought = [(name, 1 + i % 4, (400 - i) * DAY_MS, 1.0 + i % 4) for i, name in enumerate(own)]
    recent = [(name, "purchase", (400 - i) * DAY_MS) for i, name in enumerate(own[:20])]
    return encode_value(row.tobytes(), DIM, VERSION, Seq(1, 1), 400 * DAY_MS, 0, None, recent, bought)


if __name__ == "__main__":
    main()
