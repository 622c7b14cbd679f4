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
from typing import Self

from freshet.errors import FreshetError
from freshet.store.index import ItemIndex, MemoryItemIndex
from freshet.store.index_settings import IndexSettings
from freshet.stream.follower import IndexFollower, ProductIndexes
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_consumer import PartitionConsumer
from freshet.stream.kafka_errors import KafkaUnavailable, UnknownTopic
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
    follower = IndexFollower(consumer, topic, count, indexes, served, kafka.request_timeout_ms / 1e3)
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
    from following, and is None while it follows. A process that forks makes it after the fork.

    Raises UnknownTopic where the topic does not exist, and KafkaUnavailable where no broker answers at `bootstrap`.
    """

    moves = True
    _nothing = MemoryItemIndex(1)

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
        self._stop = threading.Event()
        self._follower = self._started("")
        self._current = self._follower.indexes
        self._agreed: dict[str, ItemIndex] = {}
        """Complete ones that go on being followed, the one agreed on last at the end; replaced, never changed."""
        self._refilled_at = 0.0
        self._asked: list[tuple[str, threading.Event]] = []
        self._asking = threading.Lock()
        self._deaf = False
        """Whether it makes no sense to ask: the last attempt failed, or there will be none."""
        self._thread = threading.Thread(target=self._run, name="freshet-live-index", daemon=True)
        self._thread.start()

    def pair(self, served: str = "") -> tuple[ItemIndex, str]:
        """The index of a version, or of the one that was agreed on last where this one has not been; see HeldIndex.

        Where none has been: for who names no version what came last, which may be a part.
        """
        agreed = self._agreed
        if agreed:
            version = served if served in agreed else next(reversed(agreed))
            return agreed[version], version
        newest = "" if served else self._current.newest()
        index = self._current.of(newest)
        return (self._nothing, "") if index is None else (index, newest)

    def reread(self, served: str) -> None:
        """Agree on a version, once all that was in the topic at this moment has been read; see HeldIndex."""
        read = threading.Event()
        with self._asking:
            if self._deaf or not self._thread.is_alive():
                return
            self._asked.append((served, read))
        read.wait(AGREE_S_MAX)

    def close(self) -> None:
        """Stop following. What it holds can still be searched."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- its thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s, again = PAUSE_S_MIN, False
        try:
            while not self._stop.is_set():
                try:
                    if again:
                        self._follow_again()
                        again = False
                    self._follower.poll(POLL_S)
                    self._answer()
                    self._change_over()
                    self._deaf, pause_s = False, PAUSE_S_MIN
                    self._tell(self._follower.trouble)
                except Exception as e:  # whatever it is: a process that serves is to be fresh again when it has passed
                    again = again or not isinstance(e, KafkaUnavailable)
                    self._deaf = True
                    self._tell(str(e) or type(e).__name__, unforeseen=not isinstance(e, FreshetError))
                    self._stop.wait(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_S_MAX)
        finally:
            with self._asking:
                self._deaf = True
                for _, read in self._asked:
                    read.set()
            self._follower.close()

    def _tell(self, error: str | None, unforeseen: bool = False) -> None:
        """Say what keeps it from following, once, and that it has passed."""
        if self.error is None and error is not None:
            logger.warning("the products are not followed for the moment: %s", error, exc_info=unforeseen)
        elif self.error is not None and error is None:
            logger.info("the products are followed again")
        self.error = error

    def _answer(self) -> None:
        """Agree on the versions that are asked for, once what the topic holds now has been read."""
        with self._asking:
            asked, self._asked = self._asked, []
        if not asked:
            return
        try:
            for version in dict.fromkeys(version for version, _ in asked):
                self._follower.served = version
                self._follower.follow()
                if self._follower.indexes.dropped(version):
                    self._follow_again()
                if not self._stop.is_set():
                    self._agree(version)
        finally:
            for _, read in asked:
                read.set()

    def _agree(self, version: str) -> None:
        new = self._follower.indexes
        index = new.of(version)
        if index is None:
            return
        kept = {v: i for v, i in self._agreed.items() if v != version and new.of(v) is i}
        self._agreed = {**kept, version: index}

    def _started(self, served: str) -> IndexFollower:
        follower = self._follow(served)
        follower.should_stop = self._stop.is_set
        return follower

    def _follow_again(self) -> None:
        """Read all of the topic into new indexes."""
        former, self._follower = self._follower, self._started(self._follower.served)
        if former.indexes is self._current:
            self._refilled_at = self._monotonic() + REFILL_S_MAX
        former.close()

    def _change_over(self) -> None:
        """Serve what the follower has filled, once it has as much as what is served; forget what was dropped."""
        new = self._follower.indexes
        if new is self._current:
            if any(new.of(version) is not index for version, index in self._agreed.items()):
                self._agreed = {v: i for v, i in self._agreed.items() if new.of(v) is i}
            return
        if not self._agreed:
            self._current = new
            return
        version, before = next(reversed(self._agreed.items()))
        now = new.of(version)
        if now is not None and (len(now) >= len(before) or self._monotonic() >= self._refilled_at):
            self._agreed, self._current = {version: now}, new
