"""Where embeddings go: users into the embedding store, products into the index and the changelog.

Everything written here is a function of the state and carries a sequence number that only grows, so a
write that is repeated, or that comes from a worker that has been replaced, changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.columns import F32, I32, Bool
from freshet.store.embeddings import EmbeddingStore, Landing, NamedBlobs, StoreUnavailable
from freshet.store.graph import GraphStore
from freshet.store.index import ItemIndex
from freshet.store.lists import grown
from freshet.store.packed import Sources, ValuePacker
from freshet.store.recent import bought, recent
from freshet.store.value import MODEL_HEADER, SEQ_HEADER, Seq, encode_value
from freshet.stream.decode import Decoded
from freshet.stream.ownership import Ownership
from freshet.stream.product_states import state_records
from freshet.stream.records import Outgoing, Record

T = TypeVar("T")

logger = logging.getLogger("freshet.sink")


class Fenced(FreshetError):
    """Another worker has taken over; this one must stop."""

    def __init__(self, scope: str, fence: int) -> None:
        super().__init__(
            f"the store refused what was written for {scope}: a worker with a newer token than {fence} writes there. "
            "Another worker was started since, for the same topics or under the same --name, and goes on; this one "
            "ends. Start no second one, or give it a name of its own"
        )


class Stopped(Exception):
    """The process was asked to stop while it waited for a server."""


class Changelog(Protocol):
    """Where product embeddings are published for readers' own indexes."""

    def send(self, record: Outgoing) -> None: ...


@dataclass(frozen=True)
class SinkSettings:
    """What a value holds, and how a store that is down is waited for."""

    recent_max: int = 20
    """Entries of `recent` in a user's value."""
    bought_max: int = 128
    """Entries of `bought` in a user's value: what the ranker can offer again."""
    retry_ms_min: float = 50.0
    retry_ms_max: float = 2_000.0


@dataclass
class _Flight:
    """Values of users on their way to the store, and the tokens that they carry."""

    names: list[str]
    values: list[bytes]
    fences: dict[int, int]
    land: Landing
    then: list[Callable[[], None]] = field(default_factory=list)


