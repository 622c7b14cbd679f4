"""The compiled loops over what a value lists: what a user bought, and the MessagePack of both lists.

As in `kernels.py`, every kernel is a pure function of its arrays and writes only to those its docstring names.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from freshet.store.kernels import expect, wrapped
from freshet.store.prefetch import prefetch

DAYS_30_MS = 30.0 * 86_400_000.0


@njit(cache=True, nogil=True)
def gather_bought(  # type: ignore[no-untyped-def]
    base, head, length, cap, nbr, time, flag, out_nbr, out_count, out_time, out_decayed
):
    """Distinct neighbours of each row that are not cancelled, newest first, with how often, when last, and how often
    lately: each time counts half for every 30 days that it lies before the last.

    Where there are more than k, those of the greatest `count^2 / (1 + age / 30 days)` stay, of equals the newer.
    Writes `out_nbr` [n, k] int32 (-1 past the end), `out_count` [n, k] int32, `out_time` [n, k] int64,
    `out_decayed` [n, k] float32.
    """
    k = out_nbr.shape[1]
    most = np.int64(0)
    for i in range(base.shape[0]):
        if np.int64(length[i]) > most:
            most = np.int64(length[i])
    slots = 64
    while slots < 2 * most:
        slots *= 2
    place = np.empty(slots, dtype=np.int32)
    node = np.empty(most, dtype=np.int32)
    count = np.empty(most, dtype=np.int32)
    decayed = np.empty(most, dtype=np.float64)
    worth = np.empty(most, dtype=np.float64)
    last = np.empty(most, dtype=np.int64)
    for i in range(base.shape[0]):
        found = 0
        place[:] = -1
        if i + 1 < base.shape[0]:
            expect(base[i + 1], head[i + 1], length[i + 1], cap, cap, nbr, time, flag)
        j = np.int64(length[i]) - 1
        while j >= 0:
            s = base[i] + wrapped(np.int64(head[i]) + j, cap)
            j -= 1
            if flag[s] != 0 or nbr[s] < 0:
                continue
            h = (np.int64(nbr[s]) * 2654435761) & (slots - 1)
            while place[h] >= 0 and node[place[h]] != nbr[s]:
                h = (h + 1) & (slots - 1)
            if place[h] < 0:
                place[h] = found
                node[found] = nbr[s]
                count[found] = 0
                decayed[found] = 0.0
                last[found] = time[s]
                found += 1
            count[place[h]] += 1
            before = last[place[h]] - time[s]
            decayed[place[h]] += 0.5 ** (before / DAYS_30_MS) if before else 1.0  # most are bought once: no power
        for c in range(found):
            worth[c] = count[c] * count[c] / (1.0 + (last[0] - last[c]) / DAYS_30_MS)
        least = -1.0
        level = np.int64(0)
        if found > k:
            least = np.sort(worth[:found])[found - k]
            level = np.int64(k)
            for c in range(found):
                if worth[c] > least:
                    level -= 1
        written = 0
        for c in range(found):
            if worth[c] <= least:
                if worth[c] < least or level == 0:
                    continue
                level -= 1
            out_nbr[i, written] = node[c]
            out_count[i, written] = count[c]
            out_time[i, written] = last[c]
            out_decayed[i, written] = decayed[c]
            written += 1
        for c in range(written, k):
            out_nbr[i, c] = -1
            out_count[i, c] = 0
            out_time[i, c] = 0
            out_decayed[i, c] = 0.0


@njit(cache=True, nogil=True)
def gather_latest(  # type: ignore[no-untyped-def]
    a_base, a_head, a_length, a_cap, a_nbr, a_time, a_flag, b_base, b_head, b_length, b_cap, b_nbr, b_time, b_flag,
    out_nbr, out_kind, out_time,
):  # fmt: skip
    """The newest entries of two relations together, newest first, without the cancelled.

    Writes `out_nbr` [n, k] int32 (-1 past the end), `out_kind` [n, k] (0 for a, 1 for b), `out_time` [n, k].
    """
    k = out_nbr.shape[1]
    for i in range(a_base.shape[0]):
        if i + 1 < a_base.shape[0]:
            expect(a_base[i + 1], a_head[i + 1], a_length[i + 1], a_cap, k, a_nbr, a_time, a_flag)
            expect(b_base[i + 1], b_head[i + 1], b_length[i + 1], b_cap, k, b_nbr, b_time, b_flag)
        x = np.int64(a_length[i]) - 1
        y = np.int64(b_length[i]) - 1
        count = 0
        while count < k and (x >= 0 or y >= 0):
            s = a_base[i] + wrapped(np.int64(a_head[i]) + x, a_cap)
            t = b_base[i] + wrapped(np.int64(b_head[i]) + y, b_cap)
            if y < 0 or (x >= 0 and a_time[s] >= b_time[t]):
                x -= 1
                if a_flag[s] == 0:
                    out_nbr[i, count] = a_nbr[s]
                    out_kind[i, count] = 0
                    out_time[i, count] = a_time[s]
                    count += 1
            else:
                y -= 1
                if b_flag[t] == 0:
                    out_nbr[i, count] = b_nbr[t]
                    out_kind[i, count] = 1
                    out_time[i, count] = b_time[t]
                    count += 1
        for c in range(count, k):
            out_nbr[i, c] = -1


@njit(cache=True, nogil=True)
def packed_ends(product, start, fixed, out):  # type: ignore[no-untyped-def]
    """Where the list of each row ends when rows are packed one after the other; an entry is its product's packed name
    and `fixed` [rows, k] bytes. `start` [names + 1] int64. Writes `out` [n] int64."""
    total = np.int64(0)
    for i in range(product.shape[0]):
        if i + 1 < product.shape[0]:
            for c in range(product.shape[1]):
                prefetch(start, max(0, product[i + 1, c]), 0)
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


@njit(cache=True, nogil=True, inline="always")
def _expect_names(product, i, start, names):  # type: ignore[no-untyped-def]
    """Ask in advance for the names of row `i`, where there is one."""
    if i < product.shape[0]:
        for c in range(product.shape[1]):
            prefetch(names, start[max(0, product[i, c])], 0)


@njit(cache=True, nogil=True)
def pack_recent(product, kind, time, start, names, kind_start, kind_names, ends, out):  # type: ignore[no-untyped-def]
    """MessagePack lists of `[product, kind, time]`. `names` (from `start`) and `kind_names` (from `kind_start`) are
    packed texts; `ends` are of `packed_ends`. Writes `out` [ends[-1]] uint8."""
    at = np.int64(0)
    for i in range(product.shape[0]):
        _expect_names(product, i + 1, start, names)
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
def pack_bought(product, count, time, decayed, start, names, ends, out):  # type: ignore[no-untyped-def]
    """MessagePack lists of `[product, count, time, decayed]`, the last as the bits of a float32, [n, k] uint32; see
    `pack_recent`. Writes `out` [ends[-1]] uint8."""
    at = np.int64(0)
    for i in range(product.shape[0]):
        _expect_names(product, i + 1, start, names)
        head = at
        at += 3
        n = 0
        for c in range(product.shape[1]):
            p = product[i, c]
            if p < 0:
                continue
            n += 1
            out[at] = 0x94
            at += 1
            for b in range(start[p], start[p + 1]):
                out[at] = names[b]
                at += 1
            out[at] = 0xCE
            at = _put(out, at + 1, np.int64(count[i, c]), 4)
            out[at] = 0xD3
            at = _put(out, at + 1, time[i, c], 8)
            out[at] = 0xCA
            at = _put(out, at + 1, np.int64(decayed[i, c]), 4)
        out[head] = 0xDC
        _put(out, head + 1, n, 2)
