"""`freshet.LiveIndex`: the index of a process that serves recommendations, fresh by itself.

    with freshet.LiveIndex("localhost:9092") as index, freshet.Reader("redis://localhost", index) as reader:
        reader.recommend("900")
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from freshet.errors import FreshetError
from freshet.store.index import ItemIndex, MemoryItemIndex
from freshet.store.index_settings import IndexSettings
from freshet.stream.follower import IndexFollower, ProductIndexes
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_errors import UnknownTopic
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.topics import TopicSettings

logger = logging.getLogger("freshet.follower")

POLL_S = 0.005
"""What is new in the topic is taken so often: half of it is added, on average, to the age of a product."""
AGREE_S_MAX = 5.0
"""So long a reader waits, when another version is served, until its index has been read to the end."""
PAUSE_S_MIN, PAUSE_S_MAX = 0.5, 10.0
"""Between two attempts to follow again after an error; it doubles."""
REFILL_S_MAX = 60.0
"""So long a topic that was made anew has to be filled again: then what it holds counts, be it less than before."""


def follow_products(
    kafka: KafkaSettings, topics: TopicSettings | None = None, index: IndexSettings | None = None, served: str = ""
) -> IndexFollower:
    """The changelog of product embeddings, read to its end. `served` is a version that is held whatever comes.

    Raises UnknownTopic, KafkaUnavailable.
    """
    from freshet.store.faiss_index import make_index

    topic = (topics or TopicSettings()).embeddings_products
    count = TopicAdmin(kafka).describe([topic])[topic]
    if count is None:
        raise UnknownTopic(f"topic {topic}")
    consumer = PartitionConsumer(replace(kafka, group_id=f"{kafka.group_id}-reader"))
    indexes = ProductIndexes(lambda dim: make_index(index or IndexSettings(), dim))
    follower = IndexFollower(consumer, topic, count, indexes)
    follower.served = served
    try:
        follower.catch_up()
    except BaseException:
        follower.close()
        raise
    return follower


class LiveIndex:
    """An item index that follows the changelog of products in a thread of its own. Any number of readers may share it.

    Once made it has read the topic to its end. It holds the products of each model version apart, and gives a reader
    those of the version that is served, once all that was sent of them before has come: a rollover or its reverse needs
    no restart. While no broker answers it serves what it holds. Where the topic was made anew it reads all of it again,
    and serves what it held until there are as many products again, a minute at the most. `error` says what keeps it
    from following, and is None while it follows.

    Raises UnknownTopic where the topic does not exist, and KafkaUnavailable where no broker answers at `bootstrap`.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        topics: TopicSettings | None = None,
        kafka: KafkaSettings | None = None,
        index: IndexSettings | None = None,
    ) -> None:
        settings = replace(kafka or KafkaSettings(), bootstrap=bootstrap)
        self._begin(lambda served: follow_products(settings, topics, index, served))

    @classmethod
    def over(cls, follow: Callable[[str], IndexFollower], monotonic: Callable[[], float] = time.monotonic) -> Self:
        """A live index over what `follow` gives: a follower that has caught up and holds the version it is told."""
        live = cls.__new__(cls)
        live._begin(follow, monotonic)
        return live

    def _begin(self, follow: Callable[[str], IndexFollower], monotonic: Callable[[], float] = time.monotonic) -> None:
        self.error: str | None = None
        self._follow, self._monotonic = follow, monotonic
        self._refilled_at = 0.0
        self._follower = follow("")
        self._indexes = self._follower.indexes
        self._agreed = ""
        self._nothing = MemoryItemIndex(1)
        self._asked: list[threading.Event] = []
        self._asking = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="freshet-live-index", daemon=True)
        self._thread.start()

    def pair(self, served: str = "") -> tuple[ItemIndex, str]:
        """The index and the version it is of, the one that was agreed on last; see HeldIndex.

        Where none has been: the newest, and nothing for who names a version, as it may not be complete.
        """
        version = self._agreed if served else self._agreed or self._indexes.newest()
        index = self._indexes.of(version)
        return (self._nothing, "") if index is None else (index, version)

    def reread(self, served: str) -> None:
        """Agree on a version, once all that was in the topic at this moment has been read; see HeldIndex."""
        self._follower.served = served
        read = threading.Event()
        with self._asking:
            self._asked.append(read)
        if self.error is None and read.wait(AGREE_S_MAX) and self._indexes.of(served) is not None:
            self._agreed = served

    def close(self) -> None:
        """Stop following. What it holds can still be searched."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- its thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = PAUSE_S_MIN
        while not self._stop.is_set():
            try:
                if self.error is not None:
                    self._follow_again()
                    self.error, pause_s = None, PAUSE_S_MIN
                    logger.info("the products are followed again")
                self._follower.poll(POLL_S)
                self._answer()
                self._change_over()
            except Exception as e:  # whatever it is: a process that serves is to be fresh again when it has passed
                if self.error is None:
                    unforeseen = not isinstance(e, FreshetError)
                    logger.warning("the products are not followed for the moment: %s", e, exc_info=unforeseen)
                self.error = str(e) or type(e).__name__
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
        self._follower.close()

    def _answer(self) -> None:
        """Tell those who asked that what was there when they asked has been read."""
        with self._asking:
            asked, self._asked = self._asked, []
        if not asked:
            return
        self._follower.follow()
        if self._follower.indexes.dropped(self._follower.served):
            self._follow_again()
        for read in asked:
            read.set()

    def _follow_again(self) -> None:
        """Read all of the topic into new indexes."""
        former, self._follower = self._follower, self._follow(self._follower.served)
        former.close()
        self._refilled_at = self._monotonic() + REFILL_S_MAX
        self._change_over()

    def _change_over(self) -> None:
        """Serve what the follower has filled, once it has as much as what is served."""
        new = self._follower.indexes
        if new is self._indexes:
            return
        before, now = self._indexes.of(self._agreed), new.of(self._agreed)
        if before is None or (now is not None and len(now) >= len(before)) or self._monotonic() >= self._refilled_at:
            self._indexes = new
