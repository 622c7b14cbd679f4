"""What users bought in a window of time, by kinds of targets: what every system is asked to rank first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.columns import I32, I64, Bool
from freshet.store.history import History, Lines

Kind = Literal["all", "repeat", "novel", "new_users", "cold"]
"""`all`, `repeat` (bought or viewed before) and `novel` (neither): what known users took of the products that had an
event before the training cut; `new_users`: the same of users without any event; `cold`: what any user took of products
without any event before the training cut, which only attributes can place."""
KINDS: tuple[Kind, ...] = get_args(Kind)

TargetsOf = Literal["purchases", "views", "both"]
"""Which interactions are predicted, and which the baselines count."""

NEW_ONLY: frozenset[Kind] = frozenset({"novel"})
"""Kinds for which a user's history is left out of the ranking."""


class WindowError(FreshetError):
    """A window or a log that cannot be evaluated; the message names the setting and the remedy."""


@dataclass(frozen=True)
class Window:
    """`[from_ms, until_ms)`, event time in ms since the epoch."""

    from_ms: int
    until_ms: int


@dataclass(frozen=True)
class Windows:
    """A temporal split: settings are fitted before `validation` and chosen in it, then systems are fitted on what was
    before `train_before_ms` and tested. In the test they know what was before `known_until_ms` (by default what they
    were fitted on), in the validation what they were fitted on. Without `validation` every system runs with its
    first setting."""

    train_before_ms: int
    test: Window
    validation: Window | None = None
    known_until_ms: int | None = None

    def __post_init__(self) -> None:
        if self.test.from_ms >= self.test.until_ms:
            raise WindowError("--test-until is not after --test-from: the test window is empty")
        if self.train_before_ms > self.test.from_ms:
            raise WindowError("--train-before is after --test-from: training would see what it is tested on")
        if not self.train_before_ms <= self.known_ms <= self.test.from_ms:
            raise WindowError("--known-until is not between --train-before and --test-from")
        v = self.validation
        if v is not None and v.from_ms >= v.until_ms:
            raise WindowError("--validate-until is not after --validate-from: the validation window is empty")
        if v is not None and v.until_ms > self.test.from_ms:
            raise WindowError("--validate-until is after --test-from: settings would be chosen on the test period")

    @property
    def known_ms(self) -> int:
        """Up to when systems know what happened, in the test."""
        return self.train_before_ms if self.known_until_ms is None else self.known_until_ms

    @property
    def validation_cut_ms(self) -> int:
        """Up to when systems are fitted, and know what happened, while their settings are chosen."""
        assert self.validation is not None
        return min(self.train_before_ms, self.validation.from_ms)


