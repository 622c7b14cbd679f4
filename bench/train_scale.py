"""Training and evaluation of a large shop: what they need of memory, and how many edges a second go through.

    python -m bench.train_scale --users 1000000 --products 100000 --edges 22000000 --train-s 300

The shop is synthetic: users and products by Zipf's law with the exponents that the demo's year has, half of the edges
views, half lines of orders of four products on average, and three of four edges within the user's own taste, so that
there is something to learn. It trains for `--train-s` seconds on what was before the last two weeks and ranks the whole
catalogue for `--rank-users` users of the last one. Peak memory is this process's, from the kernel.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.report import result, table
from bench.synthetic import START_MS, zipf
from freshet.model.config import DAY_MS
from freshet.model.dayzero import dayzero
from freshet.model.evaluation.embeddings import TwoTower
from freshet.model.evaluation.run import Entry, EvaluateConfig, evaluate
from freshet.model.evaluation.systems import Popularity
from freshet.model.evaluation.targets import Window, Windows
from freshet.model.train import train
from freshet.model.train_config import TrainConfig
from freshet.store.columns import EventColumns, ProductAttributes, ProductColumns, PurchaseColumns, ViewColumns
from freshet.store.history import History

CHUNK = 500_000
"""Edges made at a time."""


@dataclass(frozen=True)
class Large:
    """Size of the shop. The exponents are those of completejourney by maximum likelihood: users 0.54, products 0.82.
    `edges` are drawn; a product that an order names twice is one line, so a tenth fewer are left."""

    users: int = 1_000_000
    products: int = 100_000
    edges: int = 22_000_000
    days: int = 180
    user_skew: float = 0.54
    product_skew: float = 0.82
    lines_mean: float = 4.0
    tastes: int = 200
    taste_share: float = 0.75
    seed: int = 0


def chunks(shop: Large) -> Iterator[EventColumns]:
    """The catalogue, then edges in order of time."""
    rng = np.random.default_rng(shop.seed)
    names = [f"p{i}" for i in range(shop.products)]
    of_product = rng.integers(0, shop.tastes, shop.products)
    price = np.round(np.exp(rng.normal(2.5, 1.0, shop.products)), 2)
    attributes = [
        ProductAttributes(category=(f"d{t % 20}", f"c{t}"), price=float(p))
        for t, p in zip(of_product.tolist(), price.tolist(), strict=True)
    ]
    zeros = np.zeros(shop.products, np.int64)
    yield EventColumns(products=ProductColumns(names, zeros, np.arange(shop.products, dtype=np.uint64), [*attributes]))
    of_user = rng.integers(0, shop.tastes, shop.users)
    by_taste = np.argsort(of_product, kind="stable")  # within a taste by rank, so that skew stays
    start = np.concatenate([[0], np.cumsum(np.bincount(of_product, minlength=shop.tastes))])
    event = 0
    for first in range(0, shop.edges, CHUNK):
        n = min(CHUNK, shop.edges - first) // 2
        sizes = 1 + rng.poisson(shop.lines_mean - 1.0, int(n / shop.lines_mean) + 1)
        order_start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        span = (START_MS + int(first / shop.edges * shop.days * DAY_MS), shop.days * DAY_MS * CHUNK / shop.edges)
        buyer = zipf(rng, shop.users, sizes.shape[0], shop.user_skew)
        viewer = zipf(rng, shop.users, n, shop.user_skew)
        lines = _products(shop, rng, of_user[np.repeat(buyer, sizes)], by_taste, start)
        seen = _products(shop, rng, of_user[viewer], by_taste, start)
        at = np.sort(span[0] + (rng.random(sizes.shape[0]) * span[1]).astype(np.int64))
        orders = np.arange(event, event + sizes.shape[0], dtype=np.uint64)
        event += sizes.shape[0]
        user = np.repeat(buyer, sizes).tolist()
        total = lines.shape[0]
        yield EventColumns(
            purchases=PurchaseColumns(
                [f"u{u}" for u in user], [names[p] for p in lines.tolist()], np.repeat(at, sizes),
                np.repeat(orders, sizes), np.full(total, np.nan, np.float32), np.zeros(total, np.bool_), order_start,
            ),
            views=ViewColumns(
                [f"u{u}" for u in viewer.tolist()], [names[p] for p in seen.tolist()],
                np.sort(span[0] + (rng.random(n) * span[1]).astype(np.int64)),
                np.arange(event, event + n, dtype=np.uint64), np.full(n, np.nan, np.float32),
            ),
        )  # fmt: skip
        event += n


def _products(
    shop: Large, rng: np.random.Generator, taste: np.ndarray, by_taste: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """A product for each of `taste` [n]: of that taste three times of four, of the whole shop otherwise."""
    n = taste.shape[0]
    size = start[taste + 1] - start[taste]
    within = np.minimum((size * rng.random(n) ** (1.0 / (1.0 - shop.product_skew))).astype(np.int64), size - 1)
    own = by_taste[start[taste] + within]
    return np.where(rng.random(n) < shop.taste_share, own, zipf(rng, shop.products, n, shop.product_skew))


def peak_gib() -> float:
    """Most memory this process has held, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=Large.users)
    parser.add_argument("--products", type=int, default=Large.products)
    parser.add_argument("--edges", type=int, default=Large.edges)
    parser.add_argument("--train-s", type=float, default=300.0)
    parser.add_argument("--rank-users", type=int, default=20_000)
    args = parser.parse_args()
    shop = Large(args.users, args.products, args.edges)
    rows = []

    def done(what: str, began_s: float, edges: float | None = None) -> None:
        seconds = time.perf_counter() - began_s
        rows.append([what, f"{seconds:.1f}", f"{edges / seconds:,.0f}" if edges else "", f"{peak_gib():.2f}"])
        print(*rows[-1], flush=True)

    start = time.perf_counter()
    history = History.of(chunks(shop))
    lines = history.purchases.time.shape[0] + history.views.time.shape[0]
    done("read and sort", start, lines)
    assert history.span_ms is not None
    end_ms = history.span_ms[1] + 1
    test = Window(end_ms - 7 * DAY_MS, end_ms)
    cut_ms = end_ms - 14 * DAY_MS
    start = time.perf_counter()
    zero = dayzero(history, cut_ms=cut_ms - 1)
    done("day zero", start, lines)
    start = time.perf_counter()
    trained = train(history, TrainConfig(time_budget_s=args.train_s), split_ms=cut_ms)
    course = trained.card["training"]
    done("train", start)
    start = time.perf_counter()
    entries = [
        Entry("popular", {"30 days": lambda: Popularity("popular", 30.0)}),
        Entry("day_zero", {"": lambda: TwoTower("day_zero", zero)}),
        Entry("two_tower", {"": lambda: TwoTower("two_tower", trained)}),
    ]
    run = evaluate(history, Windows(cut_ms, test), entries, EvaluateConfig(args.rank_users))
    done("evaluate three systems", start)
    table(["step", "seconds", "edges/s", "peak memory so far, GiB"], rows)
    quality = {name: _means(found.values["novel"]) for name, found in run.ranked.items()}
    result(
        {
            "users": len(history.users), "products": len(history.products), "edges": lines,
            "trained_orders_and_views": course["examples"], "seconds_of_steps": round(course["seconds"], 1),
            "trained_per_s": round(course["examples"] / course["seconds"]), "peak_gib": round(peak_gib(), 2),
            "novel": quality, "left_out": run.left_out,
        }
    )  # fmt: skip


def _means(values: np.ndarray) -> dict[str, float]:
    from freshet.model.evaluation.metrics import PER_USER

    return {name: round(float(values[:, PER_USER.index(name)].mean()), 4) for name in ("recall@20", "map@12")}


if __name__ == "__main__":
    main()
