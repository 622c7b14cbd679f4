"""What a value lists of a user's past: chosen as a plain reading of the lists says, and packed as any library packs."""

from __future__ import annotations

import struct
from collections import Counter

import msgpack
import numpy as np
import pytest

from freshet.store.columns import I32, EventColumns, PurchaseColumns, ViewColumns
from freshet.store.graph import GraphLimits, GraphStore
from freshet.store.packed import Sources, ValuePacker
from freshet.store.recent import KINDS, bought, recent
from freshet.store.value import Seq, decode_value

DAY_MS = 86_400_000


def shop(seed: int, lines: int, names: list[str], limits: GraphLimits) -> tuple[GraphStore, list[tuple[str, str, int]]]:
    """A graph of random purchases and views, and the purchases that were not cancelled (user, product, time)."""
    rng = np.random.default_rng(seed)
    user = [f"u{i}" for i in rng.integers(0, 6, lines)]
    product = [names[i] for i in rng.integers(0, len(names), lines)]
    time = rng.integers(0, 300 * DAY_MS, lines)
    cancelled = rng.random(lines) < 0.1
    event = np.arange(1, lines + 1, dtype=np.uint64)
    purchases = PurchaseColumns(
        user, product, time, event, np.ones(lines, np.float32), cancelled, np.arange(lines + 1, dtype=np.int64)
    )
    views = ViewColumns(user[:20], product[:20], time[:20] + 1, event[:20] + 10_000, np.full(20, np.nan, np.float32))
    graph = GraphStore(limits)
    graph.apply(EventColumns(purchases=purchases, views=views))
    kept: list[tuple[str, str, int]] = []
    for u in sorted(set(user)):
        mine = sorted((int(time[i]), i) for i in range(lines) if user[i] == u)
        newest = mine[-limits.purchased_max :]
        kept += [(u, product[i], t) for t, i in reversed(newest) if not cancelled[i]]
    return graph, kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 5, 64])
def test_bought_is_what_a_plain_reading_of_the_lists_finds(seed: int, k: int) -> None:
    graph, kept = shop(seed, 300, [f"p{i}" for i in range(25)], GraphLimits(purchased_max=40))
    users = np.arange(len(graph.users), dtype=np.int32)
    found = bought(graph, users, k)
    for row, user in enumerate(graph.users.names(users)):
        mine = [(p, t) for u, p, t in kept if u == user]  # newest first
        count, last = Counter(p for p, _ in mine), dict(reversed(mine))
        order = list(dict.fromkeys(p for p, _ in mine))
        newest = mine[0][1]
        worth = {p: count[p] ** 2 / (1 + (newest - last[p]) / (30 * DAY_MS)) for p in order}
        best = sorted(order, key=lambda p: (-worth[p], order.index(p)))[:k]
        lately = {p: sum(0.5 ** ((last[p] - t) / (30 * DAY_MS)) for q, t in mine if q == p) for p in order}
        want = [(p, count[p], last[p], np.float32(lately[p])) for p in order if p in best]
        there = found.product[row] >= 0
        got = zip(
            graph.products.names(found.product[row][there]), found.count[row][there].tolist(),
            found.time[row][there].tolist(), found.decayed[row][there], strict=True,
        )  # fmt: skip
        assert list(got) == want


def packed(packer: ValuePacker, graph: GraphStore, users: I32, sources: Sources | None = None) -> list[bytes]:
    n = users.shape[0]
    vectors = np.arange(n * 3, dtype=np.float32).reshape(n, 3)
    nowhere = Sources([], np.full(n, -1, np.int16), np.zeros(n, np.int32), np.zeros(n, np.int64))
    fences = np.arange(7, 7 + n, dtype=np.int64)
    seen, own = recent(graph, users, 7), bought(graph, users, 64)
    return packer.pack(vectors, fences, 12, 1_500_000_000_000, sources or nowhere, seen, own)


def test_values_are_what_any_library_packs_and_new_names_are_learned() -> None:
    names = ["tea", "käse", "x" * 31, "y" * 32, "z" * 256]
    graph, _ = shop(1, 100, names[:3], GraphLimits())
    packer = ValuePacker(graph.products, "m" * 40, 3)
    users = np.arange(len(graph.users), dtype=np.int32)
    topics = ["views", "freshet.events.purchase"]
    place = np.array([0, 1, -1, 1, 0, 1], dtype=np.int16)[: users.shape[0]]
    sources = Sources(topics, place, np.array([3, 2**31 - 1, 0, 0, 1, 2], np.int32)[: users.shape[0]],
                      np.array([2**62, 5, 0, 0, 1, 2], np.int64)[: users.shape[0]])  # fmt: skip
    for _ in range(2):
        seen, own = recent(graph, users, 7), bought(graph, users, 64)
        for row, raw in enumerate(packed(packer, graph, users, sources)):
            there = seen.product[row] >= 0
            products = graph.products.names(seen.product[row][there])
            latest = zip(products, seen.kind[row][there], seen.time[row][there].tolist())
            there = own.product[row] >= 0
            products = graph.products.names(own.product[row][there])
            columns = (own.count, own.time, own.decayed)
            counts = zip(products, *(column[row][there].tolist() for column in columns), strict=True)
            src = [topics[place[row]], int(sources.partition[row]), int(sources.offset[row])]
            want = {
                "seq": f"{7 + row:016d}.{12:016d}", "v": struct.pack("<3f", *range(3 * row, 3 * row + 3)), "dim": 3,
                "model": "m" * 40, "event_ts": int(seen.event_time[row]), "written_ts": 1_500_000_000_000,
                "src": None if place[row] < 0 else src,
                "recent": [[name, KINDS[kind], time] for name, kind, time in latest],
                "bought": [list(entry) for entry in counts],
            }  # fmt: skip
            assert list(msgpack.unpackb(raw).items()) == list(want.items())
            assert decode_value(raw).seq == Seq(7 + row, 12)
        more = PurchaseColumns(
            ["u0", "u0"], names[3:], np.array([400 * DAY_MS] * 2), np.array([9001, 9002], np.uint64),
            np.ones(2, np.float32), np.zeros(2, np.bool_), np.arange(3, dtype=np.int64),
        )  # fmt: skip
        graph.apply(EventColumns(purchases=more))


def test_a_user_without_anything_has_empty_lists_and_nobody_has_no_value() -> None:
    graph = GraphStore()
    graph.users.intern(["nobody"])
    graph.purchased.reserve(1, 1)
    graph.viewed.reserve(1, 1)
    graph.sessions.reserve(1, 1)
    packer = ValuePacker(graph.products, "m", 3)
    nobody = np.zeros(1, np.int32)
    value = decode_value(packed(packer, graph, nobody)[0])
    assert (value.recent, value.bought, value.src, value.event_ts) == ([], [], None, -1)
    assert packed(packer, graph, nobody[:0]) == []


@pytest.mark.parametrize(("fence", "step"), [(-1, 1), (10**16, 1), (1, 10**16)])
def test_a_token_without_a_place_in_a_seq_is_refused(fence: int, step: int) -> None:
    graph, _ = shop(1, 20, ["tea"], GraphLimits())
    one = np.zeros(1, np.int32)
    seen, own = recent(graph, one, 7), bought(graph, one, 7)
    nowhere = Sources([], np.full(1, -1, np.int16), one, np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="cannot be written"):
        ValuePacker(graph.products, "m", 3).pack(
            np.zeros((1, 3), np.float32), np.array([fence]), step, 5, nowhere, seen, own
        )