@dataclass(frozen=True)
class Targets:
    """What n users interacted with in a window, and what they had seen before `known_ms` (at or before its start).

    `users` [n] int32, sorted. `ptr` [n + 1] over `product` int32 [m], a user's distinct targets, with `is_novel`,
    `is_cold` bool [m] alike. `is_new` [n] bool: the user had no event at all before `known_ms`. `seen_ptr` [n + 1]
    over `seen` int32: the distinct products a user ever bought or viewed before it; cancelled lines do not count.
    """

    window: Window
    known_ms: int
    users: I32
    is_new: Bool
    ptr: I64
    product: I32
    is_novel: Bool
    is_cold: Bool
    seen_ptr: I64
    seen: I32

    @staticmethod
    def of(
        history: History, window: Window, train_before_ms: int, known_ms: int | None = None,
        what: TargetsOf = "purchases",
    ) -> Targets:  # fmt: skip
        """Targets in `window`; `known_ms` is its start by default. Raises WindowError when there is none."""
        known_ms = window.from_ms if known_ms is None else known_ms
        size = max(1, len(history.products))
        lines = lines_of(history, what)
        a, b = np.searchsorted(lines.time, [window.from_ms, window.until_ms])
        wanted = np.unique(lines.user[a:b].astype(np.int64) * size + lines.product[a:b])
        if not wanted.shape[0]:
            raise WindowError(_nothing(history, window, what))
        users = np.unique(wanted // size)
        seen = _pairs_before(history, known_ms, size)
        seen = seen[np.isin(seen // size, users)]
        last = np.append(users, np.iinfo(np.int64).max)
        return Targets(
            window,
            known_ms,
            users.astype(np.int32),
            ~_active(history, known_ms)[users],
            np.searchsorted(wanted // size, last),
            (wanted % size).astype(np.int32),
            ~np.isin(wanted, seen),
            _cold(history, train_before_ms)[wanted % size],
            np.searchsorted(seen // size, last),
            (seen % size).astype(np.int32),
        )

    def kind(self, name: Kind) -> tuple[I64, I64, I32]:
        """Targets of one kind: places in `users` [k] that have any, `ptr` [k + 1] and `product` of theirs."""
        owner = np.repeat(np.arange(self.users.shape[0]), np.diff(self.ptr))
        known, warm = ~self.is_new[owner] & ~self.is_cold, ~self.is_cold
        wanted = {
            "all": known,
            "repeat": known & ~self.is_novel,
            "novel": known & self.is_novel,
            "new_users": self.is_new[owner] & warm,
            "cold": self.is_cold,
        }[name]
        rows, sizes = np.unique(owner[wanted], return_counts=True)
        ptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return rows, ptr, self.product[wanted]

    def sample(self, users_max: int, seed: int) -> Targets:
        """A uniform sample of at most `users_max` users (0: all)."""
        n = self.users.shape[0]
        if not users_max or n <= users_max:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(n, users_max, replace=False))
        ptr, place = _rows_of(self.ptr, rows)
        seen_ptr, seen = _rows_of(self.seen_ptr, rows)
        return Targets(
            self.window, self.known_ms, self.users[rows], self.is_new[rows], ptr, self.product[place],
            self.is_novel[place], self.is_cold[place], seen_ptr, self.seen[seen],
        )  # fmt: skip


def lines_of(history: History, what: TargetsOf) -> Lines:
    """The interactions that count, without cancelled lines, in order of time."""
    bought = history.purchases.take(history.purchases.flag == 0)
    if what == "purchases":
        return bought
    if what == "views":
        return history.views
    both = Lines(*(np.concatenate(c) for c in zip(vars(bought).values(), vars(history.views).values(), strict=True)))
    return both.take(np.lexsort((both.key, both.time)))


def _rows_of(ptr: I64, rows: NDArray[np.int64]) -> tuple[I64, I64]:
    """`ptr` of some rows of a CSR, and the places of their entries."""
    sizes = np.diff(ptr)[rows]
    out = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return out, np.repeat(ptr[rows] - out[:-1], sizes) + np.arange(out[-1])


def _pairs_before(history: History, at_ms: int, size: int) -> I64:
    """Distinct `user * size + product` of purchases and views before a time, sorted."""
    found = [
        part.user[part.time < at_ms].astype(np.int64) * size + part.product[part.time < at_ms]
        for part in (lines_of(history, "purchases"), history.views)
    ]
    return np.unique(np.concatenate(found))


def _active(history: History, at_ms: int) -> Bool:
    """[users] bool: has any event before a time, cancelled ones and sessions too."""
    found = np.zeros(len(history.users), dtype=np.bool_)
    for part in (history.purchases, history.views):
        found[part.user[part.time < at_ms]] = True
    sessions = history.sessions
    owner = np.repeat(np.arange(sessions.ptr.shape[0] - 1), np.diff(sessions.ptr))
    found[owner[sessions.time < at_ms]] = True
    return found


def _cold(history: History, at_ms: int) -> Bool:
    """[products] bool: has neither purchase nor view before a time."""
    found = np.ones(max(1, len(history.products)), dtype=np.bool_)
    for part in (history.purchases, history.views):
        found[part.product[part.time < at_ms]] = False
    return found


def _nothing(history: History, window: Window, what: TargetsOf) -> str:
    if not (history.purchases.time.shape[0] or history.views.time.shape[0]):
        return "the log has no purchase and no view: there is nothing to evaluate"
    times = lines_of(history, what).time
    if not times.shape[0]:
        other = "views" if what == "purchases" else "purchases"
        return f"the log has no {what}: take --targets {other}"
    first, last = (str(np.datetime64(int(t), "ms").astype("datetime64[s]")) for t in (times[0], times[-1]))
    day = str(np.datetime64(window.from_ms, "ms").astype("datetime64[s]"))
    until = str(np.datetime64(window.until_ms, "ms").astype("datetime64[s]"))
    return (
        f"no {what} in [{day}, {until}): the log's go from {first} to {last}; "
        "set --test-from and --test-until (or --validate-from and --validate-until) inside"
    )
