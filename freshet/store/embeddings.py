"""What Freshet needs of a place for embeddings: two protocols, and their rule.

A write counts iff its `seq` is greater than that of what is there. An equal one is the same write again
and changes nothing; a smaller one comes from a worker that has been replaced and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.value import Seq


class StoreUnavailable(FreshetError):
    """The store does not answer, or cannot take writes for now; what was to be written should be kept."""


class EmbeddingStore(Protocol):
    """Values of users by model version."""

    def upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """Write n values; returns [n] bool, true where the store holds a greater `seq` and refused."""
        ...

    def get(self, model_version: str, user_ids: Sequence[str]) -> list[bytes | None]:
        """The values of n users, None where there is none."""
        ...

    def delete(self, model_version: str, user_ids: Sequence[str]) -> None:
        """Remove users; nothing of them stays."""
        ...

    def user_ids(self, model_version: str) -> Iterator[str]:
        """Every user with a value, in no order."""
        ...


class ServingState(Protocol):
    """What is not a user's: which version readers use, fencing tokens, the sentinel, named blobs."""

    def current(self) -> str | None:
        """The version that readers should use, `freshet:current`."""
        ...

    def set_current(self, model_version: str) -> None:
        """Point readers to a version."""
        ...

    def next_fence(self, scope: str, floor: int) -> int:
        """A token greater than every one before it and than `floor`."""
        ...

    def sentinel(self, model_version: str) -> str | None:
        """What `set_sentinel` left; None tells that the store has lost its data."""
        ...

    def set_sentinel(self, model_version: str, text: str) -> None:
        """Note that this version is whole."""
        ...

    def put_blob(self, name: str, seq: Seq, blob: bytes) -> bool:
        """Write a named value under the rule of `seq`; returns whether it was written."""
        ...

    def get_blob(self, name: str) -> bytes | None:
        """A named value."""
        ...
