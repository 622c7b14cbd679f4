"""What a shop's own code uses to read: embeddings of users, products for a user, products like a product."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import msgspec
import numpy as np

from freshet.errors import FreshetError
from freshet.store.columns import F32
from freshet.store.embeddings import EmbeddingStore, ServingState
from freshet.store.index import ItemIndex
from freshet.store.index_snapshot import read_manifest
from freshet.store.ranker import DAY_MS, REFERENCE, Pairs, Ranker, load_ranker, logit, probability
from freshet.store.redis_settings import RedisSettings
from freshet.store.value import EmbeddingValue, decode_value

FOR_YOU, POPULAR, BOUGHT_AGAIN, VIEWED = "for you", "popular", "bought again", "viewed lately"
"""Why a product is recommended."""

NORM_MIN = 1e-12
"""Least norm a vector is divided by."""
POPULAR_KEPT_S = 1.0
"""For so long a reader goes by the list of popular products that it has read; the list moves once a day."""


class NotServing(FreshetError):
    """No worker has gone live, so there is nothing to read."""


class VersionMismatch(FreshetError):
    """Users are served in one model version and the index holds another; their scores would mean nothing."""


class UnknownProduct(FreshetError):
    """The index does not hold this product."""


class PopularCorrupt(FreshetError):
    """The list of popular products in the store cannot be read."""


@dataclass(frozen=True)
class Embedding:
    """The embedding of a user: `vector` [dim] float32; times in milliseconds since the epoch.

    `event_ts` is the user's newest event (-1: none), `age_ms` the time since the embedding was written, and
    `recent` what they did lately: (product, kind, timestamp), newest first; `bought` what they bought: (product, how
    often, timestamp of the last, how often lately), newest first.
    """

    vector: F32
    model_version: str
    event_ts: int
    written_ts: int
    age_ms: int
    recent: list[tuple[str, str, int]]
    bought: list[tuple[str, int, int, float]]


@dataclass(frozen=True)
class Recommendations:
    """Products for a user, best first, as (product, score, reason).

    `source` is 'personal' where the user's embedding was used. Then a score is the probability that the user takes the
    product within the weeks the ranker was fitted on, and the reason is 'bought again', 'viewed lately', 'for you', or
    'popular' where popularity speaks for a product more than the user's taste. Otherwise `source` is 'popular' and the
    scores are popularities.
    """

    items: list[tuple[str, float, str]]
    model_version: str
    source: str
    user_known: bool


@runtime_checkable
class HeldIndex(Protocol):
    """Where a reader has its index from; a LiveIndex is one."""

    @property
    def moves(self) -> bool:
        """Whether it has another version by itself, when that is served."""
        ...

    def pair(self, served: str) -> tuple[ItemIndex, str]:
        """The index and its version; `served` is the version of the users that readers are served."""
        ...

    def reread(self, served: str) -> None:
        """Look for an index of this version, where that is possible."""
        ...


class IndexFolder:
    """The index in a snapshot folder. `reread` takes a snapshot of another version that was put there."""

    moves = False

    def __init__(self, path: Path) -> None:
        from freshet.store.faiss_index import open_index

        self._path, self._open = path, open_index
        self._lock = threading.Lock()
        self._pair = open_index(path)

    def pair(self, served: str) -> tuple[ItemIndex, str]:
        """See HeldIndex."""
        return self._pair

    def reread(self, served: str) -> None:
        """See HeldIndex. Raises IndexCorrupt."""
        with self._lock:
            if self._pair[1] != served and read_manifest(self._path).model_version == served:
                self._pair = self._open(self._path)


class BareIndex:
    """An ItemIndex. Without a version of its own it is taken to hold the one that is served at first use."""

    moves = False

    def __init__(self, index: ItemIndex, model_version: str | None) -> None:
        self._index, self._version = index, model_version

    def pair(self, served: str) -> tuple[ItemIndex, str]:
        """See HeldIndex."""
        if self._version is None and served:
            self._version = served
        return self._index, self._version or served

    def reread(self, served: str) -> None:
        """See HeldIndex. There is nowhere to look."""


class Reader:
    """Reads what Freshet serves. Threads may share one.

    `index` is a LiveIndex, which keeps itself fresh, the folder of an index snapshot, or an ItemIndex. Of an ItemIndex
    say the version its vectors are of with `model_version`; otherwise it is taken to be the one that is served when
    the reader first uses it.

    `redis_url` may be a RedisSettings, for TLS or a password from elsewhere; `namespace` is then its own.

    Every method may raise StoreUnavailable, where Redis does not answer, and ValueCorrupt, where a value in
    it cannot be read.
    """

    def __init__(
        self,
        redis_url: str | RedisSettings,
        index: ItemIndex | HeldIndex | Path | str,
        *,
        namespace: str = "freshet",
        model_version: str | None = None,
    ) -> None:
        from freshet.store.redis_store import RedisStore

        held = _held(index, model_version)
        if isinstance(redis_url, str):
            redis_url = RedisSettings(url=redis_url, namespace=namespace)
        store = RedisStore(redis_url)
        self._set(store, store, held, time.time, store.close)

    @classmethod
    def over(
        cls,
        store: EmbeddingStore,
        serving: ServingState,
        index: ItemIndex | HeldIndex | Path | str,
        *,
        model_version: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """A reader of stores that the caller opened and will close. `clock` gives seconds since the epoch."""
        reader = cls.__new__(cls)
        reader._set(store, serving, _held(index, model_version), clock, lambda: None)
        return reader

    def _set(
        self,
        store: EmbeddingStore,
        serving: ServingState,
        held: HeldIndex,
        clock: Callable[[], float],
        close: Callable[[], None],
    ) -> None:
        self._store, self._serving, self._held, self._clock, self._close = store, serving, held, clock, close
        self._ranker: tuple[str, Ranker] | None = None
        self._listed: tuple[str, float, list[tuple[str, float]]] | None = None

    def embedding(self, user_id: str) -> Embedding | None:
        """The embedding of a user; None for one that nobody knows. Raises NotServing."""
        version = self._served()
        raw = self._store.get(version, [user_id])[0]
        if raw is None and (newer := self._served()) != version:  # the old version's users may be gone by now
            version, raw = newer, self._store.get(newer, [user_id])[0]
        if raw is None:
            return None
        value = decode_value(raw)
        age_ms = max(0, int(self._clock() * 1e3) - value.written_ts)
        return Embedding(
            value.vector, value.model, value.event_ts, value.written_ts, age_ms, value.recent, value.bought
        )

    def recommend(
        self, user_id: str, k: int = 10, exclude_seen: bool = True, allowed: Collection[str] | None = None
    ) -> Recommendations:
        """At most k products for a user; popular ones for a user that nobody knows.

        `exclude_seen` leaves out what the user bought, and viewed lately (`bought` and `recent` of the embedding);
        without it, what is bought again is offered where it is more probable than anything new. `allowed` restricts
        the products: a category, what is in stock. Only products in the index are offered, so a withdrawn one is not.
        Raises NotServing, VersionMismatch, RankerCorrupt, and FreshetError for k below 1.
        """
        if k < 1:
            raise FreshetError(f"k is {k}: ask for at least one product")
        index, version, value = self._user(user_id)
        if value is None:
            return Recommendations(self._popular(index, version, k, allowed, ()), version, "popular", False)
        seen = _seen(value) if exclude_seen else frozenset()
        if not np.any(value.vector):  # nothing is known of this user: every product scores 0
            return Recommendations(self._popular(index, version, k, allowed, seen), version, "popular", True)
        found, reference = _found(index, value.vector, k, allowed, seen)
        wanted = None if allowed is None else frozenset(allowed)
        popular = [p for p, _ in self._list(version) if p not in seen and (wanted is None or p in wanted)][:k]
        known = [entry[0] for entry in value.bought] + [p for p, _, _ in value.recent]
        known = [p for p in known if p not in seen and (wanted is None or p in wanted)]
        asked = list(dict.fromkeys([*found, *popular, *known]))
        vectors, present = index.get(asked)
        names = [name for name, there in zip(asked, present.tolist(), strict=True) if there]
        return Recommendations(
            _ranked(self._ranker_of(version), value, names, vectors[present], reference, k, frozenset(popular)),
            version, "personal", True,
        )  # fmt: skip

    def similar(self, product_id: str, k: int = 10) -> list[tuple[str, float]]:
        """The k products most like this one, itself left out, as (product, cosine).

        Reads Redis for the version that is served where the index is a LiveIndex, and else not at all.

        Likeness leaves out the last coordinate, which holds popularity (`docs/contracts.md`).
        Raises UnknownProduct, and FreshetError for k below 1.
        """
        index, _ = self._agreed() if self._held.moves else self._held.pair("")
        vector, present = index.get([product_id])
        if not present[0]:
            raise UnknownProduct(
                f"product {product_id!r} is not in the index: it is withdrawn, or has not been in the catalogue "
                "or in an event yet"
            )
        content = vector.copy()
        content[:, -1] = 0.0
        content /= max(float(np.linalg.norm(content)), NORM_MIN)
        found = index.search(content, k, None, [[product_id]])
        return list(zip(found.ids[0], found.scores[0].tolist(), strict=True))

    def close(self) -> None:
        """Close the connections that the reader opened; those it was given stay open."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- parts ----------------------------------------------------------------------------------

    def _served(self) -> str:
        version = self._serving.current()
        if version is None:
            raise NotServing("no worker has gone live yet; start `freshet worker`")
        return version

    def _agreed(self) -> tuple[ItemIndex, str]:
        """The index, and the version that both it and the users that readers are served have."""
        served = self._served()
        index, version = self._held.pair(served)
        if version != served:  # the pointer may have moved in between, or an index of its version has come
            served = self._served()
            self._held.reread(served)
            index, version = self._held.pair(served)
        if version != served:
            held = repr(version) if version else "none"
            raise VersionMismatch(
                f"users are served in model version {served!r}, but the index holds {held}: open the reader with an "
                f"index of {served!r} (follow the changelog of products, or load a snapshot of it)"
            )
        return index, version

    def _user(self, user_id: str) -> tuple[ItemIndex, str, EmbeddingValue | None]:
        """Index, version and the user's value, all of that one version."""
        index, version = self._agreed()
        raw = self._store.get(version, [user_id])[0]
        if raw is None and self._served() != version:  # the old version's users may be gone by now
            index, version = self._agreed()
            raw = self._store.get(version, [user_id])[0]
        if raw is None:
            return index, version, None
        value = decode_value(raw)
        if value.model != version:
            raise VersionMismatch(
                f"the value of user {user_id!r} under version {version!r} says it is of {value.model!r}: "
                "something other than a worker wrote it; restart the worker to publish it again"
            )
        return index, version, value

    def _popular(
        self, index: ItemIndex, version: str, k: int, allowed: Collection[str] | None, without: Collection[str]
    ) -> list[tuple[str, float, str]]:
        wanted = None if allowed is None else frozenset(allowed)
        listed = [(p, s) for p, s in self._list(version) if p not in without and (wanted is None or p in wanted)]
        present = _present(index, [p for p, _ in listed])
        return [(p, s, POPULAR) for (p, s), there in zip(listed, present, strict=True) if there][:k]

    def _list(self, version: str) -> list[tuple[str, float]]:
        """The popular products of a version, most popular first, as they stood a moment ago."""
        now, kept = self._clock(), self._listed
        if kept is not None and kept[0] == version and 0.0 <= now - kept[1] < POPULAR_KEPT_S:
            return kept[2]
        blob = self._serving.get_blob(f"{version}:popular")
        try:
            listed = [] if blob is None else msgspec.msgpack.decode(blob, type=list[tuple[str, float]])
        except msgspec.MsgspecError as e:
            raise PopularCorrupt(f"the popular products of version {version!r} cannot be read: {e}") from e
        if listed:
            self._listed = version, now, listed
        return listed

    def _ranker_of(self, version: str) -> Ranker:
        """The ranker of a version, which never changes; the default one where no worker has written any."""
        kept = self._ranker  # another thread may put another version's there meanwhile
        if kept is None or kept[0] != version:
            blob = self._serving.get_blob(f"{version}:ranker")
            if blob is None:
                return Ranker()
            self._ranker = kept = version, load_ranker(blob)
        return kept[1]


