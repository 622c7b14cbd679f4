"""Recall over the full catalogue, repeat and novel targets apart, against popularity and own history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from freshet.model.config import DAY_MS
from freshet.store.columns import F32, I32, I64
from freshet.store.history import History

CHUNK = 256
"""Users ranked at a time: bounds the memory of their scores over the catalogue."""

Scores = Callable[[I32], F32]
"""Users [n] int32 -> scores of every product, [n, products] float32 (freshly made: it may be written to)."""


@dataclass(frozen=True)
class Targets:
    """What users who were known before `at_ms` bought in the window after it.

    CSRs over `users` (int32, [n]): `bought` products in the window and `owned` products ever bought before,
    both distinct within a user; `is_novel` says which of `bought` are not in `owned`.
    """

    at_ms: int
    users: I32
    bought_ptr: I64
    bought: I32
    is_novel: np.ndarray
    owned_ptr: I64
    owned: I32

    @staticmethod
    def of(history: History, at_ms: int, until_ms: int, users_max: int = 0, seed: int = 0) -> Targets:
        """Targets in `[at_ms, until_ms)`; `users_max` takes a sample of the users (0: all)."""
        lines = history.purchases.take(history.purchases.flag == 0)
        before, inside = lines.time < at_ms, (lines.time >= at_ms) & (lines.time < until_ms)
        size = max(1, len(history.products))
        owned = np.unique(lines.user[before].astype(np.int64) * size + lines.product[before])
        bought = np.unique(lines.user[inside].astype(np.int64) * size + lines.product[inside])
        users = np.intersect1d(owned // size, bought // size)
        if users_max and users.shape[0] > users_max:
            users = np.sort(np.random.default_rng(seed).choice(users, users_max, replace=False))
        owned = owned[np.isin(owned // size, users)]
        bought = bought[np.isin(bought // size, users)]
        return Targets(
            at_ms,
            users.astype(np.int32),
            np.searchsorted(bought // size, np.append(users, np.iinfo(np.int64).max)),
            (bought % size).astype(np.int32),
            ~np.isin(bought, owned),
            np.searchsorted(owned // size, np.append(users, np.iinfo(np.int64).max)),
            (owned % size).astype(np.int32),
        )


def recall(scores: Scores, targets: Targets, k: int = 20) -> dict[str, float]:
    """Mean share of a user's targets in the top `k`: of `all` targets, of `repeat` and of `novel` ones.

    The ranking is over every product; for novel targets what the user ever bought is left out of it. A user
    without targets of a kind does not count for that kind.
    """
    sums = {"all": 0.0, "repeat": 0.0, "novel": 0.0}
    users = dict.fromkeys(sums, 0)
    for start in range(0, targets.users.shape[0], CHUNK):
        part = targets.users[start : start + CHUNK]
        found = scores(part)
        top_all = _top(found, k)
        for i in range(part.shape[0]):
            a, b = targets.owned_ptr[start + i : start + i + 2]
            found[i, targets.owned[a:b]] = -np.inf
        top_novel = _top(found, k)
        for i in range(part.shape[0]):  # a loop over users of an evaluation
            a, b = targets.bought_ptr[start + i : start + i + 2]
            bought, novel = targets.bought[a:b], targets.is_novel[a:b]
            for name, top, wanted in (
                ("all", top_all, bought),
                ("repeat", top_all, bought[~novel]),
                ("novel", top_novel, bought[novel]),
            ):
                if wanted.shape[0]:
                    sums[name] += float(np.isin(wanted, top[i]).mean())
                    users[name] += 1
    return {name: sums[name] / users[name] if users[name] else 0.0 for name in sums}


def embedding_scores(users: I32, user_embedding: F32, product_embedding: F32) -> Scores:
    """Inner products; `user_embedding` is in the order of `users`."""
    place = np.full(int(users.max(initial=-1)) + 1, -1, dtype=np.int64)
    place[users] = np.arange(users.shape[0])
    items = torch.from_numpy(np.ascontiguousarray(product_embedding.T))
    return lambda some: (torch.from_numpy(user_embedding[place[some]]) @ items).numpy()


def popularity(history: History, at_ms: int, days: int = 30) -> F32:
    """Purchases of each product in the days before `at_ms`, [products] float32."""
    lines = history.purchases
    recent = (lines.time < at_ms) & (lines.time >= at_ms - days * DAY_MS) & (lines.flag == 0)
    return np.bincount(lines.product[recent], minlength=len(history.products)).astype(np.float32)


def baselines(history: History, targets: Targets, k: int = 20) -> dict[str, dict[str, float]]:
    """Recall of popularity (30 days) and of the user's own history (counts, then popularity)."""
    popular = popularity(history, targets.at_ms)
    share = popular / (popular.max(initial=0) + 1.0)
    lines = history.purchases.take((history.purchases.time < targets.at_ms) & (history.purchases.flag == 0))
    order = np.argsort(lines.user, kind="stable")
    product, ptr = lines.product[order], np.searchsorted(lines.user[order], np.arange(len(history.users) + 1))

    def own_history(users: I32) -> F32:
        out = np.tile(share, (users.shape[0], 1))
        for i, u in enumerate(users.tolist()):
            np.add.at(out[i], product[ptr[u] : ptr[u + 1]], 1.0)
        return out

    return {
        "popularity": recall(lambda users: np.tile(popular, (users.shape[0], 1)), targets, k),
        "own_history": recall(own_history, targets, k),
    }


def _top(scores: F32, k: int) -> np.ndarray:
    return torch.from_numpy(scores).topk(min(k, scores.shape[1]), dim=1).indices.numpy()
