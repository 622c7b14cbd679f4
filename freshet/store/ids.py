"""String ids to dense integers and back.

A Python dict does the look-up: ids arrive as Python strings and a compiled table would have to copy
their bytes first (a look-up costs 60-100 ns, two or three an event).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np
import xxhash

from freshet.store.columns import I32, U64


def hash_ids(ids: Sequence[str]) -> U64:
    """xxh3 of each id's UTF-8 bytes, [n] uint64."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter(map(digest, map(str.encode, ids)), np.uint64, len(ids))


class IdMap:
    """Numbers ids 0, 1, 2, ... in the order they are first seen. `hash` [n] uint64 is xxh3 of each id.

    A number depends on the order of arrival; nothing that leaves the store may depend on it. Ties are
    broken by `hash`.
    """

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._name: list[str | None] = []
        self._hash: U64 = np.zeros(1024, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._name)

    @property
    def known(self) -> int:
        """How many ids are known: all that were numbered but those forgotten."""
        return len(self._number)

    @property
    def hash(self) -> U64:
        """Hash of each id by its number, [n] uint64."""
        return self._hash[: len(self._name)]

    def intern(self, ids: Sequence[str]) -> I32:
        """Numbers of `ids` [n]; ids not seen before are added."""
        numbers = np.fromiter(map(self._number.get, ids, repeat(-1)), np.int32, len(ids))
        unknown = np.flatnonzero(numbers < 0)
        if unknown.shape[0]:
            new = ids if unknown.shape[0] == len(ids) else [ids[i] for i in unknown.tolist()]
            numbers[unknown] = self._add(new)
        return numbers

    def _add(self, new: Sequence[str]) -> I32:
        """Number these ids, none of them known; the numbers [n], of an id that is there twice the same."""
        known = len(self._name)
        number_of = dict(zip(new, range(known, known + len(new)), strict=True))
        if len(number_of) < len(new):
            number_of = dict(zip(dict.fromkeys(new), range(known, known + len(new)), strict=False))
            numbers = np.fromiter(map(number_of.__getitem__, new), np.int32, len(new))
        else:
            numbers = np.arange(known, known + len(new), dtype=np.int32)
        self._number.update(number_of)
        self._name.extend(number_of)
        if len(self._name) > self._hash.shape[0]:
            room = max(len(self._name), 2 * self._hash.shape[0])
            self._hash = np.concatenate([self._hash, np.zeros(room - self._hash.shape[0], dtype=np.uint64)])
        self._hash[known : len(self._name)] = hash_ids(list(number_of))
        return numbers

    def get(self, name: str) -> int | None:
        """The number of `name`, or None when it was never seen (or was forgotten)."""
        return self._number.get(name)

    def name(self, number: int) -> str | None:
        """The id with this number; None when it was forgotten."""
        return self._name[number]

    def names(self, numbers: I32) -> list[str | None]:
        """The ids with these numbers; None for those forgotten."""
        table = self._name
        return [table[n] for n in numbers.tolist()]

    def all_names(self) -> list[str]:
        """Every id that is known, in the order of its number."""
        return [name for name in self._name if name is not None]

    def forget(self, number: int) -> None:
        """Drop the id with this number: its name is gone, its number is never given out again."""
        name = self._name[number]
        if name is not None:
            del self._number[name]
            self._name[number] = None
