"""What Freshet needs of a place for embeddings: its protocols, and their rule.

A write counts iff its `seq` is greater than that of what is there. An equal one is the same write again
and changes nothing; a smaller one comes from a worker that has been replaced and is refused. A deletion is
a write: its `seq` stays for a while where the value was, so that no older value comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.value import Seq


class StoreUnavailable(FreshetError):
    """The store does not answer, or cannot take writes for now; what was to be written should be kept."""


Landing = Callable[[], NDArray[np.bool_]]
"""Waits until values that are on their way have been written, and returns what `upsert` does. Raises what it raises;
called again it writes all of them again."""


class EmbeddingStore(Protocol):
    """Values of users by model version."""

    def upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """Write n values; returns [n] bool, true where the store holds a greater `seq` and refused.

        Of a user given twice the greater `seq` stays. Raises ValueError where n differs, StoreUnavailable; after
        the latter some values may have been written, and writing all of them again is right.
        """
        ...

    def begin_upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> Landing:
        """Send n values on their way, and return what waits for them: the store works while the caller does.

        Until they have landed any of them may be there or not. Raises ValueError where n differs, and nothing else:
        a store that is away is for the landing to tell.
        """
        ...

    def get(self, model_version: str, user_ids: Sequence[str]) -> list[bytes | None]:
        """The values of n users, None where there is none."""
        ...

    def delete(self, model_version: str, user_ids: Sequence[str], seq: Seq) -> NDArray[np.bool_]:
        """Remove n users; returns [n] bool, true where the store holds a greater `seq` and refused.

        For the store's `guard_s` no value with a smaller `seq` is taken for them; what is kept for that names
        nobody. Raises StoreUnavailable.
        """
        ...

    def user_ids(self, model_version: str) -> Iterator[str]:
        """Every user with a value, in no order. A user who is written or deleted meanwhile may or may not come,
        and one may come twice."""
        ...


class NamedBlobs(Protocol):
    """Values of a model version that are not a user's, such as the popular products, under the same rule."""

    def put_blob(self, name: str, seq: Seq, blob: bytes) -> bool:
        """Write a named value; returns False where the store holds a greater `seq` and refused."""
        ...

    def get_blob(self, name: str) -> bytes | None:
        """A named value; None where there is none."""
        ...


class ServingState(NamedBlobs, Protocol):
    """Which version readers use, fencing tokens, and whether the store is the one it was."""

    def current(self) -> str | None:
        """The version that readers should use, `freshet:current`; None before a worker has gone live."""
        ...

    def set_current(self, model_version: str) -> None:
        """Point readers to a version."""
        ...

    def next_fence(self, scope: str, floor: int) -> int:
        """A token greater than every one before it in this scope, and than `floor`.

        A store that has lost everything forgets the tokens, so pass a floor that grows: the wall clock in ms.
        """
        ...

    def fence(self, scope: str) -> int:
        """The last token of a scope; 0 where the store knows of none."""
        ...

    def incarnation(self) -> str:
        """A text that is another one whenever the data may have been lost or gone back in time: after a restart or a
        failover of any server that holds some of it. A cluster that is only rearranged may change it too.

        Raises StoreUnavailable while any of those servers is away.
        """
        ...


def check_lengths(user_ids: Sequence[str], values: Sequence[bytes]) -> None:
    """Raises ValueError unless there is one value a user."""
    if len(user_ids) != len(values):
        raise ValueError(f"{len(user_ids)} users came with {len(values)} values: give one value a user")
