"""The compiled loops over co-purchases: pairs of an order, counts frozen and live, the best of each row.

As in `kernels.py`, every kernel is a pure function of its arrays and writes only to those its docstring names.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from freshet.store.kernels import CANCELLED, LINE, expect, mix, wrapped
from freshet.store.prefetch import prefetch


@njit(cache=True, nogil=True)
def mark_frozen_listers(nodes, ptr, rows, dirty, queue, tail):  # type: ignore[no-untyped-def]
    """Like `mark_listers`, over a fixed CSR (`ptr`, `rows`) of who lists whom."""
    size = queue.shape[0]
    for i in range(nodes.shape[0]):
        node = nodes[i]
        if node + 1 >= ptr.shape[0]:
            continue
        for j in range(ptr[node], ptr[node + 1]):
            r = rows[j]
            if not dirty[r]:
                dirty[r] = True
                queue[tail % size] = r
                tail += 1
    return tail


@njit(cache=True, nogil=True)
def top_frequent(  # type: ignore[no-untyped-def]
    bases, heads, lengths, cap, nbr, time, flag, cut_ms, frozen_start, frozen_end, frozen_nbr, frozen_count,
    orders, rank, max_distinct, out_nbr, out_weight,
):  # fmt: skip
    """The k neighbours of greatest damped frequency: (frozen count + live entries newer than `cut_ms` [n]) over
    the square root of `orders` [m] + 5, a neighbour's orders up to the cut (none for one past the end).

    Ties go to the greater `rank` [nodes] uint64. Weights are damped frequencies, normalised to sum 1.
    `frozen_start`, `frozen_end` [n] are slices of `frozen_nbr`, `frozen_count`. Writes `out_nbr` [n, k]
    int32 and `out_weight` [n, k] float32.
    """
    k = out_nbr.shape[1]
    size = 1
    while size < 2 * max_distinct:
        size *= 2
    slot_of = np.full(size, -1, dtype=np.int32)
    nodes = np.empty(max_distinct, dtype=np.int32)
    counts = np.empty(max_distinct, dtype=np.float32)
    places = np.empty(max_distinct, dtype=np.int32)
    for i in range(bases.shape[0]):
        if i + 1 < bases.shape[0]:
            expect(bases[i + 1], heads[i + 1], lengths[i + 1], cap, cap, nbr, time, flag)
            for j in range(frozen_start[i + 1], frozen_end[i + 1], LINE):
                prefetch(frozen_nbr, j, 0)
                prefetch(frozen_count, j, 0)
        m = 0
        live = np.int64(lengths[i])
        for j in range(frozen_end[i] - frozen_start[i] + live):
            if j < frozen_end[i] - frozen_start[i]:
                node = frozen_nbr[frozen_start[i] + j]
                add = frozen_count[frozen_start[i] + j]
            else:
                e = j - (frozen_end[i] - frozen_start[i])
                s = bases[i] + wrapped(np.int64(heads[i]) + e, cap)
                if flag[s] != 0 or time[s] <= cut_ms[i]:
                    continue
                node = nbr[s]
                add = np.float32(1.0)
            h = (np.int64(node) * 2654435761) & (size - 1)
            while slot_of[h] >= 0 and nodes[slot_of[h]] != node:
                h = (h + 1) & (size - 1)
            if slot_of[h] < 0:
                slot_of[h] = m
                nodes[m] = node
                counts[m] = add
                places[m] = h
                m += 1
            else:
                counts[slot_of[h]] += add
        for j in range(m):
            slot_of[places[j]] = -1
            often = orders[nodes[j]] if nodes[j] < orders.shape[0] else np.float32(0.0)
            counts[j] /= math.sqrt(often + 5.0)
        total = 0.0
        taken = min(k, m)
        for c in range(taken):
            best = -1
            for j in range(m):
                if counts[j] < 0:
                    continue
                if (
                    best < 0
                    or counts[j] > counts[best]
                    or (counts[j] == counts[best] and rank[nodes[j]] > rank[nodes[best]])
                ):
                    best = j
            w = counts[best]
            out_nbr[i, c] = nodes[best]
            out_weight[i, c] = w
            total += w
            counts[best] = -1.0
        for c in range(taken):
            out_weight[i, c] = out_weight[i, c] / total
        for c in range(taken, k):
            out_nbr[i, c] = -1
            out_weight[i, c] = 0.0


@njit(cache=True, nogil=True)
def top_damped(rows, partner, start, first_cut, cut, root, rank, k, out_count, out_kept):  # type: ignore[no-untyped-def]
    """The k partners of each source with the greatest count by `root` of the partner; ties to the greater `rank`.

    Pairs of row r are `rows[r]:rows[r + 1]`; `partner` [pairs] int32. Pair e was seen at `start[e]:start[e + 1]` of
    `first_cut`, which says from which cut on each counts and is sorted there. `root` float32 and `rank` uint64
    [products]. Writes `out_count` [pairs] int32 as of cut number `cut`, and `out_kept` [pairs] bool.
    """
    place, value = np.empty(k, dtype=np.int64), np.empty(k, dtype=np.float32)
    for r in range(rows.shape[0] - 1):
        taken = 0
        for e in range(rows[r], rows[r + 1]):
            count = 0
            for seen in range(start[e], start[e + 1]):
                if first_cut[seen] > cut:
                    break
                count += 1
            out_count[e], out_kept[e] = count, False
            if count == 0:
                continue
            damped = np.float32(count / root[partner[e]])
            if taken == k:
                last = value[k - 1]
                if damped < last or (damped == last and rank[partner[e]] < rank[partner[place[k - 1]]]):
                    continue
            c = min(taken, k - 1)
            while c > 0:
                above = value[c - 1]
                if above > damped or (above == damped and rank[partner[place[c - 1]]] > rank[partner[e]]):
                    break
                place[c], value[c] = place[c - 1], above
                c -= 1
            place[c], value[c] = e, damped
            taken = min(taken + 1, k)
        for c in range(taken):
            out_kept[place[c]] = True


@njit(cache=True, nogil=True)
def order_pairs(  # type: ignore[no-untyped-def]
    order_start, product, product_hash, key, cancelled, partners_max, out_src, out_dst, out_line, out_key, out_flag
):  # fmt: skip
    """Pairs of each order: every line with at most `partners_max` of the others, in both directions.

    Which others is a function of the order alone: lines stand in a circle by their key, and each takes
    those that follow it. `order_start` [m + 1]; `product` [n] dense ids; `product_hash`, `key` [n];
    `cancelled` [n]. Writes source and destination product, the source's line, a key and the flag
    (cancelled when either line is); returns how many pairs.
    """
    n = 0
    for o in range(order_start.shape[0] - 1):
        a = order_start[o]
        size = order_start[o + 1] - a
        if size < 2:
            continue
        circle = np.argsort(key[a : a + size])
        take = min(partners_max, size - 1)
        for i in range(size):
            src = a + circle[i]
            for step in range(1, take + 1):
                dst = a + circle[(i + step) % size]
                out_src[n] = product[src]
                out_dst[n] = product[dst]
                out_line[n] = src
                out_key[n] = mix(key[src], product_hash[dst])
                out_flag[n] = CANCELLED if (cancelled[src] or cancelled[dst]) else 0
                n += 1
    return n
