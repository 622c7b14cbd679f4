"""The one data path: a micro-batch of records becomes embeddings in Redis and in the item index.

    decoded  = decode(records)
    touched  = graph.apply(decoded.columns)
    affected = direct(touched)
    vectors  = towers.encode_users(affected.users)
    sink.write_users(affected.users, vectors)

Ripples, the nodes that read what has changed, are worked off by `ripple` under a budget of time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from freshet.model.affected import Ripples, direct
from freshet.model.frozen import FrozenTowers
from freshet.store.columns import I32, EventColumns
from freshet.store.graph import GraphStore, Touched
from freshet.stream.decode import Decoded, DecodeLimits, decode
from freshet.stream.events import Kind
from freshet.stream.product_states import ProductStates
from freshet.stream.records import Record
from freshet.stream.roles import Role
from freshet.stream.sink import Sink


@dataclass(frozen=True)
class RippleSettings:
    """How stale what an event touched only indirectly may get, and what working it off may cost."""

    ripple_users_ms: float = 500.0
    """Least time between two waves of users; longer coalesces more and costs staleness."""
    ripple_items_ms: float = 2_000.0
    """Least time between two waves of items. A new product does not wait for one."""
    ripple_share: float = 0.3
    """Of the worker's time, the share that ripples may take; they wait when it is used up."""
    ripple_chunk: int = 128
    """Nodes recomputed at a time: bounds what a ripple adds to the latency of an event that arrives meanwhile."""


