"""A shop's stream with its workers in it, on twins of everything they reach; one run from a seed and its faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from freshet.model.frozen import FrozenTowers
from freshet.store import snapshot_places
from freshet.store.graph import GraphStore
from freshet.store.index import MemoryItemIndex
from freshet.store.snapshot_places import FolderPlace
from freshet.stream.membership import Alone, Membership
from freshet.stream.ownership import Ownership
from freshet.stream.placement import Placement
from freshet.stream.rewriting import every_scope, place_of
from freshet.stream.roles import Role
from freshet.stream.sharding import Shard
from freshet.stream.sink import Sink, SinkSettings
from freshet.stream.snapshots import InTurn, Snapshots
from freshet.stream.topics import kinds
from freshet.stream.updater import Updater
from freshet.stream.worker import Origin, Worker
from tests.property.logs import LIMITS
from tests.simulation.broker_twin import Broker, Outbox, Source
from tests.simulation.compare import compare
from tests.simulation.disk_twin import Disk, SimulatedPath, mounted
from tests.simulation.faults import STRIKES, make_gap
from tests.simulation.group_twin import Group, Member
from tests.simulation.monitor import Monitor
from tests.simulation.reader_twin import Follower
from tests.simulation.redis_twin import RedisClient, RedisServer
from tests.simulation.shape import Shape
from tests.simulation.shop import BUNDLE, BUNDLE_OF_SHARDS, DIM, TOPICS, Shop, rejected
from tests.simulation.world import Fault, Process, Violation, World

Job = tuple[Role, Shard]
"""What a worker is for."""
STORM_EFFECTS_MAX = 1_200
"""Effects after which faults cease in any case."""
ENDINGS = ("crash", "stopped", "Stopped", "Fenced", "CutAnew", "KafkaError", "KafkaUnavailable")
"""How a worker may end."""
CALM_TURNS_MAX = 1_500
"""Turns without faults in which everything has to have settled."""


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


class Cluster:
    """One run. `faults` strike as they are given; after them everything has to come right."""

    def __init__(self, seed: int, faults: list[Fault], shape: Shape | None = None) -> None:
        self.shape = shape or Shape.of(seed)
        s = self.shape
        self.world = World(seed, faults)
        self.world.strike = self._strike
        self.bundle = BUNDLE if s.shards == 1 else BUNDLE_OF_SHARDS
        topics = dict.fromkeys((*TOPICS.inputs, TOPICS.embeddings_products, TOPICS.state_products), s.partitions)
        self.broker = Broker(self.world, {**topics, TOPICS.deadletter: 1})
        self.redis = RedisServer(self.world)
        self.disk = Disk(self.world)
        self.monitor = Monitor(
            self.world, self.broker, self.redis, self.disk, self.bundle.model_version,
            every_scope(s.partitions, s.shards),
        )  # fmt: skip
        self.placement = Placement(dict.fromkeys(TOPICS.inputs, s.partitions))
        self.to_publish = list(reversed(Shop(seed, s.records, s.partitions).log[: s.records]))
        self.follower = Follower(self.broker, s.partitions, self.bundle.model_version)
        self.follower.catch_up()
        self.gap_wanted = self.gap_made = False
        self.starts = 0
        self.group = Group(self.world, s.partitions, s.session_s)
        self._due: list[tuple[float, Job]] = [(0.0, job) for job in self.jobs]
        """Workers that are to be started, and when."""
        self._settled_since: float | None = None
        self.outboxes: dict[str, Outbox] = {}
        self.outcome = Outcome(seed, faults)
        self.world.surroundings = [
            self._publish_now_and_then, self.redis.copy_now_and_then, self._deliver, self._read_now_and_then,
            self.group.hear,
        ]  # fmt: skip
        for _ in range(s.published_first):
            self.publish()

    @property
    def jobs(self) -> list[Job]:
        """Of the workers that are started again when they end."""
        users, shards = self.shape.users_workers, self.shape.shards
        if not users:
            return [(Role.ALL, Shard())]
        return [*((Role.ITEMS, Shard(k, shards)) for k in range(shards)), *[(Role.USERS, Shard())] * users]

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Start workers, let the faults strike, wait until all is quiet, compare."""
        unmount = mounted(snapshot_places, self.disk)
        try:
            self._storm()
            self._settle()
            if not self.outcome.gap:
                compare(self)
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
        while (self.to_publish or world.waiting) and world.effects < STORM_EFFECTS_MAX and not self.outcome.gap:
            self._one_turn()

    def _settle(self) -> None:
        self.world.calm = True
        self.world.say("no fault strikes any more")
        while self.to_publish:
            self.publish()
        for _ in range(CALM_TURNS_MAX * (1 + 3 * (self.shape.users_workers + self.shape.shards - 1))):
            if self.outcome.gap or (self._is_settled() and self._turns_end_quietly()):
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
            make_gap(self, process)
            if not process.alive:
                return
        self._resume(process)

    def _resume(self, process: Process) -> None:
        process.resume()
        if self.world.violations:
            raise Violation
        if not process.alive:
            self.ended(process)

    def _alive(self) -> list[Process]:
        return [p for p in self.world.processes if p.alive]

    def start(self, job: Job, spare: bool = False) -> Process:
        """Another worker."""
        self.starts += 1
        role, shard = job
        what = shard.scope if shard.of > 1 else role
        process = Process(
            f"worker-{self.starts}{'' if role is Role.ALL else f'-{what}'}", self._work, role, shard, spare
        )
        self.world.processes = [*self._alive(), process]
        self.monitor.shared |= len(self.world.processes) > 1
        self.world.say(f"{process.name} starts")
        return process

    def ended(self, process: Process) -> None:
        world = self.world
        world.say(f"{process.name} ended: {process.ended}{f' ({process.error})' if process.error else ''}")
        outbox = self.outboxes.pop(process.name, None)
        if outbox is not None:
            outbox.crash()
        job = process.role, process.shard
        others = sum((p.role, p.shard) == job for p in self._alive()) + sum(due == job for _, due in self._due)
        if others < self.jobs.count(job):
            self._due.append((world.now_s + world.rng.random() * 0.05, job))
        self.monitor.check_disk()
        if process.ended == "OffsetGap":
            if self.gap_made:
                self.outcome.gap = True
            else:
                world.violate(f"{process.name}: {process.error}")
        elif isinstance(process.error, OSError) and self._is_starting(process):
            pass  # where snapshots cannot be read, a worker does not start without them
        elif process.ended not in ENDINGS:
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
        store = RedisClient(self.redis, process, self.monitor.store, s.late_writes)
        process.parts["store"] = store
        role, name = process.role, process.name if process.role is Role.USERS else "worker"
        if process.shard.of > 1:
            name = process.shard.scope
        while True:
            try:
                scope = place_of(process.shard.scope) if role.writes_items else f"worker-{name}"
                incarnation = store.incarnation()
                fence = store.next_fence(scope, int(world.wall(process) * 1e3))
                break
            except StoreUnavailable:
                world.sleep(process, 0.05)
        graph = GraphStore(LIMITS, product_lists=role.writes_items)
        producer = Outbox(self.broker, process)
        group = place_of(process.shard.scope) if role is Role.ITEMS else "workers"
        consumer = Source(self.broker, process, group, s.batch_max)
        self.outboxes[process.name] = process.parts["outbox"] = producer
        ownership = Ownership(graph.users, s.partitions)
        sink = Sink(
            graph, store, MemoryItemIndex(DIM), producer, TOPICS.embeddings_products, self.bundle.model_version, DIM,
            ownership, fence, SinkSettings(retry_ms_min=5.0, retry_ms_max=20.0), wall=lambda: world.wall(process),
            should_stop=lambda: process.stopping, sleep=lambda seconds: world.sleep(process, seconds),
            states_topic=TOPICS.state_products if role is Role.ITEMS else None,
        )  # fmt: skip
        updater = Updater(
            graph, FrozenTowers(self.bundle, graph), sink, kinds(TOPICS), None, s.ripple, world.monotonic, role
        )  # fmt: skip
        snapshots = None
        if s.snapshots is not None:
            place = FolderPlace(SimulatedPath(self.disk, process))  # type: ignore[arg-type]
            born = self.starts  # of this one, whoever starts later
            token = iter(f"{born:03d}{n:05d}" for n in range(99_999))
            snapshots = Snapshots(
                graph, ownership, place, s.snapshots, self.bundle.model_version, {}, lambda: world.wall(process),
                world.monotonic, InTurn, lambda: next(token),
            )  # fmt: skip
        member: Membership = Alone(s.partitions if role is Role.ALL else 0, consumer)
        read: tuple[str, ...] = TOPICS.inputs
        if role is Role.USERS:
            member, read = Member(self.group, process, consumer), (*TOPICS.by_user, TOPICS.state_products)
        worker = Worker(
            graph, updater, sink, store, consumer, producer, member, TOPICS, dict.fromkeys(read, s.partitions),
            Origin(), s.worker, snapshots=snapshots, name=name, incarnation=incarnation, shard=process.shard,
            wall=lambda: world.wall(process), monotonic=world.monotonic,
        )  # fmt: skip
        process.parts["worker"] = worker
        while not process.stopping:
            self._note_served(process, worker)
            process.in_turn = True
            worker.turn()
            process.in_turn = False
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

    def workers(self) -> list[Worker]:
        return [p.parts["worker"] for p in self._alive() if "worker" in p.parts]  # type: ignore[misc]

    # --- surroundings ---------------------------------------------------------------------------

    def publish(self) -> None:
        item = self.to_publish.pop()
        record = self.broker.append(item.record, item.partition)
        if rejected([record], self.placement):
            self.monitor.rejected.add((record.topic, record.partition, record.offset))
        elif record.topic == TOPICS.profiles and (not record.value or b"forgotten" in record.value):
            self.monitor.forgotten.add((record.key or b"").decode())

    def _publish_now_and_then(self) -> None:
        if self.to_publish and self.world.rng.random() < self.shape.publish_share:
            self.publish()

    def _deliver(self) -> None:
        for outbox in self.outboxes.values():
            outbox.deliver_some()

    def _read_now_and_then(self) -> None:
        if self.world.rng.random() < 0.05:
            self.follower.read(0.99, self.world.rng)

    # --- faults ---------------------------------------------------------------------------------

    def _strike(self, fault: Fault, process: Process) -> None:
        STRIKES[fault.what](self, fault, process)

    def _is_settled(self) -> bool:
        """Every scope is served once, by workers that are live and have nothing left to do, for longer than it takes to
        look after the store."""
        workers = self.workers()
        served = sorted(scope for worker in workers for scope in worker.completeness.serves)
        quiet = served == sorted(self.monitor.scopes) and len(workers) == len(self._alive())
        quiet = quiet and not self._due and all(self._is_quiet(worker) for worker in workers)
        quiet = quiet and not any(p.stopping for p in self._alive())  # it looks after nothing any more
        if not quiet:
            self._settled_since = None
            return False
        if self._settled_since is None:
            self._settled_since = self.world.now_s
        settings = self.shape.worker
        wait_ms = max(settings.sentinel_interval_ms, settings.commit_interval_ms)
        return (self.world.now_s - self._settled_since) * 1e3 > 2.5 * wait_ms

    def _turns_end_quietly(self) -> bool:
        """Whether all is quiet still when every worker has finished the turn in which it was interrupted."""
        for process in self._alive():
            while process.in_turn and process.alive:
                self._resume(process)
        return self._is_settled()

    def _is_quiet(self, worker: Worker) -> bool:
        read = all(at == self.broker.high(tp) for tp, at in worker.reading.positions.items())
        delivered = not len(worker.producer)
        committed = not worker._uncommitted()
        return read and delivered and committed and worker.state == "live" and not worker.updater.ripples.waiting
