"""What the lists hold when they grow, and in which pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freshet.store.dirty import DirtySet
from freshet.store.list_kernels import RUN_MAX
from freshet.store.lists import SMALL_PAGES_FROM, NeighborLists, resized


@pytest.mark.parametrize("size", [10, SMALL_PAGES_FROM // 8 - 1, SMALL_PAGES_FROM // 8, SMALL_PAGES_FROM])
def test_a_list_that_grows_keeps_what_it_held_and_has_zeros_beyond(size: int) -> None:
    before = np.arange(7, dtype=np.int64)
    after = resized(before, size)
    assert (after.dtype, after.shape) == (before.dtype, (size,))
    np.testing.assert_array_equal(after[:7], before)
    assert not after[7:].any()
    after[-1] = 5
    again = resized(after, 2 * size)
    assert again[size - 1] == 5 and not again[size:].any()


def advised_huge(array: np.ndarray) -> bool:  # type: ignore[type-arg]
    """Whether the kernel was asked for huge pages where the middle of this array lies."""
    middle = array.ctypes.data + array.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(" ", 1)[0]
        if "-" in first:
            start, _, end = first.partition("-")
            inside = int(start, 16) <= middle < int(end, 16)
        elif inside and first == "VmFlags:":
            return " hg" in line
    raise AssertionError("no such mapping")


def test_large_lists_are_in_pages_of_the_usual_size() -> None:
    size = 4 * SMALL_PAGES_FROM
    if not advised_huge(np.zeros(size, np.uint8)):
        pytest.skip("NumPy asks for no huge pages here")
    assert not advised_huge(resized(np.zeros(0, np.uint8), size))


@pytest.mark.parametrize("cap", [5, RUN_MAX, 3 * RUN_MAX])
@pytest.mark.parametrize("order", ["as drawn", "by row and time", "by row, time, key", "by row, time, key, backwards"])
def test_entries_of_one_time_may_come_in_any_order(cap: int, order: str) -> None:
    """Runs of one row and time, some longer than those that are put in order first, some entries there twice."""
    rng = np.random.default_rng(7)
    n, rows_n, nodes = 900, 3, 20
    row = rng.integers(rows_n, size=n, dtype=np.int32)
    time = rng.choice(np.array([10, 20, 30], np.int64), n, p=[0.2, 0.2, 0.6])
    key = rng.integers(2**63, 2**64, size=n, dtype=np.uint64)
    nbr = rng.integers(nodes, size=n, dtype=np.int32)
    twice = rng.integers(n, size=100)
    row, time, key, nbr = (np.concatenate([x, x[twice]]) for x in (row, time, key, nbr))
    sorts = {"as drawn": None, "by row and time": (time, row), "by row, time, key": (key, time, row)}
    by = sorts[order.removesuffix(", backwards")]
    at = np.arange(row.shape[0]) if by is None else np.lexsort(by)
    at = at[::-1] if order.endswith("backwards") else at
    lists = NeighborLists(cap)
    lists.reserve(rows_n, nodes)
    nothing, flags = np.full(at.shape[0], np.nan, np.float32), np.zeros(at.shape[0], np.uint8)
    changed = lists.merge(row[at], nbr[at], time[at], key[at], nothing, flags)
    assert not lists.merge(row[at], nbr[at], time[at], key[at], nothing, flags).any()
    listed: dict[int, set[int]] = {}
    for r in range(rows_n):
        there = sorted({(int(t), int(k), int(b)) for t, k, b, i in zip(time, key, nbr, row, strict=True) if i == r})
        slots = lists.slots_of(r)[::-1]
        held = [(int(lists.time[s]), int(lists.key[s]), int(lists.nbr[s])) for s in slots]
        assert held == there[-cap:]
        assert changed[row[at] == r].sum() >= len(held)
        for _, _, node in held:
            listed.setdefault(node, set()).add(r)
    for node in range(nodes):
        dirty = DirtySet()
        dirty.reserve(rows_n)
        lists.mark_listers(np.array([node], np.int32), dirty)
        assert set(np.flatnonzero(dirty.member[:rows_n]).tolist()) == listed.get(node, set())
