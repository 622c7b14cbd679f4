"""What the composing module decides itself."""

from __future__ import annotations

from freshet.stream.wiring import BEHIND_MS, next_event_ms

NOW = 1_763_900_000_000


def test_an_event_stands_at_the_clock_but_behind_the_newest_of_a_replayed_log() -> None:
    assert next_event_ms({"event_time_max": NOW - 5}, NOW) == NOW
    assert next_event_ms({"event_time_max": NOW + 5}, NOW) == NOW
    assert next_event_ms({"event_time_max": NOW - BEHIND_MS}, NOW) == NOW
    old = NOW - BEHIND_MS - 1
    assert next_event_ms({"event_time_max": old}, NOW) == old + 1
    assert next_event_ms({"event_time_max": -1}, NOW) == NOW  # nothing has happened yet
