"""Following the changelog of product embeddings into an index of one's own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from freshet.store.index import MemoryItemIndex
from freshet.store.value import MODEL_HEADER, SEQ_HEADER, Seq, encode_value
from freshet.stream.follower import IndexFollower, ProductIndexes
from freshet.stream.kafka_errors import KafkaUnavailable
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.records import Record


class Withdrawn(NamedTuple):
    """An empty value by the worker of a version."""

    seq: Seq
    model: str


class Scripted:
    """A consumer of a log that stands in a list; it gives two records a poll."""

    settings = KafkaSettings()
    trouble: str | None = None

    def __init__(self, log: list[tuple[str, bytes | Seq | Withdrawn | None]]) -> None:
        self.log = log
        self.at = 0

    def watermarks(self, places: list[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        return {places[0]: (0, len(self.log))}

    def assign(self, positions: dict[tuple[str, int], int]) -> None:
        self.at = next(iter(positions.values()))

    def poll(self, records_max: int, timeout_s: float) -> list[Record]:
        part = self.log[self.at : self.at + 2]
        records = [self.record(self.at + i, key, value) for i, (key, value) in enumerate(part)]
        self.at += len(part)
        return records

    def record(self, offset: int, key: str, value: bytes | Seq | Withdrawn | None) -> Record:
        """A Seq stands for an empty value that was written with it, a Seq and a version for one of its worker."""
        if isinstance(value, Withdrawn):
            headers = ((SEQ_HEADER, value.seq.text().encode()), (MODEL_HEADER, value.model.encode()))
            return Record("t", 0, offset, 1, key.encode(), None, headers)
        if isinstance(value, Seq):
            return Record("t", 0, offset, 1, key.encode(), None, ((SEQ_HEADER, value.text().encode()),))
        return Record("t", 0, offset, 1, key.encode(), value)

    def close(self) -> None: ...


Log = list[tuple[str, bytes | Seq | Withdrawn | None]]


def value(x: float, step: int, model: str = "m", fence: int = 1) -> bytes:
    vector = np.array([x, 1.0], dtype="<f4")
    return encode_value(vector.tobytes(), 2, model, Seq(fence, step), -1, 0, None, [])


def follow(log: Log, served: str = "") -> ProductIndexes:
    follower = IndexFollower(Scripted(log), "t", 1, ProductIndexes(MemoryItemIndex))  # type: ignore[arg-type]
    follower.served = served
    follower.catch_up()
    return follower.indexes


def held(indexes: ProductIndexes, version: str = "m") -> dict[str, float] | None:
    index = indexes.of(version)
    if index is None:
        return None
    vectors, _ = index.get(index.ids())
    return dict(zip(index.ids(), vectors[:, 0].tolist(), strict=True))


def followed(log: Log) -> dict[str, float] | None:
    return held(follow(log))


def test_the_newest_value_of_each_product_counts() -> None:
    assert followed([("a", value(1, 1)), ("b", value(2, 1)), ("a", value(3, 2))]) == {"a": 3.0, "b": 2.0}


def test_an_older_worker_changes_nothing() -> None:
    assert followed([("a", value(1, 5, fence=2)), ("a", value(9, 99, fence=1))]) == {"a": 1.0}


def test_a_withdrawn_product_goes_and_an_older_record_does_not_bring_it_back() -> None:
    log = [("a", value(1, 5)), ("b", value(2, 5)), ("a", None), ("a", value(9, 4))]
    assert followed(log) == {"b": 2.0}
    assert followed([*log, ("a", value(7, 6))]) == {"a": 7.0, "b": 2.0}


def test_a_replaced_worker_takes_no_product_out_and_brings_none_back() -> None:
    assert followed([("a", value(1, 5, fence=2)), ("a", Seq(1, 9))]) == {"a": 1.0}
    assert followed([("a", Seq(2, 1)), ("a", value(1, 9, fence=1)), ("b", value(2, 1))]) == {"b": 2.0}
    assert followed([("a", Seq(2, 1)), ("a", value(1, 2, fence=2))]) == {"a": 1.0}


def test_versions_are_held_apart_and_a_withdrawn_product_leaves_all() -> None:
    log: Log = [("a", value(1, 1)), ("b", value(2, 2)), ("a", value(9, 9, model="other", fence=2))]
    indexes = follow(log)
    assert (held(indexes), held(indexes, "other")) == ({"a": 1.0, "b": 2.0}, {"a": 9.0})
    indexes = follow([*log, ("a", Seq(2, 10))])
    assert (held(indexes), held(indexes, "other")) == ({"b": 2.0}, {})
    indexes = follow([("a", Seq(2, 1)), *log])  # the withdrawal is newer than what one version says, not the other
    assert (held(indexes), held(indexes, "other")) == ({"b": 2.0}, {"a": 9.0})


def test_a_product_comes_back_in_each_version_by_its_own_worker() -> None:
    log: Log = [("a", value(1, 1)), ("a", value(2, 1, model="n", fence=2)), ("a", Withdrawn(Seq(2, 5), "n"))]
    assert [held(follow(log), v) for v in "mn"] == [{}, {}]
    log += [("a", value(3, 4, model="n", fence=2)), ("a", value(4, 9))]  # an older one of n, a newer one of m
    assert [held(follow(log), v) for v in "mn"] == [{"a": 4.0}, {}]


def test_a_follower_gives_up_where_nothing_comes_though_there_is_more() -> None:
    class Silent(Scripted):
        def poll(self, records_max: int, timeout_s: float) -> list[Record]:
            now[0] += timeout_s
            return []

    now = [0.0]
    silent = Silent([("a", value(1, 1))])
    follower = IndexFollower(silent, "t", 1, ProductIndexes(MemoryItemIndex), "", 5.0, lambda: now[0])  # type: ignore[arg-type]
    with pytest.raises(KafkaUnavailable, match=r"nothing of t came within 5 s, though there is more"):
        follower.catch_up()
    assert 5.0 < now[0] < 6.0
    follower.should_stop = lambda: True
    follower.follow()


def versions(names: str) -> Log:
    return [("a", value(i, 1, model=name, fence=i)) for i, name in enumerate(names, 1)]


def test_three_versions_are_held_and_never_a_part_of_one() -> None:
    indexes = follow(versions("mnop"))
    assert [held(indexes, v) for v in "mnop"] == [None, {"a": 2.0}, {"a": 3.0}, {"a": 4.0}]
    assert indexes.dropped("m") and not indexes.dropped("n")
    assert indexes.newest() == "p"
    indexes.apply([Scripted([]).record(9, "b", value(5, 2))])
    assert held(indexes) is None


def test_the_version_that_is_served_is_held_whatever_comes() -> None:
    indexes = follow(versions("mnopq"), served="m")
    assert [held(indexes, v) is None for v in "mnopq"] == [False, True, True, False, False]


def test_the_oldest_is_the_one_that_was_written_longest_ago() -> None:
    indexes = follow([*versions("mno"), ("b", value(1, 1, fence=9)), *versions("p")])
    assert [held(indexes, v) is None for v in "mnop"] == [False, True, False, False]


def test_a_version_whose_first_record_is_refused_is_held_as_well() -> None:
    indexes = follow([("a", Seq(9, 9)), *[("b", raw) for _, raw in versions("mno")], *versions("p")])
    indexes.apply([Scripted([]).record(9, "b", value(5, 2, model="p", fence=9))])
    assert [held(indexes, v) is None for v in "mnop"] == [True, False, False, False]


def test_what_cannot_be_used_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    wide = encode_value(bytes(12), 3, "m", Seq(1, 3), -1, 0, None, [])
    log: Log = [("a", value(1, 1)), ("a", b"\x99"), ("a", wide), ("b", value(2, 2))]
    indexes = follow(log)
    for said in (b"\xff", b"z"):
        indexes.apply([Record("t", 0, 4, 1, b"a", None, ((SEQ_HEADER, said),))])
    assert held(indexes) == {"a": 1.0, "b": 2.0}
    assert [m.split(" is passed over: ")[0] for m in caplog.messages] == ["t:0:1", "t:0:2", "t:0:4", "t:0:4"]
    assert "3 dimensions, others of its version 2" in caplog.messages[1]
