"""What is written again, and in which order."""

from __future__ import annotations

import numpy as np

from freshet.stream.rewriting import Rewrites


def numbers(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, dtype=np.int32)


def taken(rewrites: Rewrites, count: int = 2) -> list[tuple[str, list[int], bool]]:
    found = []
    while (some := rewrites.take(count)) is not None:
        found.append((some[0], some[1].tolist(), some[2]))
    return found


def test_what_is_urgent_in_any_scope_comes_first_and_a_scope_ends_with_its_last_chunk() -> None:
    rewrites = Rewrites()
    rewrites.add("items", numbers(0, 1, 2))
    rewrites.add("users-0", numbers(5, 6, 7), urgent=numbers(0, 1, 0) > 0)
    rewrites.add("users-1", numbers(8, 9), urgent=numbers(1, 1) > 0)
    assert rewrites.waiting == rewrites.total == 8
    assert rewrites.scopes == {"items", "users-0", "users-1"}
    assert taken(rewrites) == [
        ("users-0", [6], False),
        ("users-1", [8, 9], False),
        ("items", [0, 1], False),
        ("items", [2], True),
        ("users-0", [5, 7], True),
        ("users-1", [], True),
    ]
    assert not rewrites
    assert rewrites.waiting == 0


def test_a_scope_that_is_dropped_or_begins_anew_has_nothing_urgent_left() -> None:
    rewrites = Rewrites()
    rewrites.add("users-0", numbers(1, 2), urgent=numbers(1, 1) > 0)
    rewrites.add("users-0", numbers(3), urgent=numbers(0) > 0)
    assert taken(rewrites) == [("users-0", [3], True)]
    rewrites.add("users-0", numbers(1), urgent=numbers(1) > 0)
    rewrites.drop("users-0")
    assert not rewrites
