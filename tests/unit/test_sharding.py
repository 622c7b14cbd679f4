"""Products in shards: each is one worker's, together they are what one worker would hold, and readers find one list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freshet.errors import FreshetError
from freshet.model.config import TowerConfig
from freshet.model.frozen import FrozenTowers
from freshet.store.canonical import canonical
from freshet.store.columns import EventColumns, ProductAttributes, ProductColumns, PurchaseColumns, ViewColumns
from freshet.store.graph import GraphStore
from freshet.store.index import MemoryItemIndex
from freshet.store.memory_store import MemoryEmbeddingStore, MemoryServingState
from freshet.store.popular import PopularSettings, read_popular
from freshet.store.snapshot_places import FolderPlace
from freshet.store.snapshot_settings import SnapshotSettings
from freshet.stream.completeness import read_sentinel, sentinel_blob
from freshet.stream.deadletter import OFFSET, PARTITION, TOPIC
from freshet.stream.ownership import Ownership
from freshet.stream.popular_list import PopularList
from freshet.stream.records import Outgoing
from freshet.stream.rewriting import ITEMS, every_scope, is_items, place_of, shards_in, users_scope
from freshet.stream.roles import Role
from freshet.stream.settings import Settings
from freshet.stream.sharding import Shard
from freshet.stream.sink import Sink
from freshet.stream.snapshots import InTurn, Snapshots
from freshet.stream.starting import worker_name, worker_settings
from freshet.stream.topics import partition_of
from freshet.stream.worker import Worker
from freshet.stream.worker_status import read_statuses
from tests.random_bundle import ALL_READS, OF_SHARDS, random_bundle
from tests.simulation.cluster import Cluster
from tests.simulation.shape import Shape
from tests.simulation.shop import TOPICS, Published, undisturbed
from tests.simulation.world import Process

NAMES = [f"p{i}" for i in range(40)]
POSITIONS = {("views", 0): 7, ("views", 1): 9}


@pytest.mark.parametrize("text", ["", "1", "2/2", "0/0", "-1/2", "a/b", "0/257", "1/2 ", "0/1/2"])
def test_what_is_no_shard_is_named(text: str) -> None:
    with pytest.raises(FreshetError, match="is no shard of the products: NUMBER/OF"):
        Shard.parse(text)


def test_a_shard_is_for_a_worker_of_items() -> None:
    with pytest.raises(FreshetError, match="with it goes --role items"):
        worker_settings(Settings(), role="users", shard="0/2")
    made = worker_settings(Settings(), role="items", shard="1/2")
    assert worker_name(made) == Shard.parse(made.worker.shard).scope == "items-1-of-2"


def test_towers_whose_states_read_other_products_lists_are_refused() -> None:
    for config in (TowerConfig(), OF_SHARDS):
        Shard(0, 2).check(config)
    Shard().check(ALL_READS)
    with pytest.raises(FreshetError, match=r"reads co_purchased of other products.*without --shard"):
        Shard(0, 2).check(ALL_READS)


def test_the_first_shard_takes_the_place_of_the_whole() -> None:
    scopes = every_scope(2, 3)
    assert scopes == ["items-0-of-3", "items-1-of-3", "items-2-of-3", "users-0", "users-1"]
    assert list(map(place_of, scopes)) == [ITEMS, *scopes[1:]]
    assert list(map(is_items, scopes)) == [True, True, True, False, False]
    assert list(map(shards_in, [ITEMS, scopes[2]])) == [1, 3]
    assert every_scope(1) == [ITEMS, users_scope(0)]
    assert place_of(ITEMS) == Shard().scope == ITEMS


def events(seed: int) -> EventColumns:
    rng = np.random.default_rng(seed)
    n = 300
    user, product = [f"u{i}" for i in rng.integers(0, 30, n)], [NAMES[i] for i in rng.integers(0, len(NAMES), n)]
    time, event = rng.integers(1, 90, n), np.arange(1, n + 1, dtype=np.uint64) + np.uint64(1000 * seed)
    orders = np.arange(0, n + 1, 3, dtype=np.int64)  # of three lines each
    time_of_line, event_of_line = np.repeat(time[:100], 3), np.repeat(event[:100], 3)
    purchases = PurchaseColumns(
        [user[i // 3 * 3] for i in range(n)], product, time_of_line, event_of_line, np.ones(n, np.float32),
        np.zeros(n, np.bool_), orders,
    )  # fmt: skip
    views = ViewColumns(user, product[::-1], time, event, np.full(n, np.nan, np.float32))
    catalogue = ProductColumns(
        NAMES, np.ones(len(NAMES), np.int64), np.arange(len(NAMES), dtype=np.uint64),
        [ProductAttributes(brand=name) for name in NAMES],
    )  # fmt: skip
    return EventColumns(purchases=purchases, views=views, products=catalogue)


def graph_of(shard: Shard, *seeds: int) -> GraphStore:
    graph = GraphStore()
    graph.keeps = shard.judge(graph.products)
    for seed in seeds:
        graph.apply(events(seed))
    return graph


def held(graph: GraphStore) -> set[str]:
    """The products that have lists."""
    n = len(graph.products)
    some = np.zeros(n, dtype=np.bool_)
    for lists in (graph.purchased_by, graph.viewed_by, graph.co_purchased.live):
        some |= lists.length[:n] > 0
    return {name for name in graph.products.names(np.flatnonzero(some).astype(np.int32)) if name}


@pytest.mark.parametrize("of", [2, 3, 5])
def test_each_product_is_in_one_shard_and_together_they_are_the_whole(of: int) -> None:
    shards = [graph_of(Shard(k, of), 1, 2) for k in range(of)]
    for k, graph in enumerate(shards):
        assert held(graph) == {name for name in NAMES if partition_of(name.encode(), of) == k}
    union = GraphStore()
    for graph in shards:
        union.merge(graph)
    assert canonical(union) == canonical(graph_of(Shard(), 1, 2))


def snapshots(graph: GraphStore, folder: Path, now_s: float) -> Snapshots:
    owned, settings = Ownership(graph.users, 2), SnapshotSettings(str(folder), interval_s=1e9)
    return Snapshots(graph, owned, FolderPlace(folder), settings, "", {}, wall=lambda: now_s, begin=InTurn)


def write(shard: Shard, graph: GraphStore, folder: Path, now_s: float, behind: int = 0) -> None:
    at = {tp: offset - behind for tp, offset in POSITIONS.items()}
    writing = snapshots(graph, folder, now_s)
    writing.all_now()
    while not writing.idle:
        writing.turn({shard.scope: at}, at)


def test_a_shard_begins_with_a_snapshot_of_all_products(tmp_path: Path) -> None:
    write(Shard(), graph_of(Shard(), 1), tmp_path, 10.0)
    for k in range(3):
        graph = graph_of(Shard(k, 3))
        assert snapshots(graph, tmp_path, 20.0).load(Shard(k, 3).scope) == POSITIONS
        whole = graph_of(Shard(k, 3), 1)
        assert held(graph) == held(whole)
        assert canonical(graph) == canonical(drop_users(whole))


def drop_users(graph: GraphStore) -> GraphStore:
    """What a snapshot of products holds: not what users did."""
    bare = GraphStore()
    bare.keeps = None
    bare.merge(graph)
    for lists in (bare.purchased, bare.viewed):
        for user in range(len(bare.users)):
            lists.drop_until(user, 2**60)
    return bare


def test_all_products_and_other_shards_begin_with_the_snapshots_of_every_shard(tmp_path: Path) -> None:
    for k in range(2):
        write(Shard(k, 2), graph_of(Shard(k, 2), 1), tmp_path, 10.0 + k, behind=k)
    for shard in (Shard(), Shard(1, 3)):
        graph = graph_of(shard)
        assert snapshots(graph, tmp_path, 20.0).load(shard.scope) == {tp: at - 1 for tp, at in POSITIONS.items()}
        assert held(graph) == held(graph_of(shard, 1))


def test_of_another_cut_a_shard_that_is_missing_makes_the_others_worth_nothing(tmp_path: Path) -> None:
    write(Shard(0, 2), graph_of(Shard(0, 2), 1), tmp_path, 10.0)
    assert snapshots(graph_of(Shard()), tmp_path, 20.0).load(ITEMS) == {}, "state is missing that once was there"
    assert snapshots(graph_of(Shard(1, 2)), tmp_path, 20.0).load("items-1-of-2") is None, "it never had any"
    write(Shard(1, 2), graph_of(Shard(1, 2), 1), tmp_path, 11.0)
    (damaged,) = tmp_path.glob("*-items-1-of-2-*")
    damaged.write_bytes(damaged.read_bytes()[:-400])
    assert snapshots(graph_of(Shard()), tmp_path, 20.0).load(ITEMS) == {}


def test_what_was_snapshotted_last_counts_whatever_the_cut(tmp_path: Path) -> None:
    write(Shard(1, 2), graph_of(Shard(1, 2), 1), tmp_path, 10.0)
    write(Shard(), graph_of(Shard(), 1, 2), tmp_path, 30.0, behind=3)  # as `freshet backfill` does
    graph = graph_of(Shard(1, 2))
    assert snapshots(graph, tmp_path, 40.0).load("items-1-of-2") == {tp: at - 3 for tp, at in POSITIONS.items()}
    write(Shard(1, 2), graph_of(Shard(1, 2), 1, 2), tmp_path, 50.0)
    assert snapshots(graph, tmp_path, 60.0).load("items-1-of-2") == POSITIONS


def test_where_the_newest_cut_cannot_be_used_an_older_one_is(tmp_path: Path) -> None:
    write(Shard(), graph_of(Shard(), 1), tmp_path, 10.0, behind=5)
    for k in range(2):
        write(Shard(k, 2), graph_of(Shard(k, 2), 1, 2), tmp_path, 30.0)
    (damaged,) = tmp_path.glob("*-items-1-of-2-*")
    damaged.write_bytes(damaged.read_bytes()[:-400])
    before = {tp: at - 5 for tp, at in POSITIONS.items()}
    for shard in (Shard(), Shard(1, 2), Shard(0, 3)):
        assert snapshots(graph_of(shard), tmp_path, 40.0).load(shard.scope) == before
    assert snapshots(graph_of(Shard(0, 2)), tmp_path, 40.0).load("items-0-of-2") == POSITIONS


def test_readers_find_one_list_of_popular_products() -> None:
    bundle, settings, serving = random_bundle(config=OF_SHARDS), PopularSettings(popular_max=10), MemoryServingState()
    made = {}
    for shard in (Shard(), Shard(0, 2), Shard(1, 2)):
        graph = graph_of(shard, 1, 2)
        towers = FrozenTowers(bundle, graph)
        version = bundle.model_version if shard.of > 1 else "whole"
        owned = Ownership.of_all(graph.users)
        sink = Sink(graph, MemoryEmbeddingStore(), MemoryItemIndex(16), None, "", version, 16, owned, 1 + shard.number)
        made[shard] = PopularList(graph, towers.levels, sink, serving, shard, settings)
        made[shard].publish()
    of_all = read_popular(serving.get_blob("whole:popular"))
    assert len(of_all) == 10
    joined = f"{bundle.model_version}:popular"
    first, second = made[Shard(0, 2)], made[Shard(1, 2)]
    assert read_popular(serving.get_blob(joined)) == first._own != of_all
    first.publish()
    assert read_popular(serving.get_blob(joined)) == of_all, "the other shard has said something since"
    assert read_popular(serving.get_blob(f"{joined}:items-1-of-2")) == second._own
    assert read_popular(b"\x92\x01") is read_popular(None) is None


def test_a_bad_record_of_the_catalogue_has_one_dead_letter() -> None:
    cluster = Cluster(12, [], Shape.of(12).sharded(3))
    bad = Outgoing(TOPICS.products, b"product-a", b"{")
    cluster.to_publish[:0] = [Published(bad)] * 3
    assert cluster.run().violation is None
    letters = [dict(record.headers) for record in cluster.broker.log[TOPICS.deadletter, 0]]
    places = [(letter[TOPIC], letter[PARTITION], letter[OFFSET]) for letter in letters]
    assert sum(topic == TOPICS.products.encode() for topic, _, _ in places) == 3
    assert len(places) == len(set(places))
    workers = [process.parts["worker"] for process in cluster.world.processes]
    assert sum(worker.rejected for worker in workers if isinstance(worker, Worker)) == len(places)


class Workers:
    """Workers of a simulated shop that are started one by one; nothing goes wrong by itself."""

    def __init__(self) -> None:
        shape = replace(Shape.of(12).sharded(2), snapshots=None, late_writes=False, publish_share=0.0)
        self.cluster = Cluster(12, [], shape)
        self.cluster._due = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cluster._end()

    def start(self, role: Role, shard: Shard | None = None) -> Process:
        return self.cluster.start((role, shard or Shard()), spare=True)

    def go_on(self, turns: int = 600) -> None:
        for _ in range(turns):
            self.cluster._one_turn()
            self.cluster._due = []  # who ends stays away

    def kill(self, process: Process) -> None:
        process.kill()
        self.cluster.ended(process)
        self.cluster._due = []

    def readers_follow(self) -> None:
        """What is published from now on, readers see."""
        while self.cluster.to_publish:
            self.cluster.publish()
        self.go_on(1_500)
        cluster = self.cluster
        records = [r for tp, log in cluster.broker.log.items() if tp[0] in TOPICS.inputs for r in log]
        expected = undisturbed(records, cluster.shape.partitions, cluster.world.seed, cluster.bundle).products
        cluster.follower.read(1.0, cluster.world.rng)
        held = cluster.follower.index.get(sorted(expected))[0]
        np.testing.assert_allclose(held, np.stack([expected[name] for name in sorted(expected)]), atol=1e-6)


def serves(process: Process) -> set[str]:
    worker = process.parts.get("worker")
    return worker.completeness.serves if isinstance(worker, Worker) else set()


def test_a_shard_waits_for_the_first_one() -> None:
    with Workers() as workers:
        second = workers.start(Role.ITEMS, Shard(1, 2))
        workers.go_on()
        assert second.alive
        assert serves(second) == set()
        first = workers.start(Role.ITEMS, Shard(0, 2))
        workers.go_on()
        assert (serves(first), serves(second)) == ({"items-0-of-2"}, {"items-1-of-2"})


def test_of_two_cuts_of_the_products_the_later_one_stays() -> None:
    with Workers() as workers:
        old = [workers.start(Role.ITEMS, Shard(k, 2)) for k in range(2)]
        workers.go_on()
        assert all(map(serves, old))
        new = [workers.start(Role.ITEMS, Shard(k, 3)) for k in range(3)]
        workers.go_on(1_500)
        assert [process.ended for process in old] == ["Fenced", "CutAnew"]
        assert "products are served as items-0-of-3" in str(old[1].error)
        assert [serves(process) for process in new] == [{f"items-{k}-of-3"} for k in range(3)]
        workers.readers_follow()


def test_one_worker_of_all_products_takes_the_place_of_shards() -> None:
    with Workers() as workers:
        old = [workers.start(Role.ITEMS, Shard(k, 2)) for k in range(2)]
        workers.go_on()
        whole = workers.start(Role.ITEMS)
        workers.go_on(1_500)
        assert [process.ended for process in old] == ["Fenced", "CutAnew"]
        assert serves(whole) == {ITEMS}
        workers.readers_follow()


def test_a_shard_of_the_old_cut_that_starts_again_has_no_later_token_than_one_that_waits() -> None:
    with Workers() as workers:
        old = [workers.start(Role.ITEMS, Shard(k, 2)) for k in range(2)]
        workers.go_on()
        early = workers.start(Role.ITEMS, Shard(1, 3))
        workers.go_on(300)
        workers.kill(old[1])
        again = workers.start(Role.ITEMS, Shard(1, 2))
        workers.go_on(300)
        assert (serves(again), serves(early)) == ({"items-1-of-2"}, set())
        for k in (0, 2):
            workers.start(Role.ITEMS, Shard(k, 3))
        workers.go_on(1_500)
        assert (again.ended, serves(early)) == ("CutAnew", {"items-1-of-3"})
        workers.readers_follow()


@pytest.mark.parametrize("new", [Shard(), Shard(0, 3)])
def test_a_shard_of_the_old_cut_does_not_start_while_a_new_first_one_catches_up(new: Shard) -> None:
    with Workers() as workers:
        old = [workers.start(Role.ITEMS, Shard(k, 2)) for k in range(2)]
        workers.go_on()
        first = workers.start(Role.ITEMS, new)
        for _ in range(4):
            workers.cluster._resume(first)  # it has its token
        first.asleep_until = workers.cluster.world.now_s + 10.0
        workers.kill(old[1])
        again = workers.start(Role.ITEMS, Shard(1, 2))
        workers.go_on(400)
        assert serves(again) == serves(first) == set()
        first.asleep_until = 0.0
        for k in range(1, new.of):
            workers.start(Role.ITEMS, Shard(k, 3))
        workers.go_on(1_500)
        assert (again.alive, serves(again), serves(first)) == (True, set(), {new.scope})
        workers.readers_follow()


def test_a_shard_that_is_not_served_says_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    with Workers() as workers:
        workers.start(Role.ITEMS)
        workers.go_on(300)
        wrong = workers.start(Role.ITEMS, Shard(1, 2))
        workers.go_on(300)
        assert wrong.alive
        assert [r.message for r in caplog.records if "waits" in r.message] == [
            "items-1-of-2 waits for the worker of items-0-of-2; products are served as items"
        ]


def test_what_a_former_cut_left_says_nothing_any_more() -> None:
    with Workers() as workers:
        cluster = workers.cluster
        for k in range(2):
            workers.start(Role.ITEMS, Shard(k, 2))
        workers.start(Role.USERS)
        workers.go_on(1_500)
        workers.start(Role.ITEMS)
        workers.go_on(1_500)
        first = workers.start(Role.ITEMS, Shard(0, 2))
        workers.go_on(1_500)
        assert serves(first) == {"items-0-of-2"}
        state, version = cluster.redis.state, cluster.bundle.model_version
        left = read_sentinel(state.get_blob(f"{version}:{sentinel_blob('items-1-of-2')}"))
        assert left is not None
        assert not left.whole
        assert "items-1-of-2" not in {scope for status in read_statuses(state, version) for scope in status["serves"]}
        popular = read_popular(state.get_blob(f"{version}:popular"))
        workers.start(Role.ITEMS, Shard(1, 2))
        workers.go_on(1_500)
        assert read_popular(state.get_blob(f"{version}:popular")) == popular != []
        left = read_sentinel(state.get_blob(f"{version}:{sentinel_blob('items-1-of-2')}"))
        assert left is not None
        assert left.whole


def test_after_a_loss_a_shard_waits_for_the_first_one() -> None:
    with Workers() as workers:
        first, second = (workers.start(Role.ITEMS, Shard(k, 2)) for k in range(2))
        workers.start(Role.USERS)
        workers.go_on(1_500)
        assert workers.cluster.redis.state.current() is not None
        token = sink_of(second).fence
        first.asleep_until = workers.cluster.world.now_s + 10.0
        workers.cluster.redis.empty()
        workers.go_on(600)
        assert (serves(second), sink_of(second).fence) == ({"items-1-of-2"}, token)
        first.asleep_until = 0.0
        workers.go_on(1_500)
        assert sink_of(second).fence > sink_of(first).fence > token
        assert workers.cluster.redis.state.current() is not None
        workers.readers_follow()


def sink_of(process: Process) -> Sink:
    worker = process.parts["worker"]
    assert isinstance(worker, Worker)
    return worker.sink


def test_snapshots_of_another_cut_are_ordered_whatever_the_clocks_say(tmp_path: Path) -> None:
    for k in range(2):
        write(Shard(k, 2), graph_of(Shard(k, 2), 1), tmp_path, 100.0)
    write(Shard(), graph_of(Shard(), 1, 2), tmp_path, 50.0, behind=3)
    after = {tp: at - 3 for tp, at in POSITIONS.items()}
    assert snapshots(graph_of(Shard(1, 2)), tmp_path, 60.0).load("items-1-of-2") == after


def test_a_topic_may_have_gained_a_partition_between_the_snapshots_of_two_shards(tmp_path: Path) -> None:
    write(Shard(0, 2), graph_of(Shard(0, 2), 1), tmp_path, 10.0)
    grown = {**POSITIONS, ("catalogue", 1): 4}
    writing = snapshots(graph_of(Shard(1, 2), 1), tmp_path, 11.0)
    writing.all_now()
    while not writing.idle:
        writing.turn({"items-1-of-2": grown}, grown)
    assert snapshots(graph_of(Shard()), tmp_path, 20.0).load(ITEMS) == {**POSITIONS, ("catalogue", 1): 0}
