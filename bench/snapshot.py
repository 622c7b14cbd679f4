"""Snapshots of a large shop: the pauses they make, their size, and how long writing one and taking one in last.

    python -m bench.snapshot --purchased-max 32 --viewed-max 16
    python -m bench.snapshot --users 250000 --products 25000 --edges 5000000

The shop is that of `bench.train_scale` with a session a user. One core writes the snapshot as fast as it can, into a
folder on the disk; then a process of its own takes it in, checked whole first as a worker does. With the default
limits a million users' lists take 11 GiB while they are filled, so the first line takes shorter ones and the second
fewer users. CPU times say what the work costs where the machine is shared. The fork is one that ends at once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import result, table
from bench.synthetic import START_MS, zipf
from bench.train_scale import Large, chunks
from freshet.store.columns import EventColumns, SessionColumns
from freshet.store.graph import GraphLimits, GraphStore
from freshet.store.snapshot import SnapshotHead, absorb, parts
from freshet.store.snapshot_file import SnapshotWriter
from freshet.store.snapshot_places import newest_valid, open_place, snapshot_name

GIB = 2**30
SESSIONS = 100_000
"""Sessions made at a time."""


def shop_arguments(parser: argparse.ArgumentParser, users: int, products: int, edges: int) -> None:
    """The options that say how large a shop is, and how long its users' lists."""
    parser.add_argument("--users", type=int, default=users)
    parser.add_argument("--products", type=int, default=products)
    parser.add_argument("--edges", type=int, default=edges)
    parser.add_argument("--purchased-max", type=int, default=GraphLimits().purchased_max)
    parser.add_argument("--viewed-max", type=int, default=GraphLimits().viewed_max)


def sessions(shop: Large) -> Iterator[EventColumns]:
    """A session of one to four products for each user."""
    rng = np.random.default_rng(shop.seed + 1)
    for first in range(0, shop.users, SESSIONS):
        n = min(SESSIONS, shop.users - first)
        size = rng.integers(1, 5, n)
        starts = np.concatenate([[0], np.cumsum(size)])
        product = zipf(rng, shop.products, int(starts[-1]), shop.product_skew)
        names = [f"u{u}" for u in range(first, first + n)]
        yield EventColumns(
            sessions=SessionColumns(
                names, [f"s-{name}" for name in names], ["phone"] * n, np.full(n, START_MS, np.int64),
                np.arange(first, first + n, dtype=np.uint64), np.full(n, np.nan, np.float32), starts,
                [f"p{p}" for p in product.tolist()], np.zeros(product.shape[0], np.int32),
                np.zeros(product.shape[0], np.int8),
            )
        )  # fmt: skip


def filled(shop: Large, limits: GraphLimits) -> GraphStore:
    """The graph of a shop."""
    graph = GraphStore(limits)
    for source in (chunks(shop), sessions(shop)):
        for batch in source:
            graph.apply(batch)
    return graph


def lists_of(graph: GraphStore) -> dict[str, Any]:
    """The lists of users, then those of products."""
    return {
        "purchased": graph.purchased, "viewed": graph.viewed, "has_session": graph.sessions,
        "purchased_by": graph.purchased_by, "viewed_by": graph.viewed_by, "co_purchased": graph.co_purchased.live,
    }  # fmt: skip


def array_bytes(lists: Any, rows: int) -> float:
    """Bytes a row of what these lists reserve, threads' heads left out."""
    held = sum(a.nbytes for name, a in vars(lists).items() if isinstance(a, np.ndarray) and name != "first")
    return held / lists.length.shape[0] if rows else 0.0


def fork_ms() -> float:
    """What a fork holds this process up."""
    start = time.perf_counter()
    child = os.fork()
    if not child:
        os._exit(0)
    taken = (time.perf_counter() - start) * 1000.0
    os.waitpid(child, 0)
    return taken


def write(
    graph: GraphStore, folder: str, entries_max: int
) -> tuple[Path, dict[str, list[float]], float]:
    """The file; seconds of each `next` (on the clock and of this process) and of each write; and of all together."""

    def everything(numbers: np.ndarray) -> np.ndarray:
        return np.ones(numbers.shape[0], np.bool_)

    head = SnapshotHead("all", {("views", 0): 0}, START_MS, graph.limits)
    name = snapshot_name(head, "bench")
    taken: dict[str, list[float]] = {"copy": [], "copy_cpu": [], "write": []}
    start = time.perf_counter()
    with open_place(folder).write(name) as file:
        writer, pieces = SnapshotWriter(file), parts(graph, everything, everything, entries_max)
        while True:
            clock, cpu = time.perf_counter(), time.process_time()
            part = next(pieces, None)
            if part is None:
                break
            taken["copy_cpu"].append(time.process_time() - cpu)
            taken["copy"].append(time.perf_counter() - clock)
            clock = time.perf_counter()
            writer.write_part(part)
            taken["write"].append(time.perf_counter() - clock)
        writer.finish(head)
    return Path(folder) / name, taken, time.perf_counter() - start


