"""Following the changelog of product embeddings into an index of one's own."""

from __future__ import annotations

import numpy as np

from freshet.store.index import MemoryItemIndex
from freshet.store.value import SEQ_HEADER, Seq, encode_value
from freshet.stream.follower import IndexFollower
from freshet.stream.records import Record


class Scripted:
    """A consumer of a log that stands in a list; it gives two records a poll."""

    def __init__(self, log: list[tuple[str, bytes | Seq | None]]) -> None:
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

    def record(self, offset: int, key: str, value: bytes | Seq | None) -> Record:
        """A Seq stands for an empty value that was written with it."""
        if isinstance(value, Seq):
            return Record("t", 0, offset, 1, key.encode(), None, ((SEQ_HEADER, value.text().encode()),))
        return Record("t", 0, offset, 1, key.encode(), value)

    def close(self) -> None: ...


def value(x: float, step: int, model: str = "m", fence: int = 1) -> bytes:
    vector = np.array([x, 1.0], dtype="<f4")
    return encode_value(vector.tobytes(), 2, model, Seq(fence, step), -1, 0, None, [])


def followed(log: list[tuple[str, bytes | Seq | None]]) -> dict[str, float]:
    index = MemoryItemIndex(2)
    follower = IndexFollower(Scripted(log), "t", 1, "m", index)  # type: ignore[arg-type]
    follower.catch_up()
    vectors, _ = index.get(index.ids())
    return dict(zip(index.ids(), vectors[:, 0].tolist(), strict=True))


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


def test_another_version_is_passed_over() -> None:
    assert followed([("a", value(1, 1)), ("a", value(9, 9, model="other"))]) == {"a": 1.0}
