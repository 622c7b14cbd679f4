"""What each relation and list length of the towers is worth, and what it costs to serve.

    python -m bench.ablation LOG --before 2011-08-01 --until 2011-09-01
    python -m bench.ablation LOG --before 2011-08-01 --until 2011-09-01 --cost-only   # minutes: on a quiet machine

For each variant the towers are trained on what was before `--before` (one seed) and ranked over the whole catalogue on
what was bought until `--until`; the worker's encoder then encodes every user, and the worker's own loop takes
`--events` events of that window in batches of 100, working off every ripple after each. Ripples are embeddings
written again for a change elsewhere. Times are of this machine; ratios to the default compare. What a variant costs
does not depend on its weights: with `--cost-only` they are the closed form's.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from bench.report import result, table
from freshet.model.bundle import Bundle
from freshet.model.config import LayerReads, TowerConfig
from freshet.model.dayzero import dayzero
from freshet.model.evaluation.embeddings import TwoTower
from freshet.model.evaluation.metrics import PER_USER
from freshet.model.evaluation.run import EvaluateConfig, rank
from freshet.model.evaluation.systems import System
from freshet.model.evaluation.targets import Targets, Window
from freshet.model.frozen import FrozenTowers
from freshet.model.train import train
from freshet.model.train_config import TrainConfig
from freshet.store.graph import GraphStore
from freshet.store.history import History
from freshet.store.index import MemoryItemIndex
from freshet.store.lists import Gather
from freshet.store.memory_store import MemoryEmbeddingStore
from freshet.stream.eventlog import EventLog
from freshet.stream.events import Kind
from freshet.stream.modelling import day_ms
from freshet.stream.ownership import Ownership
from freshet.stream.records import Record
from freshet.stream.sink import Sink
from freshet.stream.updater import Updater

DEFAULT = TowerConfig()


def reads(
    tower: LayerReads, outer: dict[str, Gather] | None = None, inner: dict[str, Gather] | None = None
) -> LayerReads:
    """A tower's reads with some of them replaced; `Gather(0)` leaves one out."""

    def merged(old: dict[str, Gather], new: dict[str, Gather] | None) -> dict[str, Gather]:
        return {name: gather for name, gather in {**old, **(new or {})}.items() if gather.num_neighbors}

    return LayerReads(merged(dict(tower.outer), outer), merged(dict(tower.inner), inner))


