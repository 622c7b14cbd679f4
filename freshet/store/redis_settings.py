"""How Redis is reached and written; free of the client library."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class RedisSettings:
    """How Redis or Valkey is reached and written."""

    url: str = "redis://127.0.0.1:6379/0"
    namespace: str = "freshet"
    """What every key begins with."""
    ttl_s: int | None = None
    """How long a user's value lives after its last write; None for ever."""
    guard_s: int = 86_400
    """How long after a user was forgotten an older write, of a worker that has been replaced, is still refused."""
    timeout_ms: int = 2_000
    """How long a connection attempt or an answer may take."""
    keys_per_call: int = 256
    """Values of one script call; a longer script would hold up readers."""
    attempts: int = 3
    """Tries of a call before the store counts as unavailable; the worker then waits and tries again."""
    retry_ms: float = 50.0
    """Pause before the second try, doubled before each further one."""

    @property
    def url_shown(self) -> str:
        """The URL without its password, for messages."""
        return without_password(self.url)

    def __post_init__(self) -> None:
        for name in ("guard_s", "timeout_ms", "keys_per_call", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1")
        if self.ttl_s is not None and self.ttl_s < 1:
            raise ValueError(f"ttl_s is {self.ttl_s}: it has to be at least 1, or absent for values that never expire")
        if self.retry_ms < 0:
            raise ValueError(f"retry_ms is {self.retry_ms}: it cannot be negative")


def without_password(url: str) -> str:
    """A Redis URL as it may be shown."""
    url = re.sub(r"(://[^@/?]*:)[^@/?]*@", r"\1***@", url)
    return re.sub(r"([?&]password=)[^&]*", r"\1***", url)
