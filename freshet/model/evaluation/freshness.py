"""What streaming buys: the same model asked before each order, with embeddings of different ages.

A replay walks through a period in order of time. Before each ask it answers once for every policy: with the
state of just before the ask, of the last full hour, of the last midnight (UTC), and of the start of the period.
Who will be asked is known beforehand, so at an hour or a midnight exactly the users of the asks that follow it are
encoded, and nothing has to be kept: memory is that of one state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from freshet.model.affected import Ripples, direct
from freshet.model.bundle import Bundle
from freshet.model.evaluation.freshness_ranker import RankerAt
from freshet.model.evaluation.ranking import tie_ranks, top_k
from freshet.model.frozen import FrozenTowers
from freshet.store.columns import F32, I32, I64, Bool, EventColumns
from freshet.store.graph import GraphStore

HOUR_MS, DAY_MS = 3_600_000, 86_400_000

POLICIES: dict[str, int] = {"every event": 0, "hourly": HOUR_MS, "daily": DAY_MS, "frozen": -1}
"""How often embeddings are computed anew, in ms: 0 at every event, -1 never after the start of the period."""

TOP_MIN = 12
"""Products ranked at least: MAP@12 looks at that many."""

CHUNK = 256
"""Asks scored at a time."""

Feed = Callable[[int], EventColumns]
"""The events before a time (ms) that were not handed out yet."""


@dataclass(frozen=True)
class Ask:
    """One question: what does `user` take next, strictly before `time_ms`? `targets` are distinct product ids (at
    least one). `seen`: what the user had taken before, left out of the ranking of novel targets. `hidden`: left out
    of every ranking, never a target. `activity`: lines bought (and products viewed, where views are asked for) before
    the period."""

    user: str
    time_ms: int
    targets: tuple[str, ...]
    seen: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()
    activity: int = 0


@dataclass(frozen=True)
class Answers:
    """Answers to n asks under each policy of `POLICIES`, in order of the asks.

    `hit`, `hit_new`, `hit_novel` [policies, n, k] bool: which of the first k products are targets, are targets without
    any event before the period, and are novel targets when what the user took before is left out. `targets`, `new`,
    `novel` [n] int64 count them. `user` [n] int64 numbers the users; `activity` [n] int64 is that of the asks,
    `is_new_user` [n] bool: had no event at all when the period began.
    """

    k: int
    hit: Bool
    hit_new: Bool
    hit_novel: Bool
    targets: I64
    new: I64
    novel: I64
    user: I64
    activity: I64
    is_new_user: Bool


class _State:
    """A graph and its embeddings as of `at_ms`: users on demand, products all and exact."""

    def __init__(self, bundle: Bundle, graph: GraphStore, at_ms: int, ranker: RankerAt | None) -> None:
        self.graph, self.at_ms, self.ranker = graph, at_ms, ranker
        self.towers = FrozenTowers(bundle, graph)
        self.ripples = Ripples(graph, bundle.config)
        self.items: F32 = np.zeros((0, self.towers.dim), dtype=np.float32)
        self.withdrawn: Bool = np.zeros(0, dtype=np.bool_)
        self._ties: I32 = np.zeros(0, dtype=np.int32)
        self._popular: tuple[tuple[int, int], F32] | None = None
        everything = np.arange(len(graph.products), dtype=np.int32)
        self._write(everything)
        self._withdraw(everything)

    def advance(self, events: EventColumns, at_ms: int) -> None:
        """As `Updater.step` and then every ripple, but for the users: they are encoded when they are asked for."""
        self.at_ms = at_ms
        if not events.event_count:
            return
        touched = self.graph.apply(events)
        due = direct(touched, self.towers.config, self.graph)
        self.towers.refresh_features(due.x_users, due.x_products)
        self.towers.refresh_inner(due.inner_users, due.inner_products)
        self.ripples.note(due, touched, 0.0)
        self.ripples.note_moved(self.towers.levels.move(), 0.0)
        self._withdraw(due.new_products)
        self._settle()

    def _settle(self) -> None:
        """Bring every product up to date."""
        ripples = self.ripples
        ripples.user.take_sources()  # users read caches that are up to date when they are asked for
        ripples.expand_users()
        ripples.user.due.take()
        users, products = ripples.due_inner_users.take(), ripples.due_inner_products.take()
        self.towers.refresh_inner(users, products)
        ripples.note_inner(users, products, 0.0)
        ripples.user.take_sources()
        ripples.expand_items()
        self._write(ripples.item.due.take())

    def _write(self, products: I32) -> None:
        size = len(self.graph.products)
        if self.items.shape[0] < size:
            room = np.zeros((size - self.items.shape[0], self.towers.dim), dtype=np.float32)
            self.items = np.concatenate([self.items, room])
        self.items[products] = self.towers.encode_products(products)

    def _withdraw(self, products: I32) -> None:
        size = len(self.graph.products)
        if self.withdrawn.shape[0] < size:
            self.withdrawn = np.concatenate([self.withdrawn, np.zeros(size - self.withdrawn.shape[0], dtype=np.bool_)])
        self.withdrawn[products] = self.graph.is_withdrawn(products)

    def scores(self, users: Sequence[str]) -> F32:
        """Inner products [q, products], or the ranker's logits; for a user nobody knows, the popularity of the products
        that have any."""
        numbers = [self.graph.users.get(name) for name in users]
        known = np.array([n is not None for n in numbers], dtype=np.bool_)
        out = np.empty((len(numbers), self.items.shape[0]), dtype=np.float32)
        if known.any():
            found = np.array([n for n in numbers if n is not None], dtype=np.int32)
            score = self.towers.encode_users(found) @ self.items.T
            out[known] = score if self.ranker is None else self._logits(self.ranker, score, known, users)
        if not known.all():
            popularity = self._popularity()
            out[~known] = np.where(popularity > 0, popularity, -np.inf)
        out[:, self.withdrawn] = -np.inf
        return out

    def _logits(self, ranker: RankerAt, score: F32, known: Bool, users: Sequence[str]) -> F32:
        score[:, self.withdrawn] = score.min(axis=1, keepdims=True)  # nobody's reference: the index has none of them
        names = [name for name, there in zip(users, known.tolist(), strict=True) if there]
        return ranker.logits(score, self.items[:, -1], names, self.graph.products, self.at_ms)

    def _popularity(self) -> F32:
        key = (self.towers.levels.at_ms, self.items.shape[0])  # it moves at ticks alone
        if self._popular is None or self._popular[0] != key:
            self._popular = key, self.towers.levels.values()
        return self._popular[1]

    def ties(self) -> I32:
        """What goes first of two products with equal scores."""
        if self._ties.shape[0] != self.items.shape[0]:
            self._ties = tie_ranks(self.graph.products.hash[: self.items.shape[0]])
        return self._ties

    def products(self, names: Sequence[str] | frozenset[str]) -> I32:
        """Numbers of those that are known."""
        found = [n for name in names if (n := self.graph.products.get(name)) is not None]
        return np.array(found, dtype=np.int32)


class _Sheet:
    """Where answers are written down."""

    def __init__(self, asks: Sequence[Ask], k: int, old: frozenset[str]) -> None:
        shape = (len(POLICIES), len(asks), k)
        self.asks, self.k = asks, k
        self.hit, self.hit_new, self.hit_novel = (np.zeros(shape, dtype=np.bool_) for _ in range(3))
        self.new = [[p for p in ask.targets if p not in old] for ask in asks]
        self.novel = [[p for p in ask.targets if p not in ask.seen] for ask in asks]

    def answer(self, state: _State, policies: Sequence[int], rows: Sequence[int]) -> None:
        """Rank for the asks in `rows` with the state as it is; the answer is that of all `policies`."""
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            scores = state.scores([self.asks[row].user for row in part])
            for place, row in enumerate(part):
                scores[place, state.products(self.asks[row].hidden)] = -np.inf
            top = top_k(scores, state.ties(), self.k)
            for place, row in enumerate(part):
                scores[place, state.products(self.asks[row].seen)] = -np.inf
            top_novel = top_k(scores, state.ties(), self.k)
            for place, row in enumerate(part):
                hit = np.isin(top[place], state.products(self.asks[row].targets))
                hit_new = np.isin(top[place], state.products(self.new[row]))
                hit_novel = np.isin(top_novel[place], state.products(self.novel[row]))
                for policy in policies:
                    self.hit[policy, row] = hit
                    self.hit_new[policy, row] = hit_new
                    self.hit_novel[policy, row] = hit_novel


def replay(
    bundle: Bundle, graph: GraphStore, feed: Feed, asks: Sequence[Ask], from_ms: int, k: int = 20,
    progress: Callable[[int, int], None] | None = None, ranker: RankerAt | None = None,
) -> Answers:  # fmt: skip
    """Answer every ask under every policy, by inner product or, with `ranker`, as `Reader.recommend` would.

    `graph` holds everything before `from_ms` and moves on; `feed` hands out the events since. `asks` are in order of
    time, none before `from_ms`. A product that a policy does not know cannot be ranked by it; a user it does not
    know gets its popular products. Withdrawn products are not offered.
    """
    users = {name: i for i, name in enumerate(dict.fromkeys(ask.user for ask in asks))}
    is_new_user = _new_users(graph, list(users))
    sheet = _Sheet(asks, max(k, TOP_MIN), _old_products(graph, asks))
    steps = _steps(asks, from_ms)
    state = _State(bundle, graph, from_ms, ranker)
    done = 0
    for at_ms in sorted(steps):
        state.advance(feed(at_ms), at_ms)
        same: dict[tuple[int, ...], list[int]] = {}
        for policy, rows in steps[at_ms].items():
            same.setdefault(tuple(rows), []).append(policy)  # one answer where policies ask the same of one state
            done += len(rows)
        for asked, policies in same.items():
            sheet.answer(state, policies, asked)
        if progress:
            progress(done, len(asks) * len(POLICIES))
    user = np.array([users[ask.user] for ask in asks], dtype=np.int64)
    return Answers(
        k, sheet.hit, sheet.hit_new, sheet.hit_novel,
        np.array([len(ask.targets) for ask in asks], dtype=np.int64),
        np.array([len(new) for new in sheet.new], dtype=np.int64),
        np.array([len(novel) for novel in sheet.novel], dtype=np.int64),
        user, np.array([ask.activity for ask in asks], dtype=np.int64), is_new_user[user],
    )  # fmt: skip


def _steps(asks: Sequence[Ask], from_ms: int) -> dict[int, dict[int, list[int]]]:
    """For each time at which a state is needed, the asks it answers by policy."""
    steps: dict[int, dict[int, list[int]]] = {}
    for policy, every_ms in enumerate(POLICIES.values()):
        for row, ask in enumerate(asks):
            at_ms = ask.time_ms
            if every_ms:
                at_ms = max(from_ms, ask.time_ms // every_ms * every_ms) if every_ms > 0 else from_ms
            steps.setdefault(at_ms, {}).setdefault(policy, []).append(row)
    return steps


def _old_products(graph: GraphStore, asks: Sequence[Ask]) -> frozenset[str]:
    """Of the products asked for, those that somebody bought or viewed in what the graph holds."""
    names = {p for ask in asks for p in ask.targets}
    lists = (graph.purchased_by, graph.viewed_by)
    return frozenset(
        p for p in names if (n := graph.products.get(p)) is not None and any(some.length[n] for some in lists)
    )


def _new_users(graph: GraphStore, names: Sequence[str]) -> Bool:
    """[n] bool: has neither purchase nor view nor session."""
    out = np.ones(len(names), dtype=np.bool_)
    for i, name in enumerate(names):
        number = graph.users.get(name)
        if number is not None:
            out[i] = not any(some.length[number] for some in (graph.purchased, graph.viewed, graph.sessions))
    return out