def variants() -> dict[str, TowerConfig]:
    """By what differs from the default."""
    user, item = DEFAULT.user, DEFAULT.item
    purchased = user.outer["purchased"]
    out = {"default": DEFAULT}
    for n in (10, 20, 50):
        out[f"user: {n} purchases"] = replace(
            DEFAULT, user=reads(user, {"purchased": replace(purchased, num_neighbors=n)})
        )
    out["user: no views"] = replace(DEFAULT, user=reads(user, {"viewed": Gather(0)}))
    sessions = reads(user, {"has_session": Gather(5)}, {"contains": Gather(10)})
    out["user: 5 sessions of 10 items"] = replace(DEFAULT, user=sessions)
    out["user, second hop: 10 co-purchases"] = replace(DEFAULT, user=reads(user, None, {"co_purchased": Gather(10)}))
    for n in (0, 5, 40):
        out[f"item: {n} co-purchases"] = replace(DEFAULT, item=reads(item, {"co_purchased": Gather(n)}))
    out["item: 15 buyers"] = replace(DEFAULT, item=reads(item, {"purchased_by": Gather(15)}))
    out["item: 15 buyers, second hop: 5 purchases"] = replace(
        DEFAULT, item=reads(item, {"purchased_by": Gather(15)}, {"purchased": Gather(5)})
    )
    return out


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--before", required=True)
    parser.add_argument("--until", required=True)
    parser.add_argument("--events", type=int, default=1_000)
    parser.add_argument("--only", help="a part of the names of variants to run beside the default")
    parser.add_argument("--cost-only", action="store_true", help="leave training and quality out")
    args = parser.parse_args()
    log, cut_ms, until_ms = EventLog(args.log), day_ms(args.before, "--before"), day_ms(args.until, "--until")
    assert cut_ms is not None and until_ms is not None
    history = History.of(list(log.columns(until_ms=until_ms)))
    window = list(islice(log.raw(since_ms=cut_ms, until_ms=until_ms), args.events))
    cost(log, dayzero(history, DEFAULT, cut_ms=cut_ms), cut_ms, window[:1])  # who is measured first is not slower by it
    head = ["encode, ratio", "ripples an event"]
    if not args.cost_only:
        head = ["novel recall@20", "MAP@12", "all recall@20", "MAP@12", *head, "training, ratio"]
    rows: dict[str, list[float]] = {}
    for name, config in variants().items():
        if args.only and args.only not in name and name != "default":
            continue
        if args.cost_only:
            rows[name] = cost(log, dayzero(history, config, cut_ms=cut_ms), cut_ms, window)
        else:
            start = time.perf_counter()
            bundle = train(history, TrainConfig(validate=False), config, split_ms=cut_ms)
            seconds = time.perf_counter() - start
            rows[name] = [*quality(history, bundle, cut_ms, until_ms), *cost(log, bundle, cut_ms, window), seconds]
        print(name, rows[name], flush=True)
    for place, what in enumerate(head):
        if what.endswith("ratio"):
            base = rows["default"][place]
            for row in rows.values():
                row[place] /= base
    digits = [2 if "ratio" in what or "event" in what else 4 for what in head]
    shown = [[name, *(f"{v:.{d}f}" for v, d in zip(row, digits, strict=True))] for name, row in rows.items()]
    table(["variant", *head], shown)
    result({name: [round(v, 4) for v in row] for name, row in rows.items()})


def quality(history: History, bundle: Bundle, cut_ms: int, until_ms: int) -> list[float]:
    """Recall@20 and MAP@12 of novel and of all targets."""
    return quality_of(history, TwoTower("towers", bundle), cut_ms, until_ms)


def quality_of(history: History, system: System, cut_ms: int, until_ms: int) -> list[float]:
    """The same of any system, fitted here on what was before the cut."""
    targets = Targets.of(history, Window(cut_ms, until_ms), cut_ms)
    system.fit(history, cut_ms)
    ranked = rank(history, system, targets, EvaluateConfig())
    columns = [PER_USER.index("recall@20"), PER_USER.index("map@12")]
    return [float(ranked.values[kind][:, c].mean()) for kind in ("novel", "all") for c in columns]


def cost(log: EventLog, bundle: Bundle, cut_ms: int, window: list[tuple[Kind, int, str, bytes]]) -> list[float]:
    """Seconds a user to encode them all (best of ten), and ripples an event."""
    graph = GraphStore()
    sink = Sink(graph, MemoryEmbeddingStore(), MemoryItemIndex(bundle.config.dim), None, "", bundle.model_version,
                bundle.config.dim, Ownership.of_all(graph.users), fence=1)  # fmt: skip
    updater = Updater(graph, FrozenTowers(bundle, graph), sink, {kind.value: kind for kind in Kind})
    for columns in log.columns(until_ms=cut_ms):
        updater.absorb(columns)
    updater.write_all()
    users = np.arange(len(graph.users), dtype=np.int32)
    taken = []
    for _ in range(10):
        start = time.perf_counter()
        updater.towers.encode_users(users)
        taken.append((time.perf_counter() - start) / users.shape[0])
    updater.drain()
    rippled, direct = updater.totals.users_rippled, 0
    products = updater.totals.products_written
    for first in range(0, len(window), 100):
        part = window[first : first + 100]
        records = [
            Record(kind.value, 0, first + i, at, key.encode(), raw) for i, (kind, at, key, raw) in enumerate(part)
        ]
        known = len(graph.products)
        updater.step(records)
        direct += len(graph.products) - known
        updater.drain()
    waves = updater.totals.users_rippled - rippled + updater.totals.products_written - products - direct
    return [min(taken), waves / max(1, len(window))]


if __name__ == "__main__":
    main()
