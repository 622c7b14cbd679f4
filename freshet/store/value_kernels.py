"""The compiled loops over what a value lists: what a user bought, and the MessagePack of both lists.

As in `kernels.py`, every kernel is a pure function of its arrays and writes only to those its docstring names.
"""

from __future__ import annotations

import numpy as np
from numba import njit

DAYS_30_MS = 30.0 * 86_400_000.0


@njit(cache=True, nogil=True)
def gather_bought(rows, cap, head, length, nbr, time, flag, out_nbr, out_count, out_time):  # type: ignore[no-untyped-def]
    """Distinct neighbours of each row that are not cancelled, newest first, with how often and when last.

    Where there are more than k, those of the greatest `count^2 / (1 + age / 30 days)` stay, of equals the newer.
    Writes `out_nbr` [n, k] int32 (-1 past the end), `out_count` [n, k] int32, `out_time` [n, k] int64.
    """
    k = out_nbr.shape[1]
    slots = 64
    while slots < 2 * cap:
        slots *= 2
    place = np.empty(slots, dtype=np.int32)
    node = np.empty(cap, dtype=np.int32)
    count = np.empty(cap, dtype=np.int32)
    last = np.empty(cap, dtype=np.int64)
    worth = np.empty(cap, dtype=np.float64)
    for i in range(rows.shape[0]):
        r = np.int64(rows[i])
        found = 0
        place[:] = -1
        j = np.int64(length[r]) - 1
        while j >= 0:
            s = r * cap + (np.int64(head[r]) + j) % cap
            j -= 1
            if flag[s] != 0 or nbr[s] < 0:
                continue
            h = (np.int64(nbr[s]) * 2654435761) & (slots - 1)
            while place[h] >= 0 and node[place[h]] != nbr[s]:
                h = (h + 1) & (slots - 1)
            if place[h] < 0:
                place[h] = found
                node[found] = nbr[s]
                count[found] = 1
                last[found] = time[s]
                found += 1
            else:
                count[place[h]] += 1
        least = -1.0
        if found > k:
            for c in range(found):
                worth[c] = count[c] * count[c] / (1.0 + (last[0] - last[c]) / DAYS_30_MS)
            least = np.sort(worth[:found])[found - k]
        above = 0
        if found > k:
            for c in range(found):
                if worth[c] > least:
                    above += 1
        level = k - above
        written = 0
        for c in range(found):
            if found > k and worth[c] <= least:
                if worth[c] < least or level == 0:
                    continue
                level -= 1
            out_nbr[i, written] = node[c]
            out_count[i, written] = count[c]
            out_time[i, written] = last[c]
            written += 1
        for c in range(written, k):
            out_nbr[i, c] = -1
            out_count[i, c] = 0
            out_time[i, c] = 0


@njit(cache=True, nogil=True)
def packed_ends(product, start, fixed, out):  # type: ignore[no-untyped-def]
    """Where the list of each row ends when rows are packed one after the other; an entry is its product's packed name
    and `fixed` [rows, k] bytes. `start` [names + 1] int64. Writes `out` [n] int64."""
    total = np.int64(0)
    for i in range(product.shape[0]):
        total += 3
        for c in range(product.shape[1]):
            p = product[i, c]
            if p >= 0:
                total += start[p + 1] - start[p] + fixed[i, c]
        out[i] = total


@njit(cache=True, nogil=True, inline="always")
def _put(out, at, value, size):  # type: ignore[no-untyped-def]
    """`value` in `size` bytes, big-endian; returns the place after it."""
    for b in range(size):
        out[at + b] = (value >> (8 * (size - 1 - b))) & 0xFF
    return at + size


@njit(cache=True, nogil=True)
def pack_recent(product, kind, time, start, names, kind_start, kind_names, ends, out):  # type: ignore[no-untyped-def]
    """MessagePack lists of `[product, kind, time]`. `names` (from `start`) and `kind_names` (from `kind_start`) are
    packed texts; `ends` are of `packed_ends`. Writes `out` [ends[-1]] uint8."""
    at = np.int64(0)
    for i in range(product.shape[0]):
        head = at
        at += 3
        n = 0
        for c in range(product.shape[1]):
            p = product[i, c]
            if p < 0:
                continue
            n += 1
            out[at] = 0x93
            at += 1
            for b in range(start[p], start[p + 1]):
                out[at] = names[b]
                at += 1
            for b in range(kind_start[kind[i, c]], kind_start[kind[i, c] + 1]):
                out[at] = kind_names[b]
                at += 1
            out[at] = 0xD3
            at = _put(out, at + 1, time[i, c], 8)
        out[head] = 0xDC
        _put(out, head + 1, n, 2)


@njit(cache=True, nogil=True)
def pack_bought(product, count, time, start, names, ends, out):  # type: ignore[no-untyped-def]
    """MessagePack lists of `[product, count, time]`; see `pack_recent`. Writes `out` [ends[-1]] uint8."""
    at = np.int64(0)
    for i in range(product.shape[0]):
        head = at
        at += 3
        n = 0
        for c in range(product.shape[1]):
            p = product[i, c]
            if p < 0:
                continue
            n += 1
            out[at] = 0x93
            at += 1
            for b in range(start[p], start[p + 1]):
                out[at] = names[b]
                at += 1
            out[at] = 0xCE
            at = _put(out, at + 1, np.int64(count[i, c]), 4)
            out[at] = 0xD3
            at = _put(out, at + 1, time[i, c], 8)
        out[head] = 0xDC
        _put(out, head + 1, n, 2)
