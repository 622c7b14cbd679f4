"""What a worker does: all of it, or one of the two halves that several workers share."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """`ALL` is a worker alone. `USERS` share the partitions of users; `ITEMS` reads everything, computes products and
    tells the others their first-layer states."""

    ALL = "all"
    USERS = "users"
    ITEMS = "items"

    @property
    def writes_users(self) -> bool:
        """Whether it writes user embeddings."""
        return self is not Role.ITEMS

    @property
    def writes_items(self) -> bool:
        """Whether it writes item embeddings."""
        return self is not Role.USERS
