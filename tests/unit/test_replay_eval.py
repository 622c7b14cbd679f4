"""`freshet replay-eval`: what each policy knows, by construction; its intervals; and what it refuses."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from freshet.errors import FreshetError
from freshet.model.bundle import Bundle
from freshet.model.dayzero import dayzero
from freshet.model.evaluation.freshness import POLICIES, Answers, Ask, replay
from freshet.model.evaluation.freshness_ranker import RankerAt
from freshet.model.evaluation.freshness_report import Group, report, table
from freshet.model.frozen import FrozenTowers
from freshet.reader import Reader
from freshet.store.columns import EventColumns
from freshet.store.graph import GraphStore
from freshet.store.history import History
from freshet.store.index import MemoryItemIndex
from freshet.store.memory_store import MemoryEmbeddingStore, MemoryServingState
from freshet.store.ranker import Ranker, RankerWeights, dump_ranker
from freshet.store.value import Seq
from freshet.stream.decode import decode_events
from freshet.stream.eventlog import EventLog, EventLogWriter
from freshet.stream.events import Event, Kind, Line, Product, Purchase, View
from freshet.stream.ownership import Ownership
from freshet.stream.progress import Bars
from freshet.stream.replay_asks import read_asks
from freshet.stream.replay_eval import ReplayResult, ReplaySettings, plot, replay_eval
from freshet.stream.sink import Sink
from freshet.stream.updater import Updater
from tests.unit.query_logs import DAY_MS, SHELF, START_MS, shop, write_log

SPLIT_MS = -(-(START_MS + 30 * DAY_MS) // DAY_MS) * DAY_MS
"""A midnight, 30 days after the shop's first event."""
HOUR_MS = 3_600_000


def iso(time_ms: int) -> str:
    return str(np.datetime64(time_ms, "ms"))


def past() -> list[Event]:
    """What every log here begins with: a shop of four tastes up to the split."""
    return [event for event in shop(days=31) if (event.timestamp or 0) < SPLIT_MS]


def run(path: Path, events: list[Event], **settings: object) -> ReplayResult:
    log = write_log(path, events)
    chosen = ReplaySettings(iso(SPLIT_MS), **settings)  # type: ignore[arg-type]
    return replay_eval(log, None, chosen, Bars(Console(file=io.StringIO())))


def group(result: ReplayResult, name: str) -> Group:
    return next(g for g in result.groups if g.name == name)


def recalls(result: ReplayResult, name: str = "all", k: int = 20) -> dict[str, float]:
    return {f.policy: f.mean for f in group(result, name).of(f"recall@{k}")}


def order(name: str, user: str, at_ms: int, *products: str) -> Purchase:
    return Purchase(name, user, at_ms, items=tuple(Line(p) for p in products))


def views(user: str, at_ms: int, products: list[str]) -> list[Event]:
    return [View(f"{user}-{at_ms}-{p}", user, p, at_ms + i * 1000) for i, p in enumerate(products)]


def turned(at_ms: int, asked_ms: int) -> list[Event]:
    """Users of taste 0 buy much of taste 1, and later what is left of it."""
    shelf = [f"p{SHELF + i}" for i in range(SHELF)]
    events: list[Event] = []
    for i in range(8):
        user = f"u{4 * i}"
        events += [order(f"t{user}-{n}", user, at_ms + n, *shelf[n::4][:2]) for n in range(4)]
        events.append(order(f"asked-{user}", user, asked_ms, *shelf[8:]))
    return events


@pytest.mark.parametrize(
    "at_ms, asked_ms, fresh, stale",
    [
        (SPLIT_MS + HOUR_MS + 60_000, SPLIT_MS + HOUR_MS + 600_000, ["every event"], ["hourly", "daily", "frozen"]),
        (SPLIT_MS + 60_000, SPLIT_MS + HOUR_MS + 600_000, ["every event", "hourly"], ["daily", "frozen"]),
        (SPLIT_MS + 60_000, SPLIT_MS + DAY_MS + 600_000, ["every event", "hourly", "daily"], ["frozen"]),
    ],
)
def test_a_change_of_taste_is_found_by_the_policies_that_have_seen_it(
    tmp_path: Path, at_ms: int, asked_ms: int, fresh: list[str], stale: list[str]
) -> None:
    result = run(tmp_path / "log", past() + turned(at_ms, asked_ms), k=10)
    found = recalls(result, "novel", 10)
    least_fresh = min(found[p] for p in fresh)
    assert all(found[p] < least_fresh for p in stale)
    assert len({found[p] for p in stale}) == 1


