"""Writing users into Redis: values a second through the guard, beside writing them without it.

    python -m bench.redis_write                   the embedded Valkey
    python -m bench.redis_write --redis URL       a server of your own (keys under `freshet-bench`, deleted after)
    python -m tests.redis_topologies python -m bench.redis_write        and a cluster of three nodes beside it

All rows use the same client and values of the same size. `MSET` is what writing costs without a guard, `a script
call a user` what the guard costs without batches. Rows take turns, round by round, so that a busy machine slows
all of them alike; the figure of a row is that of its median round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import redis

from bench.report import result, table
from freshet.store.redis_settings import RedisSettings
from freshet.store.redis_store import UPSERT, RedisStore
from freshet.store.value import Seq, decode_value, encode_value
from freshet.stream.embedded import EmbeddedRedis

VERSION = "bench"
SMALL = 10
"""Users of a small batch: what a quiet stream writes at a time."""
SMALL_WRITES = 200


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", help="default: an embedded Valkey")
    parser.add_argument("--cluster", help="a cluster to write to as well (keys expire after ten minutes)")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--recent", type=int, default=20, help="entries of `recent` in a value")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with ExitStack() as stack:
        url = args.redis or stack.enter_context(EmbeddedRedis()).url
        WriteBench(RedisSettings(url=url, namespace="freshet-bench"), args).run()


class WriteBench:
    """One server, one set of users; every call of `values` carries a greater `seq`."""

    def __init__(self, settings: RedisSettings, args: argparse.Namespace) -> None:
        self.args = args
        self.store = RedisStore(settings)
        cluster = replace(settings, url=args.cluster, ttl_s=600) if args.cluster else None
        self.cluster = RedisStore(cluster) if cluster else None
        self.client = redis.Redis.from_url(settings.url)
        self.prefix = f"{settings.namespace}:{VERSION}:unguarded:"
        self.guarded, self.guards = f"{settings.namespace}:{VERSION}:user:", f"{settings.namespace}:{VERSION}:gone:"
        self.per_call = settings.keys_per_call
        self.users = [f"user-{i}" for i in range(args.users)]
        self.vector = np.random.default_rng(1).standard_normal(args.dim).astype("<f4").tobytes()
        self.seen = [(f"product-{i}", "view", 1_700_000_000_000 + i) for i in range(args.recent)]
        self.step = 0

    def run(self) -> None:
        """Write, time, print."""
        rows: dict[str, Callable[[list[bytes]], Any]] = {
            "guarded (RedisStore.upsert)": lambda v: self.store.upsert(VERSION, self.users, v),
            "MSET, no guard": self.mset,
            "guarded, a script call a user": self.one_by_one,
            "read back (RedisStore.get)": lambda v: self.store.get(VERSION, self.users),
            "decode": lambda v: [decode_value(raw) for raw in v],
        }
        if self.cluster is not None:
            cluster = self.cluster
            rows |= {
                "guarded, on the cluster": lambda v: cluster.upsert(VERSION, self.users, v),
                "read back from the cluster": lambda v: cluster.get(VERSION, self.users),
            }
        took: dict[str, list[float]] = {name: [] for name in ("encode", *rows)}
        try:
            for _ in range(self.args.rounds):
                for name, row in rows.items():
                    start = time.perf_counter()
                    values = self.values(len(self.users))
                    encoded = time.perf_counter()
                    row(values)
                    took[name].append(time.perf_counter() - encoded)
                    took["encode"].append(encoded - start)
            small_ms = self.small()
        finally:
            self.clear()
        rate = {name: len(self.users) / median(seconds) for name, seconds in took.items()}
        guarded, mset, single = (rate[name] for name in list(rows)[:3])
        table(["", "users/s", "of MSET"], [[name, round(r), r / mset] for name, r in rate.items()])
        print(f"value of {len(values[0])} bytes; {SMALL} users at a time: median {small_ms:.2f} ms a write")
        result(
            {
                "bench": "redis_write",
                "value_bytes": len(values[0]),
                "users_per_s": round(guarded),
                "mset_users_per_s": round(mset),
                "guard_share_of_mset": round(guarded / mset, 3),
                "batching_gain": round(guarded / single, 2),
                "small_write_ms_p50": round(small_ms, 3),
                **({"cluster_users_per_s": round(rate["guarded, on the cluster"])} if self.cluster else {}),
            }
        )

    def values(self, count: int) -> list[bytes]:
        """Values of the next step."""
        self.step += 1
        seq, src = Seq(1, self.step), ("freshet.events.view", 0, self.step)
        args = (self.vector, self.args.dim, VERSION, seq, 1_700_000_000_000, 1_700_000_000_000, src, self.seen)
        return [encode_value(*args) for _ in range(count)]

    def mset(self, values: list[bytes]) -> None:
        """What the store does, without the script."""
        pipe = self.client.pipeline(transaction=False)
        for start in range(0, len(values), self.per_call):
            part = slice(start, start + self.per_call)
            pipe.mset({self.prefix + user: value for user, value in zip(self.users[part], values[part], strict=True)})
        pipe.execute()

    def one_by_one(self, values: list[bytes]) -> None:
        """The same script for each user, its text sent once, and round trips of as many users as a call has."""
        script = self.client.script_load(UPSERT)
        for start in range(0, len(values), self.per_call):
            pipe = self.client.pipeline(transaction=False)
            for user, value in zip(self.users[start : start + self.per_call], values[start:], strict=False):
                pipe.evalsha(script, 1, f"{self.prefix}{user}", 0, self.guards, value)
            pipe.execute()

    def small(self) -> float:
        """Median time of a small write, in ms."""
        took = []
        for _ in range(SMALL_WRITES):
            values = self.values(SMALL)
            start = time.perf_counter()
            self.store.upsert(VERSION, self.users[:SMALL], values)
            took.append(1e3 * (time.perf_counter() - start))
        return median(took)

    def clear(self) -> None:
        """Leave the server as it was."""
        for start in range(0, len(self.users), self.per_call):
            users = self.users[start : start + self.per_call]
            self.client.delete(*(prefix + user for prefix in (self.prefix, self.guarded) for user in users))
        for each in (self.store, self.client, self.cluster):
            if each is not None:
                each.close()


if __name__ == "__main__":
    main()
