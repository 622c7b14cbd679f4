"""Item indexes of one's own, kept fresh from the changelog `freshet.embeddings.products`.

Any number of readers follow the topic, each into indexes of its own; none of them asks the worker for anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from freshet.store.columns import F32
from freshet.store.index import ItemIndex
from freshet.store.value import MODEL_HEADER, SEQ_HEADER, Seq, ValueCorrupt, decode_value
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_errors import KafkaUnavailable
from freshet.stream.records import Record

logger = logging.getLogger("freshet.follower")

BATCH_MAX = 5_000
"""Records taken from the topic at a time."""
VERSIONS_MAX = 3
"""Model versions of which an index is held: the one that is served, the one before, one that is on its way."""


@dataclass
class _Version:
    index: ItemIndex
    dim: int
    seq: dict[str, str] = field(default_factory=dict)
    """Of each product, by whom and when it was written."""
    turn: int = 0
    """Of the versions, the one with the greatest was written last."""


class ProductIndexes:
    """An index for each model version that the changelog tells of; `make_index` gives an empty one for vectors [dim].

    Of two records of one product the one with the greater `seq` counts, so a replaced worker that still writes
    changes nothing. A withdrawal takes the product out of all versions, as whoever wrote one of them may be gone; it
    keeps older records of its own version alone from bringing it back.
    """

    def __init__(self, make_index: Callable[[int], ItemIndex]) -> None:
        self._make_index = make_index
        self._held: dict[str, _Version] = {}
        self._dropped: set[str] = set()
        """What comes of these is passed over: it would be a part of an index."""
        self._turn = 0
        self._withdrawn: dict[str | None, dict[str, str]] = {None: {}}
        """Products by the version whose worker withdrew them; None where it did not say. They stay, so that an older
        record that comes late does not bring a product back."""

    def newest(self) -> str:
        """The version that was written last; empty where none has been."""
        held = list(self._held.items())
        return max(held, key=lambda item: item[1].turn)[0] if held else ""

    def of(self, version: str) -> ItemIndex | None:
        """The index of a version, if it is held."""
        held = self._held.get(version)
        return None if held is None else held.index

    def dropped(self, version: str) -> bool:
        """Whether it was held and is not any more, because others came after it."""
        return version in self._dropped

    def apply(self, records: Iterable[Record], served: str = "") -> None:
        """Take in what the changelog says. `served` is a version that is held whatever comes."""
        moved: dict[str, dict[str, F32 | None]] = {}
        for record in records:
            if record.key is None:
                continue
            name = record.key.decode(errors="replace")
            if not record.value:
                self._withdraw(name, record, moved)
            else:
                self._move(name, record, moved)
        for version, products in moved.items():
            index = self._held[version].index
            index.remove([name for name, vector in products.items() if vector is None])
            kept = {name: vector for name, vector in products.items() if vector is not None}
            if kept:
                index.upsert(list(kept), np.stack(list(kept.values())))
                self._turn += 1
                self._held[version].turn = self._turn
        while len(self._held) > VERSIONS_MAX:
            oldest = min((v for v in self._held if v != served), key=lambda v: self._held[v].turn)
            del self._held[oldest]
            self._dropped.add(oldest)

    def _withdraw(self, name: str, record: Record, moved: dict[str, dict[str, F32 | None]]) -> None:
        headers = {h: v for h, v in record.headers if v is not None}
        try:
            said = Seq.parse(headers[SEQ_HEADER].decode()).text() if SEQ_HEADER in headers else None
            of = headers[MODEL_HEADER].decode() if MODEL_HEADER in headers else None
        except (ValueCorrupt, UnicodeDecodeError) as e:
            self._pass_over(record, str(e))
            return
        seq = said or max(["", *(held.seq.get(name, "") for held in self._held.values())])
        guard = self._withdrawn.setdefault(of, {})
        guard[name] = max(guard.get(name, ""), seq)
        for version, held in self._held.items():
            if seq >= held.seq.get(name, ""):
                moved.setdefault(version, {})[name] = None

    def _move(self, name: str, record: Record, moved: dict[str, dict[str, F32 | None]]) -> None:
        try:
            value = decode_value(record.value or b"")
        except ValueCorrupt as e:
            self._pass_over(record, str(e))
            return
        if value.model in self._dropped:
            return
        held = self._held.get(value.model)
        if held is None:
            held = self._held[value.model] = _Version(self._make_index(len(value.vector)), len(value.vector))
            self._turn += 1
            held.turn = self._turn
        if len(value.vector) != held.dim:
            self._pass_over(record, f"its vector has {len(value.vector)} dimensions, others of its version {held.dim}")
            return
        seq = value.seq.text()
        guards = (self._withdrawn.get(of, {}).get(name, "") for of in (value.model, None))
        if seq >= max(held.seq.get(name, ""), *guards):
            held.seq[name] = seq
            moved.setdefault(value.model, {})[name] = value.vector

    @staticmethod
    def _pass_over(record: Record, why: str) -> None:
        logger.warning("%s:%d:%d is passed over: %s", record.topic, record.partition, record.offset, why)


class IndexFollower:
    """Reads the changelog into `indexes`. `catch_up` first, then `poll`; for one thread.

    `served` is a version whose index is held whatever comes. Where nothing comes for `patience_s` though there is
    more, `catch_up` and `follow` raise KafkaUnavailable; they end when `should_stop` says so.
    """

    def __init__(
        self, consumer: PartitionConsumer, topic: str, partitions: int, indexes: ProductIndexes, served: str = "",
        patience_s: float = 30.0, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.indexes = indexes
        self.served = served
        self.should_stop: Callable[[], bool] = lambda: False
        self._consumer = consumer
        self._places = [(topic, p) for p in range(partitions)]
        self._patience_s, self._monotonic = patience_s, monotonic
        self._positions: dict[tuple[str, int], int] = {}

    @property
    def trouble(self) -> str | None:
        """Why nothing may come just now."""
        return self._consumer.trouble

    def catch_up(self) -> None:
        """Read the topic from its start to where it ends now."""
        marks = self._consumer.watermarks(self._places)
        self._positions = {tp: low for tp, (low, _) in marks.items()}
        self._consumer.assign(self._positions)
        self._follow_to({tp: high for tp, (_, high) in marks.items()})

    def follow(self) -> None:
        """Read on to where the topic ends now."""
        self._follow_to({tp: high for tp, (_, high) in self._consumer.watermarks(self._places).items()})

    def poll(self, timeout_s: float) -> int:
        """Take what has come; returns how many records."""
        records = self._consumer.poll(BATCH_MAX, timeout_s)
        if records:
            self._apply(records)
        return len(records)

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()

    def _follow_to(self, goal: dict[tuple[str, int], int]) -> None:
        heard = self._monotonic()
        while any(self._positions[tp] < high for tp, high in goal.items()) and not self.should_stop():
            if self.poll(0.1):
                heard = self._monotonic()
            elif self._monotonic() - heard > self._patience_s:
                raise KafkaUnavailable(
                    self._consumer.settings.bootstrap,
                    f"nothing of {self._places[0][0]} came within {self._patience_s:g} s, though there is more",
                )

    def _apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self._positions[record.topic, record.partition] = record.offset + 1
        self.indexes.apply(records, self.served)
