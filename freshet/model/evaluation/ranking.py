"""Rankings: the first k products of each user, ties broken by the product's hash, so that they are a function of the
scores alone and favour nobody."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from freshet.store.columns import F32, I32, I64, U64


def tie_ranks(product_hash: U64) -> I32:
    """[products] int32: which of two products with equal scores goes first (the lower one)."""
    rank = np.empty(product_hash.shape[0], dtype=np.int32)
    rank[np.argsort(product_hash, kind="stable")] = np.arange(product_hash.shape[0])
    return rank


def top_k(scores: F32, ties: I32, k: int) -> I32:
    """The k products of greatest score of each user, best first, [q, k] int32; -1 where there are fewer.

    `scores` [q, products] float32; -inf and NaN are never ranked.
    """
    q, size = scores.shape
    out = np.full((q, k), -1, dtype=np.int32)
    if not size or not q:
        return out
    if np.isnan(scores).any():
        scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)
    kept = min(k, size)
    least = torch.from_numpy(scores).topk(kept, dim=1).values[:, -1:].numpy()  # five times as fast as np.partition
    row, product = np.divmod(np.flatnonzero((scores >= least) & (scores > -np.inf)), size)
    order = np.lexsort((ties[product], -scores[row, product], row))
    row, product = row[order], product[order]
    place = np.arange(row.shape[0]) - np.searchsorted(row, row)
    inside = place < kept
    out[row[inside], place[inside]] = product[inside]
    return out


def first_ranks(scores: F32, ties: I32, owner: NDArray[np.int64], product: I32) -> I64:
    """The rank (from 1) of the best placed of each user's targets, [q] int64; 0 for a user without a ranked one.

    `product` [m] are targets of the users in rows `owner` [m] (sorted) of `scores` [q, products].
    """
    out = np.zeros(scores.shape[0], dtype=np.int64)
    score = scores[owner, product]
    order = np.lexsort((ties[product], -score, owner))
    rows, first = np.unique(owner[order], return_index=True)
    best, tie = score[order][first], ties[product][order][first]
    found = scores[rows] if rows.shape[0] < scores.shape[0] else scores
    ahead = np.count_nonzero(found > best[:, None], axis=1)
    level = np.count_nonzero(found == best[:, None], axis=1)
    shared = np.flatnonzero(level > 1)  # mostly nobody: then the ties need not be looked at
    ahead[shared] += np.count_nonzero(
        (found[shared] == best[shared, None]) & (ties[None, :] < tie[shared, None]), axis=1
    )
    out[rows] = np.where(best > -np.inf, 1 + ahead, 0)
    return out
