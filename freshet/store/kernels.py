"""The compiled inner loops of the store: lists, threads, means. Numba stays in this folder's `*kernels.py`.

Every kernel is a pure function of the arrays it is given and writes only to those its docstring names.
A *row* is the neighbour list of one node and one relation: a ring of `cap` slots whose entries are
sorted by `(time, key)`, oldest at `head`. Slots that name the same neighbour form a doubly linked
*thread* (`first`, `nxt`, `prv`), which answers "who lists me" at the cost of the answer.
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
def _link(s, nbr, nxt, prv, first):  # type: ignore[no-untyped-def]
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
def _unlink(s, nbr, nxt, prv, first):  # type: ignore[no-untyped-def]
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
def wrapped(place, cap):  # type: ignore[no-untyped-def]
    """A place below `2 * cap` of a ring of `cap`; a division would cost more than everything around it."""
    return place - cap if place >= cap else place


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


@njit(cache=True, nogil=True)
def merge_entries(  # type: ignore[no-untyped-def]
    rows, nbrs, times, keys, values, flags, cap, head, length, nbr, time, key, value, flag, nxt, prv, first, changed
):
    """Merge n entries into their rows: top-`cap` of the union by `(time, key)`.

    An entry already there is joined: flags OR-ed, the greater value kept (NaN is least), and a
    neighbour of -1 (forgotten) kept. Writes all row arrays; `changed` [n] bool tells which entries
    changed their row.
    """
    for i in range(rows.shape[0]):
        if i + 2 * AHEAD < rows.shape[0]:
            prefetch(head, rows[i + 2 * AHEAD], 0)
            prefetch(length, rows[i + 2 * AHEAD], 0)
            prefetch(first, max(0, nbrs[i + 2 * AHEAD]), 0)
        if i + AHEAD < rows.shape[0]:
            expect_end(rows[i + AHEAD], head, length, cap, nbr, time, key, value, flag, nxt, prv)
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
                _unlink(same, nbr, nxt, prv, first)
                nbr[same] = -1
                changed[i] = True
            continue
        if n == cap:
            if pos == 0:
                continue
            _unlink(base + h, nbr, nxt, prv, first)
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
        _link(s, nbr, nxt, prv, first)
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
        _unlink(r * cap + np.int64(head[r]), nbr, nxt, prv, first)
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
            _unlink(s, nbr, nxt, prv, first)
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
def merge_sessions(  # type: ignore[no-untyped-def]
    users, in_session, in_time, in_key, in_device, in_duration, item_start, product, in_position, in_click,
    capacity, items, order, length, session, time, key, device, duration, item_count, nbr, position, click,
    nxt, prv, first, changed,
):  # fmt: skip
    """Merge m sessions into their users' lists: the newest event of a session replaces it, then top-K.

    `order` [users, capacity] holds slot numbers sorted by `(time, key)`, oldest first, so that slots and
    their threads stay where they are. Of a session's items the last `items` are kept. Writes all list
    arrays and `changed` [m] bool.
    """
    for i in range(users.shape[0]):
        changed[i] = False
        u = users[i]
        base = np.int64(u) * capacity
        n = np.int64(length[u])
        slot = -1
        for j in range(n):
            s = base + order[u, j]
            if session[s] == in_session[i]:
                if time[s] > in_time[i] or (time[s] == in_time[i] and key[s] >= in_key[i]):
                    slot = -2
                    break
                slot = order[u, j]
                for m in range(j, n - 1):
                    order[u, m] = order[u, m + 1]
                n -= 1
                break
        if slot == -2:
            continue
        if slot < 0 and n == capacity:
            s = base + order[u, 0]
            if time[s] > in_time[i] or (time[s] == in_time[i] and key[s] >= in_key[i]):
                continue
            slot = order[u, 0]
            for m in range(n - 1):
                order[u, m] = order[u, m + 1]
            n -= 1
        if slot < 0:
            slot = n
            for candidate in range(n):
                used = False
                for m in range(n):
                    if order[u, m] == candidate:
                        used = True
                        break
                if not used:
                    slot = candidate
                    break
            item_count[base + slot] = 0
        s = base + slot
        for m in range(np.int64(item_count[s])):
            _unlink(s * items + m, nbr, nxt, prv, first)
        pos = n
        while pos > 0:
            o = base + order[u, pos - 1]
            if time[o] < in_time[i] or (time[o] == in_time[i] and key[o] < in_key[i]):
                break
            order[u, pos] = order[u, pos - 1]
            pos -= 1
        order[u, pos] = slot
        length[u] = n + 1
        session[s] = in_session[i]
        time[s] = in_time[i]
        key[s] = in_key[i]
        device[s] = in_device[i]
        duration[s] = in_duration[i]
        a = max(item_start[i], item_start[i + 1] - items)
        item_count[s] = item_start[i + 1] - a
        for m in range(item_start[i + 1] - a):
            e = s * items + m
            nbr[e] = product[a + m]
            position[e] = in_position[a + m]
            click[e] = in_click[a + m]
            _link(e, nbr, nxt, prv, first)
        changed[i] = True


@njit(cache=True, nogil=True)
def gather_sessions(  # type: ignore[no-untyped-def]
    users, length, order, capacity, items, device, duration, item_count, nbr, click,
    out_count, out_device, out_duration, out_nbr, out_weight,
):  # fmt: skip
    """The newest sessions of each user, newest first, with their last items; see `SessionBlock`.

    A clicked item weighs 2, others 1; weights of a session sum to 1. Writes the five outputs, which
    must come in filled with their empty values.
    """
    k = out_nbr.shape[1]
    most = out_nbr.shape[2]
    for i in range(users.shape[0]):
        u = users[i]
        n = np.int64(length[u])
        taken = min(k, n)
        out_count[i] = taken
        for c in range(taken):
            s = np.int64(u) * capacity + order[u, n - 1 - c]
            out_device[i, c] = device[s]
            out_duration[i, c] = duration[s]
            m = min(most, np.int64(item_count[s]))
            total = 0.0
            for j in range(m):
                e = s * items + np.int64(item_count[s]) - 1 - j
                w = 2.0 if click[e] == 1 else 1.0
                out_nbr[i, c, j] = nbr[e]
                out_weight[i, c, j] = w
                total += w
            for j in range(m):
                out_weight[i, c, j] = out_weight[i, c, j] / total


@njit(cache=True, nogil=True)
def drop_sessions_until(  # type: ignore[no-untyped-def]
    u, until, capacity, items, order, length, time, session, item_count, nbr, nxt, prv, first
):  # fmt: skip
    """Drop the sessions of user `u` with `time <= until`; returns how many."""
    dropped = 0
    while length[u] > 0 and time[u * capacity + order[u, 0]] <= until:
        s = u * capacity + np.int64(order[u, 0])
        for m in range(np.int64(item_count[s])):
            _unlink(s * items + m, nbr, nxt, prv, first)
            nbr[s * items + m] = -1
        item_count[s] = 0
        session[s] = 0
        n = np.int64(length[u])
        for m in range(n - 1):
            order[u, m] = order[u, m + 1]
        length[u] = n - 1
        dropped += 1
    return dropped


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
