"""A shop's stream with its workers in it, on twins of everything they reach; one run from a seed and its faults."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from freshet.model.frozen import FrozenTowers
from freshet.store import snapshot_places
from freshet.store.canonical import canonical
from freshet.store.graph import GraphStore
from freshet.store.index import MemoryItemIndex
from freshet.store.snapshot_file import SnapshotReader
from freshet.store.snapshot_places import FolderPlace
from freshet.store.snapshot_settings import SnapshotSettings
from freshet.store.value import decode_value
from freshet.stream.completeness import read_sentinel, sentinel_blob
from freshet.stream.follower import IndexFollower
from freshet.stream.membership import Alone, Membership
from freshet.stream.ownership import Ownership
from freshet.stream.placement import Placement
from freshet.stream.records import Record
from freshet.stream.rewriting import ITEMS
from freshet.stream.roles import Role
from freshet.stream.sink import Sink, SinkSettings
from freshet.stream.snapshots import InTurn, Snapshots
from freshet.stream.topics import kinds
from freshet.stream.updater import RippleSettings, Updater
from freshet.stream.worker import Origin, Worker, WorkerSettings
from tests.property.logs import LIMITS
from tests.simulation.broker_twin import Broker, Outbox, Source
from tests.simulation.disk_twin import Disk, SimulatedPath, mounted
from tests.simulation.group_twin import Group, Member
from tests.simulation.monitor import Monitor
from tests.simulation.redis_twin import RedisClient, RedisServer
from tests.simulation.shop import BUNDLE, DIM, TOPICS, Shop, rejected, undisturbed
from tests.simulation.world import Fault, Process, Violation, World

STORM_EFFECTS_MAX = 1_200
"""Effects after which faults cease in any case."""
CALM_TURNS_MAX = 1_500
"""Turns without faults in which everything has to have settled."""
VECTOR_ERROR_MAX = 1e-6


@dataclass(frozen=True)
class Shape:
    """What a seed decides beside the faults."""

    partitions: int
    records: int
    published_first: int
    batch_max: int
    publish_share: float
    snapshots: SnapshotSettings | None
    worker: WorkerSettings
    ripple: RippleSettings
    users_workers: int
    """Workers that share the partitions of users, beside one of items; 0 for a worker alone."""
    session_s: float

    @staticmethod
    def of(seed: int) -> Shape:
        """The shape of a seed."""
        rng = random.Random(f"shape {seed}")
        records = rng.randint(10, 90)
        settings = WorkerSettings(
            commit_interval_ms=rng.choice([0.0, 5.0, 50.0]), commit_wait_ms=rng.choice([20.0, 500.0]),
            status_interval_ms=rng.choice([20.0, 200.0]), sentinel_interval_ms=rng.choice([10.0, 40.0, 200.0]),
            idle_after_ms=rng.choice([1.0, 10.0, 50.0]), ripple_turn_ms=rng.choice([0.1, 1.0, 3.0]),
            rewrite_turn_ms=rng.choice([0.1, 1.0, 15.0]), rewrite_chunk=rng.choice([1, 2, 5, 256]),
            flush_timeout_s=0.5, grace_s=rng.choice([0.01, 1.0]), follow=rng.random() < 0.3,
        )  # fmt: skip
        snapshots = SnapshotSettings(
            "simulated", keep=rng.randint(1, 3), interval_s=rng.choice([0.02, 0.1, 0.5]),
            entries_per_part=rng.choice([2, 20, 1000]),
        )  # fmt: skip
        ripple = RippleSettings(
            rng.choice([0.0, 20.0]), rng.choice([0.0, 50.0]), rng.choice([0.1, 0.5]), rng.choice([1, 3, 128])
        )  # fmt: skip
        return Shape(
            rng.randint(1, 3), records, rng.randint(0, records), rng.choice([1, 4, 12]), rng.choice([0.05, 0.2, 1.0]),
            snapshots if rng.random() < 0.75 else None, settings, ripple, rng.choice([0, 0, 0, 1, 2, 3]),
            rng.choice([0.02, 0.1]),
        )  # fmt: skip


@dataclass
class Outcome:
    """How a run ended."""

    seed: int
    faults: list[Fault]
    violation: str | None = None
    gap: bool = False
    effects: int = 0
    starts: int = 0
    records: int = 0
    snapshots: int = 0
    fired: list[Fault] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


class Follower(IndexFollower):
    """A reader's index; its reading meets no faults."""

    def __init__(self, broker: Broker, partitions: int) -> None:
        self.broker = broker
        self._at: dict[tuple[str, int], int] = {}
        super().__init__(self, TOPICS.embeddings_products, partitions, BUNDLE.model_version, MemoryItemIndex(DIM))  # type: ignore[arg-type]

    def watermarks(self, places: Any) -> dict[tuple[str, int], tuple[int, int]]:
        """As of a consumer."""
        return self.broker.marks(places)

    def assign(self, positions: Any) -> None:
        """As of a consumer."""
        self._at = dict(positions)

    def read(self, share: float, rng: random.Random) -> None:
        """Take some of what has come."""
        found: list[Record] = []
        for tp, at in self._at.items():
            end = at + round((self.broker.high(tp) - at) * share * rng.random()) if share < 1 else self.broker.high(tp)
            found += self.broker.log[tp][at:end]
            self._at[tp] = end
        if found:
            self._apply(found)


