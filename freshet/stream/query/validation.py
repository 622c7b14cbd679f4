"""Recall@20 and MAP@12 of a ranking over the whole catalogue, on the purchases of a validation window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freshet.model.evaluation import metrics
from freshet.store.columns import F32, I32, I64
from freshet.store.history import History, Lines
from freshet.stream.query.plan import Measured

DAY_MS = 86_400_000
WINDOW_MS = 7 * DAY_MS
SHARE_MAX = 0.25
"""Largest part of a log's time that is kept for validation."""
USERS_MAX = 2_000
"""Most users that are measured; a sample of them where there are more."""
RECALL_AT, MAP_AT = 20, 12
SCORES_MAX = 16_000_000
"""Scores held at a time, 64 MB: bounds the users ranked at once."""


@dataclass(frozen=True)
class Targets:
    """What `users` [n] int32, known before `from_ms`, bought at `from_ms` or after: `product` int32, a CSR by
    `ptr` [n + 1]; distinct within a user. Where a log has no purchases, what they viewed."""

    from_ms: int
    until_ms: int
    users: I32
    ptr: I64
    product: I32

    @staticmethod
    def of(history: History, seed: int = 0) -> Targets:
        """The targets of a log's last seven days, or of the last quarter of its time where that is shorter."""
        lines = history.purchases.take(history.purchases.flag == 0)
        if not lines.time.shape[0]:
            lines = history.views
        if not lines.time.shape[0]:
            none = np.zeros(0, dtype=np.int32)
            return Targets(0, 0, none, np.zeros(1, np.int64), none)
        first, until_ms = int(lines.time[0]), int(lines.time[-1]) + 1
        from_ms = until_ms - min(WINDOW_MS, max(1, int((until_ms - first) * SHARE_MAX)))
        known = np.unique(_before(lines, from_ms).user)
        later = lines.take(lines.time >= from_ms)
        size = max(1, len(history.products))
        pair = np.unique(later.user.astype(np.int64) * size + later.product)
        users = np.intersect1d(pair // size, known)
        if users.shape[0] > USERS_MAX:
            users = np.sort(np.random.default_rng(seed).choice(users, USERS_MAX, replace=False))
        pair = pair[np.isin(pair // size, users)]
        ptr = np.searchsorted(pair // size, np.append(users, np.iinfo(np.int64).max))
        return Targets(from_ms, until_ms, users.astype(np.int32), ptr, (pair % size).astype(np.int32))


def _before(lines: Lines, at_ms: int) -> Lines:
    return lines.take(lines.time < at_ms)


def measure(targets: Targets, user_embedding: F32, product_embedding: F32) -> Measured:
    """Means over the users of `targets`: `user_embedding` [n, dim] in their order, `product_embedding` [products, dim].

    The metrics are those of `freshet.model.evaluation.metrics`, at 20 and at 12.
    """
    n = targets.users.shape[0]
    hits = np.zeros((n, RECALL_AT), dtype=np.bool_)
    for start, part in batches(n, product_embedding.shape[0]):
        top, _ = top_k(user_embedding[part] @ product_embedding.T, RECALL_AT)
        for i in range(top.shape[0]):  # a loop over the users of a validation
            wanted = targets.product[targets.ptr[start + i] : targets.ptr[start + i + 1]]
            hits[start + i, : top.shape[1]] = np.isin(top[i], wanted)
    if not n:
        return Measured(0.0, 0.0, 0)
    counts = np.diff(targets.ptr)
    found = metrics.recall(hits, counts, RECALL_AT), metrics.average_precision(hits, counts, MAP_AT)
    return Measured(float(found[0].mean()), float(found[1].mean()), n)


def batches(users: int, products: int) -> Iterator[tuple[int, slice]]:
    """Slices of users whose scores over the catalogue fit into memory, with the first of each."""
    size = max(1, SCORES_MAX // max(1, products))
    for start in range(0, users, size):
        yield start, slice(start, min(start + size, users))


def top_k(scores: F32, k: int) -> tuple[NDArray[np.int64], F32]:
    """Places and values of the k greatest of each row of `scores` [q, n], greatest first; of equal ones that stand
    among the k, the lower place first. [q, min(k, n)]."""
    k = min(k, scores.shape[1])
    if k < scores.shape[1]:
        chosen = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    else:
        chosen = np.broadcast_to(np.arange(k), scores.shape)
    found = np.take_along_axis(scores, chosen, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1), np.take_along_axis(found, order, axis=1)
