"""Progress as people see it: one bar a task, whatever it says of itself meanwhile."""

from __future__ import annotations

import io

from rich.console import Console

from freshet.stream.progress import Bars


def test_what_follows_the_comma_does_not_make_another_bar() -> None:
    out = io.StringIO()
    with Bars(Console(file=out, force_terminal=True, width=100)) as bars:
        for loss in range(50):
            bars.share(f"training, loss {loss}", loss / 50)
        shown = bars._bars.tasks
        assert [(task.description, task.completed) for task in shown] == [("training, loss 49", 98)]


def test_without_a_terminal_lines_come_at_intervals() -> None:
    out, clock = io.StringIO(), iter(float(t) for t in range(1000))
    with Bars(Console(file=out), monotonic=lambda: next(clock)) as bars:
        for done in range(100):
            bars.update(f"replay, {done} events", done, 100)
    lines = out.getvalue().splitlines()
    assert 2 < len(lines) < 40
    assert lines[0].startswith("replay, ") and lines[0].endswith(" of 100")


def test_what_began_with_a_line_ends_with_one_and_the_next_time_begins_anew() -> None:
    out, now = io.StringIO(), [0.0]
    with Bars(Console(file=out), monotonic=lambda: now[0]) as bars:
        for at, done in ((0.0, 0), (10.0, 60), (11.0, 100), (11.5, 100), (500.0, 1), (501.0, 100)):
            now[0] = at
            bars.update("written", done, 100)
    assert out.getvalue().splitlines() == ["written: 60 of 100", "written: 100 of 100"]
