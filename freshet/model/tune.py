"""Which settings of a training to use on a shop's own data: random search over a small space, judged on validation.

Random search (Bergstra and Bengio 2012), because it needs no library and no more tries where a setting does not matter.
Every try is one run on what was before the split, judged by the purchases of the window after it, as training itself
judges its weights: recall@20 of all targets plus four times that of novel ones. The test period is not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freshet.model.fit import Progress
from freshet.model.score import score_of
from freshet.model.settings_file import Chosen
from freshet.model.train import train
from freshet.store.history import History

SPACE: dict[str, tuple[Any, ...]] = {
    "train.learning_rate": (3e-4, 1e-3, 2e-3),
    "train.epochs": (1, 3, 6, 12),
    "train.window_days": (90.0, 180.0, 365.0, 730.0),
    "train.start_share": (0.0, 0.15, 0.3),
    "train.dropout": (0.1, 0.3, 0.5),
    "train.basket_share": (0.5, 0.75, 1.0),
    "train.novel_weight": (1.0, 2.0, 4.0),
    "train.view_weight": (0.1, 0.2, 0.5),
    "train.popularity_weight": (0.02, 0.05, 0.1),
    "towers.dim": (64, 128, 192),
    "towers.purchases": (20, 50, 100),
    "towers.partners": (10, 20, 40),
    "towers.popularity_days": (3.0, 7.0, 20.0),
}
"""What is tried; each holds the default. Wider embeddings and longer lists cost the worker and Redis in proportion."""

CHANGES_MAX = 4
"""A try differs from the best so far in 1 to so many settings."""
TIE = 0.02
"""The default is kept where nothing scores higher than it by this share: less is noise (`docs/decisions/towers.md`)."""


@dataclass(frozen=True)
class Try:
    """One training: what it changed of the default, and what came out. `score` is 0 where it failed, and `note` says
    why."""

    changed: dict[str, dict[str, Any]]
    recall: dict[str, float]
    score: float
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Tuned:
    """The settings to use, every try in its order, and whether the settings are those it began with."""

    chosen: Chosen
    tries: list[Try]
    kept: bool


def tune(
    history: History,
    base: Chosen,
    split_ms: int | None = None,
    tries_max: int = 20,
    budget_s: float = 600.0,
    seed: int = 0,
    progress: Progress = lambda what, share: None,
    clock_s: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Try `base` and up to `tries_max - 1` others, as many as `budget_s` (0: no budget) has time for.

    Raises ValueError where `base` itself cannot be trained, or there is nothing to judge it by.
    """
    rng = np.random.default_rng(seed)
    began_s, slowest_s = clock_s(), 0.0
    tries: list[Try] = []
    best, best_score = base, 0.0
    seen = {str(base.changed())}
    for number in range(tries_max):
        left_s = budget_s - (clock_s() - began_s)
        if budget_s > 0 and number and left_s < slowest_s:
            break
        candidate = base if number == 0 else _draw(best, rng, seen)
        if candidate is None:
            break
        progress(f"try {number + 1} of {tries_max}", number / tries_max)
        start_s = clock_s()
        try:
            recall, note = _recall(history, candidate, split_ms), ""
        except ValueError as e:
            if number == 0:
                raise
            recall, note = {}, str(e)
        if number == 0 and not recall:
            raise ValueError("nothing was bought after the split: there is nothing to judge settings by")
        score = score_of(recall)
        slowest_s = max(slowest_s, clock_s() - start_s)
        tries.append(Try(candidate.changed(), recall, score, clock_s() - start_s, note))
        if score > best_score:
            best, best_score = candidate, score
    kept = best is not base and best_score < (1.0 + TIE) * tries[0].score
    return Tuned(base if kept else best, tries, kept or best is base)


def _recall(history: History, chosen: Chosen, split_ms: int | None) -> dict[str, float]:
    settings = replace(chosen.train, validate=True, validation_users_max=0, runs=1)
    trace = train(history, settings, chosen.towers.config(), split_ms=split_ms).card["training"]["trace"]
    rows = [{kind: row[kind] for kind in ("all", "novel")} for row in trace if "all" in row]
    return max(rows, key=score_of, default={})


def _draw(best: Chosen, rng: np.random.Generator, seen: set[str]) -> Chosen | None:
    """Settings near the best that were not tried; None where a hundred draws find none."""
    for _ in range(100):
        changed = best
        for name in rng.choice(sorted(SPACE), rng.integers(1, CHANGES_MAX + 1), replace=False):
            part, setting = name.split(".")
            values = SPACE[name]
            value = values[int(rng.integers(len(values)))]
            changed = replace(changed, **{part: replace(getattr(changed, part), **{setting: value})})
        if str(changed.changed()) not in seen:
            seen.add(str(changed.changed()))
            return changed
    return None