def test_a_product_born_after_the_start_is_ranked_only_where_it_is_known(tmp_path: Path) -> None:
    born = SPLIT_MS + HOUR_MS + 60_000
    events = [*past(), Product("born", born, ("shop", "taste0"), "brand0", 1.0)]
    events += [order(f"b{i}", f"u{4 * i}", born + 60_000 * (i + 1), "born") for i in range(1, 8)]
    found = recalls(run(tmp_path / "log", events, k=49), "new products", 49)
    assert found == {"every event": 1.0, "hourly": 0.0, "daily": 0.0, "frozen": 0.0}


def test_without_events_between_ticks_all_policies_agree(tmp_path: Path) -> None:
    asks: list[Event] = [order(f"x{i}", f"u{i}", SPLIT_MS + HOUR_MS, "p1", "p20") for i in range(20)]
    result = run(tmp_path / "log", past() + asks)
    for some in result.groups:
        for figure in some.figures:
            assert figure.difference == figure.difference_low == figure.difference_high == 0.0


def test_a_new_user_gets_popular_products_until_something_is_known_of_them(tmp_path: Path) -> None:
    at_ms = SPLIT_MS + HOUR_MS + 60_000
    shelf = [f"p{2 * SHELF + i}" for i in range(SHELF)]
    events: list[Event] = []
    for i in range(6):
        events += views(f"new{i}", at_ms, shelf[:8])
        events.append(order(f"first{i}", f"new{i}", at_ms + 600_000, *shelf[8:]))
    found = recalls(run(tmp_path / "log", past() + events, k=12), "new users", 12)
    assert found["every event"] == 1.0
    assert found["hourly"] == found["frozen"] < 1.0


def test_an_ask_knows_nothing_of_its_own_time(tmp_path: Path) -> None:
    at_ms = SPLIT_MS + HOUR_MS
    events: list[Event] = [order("one", "fresh", at_ms, "p3"), *views("fresh", at_ms, ["p3"])]
    result = run(tmp_path / "log", past() + events)
    assert [g.name for g in result.groups if g.name == "new users"] == ["new users"]
    figures = group(result, "new users").of("map@12")
    assert len({f.mean for f in figures}) == 1


def test_with_the_ranker_the_answer_is_what_a_reader_recommends(tmp_path: Path) -> None:
    at_ms, k = SPLIT_MS + 5 * HOUR_MS, 15
    later = views("u1", SPLIT_MS + 60_000, ["p20", "p40"]) + views("u2", SPLIT_MS + 60_000, ["p3"])
    later += [order("again", "u2", SPLIT_MS + 90_000, "p30", "p31"), Product("p0", SPLIT_MS + 1, withdrawn=True)]
    log = EventLog(write_log(tmp_path / "log", past() + later))
    history = History.of(list(log.columns()))
    weights = RankerWeights(-2.0, 6.0, 1.5, 2.4, 0.95, -0.2, -3.7, 4.0)
    ranker = Ranker(weights, {f"p{i}": (i % 5 - 2) / 2 for i in range(40)})
    bundle = dayzero(history, cut_ms=SPLIT_MS - 1).with_ranker(ranker)
    recommended = recommendations(log, bundle, [f"u{i}" for i in range(6)], k)
    assert any(p in ("p20", "p40") for p in recommended["u1"])
    asks = [Ask(user, at_ms, (product,)) for user, listed in recommended.items() for product in listed]
    graph = GraphStore()
    for columns in log.columns(until_ms=SPLIT_MS):
        graph.apply(columns)
    period = decode_events(list(log.stream(since_ms=SPLIT_MS)))
    feed = lambda before_ms: period if before_ms == at_ms else EventColumns()  # noqa: E731
    found = replay(bundle, graph, feed, asks, SPLIT_MS, k, ranker=RankerAt(ranker, history))
    place = np.argmax(found.hit[0], axis=1)
    assert found.hit[0].any(axis=1).all()
    assert place.reshape(-1, k).tolist() == [list(range(k))] * 6


