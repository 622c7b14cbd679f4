"""An index that keeps itself fresh: versions that change, brokers that are gone, topics that are made anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from freshet.reader import HeldIndex, Reader, VersionMismatch
from freshet.store.index import MemoryItemIndex
from freshet.store.memory_store import MemoryEmbeddingStore, MemoryServingState
from freshet.stream import live_index
from freshet.stream.follower import IndexFollower, ProductIndexes
from freshet.stream.kafka_errors import KafkaUnavailable, OffsetGap
from freshet.stream.live_index import LiveIndex
from freshet.stream.records import Record
from tests.unit.test_follower import Log, Scripted, held, value, versions

WAIT_S = 20.0
"""After so long a test gives up; it bounds a failure and judges nothing."""


class Broker(Scripted):
    """A topic that grows, fails and is made anew; a consumer of it for each time it is followed."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.followed: list[str] = []
        self.failures: list[Exception] = []
        self.open = 0
        self.let, self.held_up = threading.Event(), False
        self.let.set()

    def follow(self, served: str) -> IndexFollower:
        if self.failures and len(self.followed):
            raise self.failures[0]
        self.followed.append(served)
        self.open += 1
        follower = IndexFollower(self, "t", 1, ProductIndexes(MemoryItemIndex), served)  # type: ignore[arg-type]
        follower.catch_up()
        return follower

    def poll(self, records_max: int, timeout_s: float) -> list[Record]:
        self.held_up = not self.let.is_set()
        self.let.wait(WAIT_S)
        if self.failures:
            raise self.failures[0]
        time.sleep(0.001)
        return super().poll(records_max, timeout_s)

    def close(self) -> None:
        self.open -= 1


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LiveIndex]]:
    monkeypatch.setattr(live_index, "PAUSE_S_MIN", 0.01)
    made: list[tuple[LiveIndex, Broker]] = []

    def of(broker: Broker, monotonic: Callable[[], float] = time.monotonic) -> LiveIndex:
        made.append((LiveIndex.over(broker.follow, monotonic), broker))
        return made[-1][0]

    yield of
    for index, broker in made:
        broker.let.set()
        index.close()
        assert broker.open == 0


