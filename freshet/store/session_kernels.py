"""The compiled loops over sessions as values: a user's newest, their items, the threads of who lists whom.

As in `kernels.py`, every kernel is a pure function of its arrays and writes only to those its docstring names.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from freshet.store.list_kernels import link, unlink


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
            unlink(s * items + m, nbr, nxt, prv, first)
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
            link(e, nbr, nxt, prv, first)
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
            unlink(s * items + m, nbr, nxt, prv, first)
            nbr[s * items + m] = -1
        item_count[s] = 0
        session[s] = 0
        n = np.int64(length[u])
        for m in range(n - 1):
            order[u, m] = order[u, m + 1]
        length[u] = n - 1
        dropped += 1
    return dropped
