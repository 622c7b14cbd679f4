"""An item index of one's own, kept fresh from the changelog `freshet.embeddings.products`.

Any number of readers follow the topic, each into its own index; none of them asks the worker for anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from freshet.store.index import ItemIndex
from freshet.store.value import SEQ_HEADER, decode_value
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.records import Record

BATCH_MAX = 5_000
"""Records taken from the topic at a time."""


class IndexFollower:
    """Follows one model version into `index`. `catch_up` first; then call `poll`, or `start` a thread.

    Of two records of one product the one with the greater `seq` counts, so a replaced worker that still
    writes changes nothing.
    """

    def __init__(self, consumer: PartitionConsumer, topic: str, partitions: int, model_version: str, index: ItemIndex):
        self.index = index
        self.model_version = model_version
        self.skipped_versions = 0
        self._consumer = consumer
        self._places = [(topic, p) for p in range(partitions)]
        self._seq: dict[str, str] = {}
        self._positions: dict[tuple[str, int], int] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def catch_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read the topic from its start to where it ends now."""
        marks = self._consumer.watermarks(self._places)
        self._positions = {tp: low for tp, (low, _) in marks.items()}
        self._consumer.assign(self._positions)
        self.follow_to({tp: high for tp, (_, high) in marks.items()}, progress)

    def follow_to(self, goal: dict[tuple[str, int], int], progress: Callable[[int, int], None] | None = None) -> None:
        """Read until the given next offsets are reached."""
        while any(self._positions[tp] < high for tp, high in goal.items()):
            self.poll(0.1)
            if progress:
                left = sum(max(0, high - self._positions[tp]) for tp, high in goal.items())
                progress(sum(goal.values()) - left, sum(goal.values()))

    def poll(self, timeout_s: float) -> int:
        """Take what has come; returns how many records."""
        records = self._consumer.poll(BATCH_MAX, timeout_s)
        if records:
            self._apply(records)
        return len(records)

    def start(self) -> None:
        """Follow in a thread until `close`."""
        self._thread = threading.Thread(target=self._run, name="freshet-follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, if there is one, and the consumer."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.poll(0.05)

    def _apply(self, records: list[Record]) -> None:
        newest: dict[str, np.ndarray | None] = {}
        for record in records:
            self._positions[record.topic, record.partition] = record.offset + 1
            if record.key is None:
                continue
            name = record.key.decode()
            if record.value is None:
                held = self._seq.get(name, "")
                seq = next((v.decode() for h, v in record.headers if h == SEQ_HEADER and v is not None), held)
                if seq >= held:
                    self._seq[name] = seq  # it stays, so that an older record that comes late does not bring it back
                    newest[name] = None
                continue
            value = decode_value(record.value)
            if value.model != self.model_version:
                self.skipped_versions += 1
                continue
            seq = value.seq.text()
            if seq >= self._seq.get(name, ""):
                self._seq[name] = seq
                newest[name] = value.vector
        self.index.remove([name for name, vector in newest.items() if vector is None])
        kept = {name: vector for name, vector in newest.items() if vector is not None}
        if kept:
            self.index.upsert(list(kept), np.stack(list(kept.values())))
