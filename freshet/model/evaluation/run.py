"""One run: settings chosen on validation, then every system fitted and ranked once on the test window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.model.evaluation.metrics import (
    PER_USER,
    RECALLS,
    TOP,
    auroc,
    average_precision,
    hit_rate,
    mean_percentile,
    ndcg,
    popularity_percentile,
    recall,
    reciprocal_rank,
)
from freshet.model.evaluation.past import rate
from freshet.model.evaluation.ranking import first_ranks, tie_ranks, top_k
from freshet.model.evaluation.systems import System
from freshet.model.evaluation.targets import KINDS, NEW_ONLY, Kind, Targets, TargetsOf, Windows
from freshet.store.columns import F32, I32, I64, Bool
from freshet.store.history import History

F64 = NDArray[np.float64]
Progress = Callable[[str, float], None]
CHOSEN_BY = "recall@20"
"""The metric by which settings are chosen."""


@dataclass(frozen=True)
class EvaluateConfig:
    """`users_max` users of a window are ranked (0: all), `chunk_users` at a time, which bounds memory to a few times
    `chunk_users` x products x 4 bytes. `draws`: products drawn a user for AUROC. `resamples`, `level`: of the
    bootstrap. `validation_users_max`: users that settings are chosen with. `seed`: of all draws."""

    users_max: int = 0
    validation_users_max: int = 2000
    chunk_users: int = 256
    draws: int = 100
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Entry:
    """A system under one name, and the settings it may have, by what they are called; the first is its default.
    They are compared by `CHOSEN_BY` on validation targets of the kind `chosen_by`."""

    name: str
    settings: Mapping[str, Callable[[], System]]
    chosen_by: Kind = "all"


@dataclass(frozen=True)
class Ranked:
    """What one system did: per kind of target, `values` [users, len(PER_USER)] float64 and the first 20 products,
    [users, 20] int32, of the users that have such targets."""

    values: Mapping[Kind, F64]
    top: Mapping[Kind, I32]


@dataclass
class Run:
    """Everything a report needs: who was ranked, which settings were chosen, and what each system did."""

    windows: Windows
    targets: Targets
    products: int
    config: EvaluateConfig
    ranked: dict[str, Ranked] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def evaluate(
    history: History, windows: Windows, entries: Sequence[Entry], config: EvaluateConfig | None = None,
    what: TargetsOf = "purchases", progress: Progress = lambda what, share: None,
) -> Run:  # fmt: skip
    """Run `entries`. Raises WindowError when there is nothing to rank in a window. A system that refuses its data or
    its settings (FreshetError) is left out, with its reason."""
    config = config or EvaluateConfig()
    test = Targets.of(history, windows.test, windows.train_before_ms, windows.known_ms, what)
    test = test.sample(config.users_max, config.seed)
    validation = None
    if windows.validation is not None:
        cut = windows.validation_cut_ms
        validation = Targets.of(history, windows.validation, cut, cut, what)
        validation = validation.sample(config.validation_users_max, config.seed)
    run = Run(windows, test, len(history.products), config)
    for i, entry in enumerate(entries):
        progress(entry.name, i / max(1, len(entries)))
        try:
            system = _chosen(history, windows, entry, validation, run)
            run.ranked[entry.name] = rank(history, system, test, config, what)
        except FreshetError as e:
            run.left_out[entry.name] = str(e)
    progress("done", 1.0)
    return run


def _chosen(history: History, windows: Windows, entry: Entry, validation: Targets | None, run: Run) -> System:
    """The system with its best setting, fitted for the test."""
    names = list(entry.settings)
    best, fitted = names[0], None
    if validation is not None and len(names) > 1:
        found: dict[str, float] = {}
        column = PER_USER.index(CHOSEN_BY)
        for name in names:
            system = entry.settings[name]()
            system.fit(history, windows.validation_cut_ms)
            values = rank(history, system, validation, run.config, only=entry.chosen_by).values[entry.chosen_by]
            found[name] = float(values[:, column].mean()) if values.shape[0] else 0.0
            if found[name] == max(found.values()) and (name == names[0] or found[name] > found[best]):
                best, fitted = name, system
        run.validation[entry.name] = found
    run.chosen[entry.name] = best
    if fitted is None or windows.validation_cut_ms != windows.train_before_ms:
        fitted = entry.settings[best]()
        fitted.fit(history, windows.train_before_ms)
    return fitted


def rank(
    history: History, system: System, targets: Targets, config: EvaluateConfig, what: TargetsOf = "purchases",
    only: Kind | None = None,
) -> Ranked:  # fmt: skip
    """Rank the whole catalogue for every user of `targets`, for each kind (or `only` one)."""
    ties = tie_ranks(history.products.hash[: len(history.products)])
    percentile = popularity_percentile(rate(history, targets.known_ms, None, what))
    kinds = KINDS if only is None else (only,)
    by_kind = {kind: targets.kind(kind) for kind in kinds}
    values: dict[Kind, list[F64]] = {kind: [] for kind in kinds}
    top: dict[Kind, list[I32]] = {kind: [] for kind in kinds}
    for start in range(0, targets.users.shape[0], config.chunk_users):
        chunk = _Chunk.of(targets, start, config, len(history.products))
        scores = system.scores(targets.users[start : start + config.chunk_users], targets.known_ms)
        for kind in kinds:
            found = chunk.measure(kind, by_kind[kind], scores, ties, percentile)
            values[kind].append(found[0])
            top[kind].append(found[1])
    none = np.zeros((0, len(PER_USER))), np.zeros((0, 20), dtype=np.int32)
    return Ranked(
        {kind: np.concatenate([none[0], *values[kind]]) for kind in kinds},
        {kind: np.concatenate([none[1], *top[kind]]) for kind in kinds},
    )


@dataclass(frozen=True)
class _Chunk:
    """Some of the users: `seen` [q, products] bool is their history, `drawn` [q, draws] products for AUROC."""

    start: int
    seen: Bool
    drawn: NDArray[np.int64]

    @staticmethod
    def of(targets: Targets, start: int, config: EvaluateConfig, products: int) -> _Chunk:
        end = min(start + config.chunk_users, targets.users.shape[0])
        sizes = np.diff(targets.seen_ptr[start : end + 1])
        seen = np.zeros((end - start, products), dtype=np.bool_)
        inside = slice(int(targets.seen_ptr[start]), int(targets.seen_ptr[end]))
        seen[np.repeat(np.arange(end - start), sizes), targets.seen[inside]] = True
        rng = np.random.default_rng([config.seed, start])  # the same products for every system
        return _Chunk(start, seen, rng.integers(0, max(1, products), size=(end - start, config.draws)))

    def measure(
        self, kind: Kind, of_kind: tuple[I64, I64, I32], scores: F32, ties: I32, percentile: F32
    ) -> tuple[F64, I32]:
        """Metrics [users, len(PER_USER)] and the first 20 [users, 20] of the users here that have targets of `kind`."""
        users, ptr, product = of_kind
        a, b = np.searchsorted(users, [self.start, self.start + self.seen.shape[0]])
        rows = users[a:b] - self.start
        if not rows.shape[0]:
            return np.zeros((0, len(PER_USER))), np.zeros((0, 20), dtype=np.int32)
        count = np.diff(ptr[a : b + 1])
        owner, wanted = np.repeat(np.arange(rows.shape[0]), count), product[ptr[a] : ptr[b]]
        seen, some = self.seen[rows], scores[rows]
        if kind in NEW_ONLY:
            some[seen] = -np.inf
        is_target = np.zeros(some.shape, dtype=np.bool_)
        is_target[owner, wanted] = True
        top = top_k(some, ties, TOP)
        hits = np.take_along_axis(is_target, np.maximum(top, 0).astype(np.int64), axis=1) & (top >= 0)
        drawn = self.drawn[rows]
        negative = np.take_along_axis(some, drawn, axis=1)
        fresh = ~np.take_along_axis(seen | is_target, drawn, axis=1)
        columns = [
            *(recall(hits, count, k) for k in RECALLS), average_precision(hits, count, 12), ndcg(hits, count, 10),
            reciprocal_rank(first_ranks(some, ties, owner, wanted)), hit_rate(hits, 20),
            auroc(some[owner, wanted], owner, negative, fresh), mean_percentile(top, percentile, 20),
        ]  # fmt: skip
        return np.column_stack(columns), top[:, :20]
