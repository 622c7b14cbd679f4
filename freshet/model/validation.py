"""Validation while training: recall of a sample of users in the window after the split, and the best weights so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from freshet.model.at_time import TowersAt
from freshet.model.evaluation import metrics
from freshet.model.evaluation.ranking import tie_ranks, top_k
from freshet.model.evaluation.targets import Kind, Targets, Window, WindowError
from freshet.model.score import score_of
from freshet.model.towers import Towers

TOP = 20
CHUNK_USERS = 256
"""Users ranked at a time: bounds the memory of their scores over the catalogue."""
KINDS: tuple[Kind, ...] = ("all", "novel")


@dataclass(frozen=True)
class Validation:
    """What users took in a window, asked of towers that are being trained."""

    over: TowersAt
    targets: Targets

    @staticmethod
    def of(over: TowersAt, split_ms: int, window_ms: int, users_max: int, seed: int) -> Validation | None:
        """Of the window after the split; None where nothing was bought in it. `users_max` 0: all users."""
        try:
            targets = Targets.of(over.history, Window(split_ms, split_ms + window_ms), split_ms)
        except WindowError:
            return None
        return Validation(over, targets.sample(users_max, seed))

    def recall(self) -> dict[str, float]:
        """Recall@20 by kind, 0 where there are no such targets; {} where there are none of either."""
        t, ties = self.targets, tie_ranks(self.over.history.products.hash)
        by_kind = {kind: t.kind(kind) for kind in KINDS}
        if not any(rows.shape[0] for rows, _, _ in by_kind.values()):
            return {}
        item = self.over.products(t.known_ms)
        user = self.over.users(t.users, t.known_ms)
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for start in range(0, t.users.shape[0], CHUNK_USERS):
            scores = user[start : start + CHUNK_USERS] @ item.T
            for kind in KINDS:
                rows, ptr, product = by_kind[kind]
                a, b = np.searchsorted(rows, [start, start + scores.shape[0]])
                if kind == "novel":
                    low, high = t.seen_ptr[start], t.seen_ptr[start + scores.shape[0]]
                    sizes = np.diff(t.seen_ptr[start : start + scores.shape[0] + 1])
                    scores[np.repeat(np.arange(scores.shape[0]), sizes), t.seen[low:high]] = -np.inf
                count = np.diff(ptr[a : b + 1])
                wanted = np.zeros((int(b - a), scores.shape[1]), dtype=np.bool_)
                wanted[np.repeat(np.arange(b - a), count), product[ptr[a] : ptr[b]]] = True
                top = top_k(scores[rows[a:b] - start], ties, TOP)
                hits = np.take_along_axis(wanted, np.maximum(top, 0).astype(np.int64), axis=1) & (top >= 0)
                found[kind] += metrics.recall(hits, count, TOP).tolist()
        return {kind: float(np.mean(values)) if values else 0.0 for kind, values in found.items()}


@dataclass
class Best:
    """The best weights so far, by `score_of`; `missed` offers since."""

    found: dict[str, float] = field(default_factory=dict)
    score: float = -math.inf
    missed: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, found: dict[str, float], towers: Towers, handicap: float = 0.0) -> bool:
        """Keep the weights if they are the best; True when they were. Without validation the last are kept.
        `handicap`: share of the recall that is taken off."""
        score = (1.0 - handicap) * score_of(found) if found else math.inf
        if found and score <= self.score:
            self.missed += 1
            return False
        self.found, self.score, self.missed = found, score, 0
        self.weights = {k: v.detach().clone() for k, v in towers.state_dict().items()}
        return True

    def restore(self, towers: Towers) -> None:
        """Give the towers the best weights."""
        towers.load_state_dict(self.weights)
