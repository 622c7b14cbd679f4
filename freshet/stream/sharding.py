"""The products cut into shards, so that several workers of items share them.

A product is in the shard that Kafka's default partitioner gives its id among as many partitions. Each worker of items
reads all events and the whole catalogue, and keeps the lists of its own shard alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from freshet.errors import FreshetError
from freshet.model.config import NODE_OF_RELATION, TowerConfig
from freshet.store.columns import I32, Bool
from freshet.store.ids import IdMap
from freshet.stream.ownership import Ownership
from freshet.stream.rewriting import items_scope
from freshet.stream.sink import Fenced

logger = logging.getLogger("freshet.sharding")

SHARDS_MAX = 256
SHARD = re.compile(r"(\d{1,3})/(\d{1,3})")


class CutAnew(Fenced):
    """The products are cut into another number of shards now; this worker must stop."""

    def __init__(self, mine: str, first: str) -> None:
        FreshetError.__init__(
            self,
            f"products are served as {first} and its like: a worker of that was started since, and this one, of "
            f"{mine}, ends. Start all workers of items with the same number of shards",
        )


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 0) `of` so many."""

    number: int = 0
    of: int = 1

    @staticmethod
    def parse(text: str) -> Shard:
        """`1/3` is the second of three. Raises FreshetError."""
        found = SHARD.fullmatch(text)
        shard = Shard(int(found[1]), int(found[2])) if found else Shard(1, 0)
        if not 0 <= shard.number < shard.of <= SHARDS_MAX:
            raise FreshetError(
                f"{text!r} is no shard of the products: NUMBER/OF, numbers from 0, as 0/2 and 1/2, and {SHARDS_MAX} "
                "shards at the most"
            )
        return shard

    @property
    def scope(self) -> str:
        """What its worker serves."""
        return items_scope(self.number, self.of)

    @property
    def is_first(self) -> bool:
        """Whether its worker does what one of them has to do for all."""
        return self.number == 0

    @property
    def first(self) -> str:
        """What the worker of the first one serves."""
        return items_scope(0, self.of)

    def judge(self, products: IdMap) -> Callable[[I32], Bool] | None:
        """Which of these products [n] are in it, [n] bool; None where it is all of them."""
        if self.of == 1:
            return None
        owned = Ownership(products, self.of)
        owned.grant(self.number, 1)
        return owned.mine

    def check(self, config: TowerConfig) -> None:
        """Raises FreshetError where states of a product read lists of another, which may be in another shard."""
        read = {
            relation for tower in (config.user, config.item) for relation in tower.inner
            if NODE_OF_RELATION[relation] == "product"
        }  # fmt: skip
        if self.of > 1 and read:
            raise FreshetError(
                f"with these towers a product's state reads {', '.join(sorted(read))} of other products, which are in "
                "other shards: run one worker of items, without --shard, or towers whose inner layers read no list of "
                "products"
            )


class Cut:
    """Into how many shards the products are cut, for a worker of one of them: the first one's sentinel says so, and the
    others go by it. Of two cuts at once readers would believe the later worker, even when it has ended."""

    def __init__(self, shard: Shard, ask: Callable[[], str | None]) -> None:
        """`ask` is what the worker of the first shard, or of all products, says that it serves; None: nothing yet."""
        self._shard, self._ask = shard, ask
        self._first: str | None = None
        self._served = False

    def look(self) -> None:
        """Ask again. Raises CutAnew where a worker of another cut has taken over from this one."""
        before, self._first = self._first, self._ask()
        if self._first is None or self.stands:
            return
        if self._served:
            raise CutAnew(self._shard.scope, self._first)
        if before != self._first:
            logger.warning(
                "%s waits for the worker of %s; products are served as %s", self._shard.scope, self._shard.first,
                self._first,
            )  # fmt: skip

    def serve(self) -> None:
        """From now on this shard is served, and another cut ends it."""
        self._served = True

    @property
    def stands(self) -> bool:
        """Whether this shard may be served."""
        return self._shard.is_first or self._first == self._shard.first

    def check(self) -> bool:
        """Look whether it stands. Raises CutAnew."""
        if not self._shard.is_first:
            self.look()
        return self.stands
