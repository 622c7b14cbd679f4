"""What a recommendation service needs: a user's embedding, products for a user, products like a product."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.embeddings import EmbeddingStore, ServingState
from freshet.store.index import Index
from freshet.store.value import decode_value


class NotServing(FreshetError):
    """No worker has gone live on this Redis."""


class VersionMismatch(FreshetError):
    """Redis serves one model version and the index holds another; scores across versions mean nothing."""


class UnknownProduct(FreshetError):
    """The index does not hold this product."""


class IndexProvider(Protocol):
    """An index that is kept fresh by somebody else, and the version it holds."""

    index: Index
    model_version: str


@dataclass(frozen=True)
class Embedding:
    """A user's embedding: `vector` [dim] float32; times in ms; `age_ms` since it was written; `recent`
    (product, kind, timestamp), newest first."""

    vector: NDArray[np.float32]
    model_version: str
    event_ts: int
    written_ts: int
    age_ms: float
    recent: list[tuple[str, str, int]]


@dataclass(frozen=True)
class Recommendations:
    """Products for a user, best first: (product, score, reason). `source` is 'personal' or 'popular'."""

    items: list[tuple[str, float, str]]
    model_version: str
    source: str
    user_known: bool


class Reader:
    """Reads embeddings from Redis and candidates from an index of its own.

    `index` is an index snapshot folder, an index whose vectors are of the version being served, or a
    provider such as `freshet.stream.follower.IndexFollower`, which stays fresh.
    """

    def __init__(self, redis_url: str, index: Any, *, namespace: str = "freshet", clock: Callable[[], float] = time.time):
        from freshet.store.redis_settings import RedisSettings
        from freshet.store.redis_store import RedisStore

        store = RedisStore(RedisSettings(url=redis_url, namespace=namespace))
        self._set_up(store, store, index, clock)

    @classmethod
    def over(
        cls, store: EmbeddingStore, serving: ServingState, index: Any, clock: Callable[[], float] = time.time
    ) -> Reader:
        """A reader of other stores than Redis."""
        made = cls.__new__(cls)
        made._set_up(store, serving, index, clock)
        return made

    def _set_up(self, store: Any, serving: Any, index: Any, clock: Callable[[], float]) -> None:
        self._store: EmbeddingStore = store
        self._serving: ServingState = serving
        self._clock = clock
        self._provider: Any = _Snapshot(Path(index)) if isinstance(index, (str, Path)) else index

    def close(self) -> None:
        """Close the connection to Redis."""
        if hasattr(self._store, "close"):
            self._store.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def embedding(self, user_id: str) -> Embedding | None:
        """The embedding of a user, None for one nobody knows. Raises NotServing, StoreUnavailable."""
        return self._embedding(self._version(), user_id)

    def recommend(
        self, user_id: str, k: int = 10, exclude_seen: bool = True, allowed: Collection[str] | None = None
    ) -> Recommendations:
        """Products for a user; popular ones, with `user_known` false, for a user nobody knows.

        `exclude_seen` leaves out what the user bought or viewed lately (the value's `recent`); `allowed`
        restricts to these products. Raises NotServing, VersionMismatch, StoreUnavailable.
        """
        version, index = self._agreed()
        found = self._embedding(version, user_id)
        if found is None:
            return Recommendations(self._popular(version, k, allowed), version, "popular", False)
        seen = {product for product, _, _ in found.recent} if exclude_seen else set()
        result = index.search(found.vector[None], k, allowed, [seen])
        pairs = zip(result.ids[0], result.scores[0].tolist(), strict=True)
        return Recommendations([(p, s, "for you") for p, s in pairs], version, "personal", True)

    def similar(self, product_id: str, k: int = 10) -> list[tuple[str, float]]:
        """The k products most like one. Raises UnknownProduct, NotServing, VersionMismatch."""
        _, index = self._agreed()
        vector, there = index.get([product_id])
        if not there[0]:
            raise UnknownProduct(f"product {product_id!r} is not in the index: it was never seen, or was withdrawn")
        result = index.search(vector, k, None, [[product_id]])
        return list(zip(result.ids[0], result.scores[0].tolist(), strict=True))

    # --- parts ----------------------------------------------------------------------------------

    def _version(self) -> str:
        version = self._serving.current()
        if version is None:
            raise NotServing("freshet:current is not set: no worker has gone live on this Redis; start `freshet worker`")
        return version

    def _agreed(self) -> tuple[str, Index]:
        """The version being served and an index of that version."""
        version = self._version()
        held = getattr(self._provider, "model_version", None)
        if held is None:
            return version, self._provider
        if held != version:
            raise VersionMismatch(
                f"Redis serves {version}, the index holds {held}: follow the new version, or load its snapshot"
            )
        return version, self._provider.index

    def _embedding(self, version: str, user_id: str) -> Embedding | None:
        raw = self._store.get(version, [user_id])[0]
        if raw is None:
            return None
        value = decode_value(raw)
        age_ms = self._clock() * 1e3 - value.written_ts
        return Embedding(value.vector, value.model, value.event_ts, value.written_ts, age_ms, value.recent)

    def _popular(self, version: str, k: int, allowed: Collection[str] | None) -> list[tuple[str, float, str]]:
        blob = self._serving.get_blob(f"{version}:popular")
        listed: list[tuple[str, float]] = msgspec.msgpack.decode(blob) if blob else []
        kept = [(p, s) for p, s in listed if allowed is None or p in allowed]
        return [(p, s, "popular") for p, s in kept[:k]]


class _Snapshot:
    """An index snapshot as a provider."""

    def __init__(self, path: Path) -> None:
        from freshet.store.faiss_index import make_index
        from freshet.store.index_files import dim_of
        from freshet.store.index_settings import IndexSettings

        self.index = make_index(IndexSettings(), dim_of(path))
        self.model_version = self.index.load(path)