@dataclass
class Totals:
    """What an updater has done since it began; `seconds` by stage."""

    records: int = 0
    events: dict[str, int] = field(default_factory=dict)
    lines: int = 0
    users_written: int = 0
    users_rippled: int = 0
    products_written: int = 0
    waves: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Updater:
    """Keeps the embeddings of one graph up to date.

    Before `rebuild`, `absorb` only merges events into the state (a worker that catches up does not show
    readers the past). Afterwards every `step` ends with the embeddings of its users written, as far as they are
    the sink's to write: users of partitions that are not owned are kept up to date in memory alone.
    """

    def __init__(
        self,
        graph: GraphStore,
        towers: FrozenTowers,
        sink: Sink,
        kinds: Mapping[str, Kind],
        limits: DecodeLimits | None = None,
        settings: RippleSettings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        role: Role = Role.ALL,
    ) -> None:
        self.role = role
        self.graph = graph
        self.towers = towers
        self.sink = sink
        self.kinds = kinds
        self.limits = limits or DecodeLimits()
        self.settings = settings or RippleSettings()
        self.ripples = Ripples(graph, towers.config, role.writes_users, role.writes_items)
        self.states = ProductStates(towers)
        self.totals = Totals()
        self._monotonic = monotonic
        self._last_wave: dict[str, float] = {}
        self._items_left = 0

    def step(self, records: Sequence[Record], more: bool = False) -> Decoded:
        """Bring everything that `records` touched directly up to date; returns what was decoded and rejected.

        With `more` to be done at once, what was written may still be on its way (`Sink.settle`): the store takes it
        in while the next batch is worked on.
        """
        with self._stage("decode"):
            decoded = decode(records, self.kinds, self.limits)
        with self._stage("apply"):
            touched = self.graph.apply(decoded.columns)
        with self._stage("affected"):
            affected = direct(touched, self.towers.config, self.graph)
            self.sink.note_sources(records, decoded)
        with self._stage("first layer"):
            self.towers.refresh_features(affected.x_users, affected.x_products)
            self.towers.refresh_inner(affected.inner_users, affected.inner_products)
        users = affected.users[self.sink.ownership.mine(affected.users)]
        with self._stage("encode"):
            vectors = self.towers.encode_users(users)
        with self._stage("write"):
            self.sink.write_users(users, vectors)
            self.sink.forget_users(touched.forgotten_ids)
            if not more:
                self.sink.settle()
        if self.role.writes_items:
            with self._stage("new products"):
                self.publish_states(np.union1d(affected.x_products, affected.inner_products))
                self.write_products(affected.new_products)
        self.ripples.note(affected, touched, self._monotonic() * 1e3)
        if self.role.writes_items:
            with self._stage("popularity"):
                self.ripples.note_moved(self.towers.levels.move(), self._monotonic() * 1e3)
        self._count(records, decoded, users.shape[0])
        return decoded

    def take_states(self, records: Sequence[Record]) -> None:
        """Take states of products that the worker of items has computed."""
        with self._stage("states"):
            self.ripples.note_given(self.states.take(records), self._monotonic() * 1e3)

    def absorb(self, columns: EventColumns) -> None:
        """Merge events into the state without encoding anything."""
        with self._stage("absorb"):
            self.graph.apply(columns)

    def take_in(self, touched: Touched) -> None:
        """Bring the caches up to date with what a snapshot brought; its users are written when they are served."""
        affected = direct(touched, self.towers.config, self.graph)
        self.towers.refresh_features(affected.x_users, affected.x_products)
        self.towers.refresh_inner(affected.inner_users, affected.inner_products)
        self.ripples.note(affected, touched, self._monotonic() * 1e3)

    def absorb_records(self, records: Sequence[Record]) -> Decoded:
        """Decode records and merge them into the state without encoding anything."""
        decoded = decode(records, self.kinds, self.limits)
        self.sink.note_sources(records, decoded)
        self.absorb(decoded.columns)
        self._count(records, decoded, 0)
        return decoded

    def rebuild(self) -> None:
        """Bring the caches up to date with the state; from now on `step` keeps them so."""
        with self._stage("rebuild"):
            self.towers.rebuild()
        self.ripples.clear()  # what was told meanwhile is in the caches, and everything is written

    def write_all(self) -> None:
        """Bring everything up to date and write it."""
        self.rebuild()
        self.write_users(np.arange(len(self.graph.users), dtype=np.int32))
        self.write_products(np.arange(len(self.graph.products), dtype=np.int32))
        self.sink.settle()

    def write_users(self, users: I32) -> None:
        """Encode and write those of these users that are owned and have a name."""
        users = users[self.sink.ownership.mine(users)]
        named = np.array([n is not None for n in self.graph.users.names(users)], dtype=np.bool_)
        known = users[named]
        self.sink.write_users(known, self.towers.encode_users(known))
        self.totals.users_written += known.shape[0]

    def kept(self, products: I32) -> I32:
        """Those of these products that this worker writes."""
        return products if self.graph.keeps is None else products[self.graph.keeps(products)]

    def write_products(self, products: I32) -> None:
        """Encode and write those of these products that are this worker's; those that are withdrawn are removed."""
        products = self.kept(products)
        if not products.shape[0] or not self.role.writes_items:
            return
        withdrawn = self.graph.is_withdrawn(products)
        self.sink.remove_products(products[withdrawn])
        offered = products[~withdrawn]
        self.sink.write_products(offered, self.towers.encode_products(offered))
        self.totals.products_written += offered.shape[0]

    def ripple(self, budget_ms: float, idle: bool = False) -> bool:
        """Work off ripples for about `budget_ms`; returns whether any are left to be worked off now.

        When the stream is `idle` there is nothing to coalesce with, and waves do not wait for their interval.
        """
        end, before = self._monotonic() + budget_ms / 1e3, self.totals.users_rippled
        if idle:
            self._last_wave.clear()
        while (left := self._ripple_once()) and self._monotonic() < end:
            pass
        if self.totals.users_rippled > before:
            self.sink.settle()  # what ripples wrote is theirs to wait for, not the next event's
        return left

    def _ripple_once(self) -> bool:
        """One chunk of the most urgent ripple; false when nothing is due yet."""
        ripples, chunk = self.ripples, self.settings.ripple_chunk
        if len(ripples.due_inner_products) or len(ripples.due_inner_users):
            with self._stage("ripple first layer"):
                users, products = ripples.due_inner_users.take(chunk), ripples.due_inner_products.take(chunk)
                self.towers.refresh_inner(users, products)
                self.publish_states(products)
                ripples.note_inner(users, products, self._monotonic() * 1e3)
        elif len(ripples.user.due):
            with self._stage("ripple users"):
                users = ripples.user.due.take(chunk)
                self.write_users(users)
                self.totals.users_rippled += users.shape[0]
            if not len(ripples.user.due):
                ripples.user.finish()
        elif ripples.user_sources and self._due("users", self.settings.ripple_users_ms):
            with self._stage("ripple expand"):
                ripples.expand_users()
            if not len(ripples.user.due):
                ripples.user.finish()
        elif self._items_left:
            with self._stage("ripple products"):
                self._items_left = max(0, self._items_left - chunk)
                self.write_products(ripples.item.due.take(chunk))
            if not self._items_left:
                ripples.item.finish()
        elif (ripples.item.sources or len(ripples.item.due)) and self._due("items", self.settings.ripple_items_ms):
            with self._stage("ripple expand"):
                ripples.expand_items()
                self._items_left = len(ripples.item.due)
            if not self._items_left:
                ripples.item.finish()
        else:
            return False
        return True

    def _due(self, wave: str, interval_ms: float) -> bool:
        """Whether the next wave of a kind may start now; if so, it is taken to start."""
        now = self._monotonic()
        if (now - self._last_wave.get(wave, -np.inf)) * 1e3 < interval_ms:
            return False
        self._last_wave[wave] = now
        self.totals.waves += 1
        return True

    def drain(self, progress: Callable[[int], None] | None = None) -> None:
        """Work off every ripple; afterwards every embedding is exact."""
        while self.ripples.waiting:
            self.ripple(100.0, idle=True)
            if progress:
                progress(self.ripples.waiting)
        self.sink.settle()

    def staleness_ms(self) -> float:
        """Age of the oldest change that some embedding does not show yet; 0 when all are exact."""
        since = self.ripples.since_ms
        return 0.0 if since is None else self._monotonic() * 1e3 - since

    def publish_states(self, products: I32) -> None:
        """Tell the workers of users the states of those of these products that are this worker's."""
        products = self.kept(products)
        if products.shape[0] and self.sink.states_topic is not None:
            self.sink.publish_states(products, *self.towers.states(products))

    # --- parts ----------------------------------------------------------------------------------

    def _count(self, records: Sequence[Record], decoded: Decoded, users: int) -> None:
        totals = self.totals
        totals.records += len(records)
        totals.users_written += users
        totals.lines += len(decoded.columns.purchases.user)
        for kind, n in decoded.events.items():
            totals.events[kind.value] = totals.events.get(kind.value, 0) + n

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = self._monotonic()
        yield
        self.totals.seconds[name] = self.totals.seconds.get(name, 0.0) + self._monotonic() - start
