"""The compiled loops over values: what a user did last and bought, and the MessagePack of whole values.

As in `kernels.py`, every kernel is a pure function of its arrays and writes only to those its docstring names.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from freshet.store.kernels import expect, wrapped
from freshet.store.prefetch import prefetch
from freshet.store.value import SEQ_DIGITS

DAYS_30_MS = 30.0 * 86_400_000.0
ZERO = ord("0")
LIST_HEAD = 3
"""Bytes of the head of a list of up to 65,535 entries."""
OF_BOUGHT = 1 + 5 + 9 + 5
"""Bytes of an entry of `bought` besides the name: its head, a uint32, an int64 and a float32."""
OF_RECENT = 1 + 9
"""Bytes of an entry of `recent` besides both texts."""
OF_INT64 = 9
OF_RECORD = 5 + 9
"""Bytes of a source besides its topic: a uint32 and an int64."""


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
def value_ends(  # type: ignore[no-untyped-def]
    size, recent_product, recent_kind, bought_product, name_start, kind_start, out
):
    """Where each value ends when values are packed one after the other (`pack_values`); `size` [n] int64 is what each
    has besides its two lists. Writes `out` [n] int64."""
    total = np.int64(0)
    for i in range(recent_product.shape[0]):
        if i + 1 < recent_product.shape[0]:
            for c in range(recent_product.shape[1]):
                prefetch(name_start, max(0, recent_product[i + 1, c]), 0)
            for c in range(bought_product.shape[1]):
                prefetch(name_start, max(0, bought_product[i + 1, c]), 0)
        total += size[i] + 2 * LIST_HEAD
        for c in range(recent_product.shape[1]):
            p = recent_product[i, c]
            if p >= 0:
                kind = recent_kind[i, c]
                total += name_start[p + 1] - name_start[p] + kind_start[kind + 1] - kind_start[kind] + OF_RECENT
        for c in range(bought_product.shape[1]):
            p = bought_product[i, c]
            if p >= 0:
                total += name_start[p + 1] - name_start[p] + OF_BOUGHT
        out[i] = total


@njit(cache=True, nogil=True, inline="always")
def _put(out, at, value, size):  # type: ignore[no-untyped-def]
    """`value` in `size` bytes, big-endian; returns the place after it."""
    for b in range(size):
        out[at + b] = (value >> (8 * (size - 1 - b))) & 0xFF
    return at + size


@njit(cache=True, nogil=True, inline="always")
def _put_int64(out, at, value):  # type: ignore[no-untyped-def]
    """A MessagePack int64; returns the place after it."""
    out[at] = 0xD3
    return _put(out, at + 1, value, 8)


@njit(cache=True, nogil=True, inline="always")
def _put_part(out, at, data, start, i):  # type: ignore[no-untyped-def]
    """The i-th part of `data`, whose parts begin at `start`; returns the place after it."""
    for b in range(start[i], start[i + 1]):
        out[at] = data[b]
        at += 1
    return at


@njit(cache=True, nogil=True, inline="always")
def _expect_names(product, i, start, names):  # type: ignore[no-untyped-def]
    """Ask in advance for the names of row `i`, where there is one."""
    if i < product.shape[0]:
        for c in range(product.shape[1]):
            prefetch(names, start[max(0, product[i, c])], 0)


@njit(cache=True, nogil=True)
def pack_values(  # type: ignore[no-untyped-def]
    fixed, fixed_start, vector, fence, event_time, src, src_start, src_topic, src_partition, src_offset,
    recent_product, recent_kind, recent_time, bought_product, bought_count, bought_time, bought_decayed,
    names, name_start, kinds, kind_start, ends, out,
):  # fmt: skip
    """Whole values as MessagePack, one after the other.

    `fixed` (from `fixed_start`) holds what all of them share: what stands before the fence, the vector, `event_ts`,
    `src`, `recent` and `bought`. `vector` [n, bytes] uint8; `src` (from `src_start`) heads of sources with their
    topics, the last without one; `names` and `kinds` are packed texts; `bought_decayed` the bits of float32, [n, k]
    uint32; `ends` are of `value_ends`. Writes `out` [ends[-1]] uint8.
    """
    at = np.int64(0)
    for i in range(fence.shape[0]):
        _expect_names(recent_product, i + 1, name_start, names)
        _expect_names(bought_product, i + 1, name_start, names)
        at = _put_part(out, at, fixed, fixed_start, 0)
        left = fence[i]
        for b in range(SEQ_DIGITS):
            out[at + SEQ_DIGITS - 1 - b] = ZERO + left % 10
            left //= 10
        at = _put_part(out, at + SEQ_DIGITS, fixed, fixed_start, 1)
        for b in range(vector.shape[1]):
            out[at + b] = vector[i, b]
        at = _put_part(out, at + vector.shape[1], fixed, fixed_start, 2)
        at = _put_int64(out, at, event_time[i])
        at = _put_part(out, at, fixed, fixed_start, 3)
        at = _put_part(out, at, src, src_start, src_topic[i])
        if src_topic[i] < src_start.shape[0] - 2:
            out[at] = 0xCE
            at = _put(out, at + 1, np.int64(src_partition[i]), 4)
            at = _put_int64(out, at, src_offset[i])
        at = _put_part(out, at, fixed, fixed_start, 4)
        head = at
        at += LIST_HEAD
        n = 0
        for c in range(recent_product.shape[1]):
            p = recent_product[i, c]
            if p < 0:
                continue
            n += 1
            out[at] = 0x93
            at = _put_part(out, at + 1, names, name_start, p)
            at = _put_part(out, at, kinds, kind_start, recent_kind[i, c])
            at = _put_int64(out, at, recent_time[i, c])
        out[head] = 0xDC
        _put(out, head + 1, n, 2)
        at = _put_part(out, at, fixed, fixed_start, 5)
        head = at
        at += LIST_HEAD
        n = 0
        for c in range(bought_product.shape[1]):
            p = bought_product[i, c]
            if p < 0:
                continue
            n += 1
            out[at] = 0x94
            at = _put_part(out, at + 1, names, name_start, p)
            out[at] = 0xCE
            at = _put(out, at + 1, np.int64(bought_count[i, c]), 4)
            at = _put_int64(out, at, bought_time[i, c])
            out[at] = 0xCA
            at = _put(out, at + 1, np.int64(bought_decayed[i, c]), 4)
        out[head] = 0xDC
        _put(out, head + 1, n, 2)