class Cluster:
    """One run. `faults` strike as they are given; after them everything has to come right."""

    def __init__(self, seed: int, faults: list[Fault], shape: Shape | None = None) -> None:
        self.shape = shape or Shape.of(seed)
        s = self.shape
        self.world = World(seed, faults)
        self.world.strike = self._strike
        topics = dict.fromkeys((*TOPICS.inputs, TOPICS.embeddings_products, TOPICS.state_products), s.partitions)
        self.broker = Broker(self.world, {**topics, TOPICS.deadletter: 1})
        self.redis = RedisServer(self.world)
        self.disk = Disk(self.world)
        self.monitor = Monitor(
            self.world, self.broker, self.redis, self.disk, BUNDLE.model_version, s.partitions
        )  # fmt: skip
        self.placement = Placement(dict.fromkeys(TOPICS.inputs, s.partitions))
        self._to_publish = list(reversed(Shop(seed, s.records, s.partitions).log[: s.records]))
        self.follower = Follower(self.broker, s.partitions)
        self.follower.catch_up()
        self.gap_wanted = self.gap_made = False
        self.starts = 0
        self.group = Group(self.world, s.partitions, s.session_s)
        self._due: list[tuple[float, Role]] = [(0.0, role) for role in self.roles]
        """Workers that are to be started, and when."""
        self._settled_since: float | None = None
        self._outboxes: dict[str, Outbox] = {}
        self.outcome = Outcome(seed, faults)
        self.world.surroundings = [
            self._publish_now_and_then, self.redis.copy_now_and_then, self._deliver, self._read_now_and_then,
            self.group.hear,
        ]  # fmt: skip
        for _ in range(s.published_first):
            self._publish()

    @property
    def roles(self) -> list[Role]:
        """Of the workers that are started again when they end."""
        users = self.shape.users_workers
        return [Role.ITEMS, *[Role.USERS] * users] if users else [Role.ALL]

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Start workers, let the faults strike, wait until all is quiet, compare."""
        unmount = mounted(snapshot_places, self.disk)
        try:
            self._storm()
            self._settle()
            if not self.outcome.gap:
                self._compare()
        except Violation:
            pass
        finally:
            self._end()
            unmount()
        world, out = self.world, self.outcome
        out.violation = world.violations[0] if world.violations else None
        out.effects, out.starts, out.fired, out.trace = world.effects, self.starts, world.fired, world.trace
        out.records = self.shape.records
        return out

    def _storm(self) -> None:
        world = self.world
        while (self._to_publish or world.waiting) and world.effects < STORM_EFFECTS_MAX and not self.outcome.gap:
            self._one_turn()

    def _settle(self) -> None:
        self.world.calm = True
        self.world.say("no fault strikes any more")
        while self._to_publish:
            self._publish()
        for _ in range(CALM_TURNS_MAX * (1 + 3 * self.shape.users_workers)):
            if self.outcome.gap or self._is_settled():
                return
            self._one_turn()
        alive = [(p.name, w.status() if (w := p.parts.get("worker")) else "no worker") for p in self._alive()]  # type: ignore[attr-defined]
        self.world.violate(f"it does not settle: {alive}")

    def _one_turn(self) -> None:
        world = self.world
        for due in [due for due in self._due if due[0] <= world.now_s]:
            self._due.remove(due)
            self.start(due[1])
        ready = [p for p in self._alive() if p.asleep_until <= world.now_s or world.calm]
        if not ready:
            world.now_s += 0.002
            world.effects += 1  # time passes, and the storm ends
            for act in world.surroundings:
                act()
            return
        process = world.rng.choice(ready)
        if self.gap_wanted and not self.gap_made and not world.calm:
            _make_gap(self, process)
            if not process.alive:
                return
        process.resume()
        if world.violations:
            raise Violation
        if not process.alive:
            self._ended(process)

    def _alive(self) -> list[Process]:
        return [p for p in self.world.processes if p.alive]

    def start(self, role: Role, spare: bool = False) -> Process:
        """Another worker."""
        self.starts += 1
        process = Process(f"worker-{self.starts}{'' if role is Role.ALL else f'-{role}'}", self._work, role, spare)
        self.world.processes = [*self._alive(), process]
        self.monitor.shared |= len(self.world.processes) > 1
        self.world.say(f"{process.name} starts")
        return process

    def _ended(self, process: Process) -> None:
        world = self.world
        world.say(f"{process.name} ended: {process.ended}{f' ({process.error})' if process.error else ''}")
        outbox = self._outboxes.pop(process.name, None)
        if outbox is not None:
            outbox.crash()
        others = sum(p.role is process.role for p in self._alive()) + sum(r is process.role for _, r in self._due)
        if others < self.roles.count(process.role):
            self._due.append((world.now_s + world.rng.random() * 0.05, process.role))
        self.monitor.check_disk()
        if process.ended == "OffsetGap":
            if self.gap_made:
                self.outcome.gap = True
            else:
                world.violate(f"{process.name}: {process.error}")
        elif isinstance(process.error, OSError) and self._is_starting(process):
            pass  # where snapshots cannot be read, a worker does not start without them
        elif process.ended not in ("crash", "stopped", "Stopped", "Fenced", "KafkaError", "KafkaUnavailable"):
            import traceback

            world.violate("".join(traceback.format_exception(process.error)[-6:]))

    def _end(self) -> None:
        for process in self.world.processes:
            if process.alive:
                process.kill()

    # --- a worker -------------------------------------------------------------------------------

    def _work(self, process: Process) -> None:
        """A process as `wiring.run_worker` makes it."""
        from freshet.store.embeddings import StoreUnavailable

        world, s = self.world, self.shape
        store = RedisClient(self.redis, process, self.monitor.store)
        process.parts["store"] = store
        role, name = process.role, process.name if process.role is Role.USERS else "worker"
        while True:
            try:
                scope = ITEMS if role.writes_items else f"worker-{name}"
                fence = store.next_fence(scope, int(world.wall(process) * 1e3))
                break
            except StoreUnavailable:
                world.sleep(process, 0.05)
        graph = GraphStore(LIMITS, product_lists=role.writes_items)
        producer = Outbox(self.broker, process)
        consumer = Source(self.broker, process, "items" if role is Role.ITEMS else "workers", s.batch_max)
        self._outboxes[process.name] = process.parts["outbox"] = producer
        ownership = Ownership(graph.users, s.partitions)
        sink = Sink(
            graph, store, MemoryItemIndex(DIM), producer, TOPICS.embeddings_products, BUNDLE.model_version, DIM,
            ownership, fence, SinkSettings(retry_ms_min=5.0, retry_ms_max=20.0), wall=lambda: world.wall(process),
            should_stop=lambda: process.stopping, sleep=lambda seconds: world.sleep(process, seconds),
            states_topic=TOPICS.state_products if role is Role.ITEMS else None,
        )  # fmt: skip
        updater = Updater(
            graph, FrozenTowers(BUNDLE, graph), sink, kinds(TOPICS), None, s.ripple, world.monotonic, role
        )  # fmt: skip
        snapshots = None
        if s.snapshots is not None:
            place = FolderPlace(SimulatedPath(self.disk, process))  # type: ignore[arg-type]
            token = iter(f"{self.starts:03d}{n:05d}" for n in range(99_999))
            snapshots = Snapshots(
                graph, ownership, place, s.snapshots, BUNDLE.model_version, {}, lambda: world.wall(process),
                world.monotonic, InTurn, lambda: next(token),
            )  # fmt: skip
        member: Membership = Alone(s.partitions if role is Role.ALL else 0, consumer)
        read: tuple[str, ...] = TOPICS.inputs
        if role is Role.USERS:
            member, read = Member(self.group, process, consumer), (*TOPICS.by_user, TOPICS.state_products)
        worker = Worker(
            graph, updater, sink, store, consumer, producer, member, TOPICS, dict.fromkeys(read, s.partitions),
            Origin(), s.worker, snapshots=snapshots, name=name,
            wall=lambda: world.wall(process), monotonic=world.monotonic,
        )  # fmt: skip
        process.parts["worker"] = worker
        while not process.stopping:
            self._note_served(process, worker)
            worker.turn()
            process.pause()
        worker.stop()

    def _note_served(self, process: Process, worker: Worker) -> None:
        """From where on a process writes what it reads."""
        served = self.monitor.served_from.setdefault(process.name, {})
        for scope in worker.completeness.whole:
            for tp in worker.reading.scopes[scope]:
                at = worker.reading.positions[tp]
                served.setdefault(tp, at)

    def _is_starting(self, process: Process) -> bool:
        worker: Any = process.parts.get("worker")
        return worker is None or not worker.completeness.serves

    def _workers(self) -> list[Worker]:
        return [p.parts["worker"] for p in self._alive() if "worker" in p.parts]  # type: ignore[misc]

    # --- surroundings ---------------------------------------------------------------------------

    def _publish(self) -> None:
        item = self._to_publish.pop()
        record = self.broker.append(item.record, item.partition)
        if rejected([record], self.placement):
            self.monitor.rejected.add((record.topic, record.partition, record.offset))
        elif record.topic == TOPICS.profiles and (not record.value or b"forgotten" in record.value):
            self.monitor.forgotten.add((record.key or b"").decode())

    def _publish_now_and_then(self) -> None:
        if self._to_publish and self.world.rng.random() < self.shape.publish_share:
            self._publish()

    def _deliver(self) -> None:
        for outbox in self._outboxes.values():
            outbox.deliver_some()

    def _read_now_and_then(self) -> None:
        if self.world.rng.random() < 0.05:
            self.follower.read(0.99, self.world.rng)

    # --- faults ---------------------------------------------------------------------------------

    def _strike(self, fault: Fault, process: Process) -> None:
        STRIKES[fault.what](self, fault, process)

    # --- afterwards -----------------------------------------------------------------------------

    def _is_settled(self) -> bool:
        """Every scope is served once, by workers that are live, with nothing left to do, for longer than it takes to look after the store."""
        workers = self._workers()
        served = sorted(scope for worker in workers for scope in worker.completeness.serves)
        quiet = served == sorted(self.monitor.scopes) and len(workers) == len(self._alive())
        quiet = quiet and not self._due and all(self._is_quiet(worker) for worker in workers)
        if not quiet:
            self._settled_since = None
            return False
        if self._settled_since is None:
            self._settled_since = self.world.now_s
        settings = self.shape.worker
        wait_ms = max(settings.sentinel_interval_ms, settings.status_interval_ms, settings.commit_interval_ms)
        return (self.world.now_s - self._settled_since) * 1e3 > 2.5 * wait_ms

    def _is_quiet(self, worker: Worker) -> bool:
        read = all(at == self.broker.high(tp) for tp, at in worker.reading.positions.items())
        delivered = not len(worker.producer)
        committed = not worker._uncommitted()
        return read and delivered and committed and worker.state == "live" and not worker.updater.ripples.waiting

    def _compare(self) -> None:
        """State, values and indexes are those of an undisturbed run."""
        records = [r for tp, log in self.broker.log.items() if tp[0] in TOPICS.inputs for r in log]
        expected = undisturbed(records, self.shape.partitions, self.world.seed)
        say = self.world.violate
        self._compare_state(expected.state)
        self._compare_users(expected.users)
        index = next(w.sink.index for w in self._workers() if w.role.writes_items)
        self._compare_products(index, "the index", expected.products)
        self.follower.read(1.0, self.world.rng)
        self._compare_products(self.follower.index, "a reader's index", expected.products)
        fresh = Follower(self.broker, self.shape.partitions)
        fresh.catch_up = lambda progress=None: None  # type: ignore[method-assign]
        fresh.assign({tp: 0 for tp in self.broker.log if tp[0] == TOPICS.embeddings_products})
        fresh.read(1.0, self.world.rng)
        self._compare_products(fresh.index, "a new reader's index", expected.products)
        letters = self.monitor.read_letters()
        if letters != expected.rejected:
            lost, wrong = expected.rejected - letters, letters - expected.rejected
            say(f"dead letters: {sorted(lost)} have none, {sorted(wrong)} should have none")
        self._compare_serving()
        self._look_for_forgotten(expected.users)

    def _compare_state(self, expected: bytes) -> None:
        """What one worker holds that writes items, what all hold together, and each owner's users."""
        workers, say = self._workers(), self.world.violate
        union = GraphStore(LIMITS)
        for worker in workers:
            if worker.role.writes_items:
                if canonical(worker.graph) != expected:
                    say(f"the state differs from an undisturbed run's: {difference(worker.graph, expected)}")
            union.merge(worker.graph)
        if canonical(union) != expected:
            say(f"the union of states differs from an undisturbed run's: {difference(union, expected)}")
        there = {row[0]: row for row in msgspec.msgpack.decode(expected)["users"]}
        for worker in workers:
            owned = worker.sink.ownership
            here = {row[0]: row for row in msgspec.msgpack.decode(canonical(worker.graph))["users"]}
            for p in owned.fences:
                names = {name for name in (*here, *there) if owned.of_name(name) == p}
                wrong = [name for name in sorted(names) if here.get(name) != there.get(name)]
                if wrong:
                    say(f"{worker.name} owns partition {p} and holds {here.get(wrong[0])}, not {there.get(wrong[0])}")

    def _compare_users(self, expected: dict[str, Any]) -> None:
        version, say = BUNDLE.model_version, self.world.violate
        held = list(self.redis.values.user_ids(version))
        if set(held) != set(expected):
            lost, wrong = sorted(set(expected) - set(held)), sorted(set(held) - set(expected))
            say(f"users: the store lacks {lost} and holds {wrong} too many")
        for user, raw in zip(held, self.redis.values.get(version, held), strict=True):
            value, right = decode_value(raw or b""), expected[user]
            if np.abs(value.vector - right.vector).max() > VECTOR_ERROR_MAX:
                say(f"the embedding of {user!r} is off by {np.abs(value.vector - right.vector).max():.2g}")
            for name in ("event_ts", "recent", "bought"):
                if getattr(value, name) != getattr(right, name):
                    say(f"{name} of {user!r} is {getattr(value, name)}, not {getattr(right, name)}")

    def _compare_products(self, index: Any, what: str, expected: dict[str, Any]) -> None:
        held = set(index.ids())
        if held != set(expected):
            self.world.violate(f"{what} lacks {sorted(set(expected) - held)}, has {sorted(held - set(expected))} too many")
        names = sorted(expected)
        if names:
            off = np.abs(index.get(names)[0] - np.stack([expected[n] for n in names])).max(axis=1)
            if off.max() > VECTOR_ERROR_MAX:
                self.world.violate(f"{what}: {names[int(off.argmax())]!r} is off by {off.max():.2g}")

    def _compare_serving(self) -> None:
        version, state, say = BUNDLE.model_version, self.redis.state, self.world.violate
        if state.current() != version:
            say(f"readers are pointed to {state.current()}")
        for scope in self.monitor.scopes:
            sentinel = read_sentinel(state.get_blob(f"{version}:{sentinel_blob(scope)}"))
            if sentinel is None or not sentinel.whole:
                say(f"the sentinel of {scope} is {sentinel}")
        for name in ("ranker", "popular"):
            if state.get_blob(f"{version}:{name}") is None:
                say(f"the blob {name!r} is not there")

    def _look_for_forgotten(self, expected: dict[str, Any]) -> None:
        """Who was forgotten is in no snapshot that begins after it, nor in any other value."""
        gone = self.monitor.forgotten - set(expected)
        last: dict[tuple[str, int], dict[str, int]] = {}
        for tp in self.broker.log:
            if tp[0] in TOPICS.by_user:
                for record in self.broker.log[tp]:
                    last.setdefault(tp, {})[(record.key or b"").decode()] = record.offset
        for name, data in self.disk.whole().items():
            if not name.endswith(".snapshot") or name in self.disk.damaged:
                continue
            head = SnapshotReader(io.BytesIO(data), name).head
            for user in gone:
                places = [(tp, known[user]) for tp, known in last.items() if user in known]
                covered = all(head.positions.get(tp, -1) > offset for tp, offset in places)
                if covered and user.encode() in data:
                    self.world.violate(f"{name} holds {user!r}, who was forgotten before it was begun")
        for name, (_, blob) in self.redis.state._blob.items():
            for user in gone:
                if user.encode() in blob:
                    self.world.violate(f"the blob {name!r} names {user!r}, who was forgotten")
        for _, digest in self.redis.values._guards:
            if digest in gone:
                self.world.violate(f"a guard names {digest!r}, who was forgotten")