class Sink:
    """Writes embeddings of one model version: users with the token of their partition, all else with `fence`.

    Values of users travel while the worker goes on, one batch at a time; `settle` waits for them. Whatever depends on
    their being there (a commit, a sentinel, a deletion, a status) settles first.

    What the store refuses is another worker's by now: the partition is dropped from `ownership` and noted in
    `refused` (or `refused_own` for the worker's own token), for the worker to act on after its step.
    """

    def __init__(
        self,
        graph: GraphStore,
        store: EmbeddingStore,
        index: ItemIndex,
        changelog: Changelog | None,
        changelog_topic: str,
        model_version: str,
        dim: int,
        ownership: Ownership,
        fence: int,
        settings: SinkSettings | None = None,
        wall: Callable[[], float] = time.time,
        should_stop: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
        users_topic: str | None = None,
        states_topic: str | None = None,
    ) -> None:
        self.graph = graph
        self.store = store
        self.index = index
        self.changelog = changelog
        self.changelog_topic = changelog_topic
        self.users_topic = users_topic
        self.states_topic = states_topic
        self.model_version = model_version
        self.dim = dim
        self.ownership = ownership
        self.fence = fence
        self.settings = settings or SinkSettings()
        self.refused: dict[int, int] = {}
        """Partitions dropped because the store refused a write, with the token that was too old."""
        self.refused_own = False
        self.interrupted = False
        """Whether the store was away since somebody last asked: what it holds is to be looked at."""
        self.unavailable_since: float | None = None
        self._flight: _Flight | None = None
        self._step = 0
        self._packer = ValuePacker(graph.products, model_version, dim)
        self._wall = wall
        self.should_stop = should_stop
        self.sleep = sleep
        self._topics: list[str] = []
        self._src_topic = np.full(0, -1, dtype=np.int16)
        self._src_partition = np.zeros(0, dtype=np.int32)
        self._src_offset = np.zeros(0, dtype=np.int64)

    def next_step(self) -> int:
        """A number greater than every one before it: the second part of every `seq`."""
        self._step += 1
        return self._step

    def note_sources(self, records: Sequence[Record], decoded: Decoded) -> None:
        """Remember, for each user of a batch, the record that named them last."""
        last: dict[str, int] = {}
        columns = decoded.columns
        last.update(zip(columns.views.user, decoded.view_record.tolist(), strict=True))
        orders = columns.purchases
        firsts = orders.order_start[:-1].tolist()
        last.update(zip((orders.user[i] for i in firsts), decoded.order_record.tolist(), strict=True))
        last.update(zip(columns.sessions.user, decoded.session_record.tolist(), strict=True))
        last.update(zip(columns.profiles.user, decoded.profile_record.tolist(), strict=True))
        known = [(u, r) for name, r in last.items() if (u := self.graph.users.get(name)) is not None]
        if not known:
            return
        self._reserve()
        users, named = np.array([u for u, _ in known]), [records[place] for _, place in known]
        for topic in {r.topic for r in named}.difference(self._topics):
            self._topics.append(topic)
        number = {topic: i for i, topic in enumerate(self._topics)}
        self._src_topic[users] = [number[r.topic] for r in named]
        self._src_partition[users] = [r.partition for r in named]
        self._src_offset[users] = [r.offset for r in named]

    def heard_of(self, users: I32) -> Bool:
        """[n] bool: of whom a record was read since the worker began."""
        self._reserve()
        heard: Bool = self._src_topic[users] >= 0
        return heard

    def write_users(self, users: I32, vectors: F32) -> None:
        """Send the embeddings [n, dim] of users [n], all of them owned, on their way; `settle` waits for them."""
        if not users.shape[0]:
            return
        self._reserve()
        names = [name or "" for name in self.graph.users.names(users)]
        values = self._values(users, vectors)
        self.settle()
        land = self.store.begin_upsert(self.model_version, names, values)
        self._flight = _Flight(names, values, dict(self.ownership.fences), land)

    def settle(self) -> None:
        """Wait until every value that was sent can be read. Raises Stopped."""
        flight = self._flight
        if flight is None:
            return
        stale = self.insist(flight.land)
        self._flight = None
        self._note_refused(flight.names, stale, flight.fences)
        self._publish_users(flight.names, flight.values)
        for act in flight.then:
            act()

    def when_settled(self, act: Callable[[], None]) -> None:
        """Do this when every value that was sent so far can be read."""
        if self._flight is None:
            act()
        else:
            self._flight.then.append(act)

    def _note_refused(self, names: Sequence[str], stale: NDArray[np.bool_], fences: Mapping[int, int]) -> None:
        """Drop the partitions of the users that the store refused; `stale` [n] says which of `names` [n].

        `fences` are the tokens that were refused: a partition that was gained anew meanwhile has another one."""
        for place in np.flatnonzero(stale).tolist():
            partition = self.ownership.of_name(names[place])
            fence = self.ownership.fences.get(partition)
            if fence is not None and fence == fences.get(partition):
                self.refused[partition] = fence
                self.ownership.drop(partition)

    def _publish_users(self, names: Sequence[str], values: Sequence[bytes | None]) -> None:
        """The changelog of users, where it is kept: one record a user is what its contract asks for."""
        if self.changelog is not None and self.users_topic is not None:
            for name, value in zip(names, values, strict=True):
                self.changelog.send(Outgoing(self.users_topic, name.encode(), value))

    def forget_users(self, names: Sequence[str]) -> None:
        """Delete the embeddings of those of these users that are owned."""
        if not names:
            return
        self.settle()  # a value on its way is older than its deletion, and would count as refused after it
        by_partition: dict[int, list[str]] = {}
        for name in names:
            by_partition.setdefault(self.ownership.of_name(name), []).append(name)
        for partition, mine in by_partition.items():
            fence = self.ownership.fences.get(partition)
            if fence is None:
                continue
            seq = Seq(fence, self.next_step())

            def delete(mine: list[str] = mine, seq: Seq = seq) -> NDArray[np.bool_]:
                return self.store.delete(self.model_version, mine, seq)

            self._note_refused(mine, self.insist(delete), {partition: fence})
            self._publish_users(mine, [None] * len(mine))

    def held_users(self) -> Iterator[str]:
        """Every user with a value of this version in the store; see `EmbeddingStore.user_ids`.

        Where the store goes away meanwhile it is waited for, and they come from the beginning again.
        """
        names = self.store.user_ids(self.model_version)

        def following() -> str | None:
            nonlocal names
            try:
                return next(names, None)
            except StoreUnavailable:
                names = self.store.user_ids(self.model_version)
                raise

        while (name := self.insist(following)) is not None:
            yield name

    def forget_strangers(self, names: Iterable[str]) -> None:
        """Delete the embeddings of those that the state does not know: forgotten while no worker ran."""
        self.forget_users([name for name in names if self.graph.users.get(name) is None])

    def write_products(self, products: I32, vectors: F32) -> None:
        """Put the embeddings [n, dim] of products [n] into the index and the changelog."""
        if not products.shape[0]:
            return
        names = [name or "" for name in self.graph.products.names(products)]
        self.index.upsert(names, vectors)
        if self.changelog is None:
            return
        seq, now = Seq(self.fence, self.next_step()), int(self._wall() * 1e3)
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        for i, name in enumerate(names):  # one record a product is what the topic's contract asks for
            value = encode_value(rows[i].tobytes(), self.dim, self.model_version, seq, -1, now, None, [])
            self.changelog.send(Outgoing(self.changelog_topic, name.encode(), value))

    def publish_states(self, products: I32, x: F32, inner: F32) -> None:
        """Tell the workers of users what their embeddings read of these products, [n, dim] each."""
        assert self.changelog is not None and self.states_topic is not None
        names = [name or "" for name in self.graph.products.names(products)]
        seq = Seq(self.fence, self.next_step())
        for record in state_records(self.states_topic, self.model_version, names, seq, x, inner):
            self.changelog.send(record)

    def remove_products(self, products: I32) -> None:
        """Take products out of the index; readers learn it from an empty value."""
        if not products.shape[0]:
            return
        names = [name or "" for name in self.graph.products.names(products)]
        self.index.remove(names)
        if self.changelog is not None:
            seq = Seq(self.fence, self.next_step()).text()
            headers = ((SEQ_HEADER, seq.encode()), (MODEL_HEADER, self.model_version.encode()))
            for name in names:
                self.changelog.send(Outgoing(self.changelog_topic, name.encode(), None, headers))

    def write_blob(self, name: str, blob: bytes, serving: NamedBlobs, fence: int | None = None) -> bool:
        """Write a value of this version that is not a user's: `popular`, a status; false where a newer token has.

        `fence` stands in for the worker's own token.
        """
        seq = Seq(self.fence if fence is None else fence, self.next_step())
        taken = self.insist(lambda: serving.put_blob(f"{self.model_version}:{name}", seq, blob))
        self.refused_own |= fence is None and not taken
        return taken

    # --- parts ----------------------------------------------------------------------------------

    def _values(self, users: I32, vectors: F32) -> list[bytes]:
        seen = recent(self.graph, users, self.settings.recent_max)
        found = bought(self.graph, users, self.settings.bought_max)
        sources = Sources(self._topics, self._src_topic[users], self._src_partition[users], self._src_offset[users])
        fences = self.ownership.fences_of(users)
        return self._packer.pack(vectors, fences, self.next_step(), int(self._wall() * 1e3), sources, seen, found)

    def _reserve(self) -> None:
        users = len(self.graph.users)
        self._src_topic = grown(self._src_topic, users, -1)
        self._src_partition = grown(self._src_partition, users)
        self._src_offset = grown(self._src_offset, users)

    def insist(self, write: Callable[[], T]) -> T:
        """Repeat a write until the store takes it: state has moved on and must not be lost."""
        wait_ms = self.settings.retry_ms_min
        while True:
            try:
                result = write()
            except StoreUnavailable as unavailable:
                if self.unavailable_since is None:
                    self.unavailable_since = self._wall()
                    logger.warning("the store does not answer: writing waits until it does (%s)", unavailable)
                self.interrupted = True
                if self.should_stop():
                    raise Stopped from None
                self.sleep(wait_ms / 1e3)
                wait_ms = min(2 * wait_ms, self.settings.retry_ms_max)
            else:
                if self.unavailable_since is not None:
                    logger.warning("the store answers again")
                    self.unavailable_since = None
                return result