def recommendations(log: EventLog, bundle: Bundle, users: list[str], k: int) -> dict[str, list[str]]:
    """What a reader offers after all of the log, over the stores that a worker fills."""
    graph, store, index = GraphStore(), MemoryEmbeddingStore(), MemoryItemIndex(bundle.config.dim)
    version = bundle.model_version
    sink = Sink(graph, store, index, None, "", version, bundle.config.dim, Ownership.of_all(graph.users), fence=1)
    updater = Updater(graph, FrozenTowers(bundle, graph), sink, {kind.value: kind for kind in Kind})
    for columns in log.columns():
        updater.absorb(columns)
    updater.write_all()
    serving = MemoryServingState()
    serving.set_current(version)
    serving.put_blob(f"{version}:ranker", Seq(1, 1), dump_ranker(bundle.ranker))
    reader = Reader.over(store, serving, index, model_version=version)
    return {user: [p for p, _, _ in reader.recommend(user, k, exclude_seen=False).items] for user in users}


def test_asks_are_orders_with_what_was_bought_before(tmp_path: Path) -> None:
    at_ms = SPLIT_MS + HOUR_MS
    events: list[Event] = [
        order("old", "a", SPLIT_MS - 5, "p1", "p2"),
        Purchase("l1", "a", at_ms, product_id="p2", order_id="o"),
        Purchase("l2", "a", at_ms + 5, product_id="p3", order_id="o"),
        Purchase("next", "a", at_ms + 9, items=(Line("p4"), Line("p5", cancelled=True))),
        Purchase("gone", "b", at_ms + 9, product_id="p4", cancelled=True),
    ]
    log = EventLog(write_log(tmp_path / "log", events))
    first, second = read_asks(log, SPLIT_MS, at_ms + 100, False, 10, 0)
    assert (first.user, first.time_ms, first.targets, first.seen) == ("a", at_ms, ("p2", "p3"), {"p1", "p2"})
    assert (second.targets, second.seen, second.activity) == (("p4",), {"p1", "p2", "p3"}, 2)


def test_asks_of_views_are_new_to_the_visit(tmp_path: Path) -> None:
    at_ms = SPLIT_MS + HOUR_MS
    visit = [View(f"v{i}", "a", p, at_ms + i * 60_000) for i, p in enumerate(["p1", "p2", "p1", "p3"])]
    later = [View("w0", "a", "p4", at_ms + 5 * HOUR_MS), View("w1", "a", "p1", at_ms + 5 * HOUR_MS + 1)]
    log = EventLog(write_log(tmp_path / "log", [*visit, *later]))
    asks = read_asks(log, SPLIT_MS, at_ms + DAY_MS, True, 10, 0)
    assert [(a.targets, a.hidden) for a in asks] == [
        (("p2",), {"p1"}), (("p3",), {"p1", "p2"}), (("p1",), {"p4"}),
    ]  # fmt: skip
    assert asks[2].seen == {"p1", "p2", "p3", "p4"}


def test_a_sample_of_asks_is_a_function_of_the_seed(tmp_path: Path) -> None:
    log = EventLog(write_log(tmp_path / "log", shop(days=34)))
    until_ms = START_MS + 34 * DAY_MS
    everything = read_asks(log, SPLIT_MS, until_ms, False, 10_000, 0)
    one, same, other = (read_asks(log, SPLIT_MS, until_ms, False, 12, seed) for seed in (1, 1, 2))
    assert len(one) == 12 and one == same and one != other
    assert set(one) <= set(everything)
    assert [a.time_ms for a in one] == sorted(a.time_ms for a in one)


def answers(asks: int = 60, users: int = 15, k: int = 12) -> Answers:
    rng = np.random.default_rng(0)
    shape = (len(POLICIES), asks, k)
    ones = np.ones(asks, dtype=np.int64)
    user = rng.integers(0, users, asks)
    hit = rng.random(shape) < 0.1
    hit[1] = hit[0]
    return Answers(k, hit, hit & False, hit, 3 * ones, 0 * ones, 2 * ones, user, user + 1, user == 3)


def test_intervals_contain_the_mean_and_differences_are_paired() -> None:
    groups = report(answers())
    assert [g.name for g in groups] == [
        "all", "novel", "low activity", "medium activity", "high activity", "new users",
    ]  # fmt: skip
    assert groups[0].asks == 60 and sum(g.asks for g in groups[2:]) == 60
    for some in groups[:5]:
        for figure in some.figures:
            assert figure.low <= figure.mean <= figure.high
            assert figure.difference_low <= figure.difference <= figure.difference_high
        for first, second, *_ in (some.of("recall@12"), some.of("map@12")):
            assert (second.difference, second.difference_low, second.difference_high) == (0.0, 0.0, 0.0)
            assert second.mean == first.mean


