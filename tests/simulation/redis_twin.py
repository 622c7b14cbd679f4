"""Redis in memory, with what may happen to it: down, slow to answer, emptied, or back from an older copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from freshet.store.embeddings import Landing, StoreUnavailable
from freshet.store.memory_store import MemoryEmbeddingStore, MemoryServingState
from freshet.store.value import Seq
from tests.simulation.world import Process, World

T = TypeVar("T")
COPIES_MAX = 64
COPY_EVERY = 10
"""Effects between two copies that the server might come back from."""


class RedisServer:
    """The server's data, its incarnation, and copies of its past."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.values = MemoryEmbeddingStore(monotonic=lambda: world.now_s)
        self.state = MemoryServingState()
        self.incarnation = 1
        self.down_until = 0.0
        self.lose_answers = 0
        """Calls that will be carried out and whose answers will not arrive."""
        self.losses = 0
        """How often it was emptied or went back."""
        self.began_with: dict[str, tuple[str, bytes]] = {}
        """What it held besides values, as it came back last."""
        self._copies: list[tuple[dict[str, object], dict[str, object]]] = []
        self._copied_at = 0

    def copy_now_and_then(self) -> None:
        """One of the surroundings: remember how the data stands."""
        if self.world.effects - self._copied_at >= COPY_EVERY:
            self._copied_at = self.world.effects
            self._copies = [*self._copies[-COPIES_MAX + 1 :], (_copied(self.values), _copied(self.state))]

    def empty(self) -> None:
        """All is lost, and a new server is there."""
        self.values = MemoryEmbeddingStore(monotonic=lambda: self.world.now_s)
        self.state = MemoryServingState()
        self._started_again()

    def back_to(self, which: int) -> None:
        """A copy of its past is loaded; the newest for 0."""
        if not self._copies:
            self.empty()
            return
        values, state = self._copies[-1 - which % len(self._copies)]
        self.values.__dict__.update(_copied_dict(values))
        self.state.__dict__.update(_copied_dict(state))
        self._started_again()

    def _started_again(self) -> None:
        self.incarnation += 1
        self.losses += 1
        self.began_with = dict(self.state._blob)


def _copied(of: object) -> dict[str, object]:
    return _copied_dict(vars(of))


def _copied_dict(attributes: dict[str, object]) -> dict[str, object]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in attributes.items()}


class RedisClient:
    """An `EmbeddingStore` and a `ServingState` of one process."""

    def __init__(self, server: RedisServer, process: Process, watch: Callable[..., None], late: bool = False) -> None:
        self.server = server
        self._process = process
        self._watch = watch
        self.late = late
        self.incarnation_at = -1
        """Losses of the server when this client last asked for its incarnation."""

    # --- EmbeddingStore -------------------------------------------------------------------------

    def upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """See `EmbeddingStore.upsert`; without an answer, some or all may have been written."""

        def write(n: int) -> NDArray[np.bool_]:
            before = self.server.values.get(model_version, user_ids[:n])
            stale = self.server.values.upsert(model_version, user_ids[:n], values[:n])
            after = self.server.values.get(model_version, user_ids[:n])
            self._watch("upsert", self._process, model_version, user_ids[:n], before, after)
            return stale

        return self._call("upsert", write, len(user_ids))

    def begin_upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> Landing:
        """See `EmbeddingStore.begin_upsert`: they land at the earliest moment, or at the last (with `late`)."""

        def write() -> NDArray[np.bool_]:
            return self.upsert(model_version, user_ids, values)

        if self.late:
            return write
        try:
            stale = write()
        except StoreUnavailable:
            return write
        return lambda: stale

    def get(self, model_version: str, user_ids: Sequence[str]) -> list[bytes | None]:
        """See `EmbeddingStore.get`."""
        return self._call("get", lambda n: self.server.values.get(model_version, user_ids))

    def delete(self, model_version: str, user_ids: Sequence[str], seq: Seq) -> NDArray[np.bool_]:
        """See `EmbeddingStore.delete`."""

        def write(n: int) -> NDArray[np.bool_]:
            stale = self.server.values.delete(model_version, user_ids[:n], seq)
            self._watch("delete", self._process, model_version, user_ids[:n], stale)
            return stale

        return self._call("delete", write, len(user_ids))

    def user_ids(self, model_version: str) -> Iterator[str]:
        """See `EmbeddingStore.user_ids`."""
        found = self._call("scan", lambda n: sorted(self.server.values.user_ids(model_version)))
        for start in range(0, len(found), 2):
            yield from self._call("scan", lambda n, start=start: found[start : start + 2])

    # --- ServingState ---------------------------------------------------------------------------

    def current(self) -> str | None:
        """See `ServingState.current`."""
        return self._call("get current", lambda n: self.server.state.current())

    def set_current(self, model_version: str) -> None:
        """See `ServingState.set_current`."""

        def write(n: int) -> None:
            self.server.state.set_current(model_version)
            self._watch("current", self._process, model_version)

        self._call("current", write)

    def next_fence(self, scope: str, floor: int) -> int:
        """See `ServingState.next_fence`."""
        return self._call("fence", lambda n: self.server.state.next_fence(scope, floor))

    def fence(self, scope: str) -> int:
        """See `ServingState.fence`."""

        def ask(n: int) -> int:
            return self.server.state.fence(scope)

        return self._call("get fence", ask)

    def incarnation(self) -> str:
        """See `ServingState.incarnation`."""

        def ask(n: int) -> str:
            self.incarnation_at = self.server.losses
            return str(self.server.incarnation)

        return self._call("incarnation", ask)

    def put_blob(self, name: str, seq: Seq, blob: bytes) -> bool:
        """See `ServingState.put_blob`."""

        def write(n: int) -> bool:
            taken = self.server.state.put_blob(name, seq, blob)
            if taken:
                self._watch("blob", self._process, name, blob)
            return taken

        return self._call("blob", write)

    def get_blob(self, name: str) -> bytes | None:
        """See `ServingState.get_blob`."""
        return self._call("get blob", lambda n: self.server.state.get_blob(name))

    def _call(self, kind: str, act: Callable[[int], T], size: int = 0) -> T:
        server, world = self.server, self.server.world
        with world.effect(self._process, kind):
            if world.now_s < server.down_until and not world.calm:
                world.now_s += 0.02
                raise StoreUnavailable("Redis is away")
            if server.lose_answers and not world.calm:
                server.lose_answers -= 1
                done = world.rng.randint(0, size)
                world.say(f"{kind}: {done} of {size} carried out, no answer")
                act(done)
                raise StoreUnavailable("no answer in time")
            return act(size)
