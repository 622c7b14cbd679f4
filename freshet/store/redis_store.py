"""Redis: the only file that imports its client.

A script compares `seq` and writes, a few hundred values a call and the calls of a batch in one pipeline.
Repeating a call is harmless, which is what makes retries after a timeout safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import redis
from numpy.typing import NDArray

from freshet.errors import FreshetError
from freshet.store.embeddings import StoreUnavailable
from freshet.store.redis_settings import RedisSettings
from freshet.store.value import SEQ_CHARS, SEQ_PLACE, Seq

T = TypeVar("T")

UPSERT = f"""
local from, to, ttl = {SEQ_PLACE}, {SEQ_PLACE + SEQ_CHARS - 1}, tonumber(ARGV[1])
local stale = {{}}
for i, key in ipairs(KEYS) do
  local new = string.sub(ARGV[i + 1], from + 1, to + 1)
  local held = redis.call('GETRANGE', key, from, to)
  if held == '' or held < new then
    if ttl > 0 then redis.call('SET', key, ARGV[i + 1], 'EX', ttl) else redis.call('SET', key, ARGV[i + 1]) end
  elseif held > new then
    stale[#stale + 1] = i
  end
end
return stale
"""

BLOB = f"""
local held = redis.call('GETRANGE', KEYS[1], 0, {SEQ_CHARS - 1})
if held ~= '' and held >= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2])
return 1
"""

FENCE = """
local held = tonumber(redis.call('GET', KEYS[1]) or '0')
local token = math.max(held, tonumber(ARGV[1])) + 1
redis.call('SET', KEYS[1], string.format('%.0f', token))
return token
"""

_PASSING = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.OutOfMemoryError)
"""What may pass by itself: the store is away, loading, a replica for now, or full."""


class RedisStore:
    """An `EmbeddingStore` and a `ServingState` on Redis or Valkey."""

    def __init__(self, settings: RedisSettings | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings = settings or RedisSettings()
        self._sleep = sleep
        seconds = self.settings.timeout_ms / 1e3
        try:
            self._redis: Any = redis.Redis.from_url(
                self.settings.url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=None
            )
        except ValueError as e:
            raise FreshetError(f"Redis URL {self.settings.url!r} cannot be used: {e}") from e
        self._upsert = self._redis.register_script(UPSERT)
        self._blob = self._redis.register_script(BLOB)
        self._fence = self._redis.register_script(FENCE)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    # --- EmbeddingStore -------------------------------------------------------------------------

    def upsert(self, model_version: str, user_ids: Sequence[str], values: Sequence[bytes]) -> NDArray[np.bool_]:
        """See `EmbeddingStore.upsert`."""
        stale = np.zeros(len(user_ids), dtype=np.bool_)
        if not len(user_ids):
            return stale
        keys, size = self._user_keys(model_version, user_ids), self.settings.keys_per_call

        def write() -> list[list[int]]:
            pipe = self._redis.pipeline(transaction=False)
            for start in range(0, len(keys), size):
                part = values[start : start + size]
                self._upsert(keys[start : start + size], [self.settings.ttl_s or 0, *part], client=pipe)
            found: list[list[int]] = pipe.execute()
            return found

        for call, places in enumerate(self._attempt(write)):
            stale[[call * size + place - 1 for place in places]] = True
        return stale

    def get(self, model_version: str, user_ids: Sequence[str]) -> list[bytes | None]:
        """See `EmbeddingStore.get`."""
        if not len(user_ids):
            return []
        keys = self._user_keys(model_version, user_ids)
        found: list[bytes | None] = self._attempt(lambda: self._redis.mget(keys))
        return found

    def delete(self, model_version: str, user_ids: Sequence[str]) -> None:
        """See `EmbeddingStore.delete`."""
        if len(user_ids):
            keys = self._user_keys(model_version, user_ids)
            self._attempt(lambda: self._redis.delete(*keys))

    def user_ids(self, model_version: str) -> Iterator[str]:
        """See `EmbeddingStore.user_ids`."""
        prefix = self._key(f"{model_version}:user:")
        escaped = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix)
        for key in self._redis.scan_iter(match=escaped + "*", count=1_000):
            yield key.decode()[len(prefix) :]

    # --- ServingState ---------------------------------------------------------------------------

    def current(self) -> str | None:
        """See `ServingState.current`."""
        return self._text("current")

    def set_current(self, model_version: str) -> None:
        """See `ServingState.set_current`."""
        self._attempt(lambda: self._redis.set(self._key("current"), model_version))

    def next_fence(self, scope: str, floor: int) -> int:
        """See `ServingState.next_fence`."""
        return int(self._attempt(lambda: self._fence([self._key(f"fence:{scope}")], [floor])))

    def sentinel(self, model_version: str) -> str | None:
        """See `ServingState.sentinel`."""
        return self._text(f"{model_version}:sentinel")

    def set_sentinel(self, model_version: str, text: str) -> None:
        """See `ServingState.set_sentinel`."""
        self._attempt(lambda: self._redis.set(self._key(f"{model_version}:sentinel"), text))

    def put_blob(self, name: str, seq: Seq, blob: bytes) -> bool:
        """See `ServingState.put_blob`."""
        return bool(self._attempt(lambda: self._blob([self._key(name)], [seq.text(), blob])))

    def get_blob(self, name: str) -> bytes | None:
        """See `ServingState.get_blob`."""
        raw = self._attempt(lambda: self._redis.get(self._key(name)))
        return None if raw is None else raw[SEQ_CHARS:]

    # --- parts ----------------------------------------------------------------------------------

    def _key(self, rest: str) -> str:
        return f"{self.settings.namespace}:{rest}"

    def _user_keys(self, model_version: str, user_ids: Sequence[str]) -> list[str]:
        prefix = self._key(f"{model_version}:user:")
        return [prefix + user for user in user_ids]

    def _text(self, rest: str) -> str | None:
        raw = self._attempt(lambda: self._redis.get(self._key(rest)))
        return None if raw is None else raw.decode()

    def _attempt(self, call: Callable[[], T]) -> T:
        """Make an idempotent call, again if need be."""
        wait_s = self.settings.retry_ms / 1e3
        for left in range(self.settings.attempts - 1, -1, -1):
            try:
                return call()
            except redis.AuthenticationError as e:
                raise FreshetError(f"Redis at {self.settings.url} refuses the login: {e}; put it into the URL") from e
            except _PASSING as e:
                if not left:
                    raise StoreUnavailable(
                        f"Redis at {self.settings.url} does not take this ({e}): start it (`freshet redis` runs an "
                        "embedded one), or name another with --redis"
                    ) from e
                self._sleep(wait_s)
                wait_s *= 2
            except redis.RedisError as e:
                raise FreshetError(f"Redis at {self.settings.url}: {e}") from e
        raise AssertionError("attempts is at least 1")
