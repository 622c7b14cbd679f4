"""Replaying at a rate or a speed is an open loop; what is not acknowledged is an error."""

from __future__ import annotations

import pytest

from freshet.errors import FreshetError
from freshet.stream.events import Kind
from freshet.stream.records import Outgoing
from freshet.stream.replay import Pace, replay

LINES = [(Kind.VIEW, 1_000 * i, f"u{i}", b"{}") for i in range(40)]
TOPICS = {Kind.VIEW: "views"}


class Sender:
    """Keeps what it is sent, with the time; some may stay unacknowledged."""

    def __init__(self, left: int = 0) -> None:
        self.now = 0.0
        self.left = left
        self.sent: list[tuple[float, Outgoing]] = []

    def send(self, record: Outgoing) -> None:
        self.sent.append((self.now, record))

    def flush(self, timeout_s: float) -> int:
        return self.left

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def play(pace: Pace, sender: Sender, stop_after: float = 1e9) -> float:
    done = replay(
        iter(LINES),
        sender,
        TOPICS,
        pace,
        lambda: sender.now >= stop_after,
        monotonic=lambda: sender.now,
        sleep=sender.sleep,
    )
    assert done.events == len(sender.sent)
    return done.seconds


def test_a_rate_is_kept() -> None:
    sender = Sender()
    play(Pace(rate=10), sender)
    assert sender.sent[36][0] == pytest.approx(3.6)
    assert sender.sent[5][1] == Outgoing("views", b"u5", b"{}")


def test_a_speed_follows_the_times_of_the_log() -> None:
    sender = Sender()
    play(Pace(speed=2), sender)
    assert [at for at, _ in sender.sent] == pytest.approx([i / 2 for i in range(40)])


def test_without_a_pace_nothing_is_waited_for() -> None:
    assert play(Pace(), Sender()) == 0


def test_it_ends_when_it_is_asked_to() -> None:
    sender = Sender()
    play(Pace(speed=1), sender, stop_after=10)
    assert len(sender.sent) == 10


def test_what_is_not_acknowledged_is_an_error_with_its_number() -> None:
    with pytest.raises(FreshetError, match="3 of 40 events were not acknowledged"):
        play(Pace(), Sender(left=3))


@pytest.mark.parametrize("pace", [{"rate": 0.0}, {"speed": -1.0}, {"rate": 1.0, "speed": 1.0}])
def test_a_pace_that_makes_no_sense_is_refused(pace: dict[str, float]) -> None:
    with pytest.raises(FreshetError, match=r"--rate|--speed"):
        Pace(**pace)
