"""Where a worker begins after another one: snapshots, positions, dead letters and what must not be written."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest

from freshet.model.frozen import FrozenTowers
from freshet.store.canonical import canonical
from freshet.store.graph import GraphLimits, GraphStore
from freshet.store.index import MemoryItemIndex
from freshet.store.memory_store import MemoryEmbeddingStore, MemoryServingState
from freshet.store.snapshot import LogPart
from freshet.store.snapshot_places import FolderPlace
from freshet.store.snapshot_settings import SnapshotSettings
from freshet.store.value import decode_value
from freshet.stream import topics
from freshet.stream.codec import encode, encode_record_key
from freshet.stream.completeness import read_sentinel
from freshet.stream.decode import decode
from freshet.stream.events import Event, Line, Product, Profile, Purchase, Session, SessionItem, View
from freshet.stream.kafka_errors import KafkaUnavailable, OffsetGap, UnknownTopic
from freshet.stream.membership import Alone, Listener, TopicPartition
from freshet.stream.ownership import Ownership
from freshet.stream.reading import Reading
from freshet.stream.records import Outgoing, Record
from freshet.stream.rewriting import users_scope
from freshet.stream.roles import Role
from freshet.stream.sink import Fenced, Sink
from freshet.stream.snapshots import InTurn, Snapshots
from freshet.stream.topics import TopicSettings, partition_of
from freshet.stream.updater import Updater
from freshet.stream.worker import Origin, Worker
from freshet.stream.worker_status import logs_of
from tests.random_bundle import random_bundle

NOW = 1_700_000_000_000
LOG = LogPart("/logs/2017", NOW)
PARTITIONS = 2
NAMES = TopicSettings(view="view", purchase="purchase", session="session", products="product", profiles="profile")
COUNTS = dict.fromkeys(NAMES.inputs, PARTITIONS)
TOPIC_OF = {
    View: NAMES.view,
    Purchase: NAMES.purchase,
    Session: NAMES.session,
    Product: NAMES.products,
    Profile: NAMES.profiles,
}
BUNDLE = random_bundle(products=("p1", "p2"))


class World:
    """What outlives a worker: a broker of several partitions, a store, and a folder of snapshots."""

    def __init__(self, folder: Path) -> None:
        self.log: dict[TopicPartition, list[Record]] = {}
        self.low: dict[TopicPartition, int] = {}
        self.offsets: dict[TopicPartition, int] = {}
        self.sent: list[Outgoing] = []
        self.folder = folder
        self.users, self.serving = MemoryEmbeddingStore(), MemoryServingState()

    def publish(self, *events: Event) -> None:
        for event in events:
            self.append(TOPIC_OF[type(event)], encode_record_key(event) or b"", encode(event))

    def append(self, topic: str, key: bytes, value: bytes | None) -> None:
        place = topic, partition_of(key, PARTITIONS)
        rows = self.log.setdefault(place, [])
        rows.append(Record(*place, len(rows), NOW + 1000, key, value))

    def letters(self) -> list[bytes | None]:
        return [record.value for record in self.sent if record.topic == NAMES.deadletter]

    # Commits
    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        self.offsets.update(offsets)

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self.offsets[tp] for tp in partitions if tp in self.offsets}


class Reader:
    """The consumer of one worker; `polled` is every offset it was given."""

    grace_s = 60.0

    def __init__(self, world: World) -> None:
        self.world, self.at, self.polled = world, {}, []  # type: ignore[var-annotated]

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self.at = dict(positions)

    def watermarks(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        world = self.world
        return {tp: (world.low.get(tp, 0), len(world.log.get(tp, ()))) for tp in partitions}

    def poll(self, records_max: int, timeout_s: float | None = None) -> list[Record]:
        found = [r for tp, at in self.at.items() for r in self.world.log.get(tp, [])[at:]]
        self.at = {tp: len(self.world.log.get(tp, ())) for tp in self.at}
        self.polled += [(r.topic, r.partition, r.offset) for r in found]
        return found


class Sender:
    failures, last_failure = 0, None

    def __init__(self, world: World) -> None:
        self.world = world

    def send(self, record: Outgoing) -> None:
        self.world.sent.append(record)

    def poll(self) -> int:
        return 0

    def flush(self, timeout_s: float) -> int:
        return 0

    def __len__(self) -> int:
        return 0


class Group:
    """A membership that is told by the test what moves."""

    shares = True

    def __init__(self, world: World) -> None:
        self.commit, self.committed = world.commit, world.committed
        self.moves: list[tuple[str, list[int]]] = []

    def poll(self, listener: Listener) -> None:
        moves, self.moves = self.moves, []
        for what, partitions in moves:
            getattr(listener, what)(partitions)

    def close(self) -> None: ...


def worker(world: World, group: Group | None = None, limits: GraphLimits | None = None, **named: object) -> Worker:
    role = Role.ALL if group is None else Role.USERS
    graph = GraphStore(limits, product_lists=role.writes_items)
    owned = Ownership(graph.users, PARTITIONS)
    sender = Sender(world)
    fence = world.serving.next_fence("items", 0)
    sink = Sink(graph, world.users, MemoryItemIndex(16), sender, "items", BUNDLE.model_version, 16, owned, fence)
    updater = Updater(graph, FrozenTowers(BUNDLE, graph), sink, topics.kinds(NAMES), role=role)
    snapshots = Snapshots(
        graph, owned, FolderPlace(world.folder), SnapshotSettings(interval_s=1e9), "", {}, begin=InTurn, **named  # type: ignore[arg-type]
    )  # fmt: skip
    counts = COUNTS if group is None else {**dict.fromkeys(NAMES.by_user, PARTITIONS), NAMES.state_products: 1}
    made = Worker(
        graph, updater, sink, world.serving, Reader(world), sender, group or Alone(PARTITIONS, world), NAMES, counts,  # type: ignore[arg-type]
        Origin(), snapshots=snapshots,
    )  # fmt: skip
    return made


def run(made: Worker, turns: int = 30) -> Worker:
    for _ in range(turns):
        made.turn()
    made._next.clear()
    made.turn()
    return made


def read_of(made: Worker) -> list[tuple[str, int, int]]:
    return made.reading.source.polled  # type: ignore[attr-defined, no-any-return]


def some(first: int, count: int) -> list[Event]:
    rng = np.random.default_rng(first)
    return [View(f"v{i}", f"u{rng.integers(6)}", f"p{rng.integers(4)}", NOW + i) for i in range(first, first + count)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "snapshots")


def test_a_worker_begins_where_the_snapshots_end_and_has_the_same_state(world: World) -> None:
    world.publish(Product("p1", NOW, brand="b"), *some(0, 40))
    first = run(worker(world))
    first.stop()
    world.publish(*some(40, 10))
    second = run(worker(world))
    assert second.state == "live"
    assert len(read_of(second)) == 10

    assert canonical(second.graph) == canonical(run(fresh(world)).graph)


def fresh(world: World) -> Worker:
    """A worker that has the topics and nothing else."""
    other = World(world.folder.parent / "empty")
    other.log = world.log
    return worker(other)


def test_who_came_while_nobody_ran_is_written_before_the_others(world: World) -> None:
    world.publish(Product("p1", NOW), *(View(f"v{i}", f"u{i}", "p1", NOW + i) for i in range(8)))
    run(worker(world)).stop()
    world.publish(View("v8", "u5", "p2", NOW + 8), View("v9", "u6", "p2", NOW + 9))
    second = worker(world)
    second.completeness._chunk = 1
    written: list[str] = []
    upsert = world.users.begin_upsert

    def begin(version: str, names: Sequence[str], values: Sequence[bytes]) -> object:
        written.extend(names)
        return upsert(version, names, values)

    world.users.begin_upsert = begin  # type: ignore[method-assign, assignment]
    run(second)
    assert set(written[:2]) == {"u5", "u6"}
    assert sorted(written) == [f"u{i}" for i in range(8)]


def test_a_backfill_is_in_snapshots_at_once_and_not_read_again(world: World) -> None:
    old = some(0, 40)
    records = [Record(NAMES.view, 0, i, NOW, encode_record_key(e), encode(e)) for i, e in enumerate(old)]
    columns = decode(records, topics.kinds(NAMES)).columns
    world.publish(*some(40, 10))
    first = worker(world)  # whose next round of snapshots would be due in thirty years
    first.backfill([columns], len(old), lambda: False)
    assert first.snapshots is not None
    first.snapshots.add_logs([LOG])
    first.snapshots.turn({}, {})  # as while it catches up, when nothing is whole yet
    run(first)  # and it ends as by SIGKILL
    assert first.snapshots.status()["due"] == 0
    assert first.snapshots.taken == PARTITIONS + 1
    second = run(worker(world))
    assert canonical(second.graph) == canonical(first.graph)
    assert set(second.graph.users.all_names()) > {e.user_id for e in some(40, 10)}
    assert logs_of(second.status()) == [LOG], "what to verify it by is known without anybody saying it"


def lose_the_store(world: World, forgets: bool = True) -> None:
    """Another server is in its place: an empty one, or one with the same data."""
    kept = vars(world.serving)
    vars(world.serving).update(vars(MemoryServingState()) if forgets else {**kept, "_incarnation": "another"})


def test_a_worker_whose_token_the_store_has_forgotten_takes_a_new_one(world: World) -> None:
    """Who replaced it may have sent products to readers that believe the greatest token."""
    world.publish(Product("p1", NOW), *some(0, 20))
    first = run(worker(world))
    of_another = world.serving.next_fence("items", 0)
    lose_the_store(world)
    world.sent.clear()
    run(run(first))  # the first ends with looking after the store
    assert first.state == "live"
    assert world.serving.fence("items") == first.sink.fence > of_another
    seqs = [decode_value(r.value or b"").seq for r in world.sent if r.topic == "items"]
    assert {seq.fence for seq in seqs} == {first.sink.fence}
    fences = first.sink.ownership.fences
    assert {p: world.serving.fence(users_scope(p)) for p in range(PARTITIONS)} == fences
    held = world.users.get(BUNDLE.model_version, ["u0"])[0]
    assert decode_value(held or b"").seq.fence == fences[partition_of(b"u0", PARTITIONS)]


def products_of(records: Sequence[Outgoing]) -> set[str]:
    return {(record.key or b"").decode() for record in records if record.topic == "items"}


def test_readers_come_back_once_the_users_are_there_and_products_are_sent_again_behind_them(world: World) -> None:
    world.publish(Product("p9", NOW), *some(0, 20))
    made = run(worker(world))
    lose_the_store(world)
    world.sent.clear()
    made.completeness.check_store()
    assert world.serving.current() is None, "no user is there yet"
    while world.serving.current() is None:
        made.completeness.rewrite_once()
    assert products_of(world.sent) == set()
    assert {f"{BUNDLE.model_version}:{blob}" for blob in ("ranker", "popular")} <= set(world.serving._blob)
    run(made)
    assert products_of(world.sent) == set(made.graph.products.all_names())


def test_products_that_were_never_sent_are_not_whole_after_a_loss(world: World) -> None:
    world.publish(Product("p9", NOW), *some(0, 20))
    made = worker(world)
    made.completeness._chunk = 1
    made.settings = replace(made.settings, rewrite_turn_ms=0.0)
    while not made.completeness.rewrites:
        made.turn()
    lose_the_store(world)
    world.sent.clear()
    made.completeness.check_store()
    while made.completeness.rewrites:
        assert world.serving.current() is None
        made.completeness.rewrite_once()
        if world.serving.current() is not None:
            break
    assert products_of(world.sent) == set(made.graph.products.all_names())


def test_a_store_that_may_have_gone_back_has_forgotten_who_came_since(world: World) -> None:
    first = run(worker(world))
    held = first.sink.fence
    lose_the_store(world, forgets=False)
    run(first)
    assert first.sink.fence > held
    held = first.sink.fence
    run(first)
    assert first.sink.fence == held, "nothing was lost since"


def test_no_token_is_taken_over_one_that_the_store_knows(world: World) -> None:
    world.publish(*some(0, 20))
    first = run(worker(world))
    second = run(worker(world))
    lose_the_store(world, forgets=False)
    with pytest.raises(Fenced):
        run(run(first))
    run(run(second))
    assert second.state == "live"


def test_users_of_a_partition_that_went_away_are_not_counted(world: World) -> None:
    world.publish(*some(0, 40))
    group = Group(world)
    for partitions in ([0], [0, 1]):
        group.moves = [("gained", partitions)]
        made = run(worker(world, group))
        mine = sum(partition_of(f"u{i}".encode(), PARTITIONS) in partitions for i in range(6))
        assert made.status()["users"] == mine > 0
        group.moves = [("lost", partitions)]
        assert run(made).status()["users"] == 0


def test_whose_a_partition_is_the_group_says_and_not_who_lost_the_store_last(world: World) -> None:
    group = Group(world)
    group.moves = [("gained", [0])]
    made = run(worker(world, group))
    token = made.sink.ownership.fences[0]
    lose_the_store(world)
    run(made)
    assert made.sink.ownership.fences == {0: token}


def test_a_loss_that_is_noticed_when_a_partition_comes_is_made_good_for_the_others_too(world: World) -> None:
    group = Group(world)
    group.moves = [("gained", [0])]
    made = run(worker(world, group))
    lose_the_store(world)
    made._next["store"] = np.inf  # it does not look by itself
    group.moves = [("gained", [1])]
    for _ in range(10):
        made.turn()
    left = [world.serving.get_blob(f"{BUNDLE.model_version}:sentinel:{users_scope(p)}") for p in (0, 1)]
    assert [s is not None and s.whole for s in map(read_sentinel, left)] == [True, True]


def test_a_log_is_named_by_the_snapshots_of_workers_that_never_read_it(world: World) -> None:
    other = LogPart("/logs/2016")
    first, named = worker(world), [LOG, other, LOG]
    for n in range(2):
        one = first if n == 0 else worker(world)
        assert one.snapshots is not None
        world.publish(*some(10 * n, 10))
        one.snapshots.add_logs(named)
        one.snapshots.all_now()
        run(one)
        assert one.snapshots.taken
        named = []
    third = run(worker(world))
    assert logs_of(third.status()) == [LOG, other]
    assert logs_of({"workers": [third.status(), first.status()]}) == [LOG, other]


@pytest.mark.parametrize("unknown_s", [59.0, 61.0])
def test_a_topic_is_believed_to_be_gone_after_the_grace_and_not_before(world: World, unknown_s: float) -> None:
    now = [0.0]

    class Restarted(Reader):
        def watermarks(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
            if now[0] < unknown_s:
                raise UnknownTopic("topic view")
            return super().watermarks(partitions)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    alone = Alone(PARTITIONS, world)
    reading = Reading(Restarted(world), alone, None, monotonic=lambda: now[0], sleep=sleep)
    if unknown_s < Restarted.grace_s:
        assert reading.read(users_scope(0), [(NAMES.view, 0)])
    else:
        with pytest.raises(UnknownTopic, match="topic view"):
            reading.read(users_scope(0), [(NAMES.view, 0)])
        assert now[0] == Restarted.grace_s


def test_the_grace_of_a_topic_begins_anew_after_a_broker_that_did_not_answer(world: World) -> None:
    now = [0.0]

    class Restarted(Reader):
        """Gone at first, then silent for longer than the grace, then not quite up yet."""

        def watermarks(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
            if now[0] < 1.0 or 90.0 <= now[0] < 120.0:
                raise UnknownTopic("topic view")
            if now[0] < 90.0:
                raise KafkaUnavailable("127.0.0.1:9092", "timed out")
            return super().watermarks(partitions)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    reading = Reading(Restarted(world), Alone(PARTITIONS, world), None, monotonic=lambda: now[0], sleep=sleep)
    assert reading.read(users_scope(0), [(NAMES.view, 0)])
    assert now[0] == 120.0


def test_a_worker_that_serves_nothing_ends_at_once(world: World) -> None:
    made = worker(world)
    made.stop()  # it was asked to stop before its first turn: there is nothing to take a snapshot of
    assert made.ended
    assert not list(world.folder.glob("*"))


def test_offsets_of_the_group_do_not_decide_where_reading_begins(world: World) -> None:
    world.publish(*some(0, 40))
    first = run(worker(world))
    first.stop()
    world.publish(*some(40, 10))
    world.offsets = {tp: len(rows) for tp, rows in world.log.items()}
    assert len(read_of(run(worker(world)))) == 10


def test_a_snapshot_waits_until_what_it_covers_has_been_delivered(world: World) -> None:
    world.publish(*some(0, 40))
    made = run(worker(world))
    world.append("view", b"u1", b"{")
    made.membership.commit = lambda offsets: None  # type: ignore[method-assign]
    made.reading.committed = {}
    made._next["commit"] = 1e18
    made.snapshots.all_now()  # type: ignore[union-attr]
    for _ in range(50):
        made.turn()
    assert FolderPlace(world.folder).names() == []
    made._next["commit"] = 0.0
    for _ in range(80):
        made.turn()
        made._next["commit"] = 0.0
    assert len(FolderPlace(world.folder).names()) == 1 + PARTITIONS


def test_a_dead_letter_is_sent_again_if_its_offset_was_not_committed(world: World) -> None:
    world.append("view", b"u1", b"{")
    first = worker(world)
    first._next["commit"] = 1e18
    for _ in range(10):
        first.turn()
    assert world.letters() == [b"{"]
    second = run(worker(world))
    assert world.letters() == [b"{", b"{"]
    second.commit()
    run(worker(world))
    assert world.letters() == [b"{", b"{"]


def test_a_gap_behind_the_snapshots_is_refused(world: World) -> None:
    world.publish(*some(0, 40))
    run(worker(world)).stop()
    world.publish(*some(40, 20))
    place = max(world.log, key=lambda tp: len(world.log[tp]))
    world.low[place] = len(world.log[place])
    with pytest.raises(OffsetGap, match=r"offset \d+ was asked for.*freshet backfill LOG"):
        run(worker(world))


def test_damaged_snapshots_alone_are_no_reason_to_begin_where_the_broker_does(world: World) -> None:
    world.publish(*some(0, 40))
    run(worker(world)).stop()
    for path in world.folder.iterdir():
        path.write_bytes(path.read_bytes()[:-50])
    assert canonical(run(worker(world)).graph) == canonical(run(fresh(world)).graph)  # the topics have everything
    for path in world.folder.iterdir():
        path.write_bytes(path.read_bytes()[:-50])
    world.low = {tp: 1 for tp, rows in world.log.items() if rows}
    with pytest.raises(OffsetGap, match=r"offset 0 was asked for, but the broker has 1 .*freshet backfill LOG"):
        run(worker(world))
    for path in world.folder.iterdir():
        path.unlink()
    assert run(worker(world)).state == "live"  # there never was one: this is where the shop begins


def test_the_newest_snapshot_is_the_last_one_whatever_the_clocks_say(world: World) -> None:
    day_s = 86_400.0
    world.publish(*some(0, 40))
    run(worker(world, wall=lambda: NOW / 1e3 + day_s)).stop()
    for i in range(4):  # as many as are kept, and one more
        world.publish(*some(40 + 10 * i, 10))
        run(worker(world, wall=lambda: NOW / 1e3)).stop()
    last = run(worker(world))
    assert not read_of(last)
    assert canonical(last.graph) == canonical(run(fresh(world)).graph)


def test_a_worker_that_shares_goes_on_without_the_partition_that_has_a_gap(world: World) -> None:
    world.publish(*some(0, 40))
    run(worker(world)).stop()
    world.publish(*some(40, 20))
    world.low["view", 0] = len(world.log["view", 0])
    group = Group(world)
    group.moves = [("gained", [0, 1])]
    made = run(worker(world, group))
    assert made.completeness.serves == {users_scope(1)}
    assert "freshet backfill LOG" in made.status()["stopped"][users_scope(0)]


def test_snapshots_of_other_limits_are_passed_over(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.publish(*some(0, 40))
    run(worker(world)).stop()
    with caplog.at_level(logging.WARNING):
        made = run(worker(world, limits=GraphLimits(viewed_max=5)))
    assert len(read_of(made)) == 40
    assert "viewed_max is 5 in one and 32 in the other" in caplog.text


def test_a_partition_that_is_lost_is_neither_written_nor_committed_nor_kept(world: World) -> None:
    world.publish(*some(0, 60))
    group = Group(world)
    group.moves = [("gained", [0, 1])]
    made = run(worker(world, group))
    mine = {u for u in made.graph.users.all_names() if partition_of(u.encode(), PARTITIONS) == 0}
    assert mine
    before, offsets = dict(world.users._values), dict(world.offsets)
    group.moves = [("lost", [0])]
    made.turn()
    world.publish(*some(60, 60))
    run(made)
    changed = {user for (_, user), value in world.users._values.items() if before.get((_, user)) != value}
    assert changed
    assert not {user for user in changed if partition_of(user.encode(), PARTITIONS) == 0}
    assert {tp for tp, at in world.offsets.items() if offsets.get(tp) != at and tp[1] == 0} == set()
    assert not mine & set(made.graph.users.all_names())
    group.moves = [("gained", [0])]
    run(made)
    assert mine <= set(made.graph.users.all_names())
    assert made.completeness.whole == {users_scope(0), users_scope(1)}


def test_a_withdrawn_product_and_a_forgotten_user_stay_gone_after_a_restart(world: World) -> None:
    order = Purchase("o1", "forget-me", NOW, items=(Line("p1"), Line("p2")))
    world.publish(Product("p1", NOW, brand="b"), Product("p2", NOW, brand="b"), order, *some(0, 10))
    made = run(worker(world))
    world.publish(Product("p1", NOW + 5, withdrawn=True), Profile("forget-me", NOW + 5, forgotten=True))
    run(made)
    made.stop()
    assert "p1" not in made.sink.index.ids()  # type: ignore[attr-defined]
    assert not any(b"forget-me" in file.read_bytes() for file in world.folder.iterdir())
    again = run(worker(world))
    assert "p1" not in again.sink.index.ids()  # type: ignore[attr-defined]
    assert "p2" in again.sink.index.ids()  # type: ignore[attr-defined]
    assert again.graph.users.get("forget-me") is None
    assert world.users.get(BUNDLE.model_version, ["forget-me"]) == [None]
    world.publish(order)
    run(again)
    assert world.users.get(BUNDLE.model_version, ["forget-me"]) == [None], "a late event brings nobody back"


def traces(text: bytes, *roots: object, outside: Sequence[object] = ()) -> list[str]:
    """Every object that can be reached from `roots`, but not through `outside`, and holds `text`."""
    found, seen, waiting = [], {id(o) for o in outside}, list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (ModuleType, type)):
            continue
        seen.add(id(thing))
        if isinstance(thing, str):
            held = thing.encode(errors="surrogatepass")
        elif isinstance(thing, (bytes, bytearray, memoryview, np.ndarray)):
            held = bytes(thing) if not isinstance(thing, np.ndarray) else thing.tobytes()
        else:
            held = b""
        if text in held:
            found.append(f"{type(thing).__name__} {held[:80]!r}")
        if isinstance(thing, FunctionType):
            waiting += [c.cell_contents for c in thing.__closure__ or ()] + list(thing.__defaults__ or ())
        elif isinstance(thing, np.ndarray):
            waiting += [] if thing.base is None else [thing.base]
        else:
            waiting += gc.get_referents(thing)
    return found


def test_of_a_forgotten_user_nothing_is_left_in_memory(world: World) -> None:
    order = Purchase("o1", "forget-me", NOW, items=(Line("p1"), Line("p2")))
    session = Session("s1", "forget-me", "forget-my-visit", NOW + 2, items=(SessionItem("p1"),))
    profile = Profile("forget-me", NOW + 1, geo="de")
    world.publish(
        Product("p1", NOW, brand="b"), View("v0", "forget-me", "p2", NOW), order, session, profile, *some(0, 10)
    )
    made = run(worker(world))
    shop = world.log, world.sent, world.users, world.serving  # what is not the worker's; readers' values are below
    assert traces(b"forget-me", made, outside=shop), "the search finds a user who is there"
    world.publish(Profile("forget-me", NOW + 5, forgotten=True))
    run(made)
    gc.collect()
    assert traces(b"forget-me", made, outside=shop) == []
    assert traces(b"forget-my-visit", made, outside=shop) == []
    assert traces(b"forget-me", world.users, world.serving) == []
    assert traces(b"u1", made, outside=shop), "others stay"
