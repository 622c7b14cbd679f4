"""What the lists hold when they grow, and in which pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freshet.store.lists import SMALL_PAGES_FROM, resized


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