def _seen(value: EmbeddingValue) -> frozenset[str]:
    return frozenset(p for p, _, _ in value.recent).union(entry[0] for entry in value.bought)


def _found(
    index: ItemIndex, vector: F32, k: int, allowed: Collection[str] | None, seen: frozenset[str]
) -> tuple[list[str], float]:
    """What the index finds for a user, and the inner product of the product of rank REFERENCE among all."""
    asked = max(k, REFERENCE)
    if allowed is None:
        both = index.search(np.stack([vector, vector]), asked, None, [(), seen])
        every, found = both.scores[0], both.ids[1]
    else:
        every = index.search(vector[None], asked).scores[0]
        found = index.search(vector[None], asked, allowed, [seen]).ids[0]
    return found, float(every[min(REFERENCE, len(every)) - 1]) if len(every) else 0.0


def _ranked(
    ranker: Ranker, value: EmbeddingValue, names: list[str], vectors: F32, reference: float, k: int,
    popular: frozenset[str],
) -> list[tuple[str, float, str]]:  # fmt: skip
    """The k most probable of `names` [n] with `vectors` [n, dim], each with its probability and a reason."""
    n = len(names)
    count, days, decayed = np.zeros((3, n), np.float32)
    place = {name: i for i, name in enumerate(names)}
    for product, times, last_ms, lately in value.bought:
        if (i := place.get(product)) is not None:
            count[i], days[i], decayed[i] = times, (value.event_ts - last_ms) / DAY_MS, lately
    viewed = {product for product, kind, _ in value.recent if kind == "view"}
    was_viewed = np.array([name in viewed for name in names], dtype=np.bool_)
    score, level = vectors @ value.vector, vectors[:, -1] * value.vector[-1]
    again = ranker.again_of(names)
    pairs = Pairs(score, np.full(n, reference, np.float32), level, count, days, decayed, was_viewed, again)
    chance = probability(logit(ranker.weights, pairs))
    items = []
    for i in np.argsort(-chance, kind="stable")[:k].tolist():
        reason = FOR_YOU if names[i] not in popular or 2.0 * level[i] < score[i] else POPULAR
        reason = BOUGHT_AGAIN if count[i] else VIEWED if was_viewed[i] else reason
        items.append((names[i], float(chance[i]), reason))
    return items


def _present(index: ItemIndex, ids: Sequence[str]) -> list[bool]:
    there: list[bool] = index.get(ids)[1].tolist()
    return there


def _held(index: ItemIndex | HeldIndex | Path | str, model_version: str | None) -> HeldIndex:
    if isinstance(index, (str, Path)):
        return IndexFolder(Path(index))
    if isinstance(index, HeldIndex):
        return index
    return BareIndex(index, model_version)