def difference(graph: GraphStore, expected: bytes) -> str:
    """The first thing in which a state differs from another."""
    here, there = msgspec.msgpack.decode(canonical(graph)), msgspec.msgpack.decode(expected)
    for part in there:
        if here[part] != there[part]:
            if not isinstance(there[part], list):
                return f"{part}: {here[part]}, not {there[part]}"
            a, b = ({repr(x) for x in side[part]} for side in (here, there))
            return f"{part}: has {sorted(a - b)[:1]}, lacks {sorted(b - a)[:1]}"
    return "nothing"


# --- what each fault does -------------------------------------------------------------------------


def _crash(cluster: Cluster, fault: Fault, process: Process) -> None:
    """The process dies; with size 1 its machine loses power, and with it every other process there."""
    process.dead = True
    if fault.size:
        for other in cluster.world.processes:
            other.dead = True
        cluster.disk.lose_power()


def _redis_down(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.redis.down_until = cluster.world.now_s + fault.size / 1e3


def _no_answer(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.redis.lose_answers = 1 + fault.size % 3


def _redis_lost(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.redis.empty()


def _redis_back(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.redis.back_to(fault.size)


def _broker_down(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.broker.down_until = cluster.world.now_s + fault.size / 1e3


def _delivery_fails(cluster: Cluster, fault: Fault, process: Process) -> None:
    outbox = cluster._outboxes.get(process.name)
    if outbox is not None:
        outbox.fail_next = 1 + fault.size % 2


def _disk_fails(cluster: Cluster, fault: Fault, process: Process) -> None:
    cluster.disk.fail.append(("open", "write", "sync", "rename", "remove", "list")[fault.size % 6])


def _stop(cluster: Cluster, fault: Fault, process: Process) -> None:
    process.stopping = True


def _second(cluster: Cluster, fault: Fault, process: Process) -> None:
    """Another worker starts beside this one, which may fall asleep for a while."""
    cluster.start(process.role, spare=True)
    process.asleep_until = cluster.world.now_s + fault.size / 1e3


def _falls_asleep(cluster: Cluster, fault: Fault, process: Process) -> None:
    process.asleep_until = cluster.world.now_s + fault.size / 1e3


def _taken_for_dead(cluster: Cluster, fault: Fault, process: Process) -> None:
    """The group gives its partitions to others while it goes on."""
    for member in list(cluster.group.members):
        if member.process is process:
            cluster.group.expel(member)


def _clock_jumps(cluster: Cluster, fault: Fault, process: Process) -> None:
    process.wall_ahead_s += fault.size


def _damage(cluster: Cluster, fault: Fault, process: Process) -> None:
    """A snapshot is damaged; while the topics hold everything, it is not needed."""
    names = sorted(n for n in cluster.disk.entries if n.endswith(".snapshot"))
    if names and not any(cluster.broker.low.values()) and not cluster.gap_made:
        name = names[-1 - fault.size % len(names)]
        if cluster.disk.entries[name].data:
            cluster.disk.damage(name)


def _needed(cluster: Cluster) -> dict[tuple[str, int], int] | None:
    """The oldest offsets that a worker which starts now may have to read; None where there is no snapshot of some
    scope, so that all of them are needed, or where several workers share what is read."""
    if cluster.shape.users_workers:
        return None
    safe = {n: d for n, d in cluster.disk.safe().items() if n.endswith(".snapshot")}
    heads = [SnapshotReader(io.BytesIO(d), n).head for n, d in safe.items() if n not in cluster.disk.damaged]
    if {head.scope for head in heads} != set(cluster.monitor.scopes) or cluster.disk.damaged:
        return None
    needed: dict[tuple[str, int], int] = {}
    for head in heads:
        for tp, at in head.positions.items():
            needed[tp] = min(at, needed.get(tp, at))
    for process in cluster.world.processes:
        if process.alive:
            worker: Any = process.parts.get("worker")
            if worker is None or not worker.gaining and not worker._built:
                return None  # it is about to start from somewhere
            for tp, at in worker.reading.positions.items():
                needed[tp] = min(at, needed.get(tp, at))
    return needed


def _retention(cluster: Cluster, fault: Fault, process: Process) -> None:
    """What no worker needs any more is deleted, or part of it."""
    for tp, at in (_needed(cluster) or {}).items():
        cluster.broker.low[tp] = max(cluster.broker.low[tp], at * (fault.size % 101) // 100)


def _retention_gap(cluster: Cluster, fault: Fault, process: Process) -> None:
    """As soon as all scopes have snapshots: what a worker that starts again will need is deleted."""
    cluster.gap_wanted = True


def _make_gap(cluster: Cluster, process: Process) -> None:
    needed = _needed(cluster)
    if needed is None or cluster.gap_made:
        return
    for _ in range(min(5, len(cluster._to_publish))):
        cluster._publish()
    for tp, at in needed.items():
        if cluster.broker.high(tp) > at:
            cluster.broker.low[tp] = cluster.broker.high(tp)
            cluster.gap_made = True
    if cluster.gap_made:
        cluster.world.say(f"records that are needed are deleted, and {process.name} has to start again")
        process.kill()
        cluster._ended(process)


STRIKES: dict[str, Callable[[Cluster, Fault, Process], None]] = {
    "crash before": _crash,
    "crash after": _crash,
    "Redis is down": _redis_down,
    "no answer": _no_answer,
    "Redis is lost": _redis_lost,
    "Redis goes back": _redis_back,
    "broker is down": _broker_down,
    "a delivery fails": _delivery_fails,
    "the disk fails": _disk_fails,
    "asked to stop": _stop,
    "a second worker": _second,
    "falls asleep": _falls_asleep,
    "is taken for dead": _taken_for_dead,
    "the clock jumps": _clock_jumps,
    "a snapshot is damaged": _damage,
    "retention": _retention,
    "retention leaves a gap": _retention_gap,
}
"""What each fault does to the process at whose effect it strikes, and to its surroundings."""