def test_the_table_and_the_figure_show_every_group(tmp_path: Path) -> None:
    result = ReplayResult("dayzero", 60, ReplaySettings("2025-07-01", k=12), report(answers()))
    lines = table(result.groups)
    assert sum(line.startswith("| new users |") for line in lines) == 2
    plot(result, tmp_path / "figures" / "one.svg")
    plot(result, tmp_path / "two.svg")
    drawn = (tmp_path / "two.svg").read_bytes()
    assert drawn == (tmp_path / "figures" / "one.svg").read_bytes()
    assert b"every event" in drawn and b"frozen" in drawn
    assert msgspec.json.decode(msgspec.json.encode(result.as_json()))["asks"] == 60
    with pytest.raises(FreshetError, match=r"--plot .*name the file \.svg"):
        plot(result, tmp_path / "one.png")


def test_a_bundle_that_was_chosen_by_the_period_is_refused(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [*past(), order("one", "u1", SPLIT_MS + 5, "p1")])
    made = dayzero(History.of(list(EventLog(log).columns(until_ms=SPLIT_MS))), cut_ms=SPLIT_MS - 5 * DAY_MS - 1)
    for validate, days in ((True, 7.0), (True, 5.0), (False, 7.0)):
        training = {"training": {"settings": {"validate": validate, "validation_days": days}}}
        replace(made, card=training).save(tmp_path / f"{validate}-{days}")
    bars = Bars(Console(file=io.StringIO()))
    for ranker in (False, True):
        for name in ("True-5.0", "False-7.0"):
            assert replay_eval(log, tmp_path / name, ReplaySettings(iso(SPLIT_MS), ranker=ranker), bars).asks == 1
    with pytest.raises(FreshetError, match="chosen by, events up to"):
        replay_eval(log, tmp_path / "True-7.0", ReplaySettings(iso(SPLIT_MS)), bars)


def test_a_ranker_moves_what_is_bought_again_and_keeps_the_order_of_what_is_new(tmp_path: Path) -> None:
    events = shop(days=34, views=False)
    plain, ranked = (run(tmp_path / str(r), events, k=5, ranker=r) for r in (False, True))
    assert group(plain, "novel") == group(ranked, "novel")
    assert recalls(plain, k=5) != recalls(ranked, k=5)


@pytest.mark.parametrize(
    "settings, message",
    [
        (ReplaySettings("2030-01-01"), "--from 2030-01-01 is after the log's end"),
        (ReplaySettings("2001-01-01"), "nothing is before it"),
        (ReplaySettings("soon"), "--from 'soon' is not a date"),
        (ReplaySettings(iso(SPLIT_MS), iso(SPLIT_MS)), "the period is empty"),
        (ReplaySettings(iso(SPLIT_MS), iso(SPLIT_MS + 1)), "no order in"),
        (ReplaySettings(iso(SPLIT_MS), targets="clicks"), "orders or views"),
        (ReplaySettings(iso(SPLIT_MS), targets="views"), "no visit with a second view"),
        (ReplaySettings(iso(SPLIT_MS), k=0), "--k and --max-asks"),
    ],
)
def test_what_cannot_be_replayed_is_said(tmp_path: Path, settings: ReplaySettings, message: str) -> None:
    log = write_log(tmp_path / "log", shop(days=34, views=False))
    with pytest.raises(FreshetError, match=message):
        replay_eval(log, None, settings, Bars(Console(file=io.StringIO())))


def test_an_empty_log_is_said(tmp_path: Path) -> None:
    with EventLogWriter(tmp_path / "log", "test"):
        pass
    with pytest.raises(FreshetError, match="no events"):
        replay_eval(tmp_path / "log", None, ReplaySettings("2025-07-01"), Bars(Console(file=io.StringIO())))


def test_a_bundle_that_has_seen_the_period_or_is_damaged_is_refused(tmp_path: Path) -> None:
    from freshet.stream.modelling import read_history

    bars = Bars(Console(file=io.StringIO()))
    log = write_log(tmp_path / "log", shop(days=34))
    dayzero(read_history(EventLog(log), None, bars)).save(tmp_path / "bundle")
    with pytest.raises(FreshetError, match="make it anew with an earlier --before"):
        replay_eval(log, tmp_path / "bundle", ReplaySettings(iso(SPLIT_MS)), bars)
    head = tmp_path / "bundle" / "bundle.json"
    head.write_text(head.read_text().replace('"dim": 128', '"dim": 64'))
    with pytest.raises(FreshetError, match=r"bundle\.json"):
        replay_eval(log, tmp_path / "bundle", ReplaySettings(iso(SPLIT_MS)), bars)
