"""What a chosen model comes to over one log: embeddings and what the answers need, ready to be asked and kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from freshet.reader import FOR_YOU, POPULAR
from freshet.store.columns import F32, I32, I64, Bool
from freshet.store.graph import GraphStore
from freshet.store.history import History, Lines
from freshet.store.popularity import PopularityConfig, of_history
from freshet.stream.query.catalogue import Catalogue
from freshet.stream.query.language import EXCLUDED
from freshet.stream.query.validation import batches, top_k

ARRAYS = ("user_embedding", "product_embedding", "popularity")
FILE = "encoded.npz"


@dataclass(frozen=True)
class Prediction:
    """Products for a user, best first, as (product, score, reason): 'for you' with an inner product, 'popular' with
    a decayed count. `known` says whether anything is known of the user."""

    user: str
    known: bool
    items: list[tuple[str, float, str]]


@dataclass(frozen=True)
class Owned:
    """Products of each user as a CSR over places in the catalogue: `ptr` [users + 1] int64, `product` int32."""

    ptr: I64
    product: I32

    def of(self, user: int) -> I32:
        """The products of one user."""
        return self.product[self.ptr[user] : self.ptr[user + 1]]


@dataclass(frozen=True)
class Encoded:
    """`users` ids with `user_embedding` [u, dim], the `catalogue` on offer with `product_embedding` [p, dim] and
    `popularity` [p], all float32; `owned` says what each user 'bought' and has 'seen'."""

    users: list[str]
    user_embedding: F32
    catalogue: Catalogue
    product_embedding: F32
    popularity: F32
    owned: dict[str, Owned]

    @staticmethod
    def of(
        history: History, graph: GraphStore, users: I32, products: I32, user_embedding: F32, product_embedding: F32
    ) -> Encoded:
        """`users` and `products` are numbers of the graph; the history is of the same events."""
        user_ids = [name or "" for name in graph.users.names(users)]
        product_ids = [name or "" for name in graph.products.names(products)]
        of_user = _places(user_ids, [history.users.get(name) for name in user_ids], len(history.users))
        of_product = _places(product_ids, [history.products.get(name) for name in product_ids], len(history.products))
        bought = history.purchases.take(history.purchases.flag == 0)
        pairs = {"bought": [bought], "seen": [bought, history.views]}
        return Encoded(
            user_ids,
            user_embedding,
            Catalogue.of(product_ids, graph.product_attributes.take(products)),
            product_embedding,
            _popularity(history, of_product, len(product_ids)),
            {name: _owned(pairs[name], of_user, of_product, len(user_ids), len(product_ids)) for name in EXCLUDED},
        )

    def predict(
        self, users: Sequence[str] | None, k: int, allowed: Bool, excluding: Collection[str]
    ) -> Iterator[Prediction]:
        """The k best products for each user (None: for all), exactly; `allowed` [p] restricts the products."""
        names = self.users if users is None else list(users)
        place_of = {name: i for i, name in enumerate(self.users)}
        place = np.array([place_of.get(name, -1) for name in names], dtype=np.int64)
        offered = np.flatnonzero(allowed)
        vectors, popularity = self.product_embedding[offered].T, self.popularity[offered]
        column = np.full(allowed.shape[0], -1, dtype=np.int64)
        column[offered] = np.arange(offered.shape[0])
        is_bare = np.abs(self.user_embedding).max(axis=1, initial=0.0) == 0.0
        shown = np.where(popularity > 0, popularity, -np.inf).astype(np.float32)
        for _, part in batches(len(names), offered.shape[0]):
            at = place[part]
            # an unknown user, or one of whom nothing is known, is offered what is popular
            personal = np.array([u >= 0 and not is_bare[u] for u in at.tolist()], dtype=np.bool_)
            scores = np.tile(shown, (at.shape[0], 1))
            scores[personal] = self.user_embedding[at[personal]] @ vectors
            for i in np.flatnonzero(at >= 0).tolist() if excluding else []:
                for name in excluding:
                    out = column[self.owned[name].of(int(at[i]))]
                    scores[i, out[out >= 0]] = -np.inf
            top, value = top_k(scores, k)
            for i in range(at.shape[0]):  # a loop over answers
                kept = np.isfinite(value[i])
                found = zip(offered[top[i][kept]].tolist(), value[i][kept].tolist(), strict=True)
                reason = FOR_YOU if personal[i] else POPULAR
                items = [(self.catalogue.product[p], score, reason) for p, score in found]
                yield Prediction(names[part.start + i], bool(at[i] >= 0), items)

    def save(self, folder: Path) -> None:
        """Write the file that `load` reads into a folder."""
        owned = {f"{name}.{c}": getattr(o, c) for name, o in self.owned.items() for c in ("ptr", "product")}
        texts = {"users": msgspec.msgpack.encode(self.users), "catalogue": self.catalogue.dump()}
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ARRAYS}
        arrays |= owned | {name: np.frombuffer(text, dtype=np.uint8) for name, text in texts.items()}
        np.savez(folder / FILE, **arrays)

    @staticmethod
    def load(folder: Path) -> Encoded:
        """What `save` wrote. Raises OSError, ValueError, KeyError or msgspec.MsgspecError where it is damaged."""
        with np.load(folder / FILE, allow_pickle=False) as data:
            return Encoded(
                msgspec.msgpack.decode(data["users"].tobytes(), type=list[str]),
                data["user_embedding"],
                Catalogue.load(data["catalogue"].tobytes()),
                data["product_embedding"],
                data["popularity"],
                {name: Owned(data[f"{name}.ptr"], data[f"{name}.product"]) for name in EXCLUDED},
            )


def _places(names: Sequence[str], numbers: Sequence[int | None], size: int) -> I64:
    """The place in `names` of each number of the history, -1 for those that are not among them; [size] int64."""
    places = np.full(max(1, size), -1, dtype=np.int64)
    for place, number in enumerate(numbers):
        if number is not None:
            places[number] = place
    return places


def _owned(parts: Sequence[Lines], of_user: I64, of_product: I64, users: int, products: int) -> Owned:
    user = of_user[np.concatenate([lines.user for lines in parts])]
    product = of_product[np.concatenate([lines.product for lines in parts])]
    kept = (user >= 0) & (product >= 0)
    pair = np.unique(user[kept] * max(1, products) + product[kept])
    ptr = np.searchsorted(pair // max(1, products), np.arange(users + 1))
    return Owned(ptr, (pair % max(1, products)).astype(np.int32))


def _popularity(history: History, of_product: I64, products: int) -> F32:
    """Decayed counts of purchases and views; where there are neither, of what sessions show."""
    if history.span_ms is not None:
        found = of_history(history, history.span_ms[1] + 1, PopularityConfig())
    else:
        found = np.bincount(history.sessions.product, minlength=len(history.products)).astype(np.float32)
    out = np.zeros(products, dtype=np.float32)
    kept = of_product[: found.shape[0]] >= 0
    out[of_product[: found.shape[0]][kept]] = found[kept]
    return out
