"""Things done side by side: each lane in its order, and errors that are not lost."""

from __future__ import annotations

import threading

import pytest

from freshet.store.lanes import Lanes

WAIT_S = 30.0


def test_a_lane_keeps_its_order_and_lanes_go_side_by_side() -> None:
    done: list[tuple[int, int]] = []
    both = threading.Barrier(2)
    with Lanes(2) as lanes:
        for lane in (0, 1):  # neither passes before the other is there
            lanes.put(lambda: both.wait(WAIT_S), lane)
        for i in range(40):
            lanes.put(lambda i=i: done.append((i % 2, i)), i % 2)  # type: ignore[misc]
    assert len(done) == 40
    for lane in (0, 1):
        mine = [i for of, i in done if of == lane]
        assert mine == sorted(mine)


def test_who_puts_in_too_much_waits() -> None:
    go, begun = threading.Event(), threading.Event()
    with Lanes(1, waiting_max=2) as lanes:
        lanes.put(lambda: go.wait(WAIT_S))
        lanes.put(lambda: None)
        third = threading.Thread(target=lambda: (lanes.put(lambda: None), begun.set()))
        third.start()
        assert not begun.wait(0.2)
        go.set()
        assert begun.wait(WAIT_S)
        third.join()


def test_what_fails_is_raised_at_the_end_or_by_the_next_put() -> None:
    def fail() -> None:
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"), Lanes() as lanes:
        lanes.put(fail)
    with pytest.raises(ValueError, match="torn"), Lanes(1, waiting_max=1) as lanes:
        lanes.put(fail)
        lanes.put(lambda: None)
        raise AssertionError("it was said before")
    with pytest.raises(KeyError), Lanes() as lanes:
        lanes.put(fail)
        raise KeyError


def test_what_is_little_is_done_at_once_but_not_before_what_waits_in_its_lane() -> None:
    here, done, go = threading.get_ident(), [], threading.Event()

    def note(what: str) -> None:
        done.append((what, threading.get_ident() == here))

    with Lanes(2) as lanes:
        lanes.put(lambda: note("alone"), 0, little=True)
        assert done == [("alone", True)]
        lanes.put(lambda: (go.wait(WAIT_S), note("large")), 0)
        lanes.put(lambda: note("behind it"), 0, little=True)
        lanes.put(lambda: note("beside it"), 1, little=True)
        go.set()
    assert done == [("alone", True), ("beside it", True), ("large", False), ("behind it", False)]


def test_an_error_of_what_was_done_before_is_raised_by_what_is_little() -> None:
    def fail() -> None:
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"), Lanes(1) as lanes:
        lanes.put(fail)
        while not lanes._waiting[0][0].done():
            pass
        lanes.put(lambda: None, little=True)
        raise AssertionError("it was said before")
