"""The stores in memory: the twins that unit tests use and that pass the same contract suite as Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha1
from itertools import count

import numpy as np
from numpy.typing import NDArray

from freshet.store.embeddings import Landing, check_lengths
from freshet.store.value import Seq, seq_text


class MemoryEmbeddingStore:
    """An `EmbeddingStore` in dicts. `guard_s` is how long a deletion guards against older writes."""

    def __init__(self, guard_s: float = 86_400.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._values: dict[tuple[str, str], bytes] = {}
        self._guards: dict[tuple[str, str], tuple[bytes, float]] = {}
        self._guard_s = guard_s
        self._monotonic = monotonic

    def upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """See `EmbeddingStore.upsert`."""
        check_lengths(user_ids, values)
        stale = np.zeros(len(user_ids), dtype=np.bool_)
        for i, (user, value) in enumerate(zip(user_ids, values, strict=True)):
            held, new = self._held(model_version, user), seq_text(value)
            if new > held:
                self._values[model_version, user] = value
                self._guards.pop((model_version, _nameless(user)), None)
            stale[i] = new < held
        return stale

    def begin_upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> Landing:
        """See `EmbeddingStore.begin_upsert`: they are there at once."""
        stale = self.upsert(model_version, user_ids, values)
        return lambda: stale

    def get(self, model_version: str, user_ids: Sequence[str]) -> list[bytes | None]:
        """See `EmbeddingStore.get`."""
        return [self._values.get((model_version, user)) for user in user_ids]

    def delete(self, model_version: str, user_ids: Sequence[str], seq: Seq) -> NDArray[np.bool_]:
        """See `EmbeddingStore.delete`."""
        stale = np.zeros(len(user_ids), dtype=np.bool_)
        new, end = seq.text().encode(), self._monotonic() + self._guard_s
        for i, user in enumerate(user_ids):
            held = self._held(model_version, user)
            if new > held:
                self._values.pop((model_version, user), None)
                self._guards[model_version, _nameless(user)] = new, end
            stale[i] = new < held
        return stale

    def user_ids(self, model_version: str) -> Iterator[str]:
        """See `EmbeddingStore.user_ids`."""
        return iter([user for version, user in self._values if version == model_version])

    def _held(self, model_version: str, user: str) -> bytes:
        """The text of the `seq` that new writes have to pass; b"" where any will do."""
        value = self._values.get((model_version, user))
        if value is not None:
            return seq_text(value)
        seq, end = self._guards.get((model_version, _nameless(user)), (b"", 0.0))
        return seq if self._monotonic() < end else b""


def _nameless(user: str) -> str:
    return sha1(user.encode()).hexdigest()


_BORN = count(1)


class MemoryServingState:
    """A `ServingState` in dicts."""

    def __init__(self) -> None:
        self._current: str | None = None
        self._fence: dict[str, int] = {}
        self._incarnation = str(next(_BORN))
        self._blob: dict[str, tuple[str, bytes]] = {}

    def current(self) -> str | None:
        """See `ServingState.current`."""
        return self._current

    def set_current(self, model_version: str) -> None:
        """See `ServingState.set_current`."""
        self._current = model_version

    def next_fence(self, scope: str, floor: int) -> int:
        """See `ServingState.next_fence`."""
        self._fence[scope] = max(self._fence.get(scope, 0), floor) + 1
        return self._fence[scope]

    def fence(self, scope: str) -> int:
        """See `ServingState.fence`."""
        return self._fence.get(scope, 0)

    def incarnation(self) -> str:
        """See `ServingState.incarnation`: one for as long as it lives, and its data with it."""
        return self._incarnation

    def put_blob(self, name: str, seq: Seq, blob: bytes) -> bool:
        """See `ServingState.put_blob`."""
        held = self._blob.get(name)
        if held is None or held[0] < seq.text():
            self._blob[name] = (seq.text(), blob)
        return held is None or held[0] <= seq.text()

    def get_blob(self, name: str) -> bytes | None:
        """See `ServingState.get_blob`."""
        held = self._blob.get(name)
        return None if held is None else held[1]