def load(folder: str) -> dict[str, float]:
    """Take the snapshot in; what it cost, in this process."""
    empty = resident_gib()
    start, before = time.perf_counter(), os.times()
    found = newest_valid(open_place(folder), lambda _: True, print)
    assert found is not None
    verified = time.perf_counter()
    with found[1] as reader:
        graph = GraphStore(reader.head.limits)
        absorb(graph, reader.head, reader.parts())
    done, after = time.perf_counter(), os.times()
    return {
        "verify_s": verified - start, "absorb_s": done - verified, "user_s": after.user - before.user,
        "system_s": after.system - before.system,
        "users": len(graph.users), "resident_gib": resident_gib() - empty, "peak_gib": peak_gib(),
    }  # fmt: skip


def resident_gib() -> float:
    """Memory of this process now, GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / GIB


def peak_gib() -> float:
    """Most memory this process has held, GiB; `getrusage` would tell of the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def milliseconds(seconds: list[float]) -> list[float]:
    """p50, p99 and the greatest, ms."""
    return [float(x) for x in np.percentile(np.array(seconds) * 1000.0, [50, 99, 100])]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shop_arguments(parser, 1_000_000, 100_000, 20_000_000)
    parser.add_argument("--entries", type=int, default=100_000, help="entries a part")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load)))
        return
    shop = Large(users=args.users, products=args.products, edges=args.edges)
    graph = filled(shop, replace(GraphLimits(), purchased_max=args.purchased_max, viewed_max=args.viewed_max))
    with tempfile.TemporaryDirectory() as folder:
        file, taken, seconds = write(graph, folder, args.entries)
        fork = fork_ms()
        size = file.stat().st_size
        lists, users, products = lists_of(graph), len(graph.users), len(graph.products)
        entries = {name: int(x.length.sum()) for name, x in lists.items()}
        rows = {name: array_bytes(x, 1) for name, x in lists.items()}
        held = {name: entries[name] / (users if i < 3 else products) for i, name in enumerate(lists)}
        peak = peak_gib()
        del graph, lists
        command = [sys.executable, "-m", "bench.snapshot", "--load", folder]
        loaded = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    table(("", "p50 ms", "p99 ms", "max ms"), [
        ("next(parts), CPU", *milliseconds(taken["copy_cpu"])), ("next(parts)", *milliseconds(taken["copy"])),
        ("write_part", *milliseconds(taken["write"])),
    ])  # fmt: skip
    print()
    table(("list", "entries a row", "bytes a row"), [(name, held[name], rows[name]) for name in rows])
    print()
    a_user = sum(list(rows.values())[:3])
    a_product = sum(list(rows.values())[3:])
    table(("", "value"), [
        ("users", users), ("products", products), ("entries", sum(entries.values())), ("parts", len(taken["copy"])),
        ("file MiB", size / 2**20), ("write s", seconds), ("all copies, CPU s", sum(taken["copy_cpu"])),
        ("fork ms", fork), ("check s", loaded["verify_s"]), ("take in s", loaded["absorb_s"]),
        ("both, CPU of the process s", loaded["user_s"]),
        ("both, CPU of the kernel s", loaded["system_s"]), ("bytes a user reserved", a_user),
        ("bytes a product reserved", a_product),
        ("file bytes an entry", size / sum(entries.values())), ("GiB after taking in", loaded["resident_gib"]),
        ("peak GiB writing", peak), ("peak GiB taking in", loaded["peak_gib"]),
    ])  # fmt: skip
    p50, p99, most = milliseconds(taken["copy_cpu"])
    result({
        "users": users, "products": products, "entries": sum(entries.values()), "purchased_max": args.purchased_max,
        "viewed_max": args.viewed_max,
        "next_cpu_ms": {"p50": round(p50, 2), "p99": round(p99, 2), "max": round(most, 2)},
        "file_mib": round(size / 2**20, 1), "write_s": round(seconds, 2),
        "copy_cpu_s": round(sum(taken["copy_cpu"]), 2), "fork_ms": round(fork, 1),
        "load_user_s": round(loaded["user_s"], 2),
        "load_system_s": round(loaded["system_s"], 2), "verify_s": round(loaded["verify_s"], 2),
        "absorb_s": round(loaded["absorb_s"], 2),
        "resident_gib": round(loaded["resident_gib"], 2), "bytes_a_user": round(a_user),
        "bytes_a_product": round(a_product),
    })  # fmt: skip


if __name__ == "__main__":
    main()