def soon(said: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not said():
        assert time.monotonic() < end
        time.sleep(0.002)


def products(index: LiveIndex, version: str = "m") -> dict[str, float] | None:
    return held(index._current, version)


def test_what_comes_is_found_without_being_asked_for(live: Callable[..., LiveIndex]) -> None:
    broker = Broker([("a", value(1, 1))])
    index = live(broker)
    assert isinstance(index, HeldIndex)
    assert products(index) == {"a": 1.0}
    broker.log += [("b", value(2, 2)), ("a", value(3, 3))]
    soon(lambda: products(index) == {"a": 3.0, "b": 2.0})


def test_a_reader_changes_over_and_back_without_a_restart(live: Callable[..., LiveIndex]) -> None:
    broker, serving = Broker([("a", value(1, 1))]), MemoryServingState()
    serving.set_current("m")
    reader = Reader.over(MemoryEmbeddingStore(), serving, live(broker))
    assert reader.recommend("nobody").model_version == "m"
    broker.log += [("a", value(2, 2, model="n", fence=2)), ("b", value(2, 3, model="n", fence=2))]
    serving.set_current("n")
    assert reader.recommend("nobody").model_version == "n"
    assert [name for name, _ in reader.similar("a")] == ["b"]
    serving.set_current("m")
    assert reader.recommend("nobody").model_version == "m"
    assert reader.similar("a") == []
    assert broker.followed == [""]


def test_a_version_is_served_once_all_of_it_has_been_read(live: Callable[..., LiveIndex]) -> None:
    broker = Broker([("a", value(1, 1))])
    index = live(broker)
    assert index.pair("m")[1] == ""  # the newest, but there may be more of it
    index.reread("m")
    assert index.pair("m")[1] == "m"
    broker.let.clear()
    soon(lambda: broker.held_up)
    broker.log += [(f"p{i}", value(i, i, model="n")) for i in range(50)]
    asking = threading.Thread(target=index.reread, args=("n",))
    asking.start()
    assert index.pair("n")[1] == "m"
    broker.let.set()
    asking.join()
    found, version = index.pair("n")
    assert (version, len(found)) == ("n", 50)


def test_a_version_that_the_changelog_does_not_hold_is_said_so(live: Callable[..., LiveIndex]) -> None:
    serving = MemoryServingState()
    serving.set_current("other")
    broker = Broker([])
    reader = Reader.over(MemoryEmbeddingStore(), serving, live(broker))
    with pytest.raises(VersionMismatch, match="'other', but the index holds none"):
        reader.recommend("ann")
    assert broker.followed == [""]


def test_going_back_to_a_version_that_was_dropped_reads_all_again(live: Callable[..., LiveIndex]) -> None:
    broker, serving = Broker(versions("mnop")), MemoryServingState()
    index = live(broker)
    reader = Reader.over(MemoryEmbeddingStore(), serving, index)
    serving.set_current("p")
    reader.recommend("ann")
    assert products(index, "m") is None
    serving.set_current("m")
    assert reader.recommend("ann").model_version == "m"
    assert products(index, "m") == {"a": 1.0}
    assert broker.followed == ["", "m"]


@pytest.mark.parametrize("error", [KafkaUnavailable("b:1", "down"), ZeroDivisionError("a bug")])
def test_while_it_cannot_follow_it_serves_what_it_holds_and_says_so(
    live: Callable[..., LiveIndex], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker([("a", value(1, 1))])
    index = live(broker)
    index.reread("m")
    broker.failures.append(error)
    soon(lambda: index.error is not None)
    assert index.error is not None and str(error) in index.error
    began = time.monotonic()
    index.reread("n")
    assert time.monotonic() - began < live_index.AGREE_S_MAX
    assert index.pair("m")[1] == "m" and products(index) == {"a": 1.0}
    time.sleep(0.1)
    broker.log.append(("b", value(2, 2)))
    broker.failures.clear()
    soon(lambda: products(index) == {"a": 1.0, "b": 2.0})
    soon(lambda: index.error is None)
    assert [r.levelname for r in caplog.records if "not followed" in r.message] == ["WARNING"]
    assert index.pair("m")[1] == "m"
    assert len(broker.followed) == (1 if isinstance(error, KafkaUnavailable) else 2)


def test_what_its_client_hears_is_told_without_an_error(live: Callable[..., LiveIndex]) -> None:
    broker = Broker([("a", value(1, 1))])
    index = live(broker)
    broker.trouble = "1/1 brokers are down"
    soon(lambda: index.error == "1/1 brokers are down")
    broker.trouble = None
    soon(lambda: index.error is None)
    assert broker.followed == [""]


@pytest.mark.parametrize("failures", [[], [KafkaUnavailable("b:1", "down")]])
def test_who_waits_when_it_is_closed_waits_no_longer_and_agrees_on_nothing(
    live: Callable[..., LiveIndex], failures: list[Exception]
) -> None:
    broker = Broker([("a", value(1, 1))])
    index = live(broker)
    broker.let.clear()
    soon(lambda: broker.held_up)
    began = time.monotonic()
    asking = threading.Thread(target=index.reread, args=("m",))
    asking.start()
    soon(lambda: bool(index._asked))
    closing = threading.Thread(target=index.close)
    closing.start()
    soon(index._stop.is_set)
    broker.failures += failures
    broker.let.set()
    closing.join()
    asking.join()
    index.reread("m")
    assert time.monotonic() - began < live_index.AGREE_S_MAX
    assert index.pair("m")[1] == "" and products(index) == {"a": 1.0}


def test_likeness_goes_with_the_version_too_and_shows_no_part(live: Callable[..., LiveIndex]) -> None:
    broker, serving = Broker([("a", value(1, 1)), ("b", value(2, 1))]), MemoryServingState()
    serving.set_current("m")
    reader = Reader.over(MemoryEmbeddingStore(), serving, live(broker))
    broker.log.append(("a", value(1, 1, model="n", fence=2)))
    assert [name for name, _ in reader.similar("a")] == ["b"]
    broker.log.append(("c", value(1, 1, model="n", fence=2)))
    serving.set_current("n")
    assert [name for name, _ in reader.similar("a")] == ["c"]


def test_a_topic_made_anew_with_another_version_is_served_when_that_is(live: Callable[..., LiveIndex]) -> None:
    broker = Broker([("a", value(1, 1)), ("b", value(2, 1))])
    index = live(broker)
    index.reread("m")
    broker.failures.append(OffsetGap("t", 0, 2, 0, 0))
    soon(lambda: index.error is not None)
    broker.log = [("a", value(7, 1, model="n"))]
    broker.failures.clear()
    soon(lambda: index.error is None)
    assert products(index) == {"a": 1.0, "b": 2.0}
    index.reread("n")
    found, version = index.pair("n")
    assert (version, found.ids()) == ("n", ["a"])


def test_a_version_that_was_dropped_is_not_agreed_on_any_more(live: Callable[..., LiveIndex]) -> None:
    broker = Broker(versions("m"))
    index = live(broker)
    index.reread("m")
    broker.log += versions(" n")[1:]
    index.reread("n")
    assert index.pair("m")[1] == "m"
    broker.log += versions("  op")[2:]
    soon(lambda: index.pair("m")[1] == "n")
    assert index.pair("n")[1] == "n"


def test_a_topic_made_anew_is_served_when_it_holds_as_much_or_its_time_is_over(
    live: Callable[..., LiveIndex],
) -> None:
    now = [0.0]
    broker = Broker([("a", value(1, 1, fence=8)), ("b", value(2, 1, fence=8)), ("c", value(3, 1, fence=8))])
    index = live(broker, lambda: now[0])
    index.reread("m")

    def made_anew(log: Log) -> None:
        broker.failures.append(OffsetGap("t", 0, 3, 0, 0))
        soon(lambda: index.error is not None)
        broker.log = log
        broker.failures.clear()
        soon(lambda: index.error is None)

    made_anew([("a", value(7, 1)), ("b", value(7, 1))])  # by a worker whose token is lower, as its store is new too
    assert products(index) == {"a": 1.0, "b": 2.0, "c": 3.0}
    broker.log.append(("d", value(7, 1)))
    soon(lambda: products(index) == {"a": 7.0, "b": 7.0, "d": 7.0})
    made_anew([("a", value(9, 1))])
    assert products(index) == {"a": 7.0, "b": 7.0, "d": 7.0}
    now[0] = live_index.REFILL_S_MAX
    soon(lambda: products(index) == {"a": 9.0})
