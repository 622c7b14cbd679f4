"""The compiled inner loops of the store: reading lists, means over neighbours, keys.

Numba stays in this folder's `*kernels.py`. Every kernel is a pure function of the arrays it is given and writes only
to those its docstring names. A *row* is the neighbour list of one node and one relation: a ring of `cap` slots whose
entries are sorted by `(time, key)`, oldest at `head`. Slots that name the same neighbour form a doubly linked *thread*
(`first`, `nxt`, `prv`), which answers "who lists me" at the cost of the answer.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from freshet.store.prefetch import prefetch

AHEAD = 8
"""Entries of a batch by which the kernels ask for memory in advance; a row of states or the end of a list each."""
LINE = 16
"""Numbers of four bytes in a cache line."""
CANCELLED = 1
"""Flag of an entry that was taken back: it keeps its slot and contributes nothing."""


@njit(cache=True, nogil=True, inline="always")
def wrapped(place, cap):  # type: ignore[no-untyped-def]
    """A place below `2 * cap` of a ring of `cap`; a division would cost more than everything around it."""
    return place - cap if place >= cap else place


@njit(cache=True, nogil=True)
def mark(nodes, dirty, queue, tail):  # type: ignore[no-untyped-def]
    """Append each of `nodes` that is not yet in `dirty` to `queue`; returns the new tail."""
    size = queue.shape[0]
    for i in range(nodes.shape[0]):
        r = nodes[i]
        if not dirty[r]:
            dirty[r] = True
            queue[tail % size] = r
            tail += 1
    return tail


@njit(cache=True, nogil=True, inline="always")
def expect(base, head, length, cap, k, nbr, time, flag):  # type: ignore[no-untyped-def]
    """Ask in advance for the `k` newest entries of a row."""
    j = np.int64(length) - 1
    last = max(np.int64(0), np.int64(length) - k)
    while j >= last:
        s = base + wrapped(np.int64(head) + j, cap)
        prefetch(nbr, s, 0)
        prefetch(time, s, 0)
        prefetch(time, s - LINE // 2, 0)
        prefetch(flag, s, 0)
        j -= LINE


@njit(cache=True, nogil=True)
def gather_recent(  # type: ignore[no-untyped-def]
    bases, heads, lengths, cap, nbr, time, value, flag, half_life_ms, value_weight, distinct, out_nbr, out_weight
):
    """The k newest entries of each row that are not cancelled, with normalised weights; when `distinct`, of each
    neighbour the newest one only.

    A weight is `2 ** (-age / half_life_ms)` (1 when `half_life_ms` is 0), age against the row's own
    newest entry, times `1 + log1p(value)` when `value_weight` and the value is there. Weights of a row
    sum to 1. Writes `out_nbr` [n, k] int32 (-1 empty) and `out_weight` [n, k] float32 (0 empty).
    """
    k = out_nbr.shape[1]
    for i in range(bases.shape[0]):
        count = 0
        newest = np.int64(0)
        total = 0.0
        if i + 1 < bases.shape[0]:
            expect(bases[i + 1], heads[i + 1], lengths[i + 1], cap, k, nbr, time, flag)
        j = np.int64(lengths[i]) - 1
        while j >= 0 and count < k:
            s = bases[i] + wrapped(np.int64(heads[i]) + j, cap)
            j -= 1
            if flag[s] != 0:
                continue
            if count == 0:
                newest = time[s]
            if distinct:
                seen = False
                for c in range(count):
                    if out_nbr[i, c] == nbr[s]:
                        seen = True
                        break
                if seen:
                    continue
            w = 1.0
            if half_life_ms > 0:
                w = math.pow(2.0, -float(newest - time[s]) / half_life_ms)
            if value_weight and not math.isnan(value[s]):
                w *= 1.0 + math.log1p(value[s])
            out_nbr[i, count] = nbr[s]
            out_weight[i, count] = w
            total += w
            count += 1
        for c in range(count):
            out_weight[i, c] = out_weight[i, c] / total
        for c in range(count, k):
            out_nbr[i, c] = -1
            out_weight[i, c] = 0.0


@njit(cache=True, nogil=True)
def decayed_entries(  # type: ignore[no-untyped-def]
    rows, cap, head, length, time, flag, at_ms, cut_ms, half_life_ms, slack_ms, out
):
    """Entries with `cut_ms < time < at_ms` that are not cancelled, each `2 ** (-age / half_life_ms)`.

    Where a row is full and even its oldest entry is newer than the cut, entries were evicted: they are taken to
    have come evenly between the cut and the oldest one, at `entries / (span + slack_ms)`. Writes `out` [n].
    """
    for i in range(rows.shape[0]):
        r = np.int64(rows[i])
        n = np.int64(length[r])
        base = r * cap
        total = 0.0
        count = 0
        for j in range(n):
            s = base + (np.int64(head[r]) + j) % cap
            if time[s] <= cut_ms or time[s] >= at_ms or flag[s] != 0:
                continue
            total += math.pow(2.0, -float(at_ms - time[s]) / half_life_ms)
            count += 1
        if n == cap and count > 0:
            oldest = time[base + np.int64(head[r]) % cap]
            if oldest > cut_ms and oldest < at_ms:
                rate = count / (float(at_ms - oldest) + slack_ms)
                left = math.pow(2.0, -float(at_ms - oldest) / half_life_ms)
                if cut_ms >= 0:
                    left -= math.pow(2.0, -float(at_ms - cut_ms) / half_life_ms)
                total += rate * half_life_ms / math.log(2.0) * left
        out[i] = total


@njit(cache=True, nogil=True)
def lengths_before(starts, ends, time, before, out):  # type: ignore[no-untyped-def]
    """How many entries of each slice `[start, end)`, sorted by time, are strictly older than `before`."""
    for i in range(starts.shape[0]):
        lo = starts[i]
        hi = ends[i]
        while lo < hi:
            mid = (lo + hi) // 2
            if time[mid] < before[i]:
                lo = mid + 1
            else:
                hi = mid
        out[i] = lo - starts[i]


@njit(cache=True, nogil=True, fastmath=True)
def weighted_sum(table, nbr, weight, out, column):  # type: ignore[no-untyped-def]
    """`out[i, column:column + dim] = sum_k weight[i, k] * table[nbr[i, k]]` over entries with `nbr >= 0`.

    `table` [rows, dim], `nbr` [n, k] int32, `weight` [n, k] float32; writes part of `out` [n, *] float32.
    """
    dim = table.shape[1]
    k = nbr.shape[1]
    for i in range(nbr.shape[0]):
        for d in range(dim):
            out[i, column + d] = 0.0
        for c in range(k):
            node = nbr[i, c]
            row, place = (i, c + AHEAD) if c + AHEAD < k else (i + 1, c + AHEAD - k)
            if row < nbr.shape[0] and place < k and nbr[row, place] >= 0:
                for d in range(0, dim, LINE):
                    prefetch(table, nbr[row, place], d)
            if node >= 0:
                w = weight[i, c]
                for d in range(dim):
                    out[i, column + d] += w * table[node, d]


@njit(cache=True, nogil=True, inline="always")
def mix(a, b):  # type: ignore[no-untyped-def]
    """One round of the splitmix64 finaliser over `a ^ rotated b` (Steele, Lea, Flood 2014)."""
    z = a ^ ((b << np.uint64(31)) | (b >> np.uint64(33)))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def mix_keys(a, b, c, out):  # type: ignore[no-untyped-def]
    """64-bit key of three 64-bit hashes, element by element; writes `out` [n] uint64."""
    for i in range(a.shape[0]):
        out[i] = mix(mix(a[i] + np.uint64(0x9E3779B97F4A7C15), b[i]), c[i])


@njit(cache=True, nogil=True)
def place_keys(data, starts, partitions, out):  # type: ignore[no-untyped-def]
    """The partition of Kafka's default partitioner for n keys; writes `out` [n].

    `data` uint8 holds the keys one after another, key i from `starts[i]` to `starts[i + 1]`. The hash is Kafka's
    murmur2 (org.apache.kafka.common.utils.Utils), which `stream/topics.py` has for one key in plain Python.
    """
    m = np.uint32(0x5BD1E995)
    for i in range(starts.shape[0] - 1):
        at = starts[i]
        size = starts[i + 1] - at
        h = np.uint32(0x9747B28C) ^ np.uint32(size)
        whole = at + (size & ~3)
        while at < whole:
            k = (
                np.uint32(data[at])
                | (np.uint32(data[at + 1]) << np.uint32(8))
                | (np.uint32(data[at + 2]) << np.uint32(16))
                | (np.uint32(data[at + 3]) << np.uint32(24))
            )
            k = np.uint32(k * m)
            k = np.uint32((k ^ (k >> np.uint32(24))) * m)
            h = np.uint32(np.uint32(h * m) ^ k)
            at += 4
        rest = starts[i + 1] - whole
        if rest > 0:
            if rest > 2:
                h ^= np.uint32(data[whole + 2]) << np.uint32(16)
            if rest > 1:
                h ^= np.uint32(data[whole + 1]) << np.uint32(8)
            h ^= np.uint32(data[whole])
            h = np.uint32(h * m)
        h = np.uint32((h ^ (h >> np.uint32(13))) * m)
        h ^= h >> np.uint32(15)
        out[i] = np.int32((h & np.uint32(0x7FFFFFFF)) % np.uint32(partitions))
