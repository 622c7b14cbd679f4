"""The compiled loops that write neighbour lists, and the threads of who lists whom.

As in `kernels.py`, every kernel is a pure function of its arrays and writes only to those its docstring names.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from freshet.store.kernels import AHEAD, CANCELLED, wrapped
from freshet.store.prefetch import prefetch

RUN_MAX = 64
"""Entries of one row and one time that are put in order before they are merged; a large order has more."""


@njit(cache=True, nogil=True, inline="always")
def link(s, nbr, nxt, prv, first):  # type: ignore[no-untyped-def]
    """Put slot `s` at the beginning of the thread of the neighbour it names."""
    node = nbr[s]
    prv[s] = -1
    nxt[s] = -1
    if node >= 0:
        f = first[node]
        nxt[s] = f
        if f >= 0:
            prv[f] = s
        first[node] = s


@njit(cache=True, nogil=True, inline="always")
def unlink(s, nbr, nxt, prv, first):  # type: ignore[no-untyped-def]
    """Take slot `s` out of the thread of the neighbour it names."""
    node = nbr[s]
    if node >= 0:
        p = prv[s]
        q = nxt[s]
        if p >= 0:
            nxt[p] = q
        else:
            first[node] = q
        if q >= 0:
            prv[q] = p


@njit(cache=True, nogil=True, inline="always")
def _move(a, b, nbr, time, key, value, flag, nxt, prv, first):  # type: ignore[no-untyped-def]
    """Move the entry of slot `a` to the free slot `b`, keeping its place in its thread."""
    nbr[b] = nbr[a]
    time[b] = time[a]
    key[b] = key[a]
    value[b] = value[a]
    flag[b] = flag[a]
    p = prv[a]
    q = nxt[a]
    prv[b] = p
    nxt[b] = q
    if nbr[a] >= 0:
        if p >= 0:
            nxt[p] = b
        else:
            first[nbr[a]] = b
        if q >= 0:
            prv[q] = b


@njit(cache=True, nogil=True, inline="always")
def expect_end(r, head, length, cap, nbr, time, key, value, flag, nxt, prv):  # type: ignore[no-untyped-def]
    """Ask in advance for the newest slot of a row, beside which its next entry most often goes."""
    s = r * cap + wrapped(np.int64(head[r]) + max(0, np.int64(length[r]) - 1), cap)
    prefetch(time, s, 0)
    prefetch(key, s, 0)
    prefetch(nbr, s, 0)
    prefetch(value, s, 0)
    prefetch(flag, s, 0)
    prefetch(nxt, s, 0)
    prefetch(prv, s, 0)


@njit(cache=True, nogil=True, inline="always")
def expect_threads(r, node, head, length, cap, nbr, nxt, prv, first):  # type: ignore[no-untyped-def]
    """Ask in advance for what a new entry of `node` in row `r` will be linked to, and, where the row is full, for what
    its oldest entry is linked to: the row itself has been asked for before."""
    if node >= 0:
        prefetch(prv, first[node], 0)
    if length[r] == cap:
        s = r * cap + np.int64(head[r])
        prefetch(nxt, prv[s], 0)
        prefetch(prv, nxt[s], 0)
        prefetch(first, nbr[s], 0)


@njit(cache=True, nogil=True)
def in_order_of_keys(rows, times, keys):  # type: ignore[no-untyped-def]
    """The numbers of n entries [n] int64 as they are, but that neighbours of one row and time stand by their keys, in
    runs of `RUN_MAX` at most: an entry that comes after those it follows moves none of them."""
    place = np.arange(rows.shape[0])
    start = 0
    for i in range(1, rows.shape[0]):
        if rows[i] != rows[start] or times[i] != times[start] or i - start == RUN_MAX:
            start = i
            continue
        j = i
        while j > start and keys[place[j - 1]] > keys[i]:
            place[j] = place[j - 1]
            j -= 1
        place[j] = i
    return place


@njit(cache=True, nogil=True)
def merge_entries(  # type: ignore[no-untyped-def]
    rows, nbrs, times, keys, values, flags, cap, head, length, nbr, time, key, value, flag, nxt, prv, first, changed
):
    """Merge n entries into their rows: top-`cap` of the union by `(time, key)`.

    An entry already there is joined: flags OR-ed, the greater value kept (NaN is least), and a
    neighbour of -1 (forgotten) kept. Writes all row arrays; `changed` [n] bool tells which entries
    changed their row.
    """
    place = in_order_of_keys(rows, times, keys)
    for p in range(rows.shape[0]):
        if p + 2 * AHEAD < rows.shape[0]:
            prefetch(head, rows[p + 2 * AHEAD], 0)
            prefetch(length, rows[p + 2 * AHEAD], 0)
            prefetch(first, max(0, nbrs[p + 2 * AHEAD]), 0)
        if p + AHEAD < rows.shape[0]:
            expect_end(rows[p + AHEAD], head, length, cap, nbr, time, key, value, flag, nxt, prv)
        if p + AHEAD // 2 < rows.shape[0]:
            expect_threads(rows[p + AHEAD // 2], nbrs[p + AHEAD // 2], head, length, cap, nbr, nxt, prv, first)
        i = place[p]
        changed[i] = False
        r = rows[i]
        t = times[i]
        k = keys[i]
        base = r * cap
        h = np.int64(head[r])
        n = np.int64(length[r])
        pos = n
        same = -1
        while pos > 0:
            s = base + wrapped(h + pos - 1, cap)
            if time[s] < t or (time[s] == t and key[s] < k):
                break
            if time[s] == t and key[s] == k:
                same = s
                break
            pos -= 1
        if same >= 0:
            joined = flag[same] | flags[i]
            if joined != flag[same]:
                flag[same] = joined
                changed[i] = True
            if values[i] > value[same] or (math.isnan(value[same]) and not math.isnan(values[i])):
                value[same] = values[i]
                changed[i] = True
            if nbrs[i] < 0 and nbr[same] >= 0:
                unlink(same, nbr, nxt, prv, first)
                nbr[same] = -1
                changed[i] = True
            continue
        if n == cap:
            if pos == 0:
                continue
            unlink(base + h, nbr, nxt, prv, first)
            h = wrapped(h + 1, cap)
            head[r] = h
            pos -= 1
            n -= 1
        else:
            length[r] = n + 1
        for j in range(n, pos, -1):
            a = base + wrapped(h + j - 1, cap)
            _move(a, base + wrapped(h + j, cap), nbr, time, key, value, flag, nxt, prv, first)
        s = base + wrapped(h + pos, cap)
        nbr[s] = nbrs[i]
        time[s] = t
        key[s] = k
        value[s] = values[i]
        flag[s] = flags[i]
        link(s, nbr, nxt, prv, first)
        changed[i] = True


@njit(cache=True, nogil=True)
def copy_entries(  # type: ignore[no-untyped-def]
    rows, cap, head, length, nbr, time, key, value, flag, out_row, out_nbr, out_time, out_key, out_value, out_flag
):
    """The entries of `rows`, oldest first, one row after the other; writes the six outputs."""
    n = 0
    for r in rows:
        base = np.int64(r) * cap
        h = np.int64(head[r])
        for j in range(length[r]):
            s = base + wrapped(h + j, cap)
            out_row[n] = r
            out_nbr[n] = nbr[s]
            out_time[n] = time[s]
            out_key[n] = key[s]
            out_value[n] = value[s]
            out_flag[n] = flag[s]
            n += 1


@njit(cache=True, nogil=True)
def drop_until(r, until, cap, head, length, time, nbr, nxt, prv, first):  # type: ignore[no-untyped-def]
    """Drop the entries of row `r` with `time <= until`; returns how many."""
    dropped = 0
    while length[r] > 0 and time[r * cap + head[r]] <= until:
        unlink(r * cap + np.int64(head[r]), nbr, nxt, prv, first)
        head[r] = (head[r] + 1) % cap
        length[r] -= 1
        dropped += 1
    return dropped


@njit(cache=True, nogil=True)
def anonymise(node, until, cap, time, flag, nbr, nxt, prv, first, out):  # type: ignore[no-untyped-def]
    """Take `node` out of every entry that names it with `time <= until`; the entries keep their slots.

    Writes the rows it changed to `out` (as many as fit) and returns how many it changed.
    """
    count = 0
    s = first[node]
    while s >= 0:
        following = nxt[s]
        if time[s] <= until:
            unlink(s, nbr, nxt, prv, first)
            nbr[s] = -1
            flag[s] |= CANCELLED
            if count < out.shape[0]:
                out[count] = s // cap
            count += 1
        s = following
    return count


@njit(cache=True, nogil=True)
def thread_length(node, nxt, first):  # type: ignore[no-untyped-def]
    """How many slots name `node`."""
    count = 0
    s = first[node]
    while s >= 0:
        count += 1
        s = nxt[s]
    return count


@njit(cache=True, nogil=True)
def mark_listers(nodes, cap, nxt, first, dirty, queue, tail):  # type: ignore[no-untyped-def]
    """Append each row that lists one of `nodes`, and is not yet in `dirty`, to `queue` after `tail`.

    Writes `dirty` and `queue` (a ring of `queue.shape[0]` places); returns the new tail.
    """
    size = queue.shape[0]
    for i in range(nodes.shape[0]):
        s = first[nodes[i]]
        while s >= 0:
            r = s // cap
            if not dirty[r]:
                dirty[r] = True
                queue[tail % size] = r
                tail += 1
            s = nxt[s]
    return tail
