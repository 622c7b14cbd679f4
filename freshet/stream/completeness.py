"""Whether all of what is served is in the store, and what is done when it is not.

Beside the values of each scope stands a sentinel, written with the scope's own token. Where it is missing or another
one, or the store is not the one it was, the values may be gone or old: all of the scope is written again, behind
fresh updates. Readers are pointed to a version when the sentinels of all its scopes say that they are whole.

A store that has lost its data has forgotten tokens, too. A worker that was replaced and has not heard of it goes on
then, and readers of the changelogs, who believe the greatest token they have seen, would not take what it sends: so it
takes a token anew. Not so where the group says whose a partition is, and knows better than who comes last.

Products are not in the store: readers have them from the changelog, which it did not lose. So where all of them had
been sent, they count as whole at once, and are sent again, with the new token, behind the users.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import msgspec
import numpy as np

from freshet.store.embeddings import ServingState
from freshet.stream.rewriting import (
    ITEMS,
    Rewrites,
    every_scope,
    is_items,
    partition_in,
    place_of,
    shards_in,
)
from freshet.stream.sink import Sink
from freshet.stream.updater import Updater

logger = logging.getLogger("freshet.completeness")


class Sentinel(msgspec.Struct, frozen=True):
    """What stands beside the values of a scope: who writes them, whether all of them are there, and of how many
    partitions of users there are."""

    scope: str
    worker: str
    fence: int
    whole: bool
    partitions: int


def sentinel_blob(scope: str) -> str:
    """The blob of a version that holds the sentinel of a scope."""
    return f"sentinel:{place_of(scope)}"


def popular_blob(scope: str) -> str:
    """The blob of a version that holds the popular products of a shard."""
    return f"popular:{scope}"


def read_sentinel(blob: bytes | None) -> Sentinel | None:
    """None where there is none, or one that cannot be read."""
    try:
        return None if blob is None else msgspec.json.decode(blob, type=Sentinel)
    except msgspec.MsgspecError:
        return None


class Completeness:
    """The scopes that a worker serves: written with every step, and all of them once more after a gain or a loss.

    `before_whole` is called when all of a scope has been written, before its sentinel says so; where it returns false
    the scope is not whole yet, and it is asked again.
    """

    def __init__(
        self, updater: Updater, sink: Sink, serving: ServingState, worker: str, before_whole: Callable[[str], bool],
        chunk: int, progress: Callable[[str, int, int], None], take_token: Callable[[str, int], int], alone: bool,
        incarnation: str | None = None, may_write: Callable[[str], bool] = lambda scope: True,
    ) -> None:  # fmt: skip
        """`take_token(scope, floor)` is a token greater than `floor`; `alone`: no group says whose a partition is;
        `incarnation`: the store's before any token was taken, and what it is at the first look where this is None;
        `may_write(scope)`: whether it may be written again now; where not, it is asked about again at the next look."""
        self.updater = updater
        self.sink = sink
        self.serving = serving
        self.serves: set[str] = set()
        self.whole: set[str] = set()
        self.rewrites = Rewrites()
        self._held_back: set[str] = set()
        self._lost: set[str] = set()
        """Scopes of which the log has said that they are written again, and not yet that they have been."""
        self._worker = worker
        self._partitions = sink.ownership.partitions
        self._before_whole, self._may_write = before_whole, may_write
        self._chunk = chunk
        self._progress = progress
        self._take_token = take_token
        self._alone = alone
        self._left: dict[str, bytes] = {}
        self._incarnation = incarnation

    def serve(self, fences: Mapping[str, int]) -> None:
        """Write these scopes from now on, users with these tokens."""
        changed = self._look()
        for scope, fence in fences.items():
            self.serves.add(scope)
            if not is_items(scope):
                self.sink.ownership.grant(partition_in(scope), fence)
        for scope in self._in_turn(self.serves) if changed else fences:
            self._write_again(scope, changed)
        self.rewrites.compare(self.sink.held_users())

    def drop(self, scope: str) -> None:
        """Write a scope no more."""
        if not is_items(scope):
            self.sink.ownership.drop(partition_in(scope))
        self.serves.discard(scope)
        self.whole.discard(scope)
        self._left.pop(scope, None)
        self._held_back.discard(scope)
        self.rewrites.drop(scope)

    def first_of_items(self) -> str | None:
        """The scope of the first shard of the products, or of all, as its worker has left it; None where none has, and
        where one that was started since has yet to say what it serves."""
        sentinel = read_sentinel(self._sentinel(ITEMS))
        newest = self.sink.insist(lambda: self.serving.fence(ITEMS))
        return sentinel.scope if sentinel is not None and sentinel.fence == newest else None

    def begin_cut(self, shards: int) -> None:
        """The first of several shards begins: where products were cut otherwise before, what the others' workers left
        in a former cut of so many says nothing any more."""
        before = read_sentinel(self._sentinel(ITEMS))
        if before is None or shards_in(before.scope) == shards:
            return
        for scope in every_scope(0, shards)[1:]:
            blob = msgspec.json.encode(Sentinel(scope, self._worker, self.sink.fence, False, self._partitions))
            self.sink.write_blob(sentinel_blob(scope), blob, self.serving)
            self.sink.write_blob(popular_blob(scope), b"", self.serving)

    def check_store(self) -> None:
        """Where the store has lost what was written, or may have, have it written again."""
        self.sink.interrupted = False
        changed = self._look()
        back = self._held_back
        lost: dict[str, Sentinel | None] = {}
        for scope in self._in_turn(self.serves):
            if changed or scope in back:
                lost[scope] = None
            elif (found := self._sentinel(scope)) != self._left.get(scope):
                lost[scope] = read_sentinel(found)
        for scope, other in lost.items():
            if other is None:
                logger.warning("%s: the store has lost its data or may have; all of it is written again", scope)
                self._lost.add(scope)
            else:
                logger.warning("%s: the worker %s has written it since", scope, other.worker)
            self._write_again(scope, changed or scope in back)
        if len(lost) > len(back):  # a store that went back may hold users who have been forgotten since
            self.rewrites.compare(self.sink.held_users())

    def rewrite_once(self) -> None:
        """Write again one chunk of what waits for it."""
        taken = self.rewrites.take(self._chunk)
        if taken is None:
            self.sink.forget_strangers(self.rewrites.take_names(self._chunk))
            return
        scope, nodes, last = taken
        if is_items(scope):
            self.updater.publish_states(nodes)
            self.updater.write_products(nodes)
        else:
            self.updater.write_users(nodes)
        self._progress("written", self.rewrites.total - self.rewrites.waiting, self.rewrites.total)
        if last and scope in self.serves:
            self._note_whole(scope)

    # --- parts ----------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Whether the store is another one than at the last look, and so may have lost its data or gone back."""
        former, self._incarnation = self._incarnation, self.sink.insist(self.serving.incarnation)
        return former is not None and former != self._incarnation

    def _in_turn(self, scopes: Iterable[str]) -> list[str]:
        """What is in the store first."""
        return sorted(scopes, key=lambda scope: (is_items(scope), scope))

    def _write_again(self, scope: str, changed: bool) -> None:
        """`changed`: whether the store may be another one than that which the scope's token is of."""
        if not self._may_write(scope):
            self._held_back.add(scope)
            return
        self._held_back.discard(scope)
        delivered = is_items(scope) and scope in self.whole
        self.whole.discard(scope)
        if is_items(scope) or self._alone:
            self._renew_token(scope, changed)
        if not delivered or not self._say_whole(scope):
            self._leave(scope, whole=False)
        if is_items(scope):
            products = np.arange(len(self.updater.graph.products), dtype=np.int32)
            self.rewrites.add(scope, self.updater.kept(products))
        else:
            users = self.sink.ownership.members(partition_in(scope))
            self.rewrites.add(scope, users, urgent=self.sink.heard_of(users))  # who shops now before who once did

    def _renew_token(self, scope: str, changed: bool) -> None:
        """Take a new token where the store has forgotten the scope's own, or may have forgotten a newer one."""
        held = self.sink.fence if is_items(scope) else self.sink.ownership.fences.get(partition_in(scope))
        if held is None:
            return  # refused a moment ago, and about to be given up
        last = self.sink.insist(lambda: self.serving.fence(place_of(scope)))
        if last > held or (last == held and not changed):
            return  # where it is another worker's, what is written next is refused
        token = self._take_token(place_of(scope), held)
        if is_items(scope):
            self.sink.fence = token
        else:
            self.sink.ownership.grant(partition_in(scope), token)

    def _note_whole(self, scope: str) -> None:
        """All of a scope was written; unless the store has lost it meanwhile, say so beside its values."""
        self.sink.settle()
        if self._sentinel(scope) != self._left.get(scope):
            self._write_again(scope, changed=False)
            return
        if not self._say_whole(scope):
            self.rewrites.add(scope, np.zeros(0, dtype=np.int32))
        elif scope in self._lost:
            self._lost.discard(scope)
            logger.warning("%s: all of it has been written again", scope)

    def _say_whole(self, scope: str) -> bool:
        """Say beside its values that all of a scope is there, and point readers to the version where the others are
        as well; false where something is not there yet."""
        if not self._before_whole(scope):
            return False
        if self._leave(scope, whole=True):
            self.whole.add(scope)
            self._point_readers()
        return True

    def _point_readers(self) -> None:
        mine = next(filter(is_items, self.serves), None)
        if mine is None:  # into how many shards products are cut is said by the first of their workers
            sentinel = read_sentinel(self._sentinel(ITEMS))
            if sentinel is None or not sentinel.whole:
                return
            mine = sentinel.scope
        asked = {mine} if mine not in self.serves else set()
        every = [scope for scope in every_scope(self._partitions, shards_in(mine)) if scope not in asked]
        if all(scope in self.whole or self._is_whole(scope) for scope in every):
            self.sink.insist(lambda: self.serving.set_current(self.sink.model_version))

    def _leave(self, scope: str, whole: bool) -> bool:
        fence = None if is_items(scope) else self.sink.ownership.fences.get(partition_in(scope))
        blob = msgspec.json.encode(Sentinel(scope, self._worker, fence or self.sink.fence, whole, self._partitions))
        self._left[scope] = blob
        taken = self.sink.write_blob(sentinel_blob(scope), blob, self.serving, fence)
        if not taken and fence is not None:  # another worker's, though it may hold no user whose write would say so
            self.sink.refused[partition_in(scope)] = fence
            self.sink.ownership.drop(partition_in(scope))
        return taken

    def _sentinel(self, scope: str) -> bytes | None:
        name = f"{self.sink.model_version}:{sentinel_blob(scope)}"
        return self.sink.insist(lambda: self.serving.get_blob(name))

    def _is_whole(self, scope: str) -> bool:
        sentinel = read_sentinel(self._sentinel(scope))
        return sentinel is not None and sentinel.whole and sentinel.scope == scope
