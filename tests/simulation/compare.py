"""After a run: state, values and indexes are those of an undisturbed one."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from freshet.store.canonical import canonical
from freshet.store.graph import GraphStore
from freshet.store.index import MemoryItemIndex
from freshet.store.snapshot_file import SnapshotReader
from freshet.store.value import decode_value
from freshet.stream.completeness import read_sentinel, sentinel_blob
from tests.property.logs import LIMITS
from tests.simulation.reader_twin import Follower
from tests.simulation.shop import DIM, TOPICS, undisturbed

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

VECTOR_ERROR_MAX = 1e-6


def compare(cluster: Cluster) -> None:
    """State, values and indexes are those of an undisturbed run."""
    records = [r for tp, log in cluster.broker.log.items() if tp[0] in TOPICS.inputs for r in log]
    expected = undisturbed(records, cluster.shape.partitions, cluster.world.seed, cluster.bundle)
    say = cluster.world.violate
    _compare_state(cluster, expected.state)
    _compare_users(cluster, expected.users)
    index = MemoryItemIndex(DIM)
    for worker in cluster.workers():
        if worker.role.writes_items and (ids := worker.sink.index.ids()):
            if both := set(ids) & set(index.ids()):
                say(f"the indexes of two shards hold {sorted(both)}")
            index.upsert(ids, worker.sink.index.get(ids)[0])
    _compare_products(cluster, index, "the index", expected.products)
    cluster.follower.read(1.0, cluster.world.rng)
    _compare_products(cluster, cluster.follower.index, "a reader's index", expected.products)
    fresh = Follower(cluster.broker, cluster.shape.partitions, cluster.bundle.model_version)
    fresh.catch_up = lambda progress=None: None  # type: ignore[method-assign]
    fresh.assign({tp: 0 for tp in cluster.broker.log if tp[0] == TOPICS.embeddings_products})
    fresh.read(1.0, cluster.world.rng)
    _compare_products(cluster, fresh.index, "a new reader's index", expected.products)
    letters = cluster.monitor.read_letters()
    if letters != expected.rejected:
        lost, wrong = expected.rejected - letters, letters - expected.rejected
        say(f"dead letters: {sorted(lost)} have none, {sorted(wrong)} should have none")
    _compare_serving(cluster)
    cluster.monitor.check_disk()
    _look_for_forgotten(cluster, expected.users)


def _compare_state(cluster: Cluster, expected: bytes) -> None:
    """What one worker holds that writes items, what all hold together, and each owner's users."""
    workers, say = cluster.workers(), cluster.world.violate
    union = GraphStore(LIMITS)
    for worker in workers:
        if worker.role.writes_items and worker.shard.of == 1:
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


def _compare_users(cluster: Cluster, expected: dict[str, Any]) -> None:
    version, say = cluster.bundle.model_version, cluster.world.violate
    held = list(cluster.redis.values.user_ids(version))
    if set(held) != set(expected):
        lost, wrong = sorted(set(expected) - set(held)), sorted(set(held) - set(expected))
        say(f"users: the store lacks {lost} and holds {wrong} too many")
    for user, raw in zip(held, cluster.redis.values.get(version, held), strict=True):
        value, right = decode_value(raw or b""), expected[user]
        if np.abs(value.vector - right.vector).max() > VECTOR_ERROR_MAX:
            say(f"the embedding of {user!r} is off by {np.abs(value.vector - right.vector).max():.2g}")
        for name in ("event_ts", "recent", "bought"):
            if getattr(value, name) != getattr(right, name):
                say(f"{name} of {user!r} is {getattr(value, name)}, not {getattr(right, name)}")


def _compare_products(cluster: Cluster, index: Any, what: str, expected: dict[str, Any]) -> None:
    held = set(index.ids())
    if held != set(expected):
        lost, wrong = sorted(set(expected) - held), sorted(held - set(expected))
        cluster.world.violate(f"{what} lacks {lost}, has {wrong} too many")
    names = sorted(expected)
    if names:
        off = np.abs(index.get(names)[0] - np.stack([expected[n] for n in names])).max(axis=1)
        if off.max() > VECTOR_ERROR_MAX:
            cluster.world.violate(f"{what}: {names[int(off.argmax())]!r} is off by {off.max():.2g}")


def _compare_serving(cluster: Cluster) -> None:
    version, state, say = cluster.bundle.model_version, cluster.redis.state, cluster.world.violate
    if state.current() != version:
        say(f"readers are pointed to {state.current()}")
    for scope in cluster.monitor.scopes:
        sentinel = read_sentinel(state.get_blob(f"{version}:{sentinel_blob(scope)}"))
        if sentinel is None or not sentinel.whole or sentinel.scope != scope:
            say(f"the sentinel of {scope} is {sentinel}")
    for name in ("ranker", "popular"):
        if state.get_blob(f"{version}:{name}") is None:
            say(f"the blob {name!r} is not there")


def _look_for_forgotten(cluster: Cluster, expected: dict[str, Any]) -> None:
    """Who was forgotten is in no snapshot that begins after it, nor in any other value."""
    gone = cluster.monitor.forgotten - set(expected)
    last: dict[tuple[str, int], dict[str, int]] = {}
    for tp in cluster.broker.log:
        if tp[0] in TOPICS.by_user:
            for record in cluster.broker.log[tp]:
                last.setdefault(tp, {})[(record.key or b"").decode()] = record.offset
    for name, data in cluster.disk.whole().items():
        if not name.endswith(".snapshot") or name in cluster.disk.damaged:
            continue
        head = SnapshotReader(io.BytesIO(data), name).head
        for user in gone:
            places = [(tp, known[user]) for tp, known in last.items() if user in known]
            covered = all(head.positions.get(tp, -1) > offset for tp, offset in places)
            if covered and user.encode() in data:
                cluster.world.violate(f"{name} holds {user!r}, who was forgotten before it was begun")
    for name, (_, blob) in cluster.redis.state._blob.items():
        for user in gone:
            if user.encode() in blob:
                cluster.world.violate(f"the blob {name!r} names {user!r}, who was forgotten")
    for _, digest in cluster.redis.values._guards:
        if digest in gone:
            cluster.world.violate(f"a guard names {digest!r}, who was forgotten")


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
