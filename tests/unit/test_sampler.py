"""History and sampler: the same lists as the live store, and nothing newer than the edge predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from freshet.model.config import DAY_MS
from freshet.model.sampler import (
    SEED_EDGE,
    Candidates,
    PairSnapshots,
    Seeds,
    TemporalLoader,
    TemporalSampler,
    order_runs,
)
from freshet.store.columns import (
    EventColumns,
    ProfileColumns,
    PurchaseColumns,
    SessionColumns,
    ViewColumns,
)
from freshet.store.copurchase import FrozenCounts
from freshet.store.graph import GraphLimits, GraphStore
from freshet.store.history import History
from freshet.store.lists import Gather
from tests.random_bundle import ALL_READS

CONFIG = ALL_READS


def purchases(lines: list[tuple[str, str, int, int]], cancelled: set[int] | None = None) -> PurchaseColumns:
    """Lines (user, product, time, event), those of one event adjacent; `cancelled` events."""
    event = np.array([e for _, _, _, e in lines], dtype=np.uint64)
    start = [0, *(i for i in range(1, len(lines)) if event[i] != event[i - 1]), len(lines)]
    return PurchaseColumns(
        [u for u, _, _, _ in lines],
        [p for _, p, _, _ in lines],
        np.array([t for _, _, t, _ in lines], dtype=np.int64),
        event,
        np.ones(len(lines), dtype=np.float32),
        np.isin(event, list(cancelled or ())),
        np.array(start, dtype=np.int64),
    )


def random_log(seed: int, orders: int = 120) -> EventColumns:
    rng = np.random.default_rng(seed)
    lines = [
        (f"u{user}", f"p{p}", int(time), order + 1)
        for order, (user, time) in enumerate(
            zip(rng.integers(9, size=orders), rng.integers(1, 90, orders), strict=True)
        )
        for p in rng.choice(20, rng.integers(1, 6), replace=False)
    ]
    views = ViewColumns(
        [f"u{i}" for i in rng.integers(9, size=80)],
        [f"p{i}" for i in rng.integers(20, size=80)],
        rng.integers(1, 90, 80),
        rng.integers(1, 2**62, 80).astype(np.uint64),
        rng.uniform(0, 9, 80).astype(np.float32),
    )
    sizes = rng.integers(0, 4, 40)
    sessions = SessionColumns(
        [f"u{i}" for i in np.arange(40) % 9],
        [f"s{i}" for i in np.arange(40) % 30],
        [None if i % 3 else "phone" for i in range(40)],
        rng.integers(1, 90, 40),
        rng.integers(1, 2**62, 40).astype(np.uint64),
        rng.uniform(0, 99, 40).astype(np.float32),
        np.concatenate([[0], np.cumsum(sizes)]),
        [f"p{i}" for i in rng.integers(20, size=int(sizes.sum()))],
        np.zeros(int(sizes.sum()), dtype=np.int32),
        rng.integers(-1, 2, int(sizes.sum())).astype(np.int8),
    )
    return EventColumns(views=views, purchases=purchases(lines, {3, 50}), sessions=sessions)


def before(events: EventColumns, bound: int) -> EventColumns:
    """The same log without anything at or after `bound`."""
    p, v, s = events.purchases, events.views, events.sessions
    kept = np.flatnonzero(p.time < bound)
    lines = [(p.user[i], p.product[i], int(p.time[i]), int(p.event_hash[i])) for i in kept]
    old = np.flatnonzero(v.time < bound)
    seen = np.flatnonzero(s.time < bound)
    items = [np.arange(s.item_start[i], s.item_start[i + 1]) for i in seen]
    flat = np.concatenate([*items, np.zeros(0, np.int64)]).astype(np.int64)
    return EventColumns(
        views=ViewColumns(
            [v.user[i] for i in old], [v.product[i] for i in old], v.time[old], v.event_hash[old], v.dwell_s[old]
        ),
        purchases=purchases(lines, set(p.event_hash[p.cancelled].tolist())),
        sessions=SessionColumns(
            [s.user[i] for i in seen], [s.session[i] for i in seen], [s.device[i] for i in seen], s.time[seen],
            s.event_hash[seen], s.duration_s[seen],
            np.concatenate([[0], np.cumsum([len(i) for i in items])]).astype(np.int64),
            [s.product[i] for i in flat], s.position[flat], s.click[flat],
        ),
    )  # fmt: skip


def named(block, names: list[str]) -> list[list[tuple[str, float]]]:  # type: ignore[no-untyped-def]
    return [
        [(names[n], round(float(w), 5)) for n, w in zip(row, weight, strict=True) if n >= 0]
        for row, weight in zip(block.nbr, block.weight, strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_history_at_a_bound_equals_a_store_that_saw_only_what_was_before(seed: int) -> None:
    events = random_log(seed)
    limits = GraphLimits(purchased_max=6, purchased_by_max=5, co_purchased_max=9)
    history = History.of([events, events], limits)  # twice: at-least-once delivery
    for bound in (1, 30, 77, 1000):
        graph = GraphStore(limits)
        graph.intern_products(history.products.all_names())
        graph.apply(before(events, bound))
        graph.users.intern(history.users.all_names())
        graph._reserve()
        users = graph.users.intern(history.users.all_names())
        products = graph.products.intern(history.products.all_names())
        mine = {"user": np.arange(len(users), dtype=np.int32), "product": np.arange(len(products), dtype=np.int32)}
        gather = Gather(4, half_life_ms=20.0, weigh_value=True)
        for relation, node, other in (
            ("purchased", "user", "products"), ("viewed", "user", "products"),
            ("purchased_by", "product", "users"), ("viewed_by", "product", "users"),
        ):  # fmt: skip
            at = np.full(mine[node].shape[0], bound)
            want = getattr(graph, relation).recent(users if node == "user" else products, gather)
            got = getattr(history, relation).recent(mine[node], at, gather)
            assert named(got, getattr(history, other).all_names()) == named(want, getattr(graph, other).all_names())
        pairs = history.pairs_since(FrozenCounts.none(), 1000).top(mine["product"], np.full(len(products), bound), 5)
        want = graph.co_purchased.top(products, graph.products.hash, 5)
        assert named(pairs, history.products.all_names()) == named(want, graph.products.all_names())
        got_s = history.sessions.recent(mine["user"], np.full(len(users), bound), 2, 3)
        want_s = graph.sessions.recent(users, 2, 3)
        np.testing.assert_array_equal(got_s.count, want_s.count)
        np.testing.assert_array_equal(got_s.duration_s, want_s.duration_s)
        np.testing.assert_allclose(got_s.weight, want_s.weight, rtol=1e-6)
        for a, b in zip(got_s.nbr, want_s.nbr, strict=True):
            assert history.products.names(a[a >= 0]) == graph.products.names(b[b >= 0])


def test_frozen_counts_and_live_pairs_add_up() -> None:
    history = History.of([random_log(1)], GraphLimits(co_purchased_max=1000))
    everything = np.arange(len(history.products), dtype=np.int32)
    at = np.full(len(everything), 1000)
    whole = history.freeze(1000, 1000)
    for cut in (20, 60):
        frozen = history.freeze(cut, top_n=50)
        split = history.pairs_since(frozen, 1000).top(everything, at, 6)
        for p in everything:
            rows = slice(*whole.ptr[p : p + 2])
            partner, count = whole.nbr[rows], whole.count[rows]
            damped = (count / np.sqrt(frozen.orders[partner] + 5.0)).astype(np.float32)
            best = np.lexsort((history.products.hash[partner], damped))[::-1][:6]
            assert split.nbr[p][split.nbr[p] >= 0].tolist() == partner[best].tolist()
            weight = split.weight[p][: best.shape[0]]
            np.testing.assert_allclose(weight, damped[best] / damped[best].sum(), rtol=1e-5)


def test_freezing_at_several_times_is_freezing_at_each() -> None:
    history = History.of([random_log(4)], GraphLimits())
    cuts = [60, 20, 1000, 20, 0]  # in any order, and before everything
    for cut, got in zip(cuts, history.freeze_each(cuts, 3), strict=True):
        want = history.freeze(cut, 3)
        assert got.cut_ms == cut
        for name in ("ptr", "nbr", "count", "orders"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert history.freeze_each([], 3) == []


def test_freeze_keeps_the_most_frequent_for_how_often_the_partner_is_bought() -> None:
    history = History.of([random_log(2)], GraphLimits())
    full, few = history.freeze(1000, 100), history.freeze(1000, 3)
    lines = history.purchases
    often = np.bincount(lines.product[lines.flag == 0], minlength=len(history.products))
    np.testing.assert_array_equal(full.orders, often)
    for p in range(len(history.products)):
        rows = slice(*full.ptr[p : p + 2])
        rank = history.products.hash[full.nbr[rows]]
        damped = (full.count[rows] / np.sqrt(often[full.nbr[rows]] + 5.0)).astype(np.float32)
        order = np.lexsort((rank, damped))[::-1][:3]
        assert set(few.nbr[few.ptr[p] : few.ptr[p + 1]]) == set(full.nbr[rows][order])


def test_a_forgotten_user_is_not_in_the_history() -> None:
    events = random_log(3)
    gone = ProfileColumns(["u1"], np.array([50]), np.array([1], np.uint64), [None])
    history = History.of([events, EventColumns(profiles=gone)])
    number = history.users.get("u1")
    for lines in (history.purchases, history.views):
        assert (lines.time[lines.user == number] > 50).all()
        assert (lines.user == number).any()


def batch(  # type: ignore[no-untyped-def]
    events: EventColumns, orders: int = 1000, after_ms: int = 40, full_max: int = 0, **options: float
):
    history = History.of([events])
    pairs = PairSnapshots(history, [after_ms], 32)
    count = np.ones(len(history.products), dtype=np.int64)
    candidates = Candidates.of(count, 0.75, 12, 5, full_max)
    sampler = TemporalSampler(history, pairs, CONFIG, candidates, count.astype(np.float32), 7, **options)
    seeds = Seeds.of(history, after_ms, 60)
    loader = TemporalLoader(seeds, sampler, order_runs(seeds, orders, np.random.default_rng(0)))
    return history, seeds, list(loader)


def contents(history: History, data):  # type: ignore[no-untyped-def]
    """A batch in names: edges as (relation, source, owner, weight), and its seeds."""
    names = {"user": history.users.all_names(), "product": history.products.all_names()}
    kind = {"user": "user", "item_user": "user"}
    out = set()
    for edge_type in data.edge_types:
        if edge_type == SEED_EDGE or "session" in edge_type:
            continue
        source, _, owner = edge_type
        s, o = data[edge_type].edge_index
        s_names = [names[kind.get(source, "product")][i] for i in data[source].n_id[s]]
        o_names = [names[kind.get(owner, "product")][i] for i in data[owner].n_id[o]]
        place = o.tolist() if owner == "user" else [0] * len(o_names)
        weights = [round(float(w), 5) for w in data[edge_type].edge_weight]
        out |= set(zip([edge_type] * len(s_names), s_names, o_names, place, weights, strict=True))
    return out, data["session"].duration_s.tolist(), data[SEED_EDGE].edge_label_time.tolist()


def test_an_edge_planted_in_the_future_is_not_seen_and_one_in_the_past_is() -> None:
    events = random_log(5)
    target = "p3"

    def planted(time: int) -> EventColumns:
        p = events.purchases
        lines = list(zip(p.user, p.product, p.time.tolist(), p.event_hash.tolist(), strict=True))
        lines += [("u2", target, time, 9_999), ("u2", "p19", time, 9_999)]
        purchased = purchases(lines, {3, 50})
        views = ViewColumns(
            [*events.views.user, "u2"], [*events.views.product, target], np.append(events.views.time, time),
            np.append(events.views.event_hash, np.uint64(77)), np.append(events.views.dwell_s, np.float32(5)),
        )  # fmt: skip
        return replace(events, purchases=purchased, views=views)

    history, _, plain = batch(events)
    reference = contents(history, plain[0])
    assert len(plain) == 1 and reference[0]
    # At 61 it is newer than every seed; at the bound of the oldest seed's time it is not older than any.
    history, _, future = batch(planted(61))
    assert contents(history, future[0]) == reference
    history, _, past = batch(planted(39), after_ms=40)
    seen = contents(history, past[0])
    assert seen != reference and seen[2] == reference[2]
    new = seen[0] - reference[0]
    assert any(e[0][1] == "purchased" and e[1] == target and e[2] == "u2" for e in new)
    assert any(e[0][1] == "viewed" and e[1] == target and e[2] == "u2" for e in new)


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_no_entry_is_as_new_as_its_seed(batch_size: int) -> None:
    events = random_log(6)
    history, _, batches = batch(events, batch_size)
    lines = history.purchases
    for data in batches:
        oldest = int(data[SEED_EDGE].edge_label_time.min())
        source, owner = data["product", "purchased", "user"].edge_index
        query = data[SEED_EDGE].edge_label_index[0]
        time_of = dict(zip(query.tolist(), data[SEED_EDGE].edge_label_time.tolist(), strict=True))
        for s, o in zip(source.tolist(), owner.tolist(), strict=True):
            user, product = int(data["user"].n_id[o]), int(data["product"].n_id[s])
            times = lines.time[(lines.user == user) & (lines.product == product)]
            assert times.min() < time_of[o]
        source, owner = data["item_user", "purchased_by", "item"].edge_index
        for s, o in zip(source.tolist(), owner.tolist(), strict=True):
            user, product = int(data["item_user"].n_id[s]), int(data["item"].n_id[o])
            assert lines.time[(lines.user == user) & (lines.product == product)].min() < oldest


def test_lines_of_one_order_do_not_see_each_other() -> None:
    lines = [("u", "a", 10, 1), ("u", "b", 10, 1), ("u", "c", 20, 2), ("v", "a", 5, 3)]
    history = History.of([EventColumns(purchases=purchases(lines))])
    pairs = PairSnapshots(history, [-1], 32)
    count = np.ones(len(history.products), dtype=np.int64)
    candidates = Candidates.of(count, 1.0, 4, 2, 0)
    sampler = TemporalSampler(history, pairs, CONFIG, candidates, count.astype(np.float32), 0)
    seeds = Seeds.of(history, 9, 19)
    data = next(iter(TemporalLoader(seeds, sampler, [np.arange(2)])))
    assert data["user"].num_nodes == 1  # both lines ask for the same user at the same time
    assert data["product", "purchased", "user"].edge_index.shape[1] == 0
    assert data["product", "co_purchased", "item_product"].edge_index.shape[1] == 0


def test_a_given_part_of_a_basket_is_read_and_the_rest_is_not() -> None:
    lines = [("u", "old", 10, 1), ("u", "b0", 5, 9), *(("u", f"b{i}", 20, 2) for i in range(6))]
    history = History.of([EventColumns(purchases=purchases(lines))])
    pairs = PairSnapshots(history, [-1], 32)
    count = np.ones(len(history.products), dtype=np.int64)
    config = replace(CONFIG, user=replace(CONFIG.user, outer={"purchased": Gather(20, distinct=True)}, inner={}))
    seeds = Seeds.of(history, 19, 29)
    shown = set()
    for seed in range(20):
        candidates = Candidates.of(count, 1.0, 4, 2, 100)
        sampler = TemporalSampler(history, pairs, config, candidates, count.astype(np.float32), seed, 1.0)
        data = next(iter(TemporalLoader(seeds, sampler, [np.arange(6)])))
        names = np.array(history.products.all_names())
        source, owner = data["user_product", "purchased", "user"].edge_index
        read = names[data["user_product"].n_id[source].numpy()].tolist()
        predicted = names[data["item"].n_id[data[SEED_EDGE].edge_label_index[1]].numpy()].tolist()
        assert 1 <= len(predicted) <= 5 and owner.max() == 0
        # b0 was bought before, too: that purchase is read whether or not the new one is predicted.
        assert sorted(read) == sorted({"old", "b0", *(f"b{i}" for i in range(6) if f"b{i}" not in predicted)})
        torch.testing.assert_close(data["user_product", "purchased", "user"].edge_weight.sum(), torch.tensor(1.0))
        assert data[SEED_EDGE].edge_label.sum().item() == pytest.approx(len(predicted) ** 0.5)
        shown.add(len(predicted))
    assert len(shown) > 2


def test_dropout_takes_entries_and_the_weights_still_sum_to_one() -> None:
    (_, _, whole), (_, _, thin) = batch(random_log(6)), batch(random_log(6), dropout=0.5)
    edge = ("user_product", "purchased", "user")
    few, many = thin[0][edge], whole[0][edge]
    assert 0 < few.edge_index.shape[1] < many.edge_index.shape[1]
    sums = torch.zeros(thin[0]["user"].num_nodes).index_add_(0, few.edge_index[1], few.edge_weight)
    torch.testing.assert_close(sums[sums > 0], torch.ones(int((sums > 0).sum())))


def test_a_full_softmax_is_over_every_product_ever_bought() -> None:
    history, _, batches = batch(random_log(6), full_max=100)
    for data in batches:
        assert data["item"].n_id.tolist() == list(range(len(history.products)))
        assert not data["item"].log_q.any()


def test_an_order_of_a_user_without_a_past_does_not_count() -> None:
    lines = [("new", "a", 20, 1), ("known", "b", 10, 2), ("known", "a", 21, 3)]
    history = History.of([EventColumns(purchases=purchases(lines))])
    count = np.ones(len(history.products), dtype=np.int64)
    candidates = Candidates.of(count, 1.0, 4, 2, 100)
    sampler = TemporalSampler(
        history, PairSnapshots(history, [-1], 32), CONFIG, candidates, count.astype(np.float32), 0
    )  # fmt: skip
    data = next(iter(TemporalLoader(Seeds.of(history, 15, 29), sampler, [np.arange(2)])))
    assert data[SEED_EDGE].edge_label.tolist() == [0.0, 1.0]


def test_batches_are_whole_orders_contiguous_in_time_and_cover_every_seed_once() -> None:
    seeds = Seeds.of(History.of([random_log(3, 300)]), 0, 1000, 0.2)
    runs = order_runs(seeds, 20, np.random.default_rng(3))
    assert sorted(np.concatenate(runs).tolist()) == list(range(len(seeds)))
    assert all((np.diff(run) == 1).all() for run in runs)
    assert [int(r[0]) for r in runs] != sorted(int(r[0]) for r in runs)
    of_run = {int(e): i for i, run in enumerate(runs) for e in run}
    for start, end in zip(seeds.order_start[:-1], seeds.order_start[1:], strict=True):
        assert len(set(zip(seeds.user[start:end], seeds.time[start:end], strict=True))) == 1
        assert len({of_run[e] for e in range(start, end)}) == 1


def test_negatives_come_from_the_pool_and_draws_repeat_with_the_seed() -> None:
    (_, _, a), (_, _, b) = batch(random_log(8), 16), batch(random_log(8), 16)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x[SEED_EDGE].negative, y[SEED_EDGE].negative)
        assert torch.equal(x["item"].n_id, y["item"].n_id)
        assert x[SEED_EDGE].negative.shape == (x[SEED_EDGE].edge_label.shape[0], 5)
        assert int(x[SEED_EDGE].negative.max()) < x["item"].num_nodes
        assert torch.isfinite(x["item"].log_q).all() and (x["item"].log_q <= 0).all()


def test_views_weigh_less() -> None:
    history = History.of([random_log(4)])
    seeds = Seeds.of(history, 0, 100, view_weight=0.25)
    assert set(np.unique(seeds.weight)) == {np.float32(0.25), np.float32(1.0)}
    assert len(Seeds.of(history, 0, 100, view_weight=0.0)) == (history.purchases.flag == 0).sum()
    assert DAY_MS == 24 * 3600 * 1000
